"""4-bit weights in the layout of torch's own product for CPUs, which has it in bfloat16."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from app.kernels.packed import INT4_GROUPS, Int4Weight, PackedWeight, SideBySide


@dataclass(frozen=True, slots=True)
class CpuInt4Weight:
    """packed: as torch lays it out for the CPU at hand.  scale_and_offset: bfloat16 [G, N, 2]: (code - 8) * s + o."""

    packed: Tensor
    scale_and_offset: Tensor
    order: Tensor | None
    shape: tuple[int, int]

    @classmethod
    def of(cls, weight: Int4Weight) -> Self:
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes().int(), 1)
        scales = weight.scales.float()
        offsets = (8 - weight.zeros.float()) * scales
        pairs = torch.stack([scales.T, offsets.T], -1).to(torch.bfloat16).contiguous()
        return cls(packed, pairs, weight.order, weight.shape)

    def matmul(self, x: Tensor) -> Tensor:
        group = self.shape[1] // len(self.scale_and_offset)
        x = (x if self.order is None else x[:, self.order]).contiguous()
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, group, self.scale_and_offset)
        return out

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """By asking for the product with every unit vector."""
        return self.matmul(torch.eye(self.shape[1], dtype=torch.bfloat16)).T.to(dtype)

    def nbytes(self) -> int:
        return self.packed.nbytes + self.scale_and_offset.nbytes

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        return None


def prepared(weight: PackedWeight, dtype: torch.dtype, device: torch.device) -> PackedWeight:
    """The form in which this device multiplies it fastest, in this dtype."""
    if isinstance(weight, SideBySide):
        return SideBySide(tuple(p if isinstance(p, Tensor) else prepared(p, dtype, device) for p in weight.parts))
    if not isinstance(weight, Int4Weight) or device.type != "cpu" or dtype is not torch.bfloat16:
        return weight
    rows, columns = weight.shape
    if rows % 16 or columns % weight.group or weight.group not in INT4_GROUPS:
        return weight
    return CpuInt4Weight.of(weight)
