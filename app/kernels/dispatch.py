"""Which kernels an engine uses: decided once, at its start. Triton is imported here and only when it is asked for.

Every fast path has a switch, so that what misbehaves on a machine can be turned off there (docs/gpu.md).
"""

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels import reference
from app.kernels.packed import PackedWeight, ScaledWeight, SideBySide, Weight
from app.kernels.pages import KVPages
from app.kernels.shared_prefix import never
from app.kernels.tuning import Tuning, load_tuning
from app.kernels.variants import KernelShape, Variant

Choice = Literal["auto", "reference", "triton"]
Norms = tuple[Tensor, Tensor] | None


class Kernels(Protocol):
    """What a decoder layer is made of. `plan` and `slots` are those of the same step."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """x [n, K] @ weight [N, K].T + bias [N], however the weight is stored."""

    def rope(self, cos: Tensor, sin: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        """What attend() needs of the tables [L, D] at these positions; once per step."""

    def add_rms_norm(self, stream: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """stream += change in place where there is one, then the norm of the stream."""

    def attend(
        self, qkv: Tensor, rope: tuple[Tensor, ...], norms: Norms, eps: float, pages: KVPages, slots: Tensor,
        plan: Any, scale: float,
    ) -> Tensor:  # fmt: skip
        """Norm and turn queries and keys of qkv [T, H + 2K, D], store keys and values, attend -> [T, H, D]."""


class ReferenceKernels:
    """Plain PyTorch on the CPU; slots: int64 [T * K] rows of the pages, plan: AttentionPlan."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return F.linear(x, weight, bias)
        return weight.matmul(x) if bias is None else weight.matmul(x).add_(bias)

    def rope(self, cos: Tensor, sin: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        return cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)

    def add_rms_norm(self, stream: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        return reference.rms_norm(stream if change is None else stream.add_(change), weight, eps)

    def attend(
        self, qkv: Tensor, rope: tuple[Tensor, ...], norms: Norms, eps: float, pages: KVPages, slots: Tensor,
        plan: Any, scale: float,
    ) -> Tensor:  # fmt: skip
        kv_heads = pages.keys.shape[1]
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], 1)
        if norms is not None:
            q, k = reference.rms_norm(q, norms[0], eps), reference.rms_norm(k, norms[1], eps)
        cos, sin = rope
        q, k = reference.rotate(q, cos, sin), reference.rotate(k, cos, sin)
        return reference.attend(q, k, v, pages, slots, plan, scale)


