"""Matrix products whose every row is what it would be alone: for the deterministic mode."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.launch import check_dtype, check_last_contiguous, upcast
from app.kernels.variants import KernelShape, Variant

_BLOCK_M, _BLOCK_N, _BLOCK_K = 32, 64, 64


@triton.jit(do_not_specialize=["rows", "columns", "depth"])
def linear_kernel(
    x, weight, bias, out, rows, columns, depth, x_stride, weight_stride, out_stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    x_rows = x + row.to(tl.int64)[:, None] * x_stride
    weight_rows = weight + column.to(tl.int64)[None, :] * weight_stride
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, depth, BLOCK_K):
        at = start + inner
        left = tl.load(x_rows + at[None, :], mask=(row < rows)[:, None] & (at < depth)[None, :], other=0.0)
        right = tl.load(weight_rows + at[:, None], mask=(column < columns)[None, :] & (at < depth)[:, None], other=0.0)
        if UPCAST:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    place = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < rows)[:, None] & (column < columns)[None, :])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias -> [n, N], of x [n, K], weight [N, K], bias [N], one dtype, rows of any stride.

    A tile's size and the order of its sums (float32) depend on nothing, so that a row's result does not depend on how
    many others there are; cuBLAS chooses its kernel by the number of rows. Source of the idea: He and others,
    "Defeating Nondeterminism in LLM Inference" (2025).
    """
    rows, depth = x.shape
    columns = len(weight)
    check_dtype(x, weight, weight if bias is None else bias)
    check_last_contiguous(x=x, weight=weight)
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(rows, _BLOCK_M), triton.cdiv(columns, _BLOCK_N))
    linear_kernel[grid](
        x, weight, weight if bias is None else bias, out, rows, columns, depth,
        x.stride(0), weight.stride(0), out.stride(0),
        BLOCK_M=_BLOCK_M, BLOCK_N=_BLOCK_N, BLOCK_K=_BLOCK_K, HAS_BIAS=bias is not None, UPCAST=upcast(x.dtype),
        num_warps=4,
    )  # fmt: skip
    return out


def variants(shape: KernelShape) -> list[Variant]:
    """For a model whose widths are multiples of 16, its vocabulary perhaps excepted."""

    def launch(columns: int, with_bias: bool) -> None:
        x, weight = shape.empty(1, shape.hidden_size), shape.empty(columns, shape.hidden_size)
        linear(x, weight, shape.empty(columns) if with_bias else None)

    return [
        Variant("linear", lambda: launch(16, False)),
        Variant("linear with bias", lambda: launch(16, True)),
        Variant("linear of an odd vocabulary", lambda: launch(17, False)),
    ]
