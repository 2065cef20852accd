"""Products with weights of 4 and 8 bits that are widened in registers: memory is read at their size (W4A16, W8A16).

Few rows leave most of a GPU idle, since there are few tiles: then the columns are split among programs, whose float32
parts are summed in one order. References: Int4Weight.matmul and ScaledWeight.matmul in packed.py.
"""

from collections.abc import Iterable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.launch import check_last_contiguous, upcast
from app.kernels.packed import Int4Weight, PackedWeight, ScaledWeight, SideBySide
from app.kernels.variants import KernelShape, Variant

_FEW, _TALL = 16, 64  # rows of a tile
_BLOCK_N = 64
_SPLITS = 4


@triton.jit(do_not_specialize=["rows", "columns", "part", "groups", "group"])
def int4_linear_kernel(
    x, packed, scales, zeros, out, rows, columns, depth, part, groups, group, x_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * part
    pair = tl.arange(0, BLOCK_K // 2)
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    bytes_of = packed + column.to(tl.int64)[None, :] * (depth // 2)
    row_mask, column_mask = (row < rows)[:, None], (column < columns)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(first, min(first + part, depth), BLOCK_K):
        codes = tl.load(bytes_of + (start // 2 + pair)[:, None], mask=column_mask, other=0)
        at = column.to(tl.int64) * groups + start // group
        scale = tl.load(scales + at, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        zero = tl.load(zeros + at, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        low = ((codes & 15).to(tl.float32) - zero) * scale
        high = ((codes >> 4).to(tl.float32) - zero) * scale
        even = tl.load(x_rows + (start + 2 * pair)[None, :], mask=row_mask, other=0.0)
        odd = tl.load(x_rows + (start + 2 * pair + 1)[None, :], mask=row_mask, other=0.0)
        if UPCAST:
            even = even.to(tl.float32)
            odd = odd.to(tl.float32)
        total = tl.dot(even, low.to(even.dtype), total, input_precision="ieee")
        total = tl.dot(odd, high.to(odd.dtype), total, input_precision="ieee")
    place = out + (tl.program_id(2).to(tl.int64) * rows + row.to(tl.int64)[:, None]) * columns + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=row_mask & column_mask)


@triton.jit(do_not_specialize=["rows", "columns", "part"])
def int8_linear_kernel(
    x, codes, scales, out, rows, columns, depth, part, x_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    first = tl.program_id(2) * part
    inner = tl.arange(0, BLOCK_K)
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    code_rows = codes + column.to(tl.int64)[None, :] * depth
    row_mask, column_mask = (row < rows)[:, None], (column < columns)[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    end = min(first + part, depth)
    for start in range(first, end, BLOCK_K):
        at = start + inner
        left = tl.load(x_rows + at[None, :], mask=row_mask & (at < end)[None, :], other=0.0)
        right = tl.load(code_rows + at[:, None], mask=column_mask & (at < end)[:, None], other=0)
        if UPCAST:
            left = left.to(tl.float32)
        total = tl.dot(left, right.to(left.dtype), total, input_precision="ieee")
    total *= tl.load(scales + column, mask=column < columns, other=0.0)[None, :]
    place = out + (tl.program_id(2).to(tl.int64) * rows + row.to(tl.int64)[:, None]) * columns + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=row_mask & column_mask)


def suits(weight: PackedWeight) -> bool:
    """Whether a kernel here multiplies by it; the reference does by the others."""
    if isinstance(weight, Int4Weight):
        return weight.group % 32 == 0
    if not isinstance(weight, ScaledWeight) or weight.activations is not None:
        return False
    return weight.codes.dtype is torch.int8 and weight.scales.shape[1] == 1


def packed_linear(x: Tensor, weight: PackedWeight) -> Tensor:
    """x [n, K] @ weight.T -> [n, N] in x's dtype, of a weight that suits(); rows of x may have any stride."""
    if not isinstance(weight, Int4Weight | ScaledWeight) or not suits(weight):
        raise ValueError(f"no kernel here multiplies by this {type(weight).__name__}")
    if isinstance(weight, Int4Weight) and weight.order is not None:
        x = x[:, weight.order]
    check_last_contiguous(x=x)
    stored = weight.packed if isinstance(weight, Int4Weight) else weight.codes
    if not (stored.is_contiguous() and weight.scales.is_contiguous()):
        raise ValueError("packed weights and their scales must be contiguous")
    rows, (columns, depth) = len(x), weight.shape
    few = rows <= _FEW
    block_m = _FEW if few else _TALL
    block_k = 64 if isinstance(weight, ScaledWeight) or weight.group % 64 == 0 else 32
    splits = _SPLITS if few and depth >= _SPLITS * block_k else 1
    part = triton.cdiv(triton.cdiv(depth, block_k), splits) * block_k
    out = x.new_empty((splits, rows, columns), dtype=torch.float32 if splits > 1 else x.dtype)
    grid = (triton.cdiv(rows, block_m), triton.cdiv(columns, _BLOCK_N), splits)
    tile = {"BLOCK_M": block_m, "BLOCK_N": _BLOCK_N, "BLOCK_K": block_k, "UPCAST": upcast(x.dtype), "num_warps": 4}
    if isinstance(weight, Int4Weight):
        int4_linear_kernel[grid](
            x, weight.packed, weight.scales, weight.zeros, out, rows, columns, depth, part,
            weight.scales.shape[1], weight.group, x.stride(0), **tile,
        )  # fmt: skip
    else:
        int8_linear_kernel[grid](x, weight.codes, weight.scales, out, rows, columns, depth, part, x.stride(0), **tile)
    return out.sum(0).to(x.dtype) if splits > 1 else out[0]


def variants(shape: KernelShape, weights: Iterable[PackedWeight]) -> list[Variant]:
    """Of all weights of a model: one for each kind, short and tall, split and not."""
    kinds = {_kind(weight): weight for whole in weights for weight in _parts(whole) if suits(weight)}
    return [
        Variant(f"packed linear {kind}, {rows} rows", partial(_launch, shape, weight, rows))
        for kind, weight in kinds.items()
        for rows in (1, _FEW + 1)
    ]


def _parts(weight: PackedWeight) -> list[PackedWeight]:
    if isinstance(weight, SideBySide):
        return [part for part in weight.parts if not isinstance(part, Tensor)]
    return [weight]


def _kind(weight: PackedWeight) -> tuple[str, ...]:
    """What decides which variants it asks for."""
    if isinstance(weight, Int4Weight):
        block_k = 64 if weight.group % 64 == 0 else 32
        return "int4", str(weight.scales.dtype), str(block_k), str(weight.shape[1] >= _SPLITS * block_k)
    return "int8", str(weight.shape[1] >= _SPLITS * 64), str(weight.shape[1] % 16 == 0)


def _launch(shape: KernelShape, weight: PackedWeight, rows: int) -> Tensor:
    return packed_linear(shape.empty(rows, weight.shape[1]), weight)
