"""Weights of linear layers in fewer bits than they are computed in, as data: plain PyTorch, and what kernels read.

A layer multiplies by a weight [N, K] and does not know how it is stored. Each form can be multiplied by, written out
in full, and laid below others of its kind, which is how fused layers (qkv, gate and up) are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.fp8 import E4M3, LARGEST, encoded, widened

_CHUNK = 1 << 21  # elements of a weight written out at once: what is read again is still in the cache
_FP8_TILE = 1 << 20  # elements: 2 MB as they are multiplied
INT4_GROUPS = (32, 64, 128, 256)  # columns per scale that torch's packed product takes


class PackedWeight(Protocol):
    """A weight [N, K] of a linear layer."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def matmul(self, x: Tensor) -> Tensor:
        """x [n, K] @ weight.T -> [n, N] in x's dtype."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[N, K], the numbers that the stored ones stand for."""

    def nbytes(self) -> int: ...

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        """The rows of all parts in one weight; None where they cannot share one."""


Weight = Tensor | PackedWeight


def fuse(parts: Sequence[Weight]) -> PackedWeight:
    """The rows of all parts: as one weight where they are alike, else side by side."""
    first = parts[0]
    if len(parts) == 1 and not isinstance(first, Tensor):
        return first
    if not isinstance(first, Tensor) and all(type(part) is type(first) for part in parts):
        alike = type(first).stacked([part for part in parts if not isinstance(part, Tensor)])
        if alike is not None:
            return alike
    return SideBySide(tuple(parts))


def _by_group(columns: Tensor, groups: int) -> Tensor:
    """[n, K] -> [n, G, K / G]"""
    return columns.reshape(len(columns), groups, -1)


