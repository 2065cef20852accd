"""Joining partial attention results of the same query over different keys by their log-sum-exp."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.launch import power_of_two
from app.kernels.variants import KernelShape, Variant

_HEADS_AT_ONCE = 8


@triton.jit
def merge_partials_kernel(
    out, partial, partial_lse, merges, num_merges, out_stride_token, out_stride_head,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, BLOCK_D)
    if tl.program_id(0) < tl.load(num_merges):
        record = merges + tl.program_id(0) * 3
        token = tl.load(record).to(tl.int64)
        first = tl.load(record + 1)
        count = tl.load(record + 2)
        head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
        tile = (head < HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
        top = tl.full([BLOCK_H], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_H], tl.float32)
        acc = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
        for slot in range(first, first + count):
            place = tl.cast(slot, tl.int64) * HEADS + head
            lse = tl.load(partial_lse + place, mask=head < HEADS, other=float("-inf")) * 1.4426950408889634
            highest = tl.maximum(top, lse)
            # All pieces empty so far: -inf - -inf would be NaN.
            shift = tl.where(highest == float("-inf"), 0.0, highest)
            kept = tl.exp2(top - shift)
            weight = tl.exp2(lse - shift)
            piece = tl.load(partial + (place * HEAD_DIM)[:, None] + dims[None, :], mask=tile, other=0.0)
            acc = acc * kept[:, None] + piece * weight[:, None]
            total = total * kept + weight
            top = highest
        joined = acc / tl.where(total > 0, total, 1.0)[:, None]
        out_ptr = out + token * out_stride_token + (head * out_stride_head)[:, None] + dims[None, :]
        tl.store(out_ptr, joined.to(out.dtype.element_ty), mask=tile)


def merge_partials(out: Tensor, partial: Tensor, partial_lse: Tensor, merges: Tensor, num_merges: Tensor) -> None:
    """Write into out [T, H, D] the joined results of tokens that have several, in the order of their slots.

    partial: float32 [slots, H, D].  partial_lse: float32 [slots, H], natural log, -inf where a piece had no key.
    merges: int32 [m, 3], token, first slot, number of slots; num_merges int32 [1]: how many of them count.
    All contiguous but out, whose last dimension is. The weighting is that of split-KV decoding (flash-decoding)
    and of Hydragen (2402.05099); a token without any key gets zeros.
    """
    slots, heads, dim = partial.shape
    del slots
    block_h = min(_HEADS_AT_ONCE, power_of_two(heads))
    merge_partials_kernel[(len(merges), triton.cdiv(heads, block_h))](
        out, partial, partial_lse, merges, num_merges, out.stride(0), out.stride(1),
        HEADS=heads, HEAD_DIM=dim, BLOCK_D=power_of_two(dim), BLOCK_H=block_h, num_warps=2,
    )  # fmt: skip


def merge_partials_reference(out: Tensor, partial: Tensor, partial_lse: Tensor, merges: Tensor) -> None:
    """The same in plain PyTorch."""
    for token, first, count in merges.tolist():
        weights = partial_lse[first : first + count].softmax(0).nan_to_num(0.0).unsqueeze(-1)
        out[token] = (partial[first : first + count] * weights).sum(0).to(out.dtype)


def variants(shape: KernelShape) -> list[Variant]:
    def launch() -> None:
        heads, dim = shape.num_heads, shape.head_dim
        partial, lse = shape.empty(2, heads, dim, dtype=torch.float32), shape.empty(2, heads, dtype=torch.float32)
        merges = torch.tensor([[0, 0, 2]], dtype=torch.int32, device=shape.device)
        merge_partials(shape.empty(1, heads, dim), partial, lse, merges, shape.empty(1, dtype=torch.int32))

    return [Variant("merge_partials", launch)]
