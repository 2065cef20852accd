"""Products of inputs and weights in e4m3 on the matrix unit: inputs rounded by one kernel, multiplied by torch.

Reference: ScaledWeight.matmul in packed.py. torch._scaled_mm takes a scale per row of either operand; a scale for a
whole tensor is the same for every row.
"""

import functools
from collections.abc import Iterable

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.e4m3 import to_e4m3
from app.kernels.fp8 import E4M3
from app.kernels.launch import check_last_contiguous, is_interpreted, power_of_two
from app.kernels.packed import Activations, PackedWeight, ScaledWeight, SideBySide
from app.kernels.variants import KernelShape, Variant

_ADA = (8, 9)  # the first that multiplies e4m3
_LARGEST_BLOCK = 4096


@triton.jit(do_not_specialize=["columns"])
def quantize_rows_kernel(
    x, given, codes, scales, columns, x_stride, bound,
    BLOCK: tl.constexpr, STATIC: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    source = x + row * x_stride
    if STATIC:
        scale = tl.load(given)
    else:
        largest = 0.0
        for start in range(0, columns, BLOCK):
            part = tl.load(source + start + place, mask=start + place < columns, other=0.0).to(tl.float32)
            largest = tl.maximum(largest, tl.max(tl.abs(part), 0))
        scale = tl.maximum(tl.minimum(largest, bound) / 448.0, 1.1920929e-07)
    for start in range(0, columns, BLOCK):
        part = tl.load(source + start + place, mask=start + place < columns, other=0.0).to(tl.float32)
        target = codes + row * columns + start + place
        tl.store(target, to_e4m3(part / scale, INTERPRETED), mask=start + place < columns)
    tl.store(scales + row, scale)


def quantize_rows(x: Tensor, activations: Activations) -> tuple[Tensor, Tensor]:
    """e4m3 codes [n, K] of x [n, K] (any stride of rows), and float32 scales [n, 1]: Activations.quantize in one pass.

    activations: without groups.
    """
    check_last_contiguous(x=x)
    rows, columns = x.shape
    codes = torch.empty((rows, columns), dtype=E4M3, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    static = activations.scale is not None
    bound = float("inf") if activations.bound is None else activations.bound
    quantize_rows_kernel[(rows,)](
        x, activations.scale if static else scales, codes, scales, columns, x.stride(0), bound,
        BLOCK=min(_LARGEST_BLOCK, power_of_two(columns)), STATIC=static, INTERPRETED=is_interpreted(), num_warps=4,
    )  # fmt: skip
    return codes, scales


def suits(weight: PackedWeight, dtype: torch.dtype) -> bool:
    """Whether scaled_linear multiplies inputs of this dtype by it; torch does in bfloat16, widths in sixteens."""
    if not isinstance(weight, ScaledWeight) or weight.codes.dtype is not E4M3 or weight.activations is None:
        return False
    whole = weight.scales.shape[1] == 1 and weight.activations.group is None
    even = weight.shape[0] % 16 == 0 and weight.shape[1] % 16 == 0
    return whole and even and dtype is torch.bfloat16 and _is_capable(weight.codes.device)


@functools.cache
def _is_capable(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= _ADA


def scaled_linear(x: Tensor, weight: ScaledWeight) -> Tensor:
    """x [n, K] @ weight.T -> [n, N] in x's dtype, of a weight that suits(); sums are float32."""
    assert weight.activations is not None
    codes, scales = quantize_rows(x, weight.activations)
    return torch._scaled_mm(codes, weight.codes.T, scale_a=scales, scale_b=weight.scales.T, out_dtype=x.dtype)


def variants(shape: KernelShape, weights: Iterable[PackedWeight]) -> list[Variant]:
    """One for each size of block, kind of scale, and alignment, of all weights of a model."""
    parts = [part for weight in weights for part in (weight.parts if isinstance(weight, SideBySide) else [weight])]
    kinds = {
        (min(_LARGEST_BLOCK, power_of_two(part.shape[1])), part.activations.scale is None): part
        for part in parts
        if isinstance(part, ScaledWeight) and suits(part, shape.dtype) and part.activations is not None
    }
    return [
        Variant(f"inputs in e4m3, blocks of {block}{', by row' * by_row}", functools.partial(_launch, shape, part))
        for (block, by_row), part in kinds.items()
    ]


def _launch(shape: KernelShape, weight: ScaledWeight) -> Tensor:
    return scaled_linear(shape.empty(1, weight.shape[1]), weight)