def _matmul_by_rows(weight: "ScaledWeight | Int4Weight | CodebookWeight", x: Tensor) -> Tensor:
    """Never more than a few rows of the weight are written out at once."""
    rows, columns = weight.shape
    step = max(1, _CHUNK // columns)
    out = x.new_empty(len(x), rows)
    for start in range(0, rows, step):
        out[:, start : start + step] = x @ weight.rows(start, start + step, x.dtype).T
    return out


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Weights that differ in form, or in how their inputs are rounded, as one layer."""

    parts: tuple[Weight, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def matmul(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, p) if isinstance(p, Tensor) else p.matmul(x) for p in self.parts], -1)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return torch.cat([p.to(dtype) if isinstance(p, Tensor) else p.dequantized(dtype) for p in self.parts])

    def nbytes(self) -> int:
        return sum(p.nbytes if isinstance(p, Tensor) else p.nbytes() for p in self.parts)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        return None


@dataclass(frozen=True, slots=True)
class Activations:
    """How inputs are rounded before they meet weights of 8 bits.

    scale: float32 scalar, measured ahead for all inputs; None: from each row as it comes.
    bound: a row's largest magnitude counts as no more than that (fbgemm).  group: columns that share a scale;
        None: all.
    """

    scale: Tensor | None = None
    bound: float | None = None
    group: int | None = None

    def quantize(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Codes [n, K] of this dtype, and float32 scales that broadcast over them seen as [n, G, K / G]."""
        grouped = _by_group(x.float(), self._groups(x))
        top = LARGEST if dtype is E4M3 else 127.0
        if self.scale is None:
            largest = grouped.abs().amax(-1, keepdim=True)
            scales = (largest if self.bound is None else largest.clamp(max=self.bound)) / top
            scales = scales.clamp(min=torch.finfo(torch.float32).eps)
        else:
            scales = self.scale.view(1, 1, 1)
        if dtype is E4M3:
            return encoded(grouped, scales).flatten(1), scales
        return (grouped / scales).round().clamp(-128, 127).to(dtype).flatten(1), scales

    def rounded(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        codes, scales = self.quantize(x, dtype)
        numbers = widened(codes, torch.float32) if dtype is E4M3 else codes.float()
        return (_by_group(numbers, self._groups(x)) * scales).flatten(1).to(x.dtype)

    def _groups(self, x: Tensor) -> int:
        return 1 if self.group is None else x.shape[1] // self.group

    def like(self, other: "Activations | None") -> bool:
        if other is None or (self.bound, self.group) != (other.bound, other.group):
            return False
        if self.scale is None or other.scale is None:
            return self.scale is other.scale
        return torch.equal(self.scale, other.scale)


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """codes [N, K], int8 or float8_e4m3fn, times scales [N, G], float32, each for K / G columns."""

    codes: Tensor
    scales: Tensor
    activations: Activations | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        codes, scales = self.codes[start:end], self.scales[start:end].to(dtype)
        numbers = widened(codes, dtype) if codes.dtype is E4M3 else codes.to(dtype)
        return (_by_group(numbers, scales.shape[1]) * scales[..., None]).flatten(1)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.rows(0, len(self.codes), torch.float32).to(dtype)

    def matmul(self, x: Tensor) -> Tensor:
        if self.activations is not None:
            whole = self.scales.shape[1] == 1 and self.activations.group is None
            if self.codes.dtype is torch.int8 and whole and x.device.type == "cpu":
                return self._int_matmul(x, self.activations)
            x = self.activations.rounded(x, self.codes.dtype)
        elif self._suits_torch(x):
            return torch._weight_int8pack_mm(x, self.codes, self.scales[:, 0].to(x.dtype))
        if self.codes.dtype is E4M3 and self.scales.shape[1] == 1 and x.dtype is torch.bfloat16:
            return self._fp8_matmul(x)
        return _matmul_by_rows(self, x)

    def _fp8_matmul(self, x: Tensor) -> Tensor:
        """Widened in tiles that stay in the cache; a row's scale is multiplied to what comes of it."""
        out = x.new_empty(len(x), len(self.codes))
        step = max(1, _FP8_TILE // self.codes.shape[1])
        for start in range(0, len(self.codes), step):
            out[:, start : start + step] = x @ widened(self.codes[start : start + step], x.dtype).T
        return (out * self.scales[:, 0]).to(x.dtype)

    def _suits_torch(self, x: Tensor) -> bool:
        """Faster than writing rows out up to some 32 rows (benchmarks/quantization.py); torch has it in bfloat16."""
        few = len(x) <= 32 and x.dtype is torch.bfloat16 and x.device.type == "cpu"
        even = self.codes.shape[0] % 16 == 0 and self.codes.shape[1] % 16 == 0  # odd widths crash it
        return few and even and self.codes.dtype is torch.int8 and self.scales.shape[1] == 1

    def _int_matmul(self, x: Tensor, activations: Activations) -> Tensor:
        codes, scales = activations.quantize(x, torch.int8)
        sums = torch._int_mm(codes, self.codes.T)
        return (sums.float() * scales[:, 0] * self.scales[:, 0]).to(x.dtype)

    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        first = parts[0]
        for part in parts:
            same = part.activations is first.activations is None
            same = same or (first.activations is not None and first.activations.like(part.activations))
            if not same or (part.codes.dtype, part.scales.shape[1]) != (first.codes.dtype, first.scales.shape[1]):
                return None
        codes, scales = torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts])
        return cls(codes, scales, first.activations)


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """(code - zero) * scale, with codes 0 to 15.

    packed: uint8 [N, K / 2], an even column in the low half.  scales, zeros: [N, G], each for K / G columns.
    order: int64 [K], the input that meets each column (act-order); None: its own.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    order: Tensor | None = None

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, zeros: Tensor, order: Tensor | None = None) -> Self:
        """codes: [N, K] of any integer dtype."""
        codes = codes.to(torch.uint8).contiguous()
        packed = codes[:, ::2] | codes[:, 1::2] << 4
        return cls(packed.contiguous(), scales.contiguous(), zeros.to(scales.dtype).contiguous(), order)

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * 2

    @property
    def group(self) -> int:
        return self.shape[1] // self.scales.shape[1]

    def codes(self, start: int = 0, end: int | None = None) -> Tensor:
        """uint8 [N, K]"""
        packed = self.packed[start:end]
        return torch.stack([packed & 15, packed >> 4], -1).flatten(1)

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """Columns as stored, whatever the order of the inputs."""
        codes = _by_group(self.codes(start, end).to(dtype), self.scales.shape[1])
        scales, zeros = self.scales[start:end].to(dtype), self.zeros[start:end].to(dtype)
        return ((codes - zeros[..., None]) * scales[..., None]).flatten(1)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        stored = self.rows(0, self.shape[0], torch.float32).to(dtype)
        return stored if self.order is None else torch.empty_like(stored).index_copy_(1, self.order, stored)

    def matmul(self, x: Tensor) -> Tensor:
        return _matmul_by_rows(self, x if self.order is None else x[:, self.order])

    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes + self.zeros.nbytes

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        first = parts[0]
        for part in parts:
            same = part.order is first.order or (
                part.order is not None and first.order is not None and torch.equal(part.order, first.order)
            )
            if not same or part.scales.shape[1] != first.scales.shape[1]:
                return None
        packed, scales, zeros = ([getattr(part, name) for part in parts] for name in ("packed", "scales", "zeros"))
        return cls(torch.cat(packed), torch.cat(scales), torch.cat(zeros), first.order)


@dataclass(frozen=True, slots=True)
class CodebookWeight:
    """table[code] * absmax, as bitsandbytes stores NF4 and FP4.

    packed: uint8 [N, K / 2], an even column in the high half.  table: float32 [16].
    absmax: float32 [N, G], each for K / G columns.
    """

    packed: Tensor
    table: Tensor
    absmax: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * 2

    def rows(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        packed = self.packed[start:end].int()
        pairs = torch.stack([self.table.repeat_interleave(16), self.table.repeat(16)], -1).to(dtype)
        values = _by_group(F.embedding(packed, pairs).flatten(1), self.absmax.shape[1])
        return (values * self.absmax[start:end, :, None].to(dtype)).flatten(1)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.rows(0, self.shape[0], torch.float32).to(dtype)

    def matmul(self, x: Tensor) -> Tensor:
        return _matmul_by_rows(self, x)

    def nbytes(self) -> int:
        return self.packed.nbytes + self.table.nbytes + self.absmax.nbytes

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        first = parts[0]
        if any(part.absmax.shape[1] != first.absmax.shape[1] for part in parts):
            return None
        if not all(torch.equal(part.table, first.table) for part in parts):
            return None
        packed, absmax = torch.cat([p.packed for p in parts]), torch.cat([p.absmax for p in parts])
        return cls(packed, first.table, absmax)