class TritonKernels:
    """This package's kernels; slots: integers [T], page * S + place, plan: DevicePlan.

    fused: norms and the page write by our kernels; False: by PyTorch.
    deterministic: what a row gives does not depend on the other rows; the tuning's tiles must be of one height.
    """

    def __init__(self, tuning: Tuning, *, fused: bool = True, deterministic: bool = False) -> None:
        from app.kernels import linear, packed_linear, paged_attention, rms_norm, scaled_linear, store_kv

        self.tuning, self.fused, self.deterministic = tuning, fused, deterministic
        self._linear = linear.linear if deterministic else F.linear
        self._packed, self._suits = packed_linear.packed_linear, packed_linear.suits
        self._scaled, self._suits_unit = scaled_linear.scaled_linear, scaled_linear.suits
        self._attention = paged_attention.paged_attention
        self._store = store_kv.store_kv if fused else store_kv.store_kv_reference
        self._norm = rms_norm.add_rms_norm if fused else rms_norm.add_rms_norm_reference

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor):
            return self._linear(x, weight, bias)
        out = self._packed_linear(x, weight)
        return out if bias is None else out.add_(bias)

    def _packed_linear(self, x: Tensor, weight: PackedWeight) -> Tensor:
        if isinstance(weight, SideBySide):
            return torch.cat([self.linear(x, part) for part in weight.parts], -1)
        if isinstance(weight, ScaledWeight) and self._suits_unit(weight, x.dtype):
            return self._scaled(x, weight)
        return self._packed(x, weight) if self._suits(weight) else weight.matmul(x)

    def rope(self, cos: Tensor, sin: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
        return cos, sin, positions

    def add_rms_norm(self, stream: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        return self._norm(stream, change, weight, eps)

    def attend(
        self, qkv: Tensor, rope: tuple[Tensor, ...], norms: Norms, eps: float, pages: KVPages, slots: Tensor,
        plan: Any, scale: float,
    ) -> Tensor:  # fmt: skip
        cos, sin, positions = rope
        q = self._store(qkv, positions, slots, cos, sin, pages, norms, eps)
        return self._attention(q, pages, plan, scale, self.tuning.tiles)

    def variants(self, shape: KernelShape, *, has_norm: bool, weights: Iterable[PackedWeight] = ()) -> list[Variant]:
        """Everything that serving can ask to be compiled. has_norm: of query and key heads.  weights: quantized."""
        from app.kernels import linear, merge_lse, packed_linear, paged_attention, rms_norm, scaled_linear, store_kv

        found = paged_attention.variants(shape, self.tuning.tiles) + merge_lse.variants(shape)
        weights = list(weights)
        found += packed_linear.variants(shape, weights) + scaled_linear.variants(shape, weights)
        if self.fused:
            found += store_kv.variants(shape, has_norm) + rms_norm.variants(shape)
        return found + (linear.variants(shape) if self.deterministic else [])


@dataclass(frozen=True, slots=True)
class Switches:
    """shared_prefix: read a prefix once for several rows, from where the tuning table says that it pays.
    fused, deterministic: see TritonKernels.  fp8_pages: pages are e4m3 codes."""

    shared_prefix: bool = False
    fused: bool = True
    deterministic: bool = False
    fp8_pages: bool = False


def choose(
    choice: Choice, device: torch.device, gpu: str, *, group: int, head_dim: int, dtype: torch.dtype,
    switches: Switches | None = None,
) -> ReferenceKernels | TritonKernels:  # fmt: skip
    """gpu: the device's name in the tuning table. Raises ValueError with one sentence where the choice cannot run."""
    switches = switches or Switches()
    wanted = ("triton" if device.type == "cuda" else "reference") if choice == "auto" else choice
    if wanted == "reference":
        if device.type != "cpu":
            raise ValueError(
                f"kernels='reference' run on the CPU only, not on {device}; choose 'triton' or device='cpu'"
            )
        if switches.deterministic:
            raise ValueError("deterministic=True needs our own kernels: device='cuda', or kernels='triton'")
        return ReferenceKernels()
    _require_triton(device, 89 if switches.fp8_pages else 80)
    tuning = load_tuning(gpu, group, head_dim, dtype)
    use_shared = tuning.use_shared if switches.shared_prefix and not switches.deterministic else never
    # Deterministic: no row counts as decoding, so that all have tiles of one height and keys in one order.
    tiles = replace(tuning.tiles, narrow=0) if switches.deterministic else tuning.tiles
    kernels = TritonKernels(Tuning(tiles, use_shared), fused=switches.fused, deterministic=switches.deterministic)
    from app.kernels.launch import check_heads

    check_heads(group, 1, head_dim)
    return kernels


def _require_triton(device: torch.device, capability: int) -> None:
    if importlib.util.find_spec("triton") is None:
        raise ValueError(
            f"{device} needs the package triton, which is not installed; pip install triton or device='cpu'"
        )
    if device.type == "cuda":
        _require_driver(device, capability)
    elif os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError("kernels='triton' need a CUDA device, or TRITON_INTERPRET=1 to be interpreted on the CPU")


def _require_driver(device: torch.device, capability: int) -> None:
    import triton

    try:
        target = triton.runtime.driver.active.get_current_target()
    except Exception as error:
        raise ValueError(f"Triton finds no driver that it can use for {device} ({error}); use device='cpu'") from error
    if target.backend == "cuda" and target.arch < 80:
        raise ValueError(
            f"the kernels need compute capability 8.0 (Ampere), {device} has {target.arch / 10}; use device='cpu'"
        )
    if target.backend == "cuda" and target.arch < capability:
        raise ValueError(
            f"kv_cache_dtype='fp8' needs compute capability 8.9 (Ada), {device} has {target.arch / 10}; use 'auto'"
        )
