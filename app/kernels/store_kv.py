"""Rotary embedding of queries and keys and the write of keys and values into their pages, in one pass over qkv."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.e4m3 import to_e4m3
from app.kernels.launch import (
    check_heads,
    check_last_contiguous,
    check_pages,
    is_interpreted,
    power_of_two,
)
from app.kernels.pages import KVPages, raw
from app.kernels.reference import rms_norm, rotate
from app.kernels.variants import KernelShape, Variant


@triton.jit
def _normed(low, high, weight, half, used, eps, HALF: tl.constexpr, HEAD_DIM: tl.constexpr):
    """RMSNorm over heads [heads, D] that come as two halves."""
    mean = (tl.sum(low * low, 1) + tl.sum(high * high, 1)) / HEAD_DIM
    scale = tl.rsqrt(mean + eps)[:, None]
    low = low * scale * tl.load(weight + half, mask=used, other=0.0).to(tl.float32)[None, :]
    high = high * scale * tl.load(weight + HALF + half, mask=used, other=0.0).to(tl.float32)[None, :]
    return low, high


@triton.jit
def store_kv_kernel(
    qkv, positions, slots, cos, sin, q_norm, k_norm, q_out, k_pages, v_pages, k_scale, v_scale, eps,
    qkv_stride_token, qkv_stride_head, cos_stride, q_stride_token, q_stride_head,
    k_stride_page, k_stride_head, k_stride_slot, v_stride_page, v_stride_head, v_stride_slot,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_HALF: tl.constexpr, HAS_NORM: tl.constexpr,
    FP8: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = HEAD_DIM // 2
    GROUP: tl.constexpr = HEADS // KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    half = tl.arange(0, BLOCK_HALF)
    used = half < HALF
    position = tl.load(positions + token).to(tl.int64)
    c = tl.load(cos + position * cos_stride + half, mask=used, other=0.0).to(tl.float32)[None, :]
    # The table's first half is negated for the reference; the second is the sine itself.
    s = tl.load(sin + position * cos_stride + HALF + half, mask=used, other=0.0).to(tl.float32)[None, :]

    # Row g < GROUP is a query head, row GROUP the key head, row GROUP + 1 the value head, which is not turned.
    row = tl.arange(0, BLOCK_G)
    is_query = row < GROUP
    is_key = row == GROUP
    is_value = row == GROUP + 1
    head = tl.where(is_query, kv_head * GROUP + row, HEADS + kv_head + (row - GROUP) * KV_HEADS)
    tile = (row < GROUP + 2)[:, None] & used[None, :]
    source = qkv + token * qkv_stride_token + (head * qkv_stride_head)[:, None] + half[None, :]
    low = tl.load(source, mask=tile, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=tile, other=0.0).to(tl.float32)
    turned_low, turned_high = low, high
    if HAS_NORM:
        query_low, query_high = _normed(low, high, q_norm, half, used, eps, HALF, HEAD_DIM)
        key_low, key_high = _normed(low, high, k_norm, half, used, eps, HALF, HEAD_DIM)
        turned_low = tl.where(is_query[:, None], query_low, key_low)
        turned_high = tl.where(is_query[:, None], query_high, key_high)
    new_low = turned_low * c - turned_high * s
    new_high = turned_high * c + turned_low * s

    target = q_out + token * q_stride_token + (head * q_stride_head)[:, None] + half[None, :]
    mine = is_query[:, None] & used[None, :]
    tl.store(target, new_low.to(q_out.dtype.element_ty), mask=mine)
    tl.store(target + HALF, new_high.to(q_out.dtype.element_ty), mask=mine)
    slot = tl.load(slots + token).to(tl.int64)
    page, within = slot // PAGE, slot % PAGE
    key_target = k_pages + page * k_stride_page + kv_head * k_stride_head + within * k_stride_slot
    value_target = v_pages + page * v_stride_page + kv_head * v_stride_head + within * v_stride_slot
    places = half[None, :] + row[:, None] * 0
    if FP8:
        key_by, value_by = tl.load(k_scale + kv_head), tl.load(v_scale + kv_head)
        new_low, new_high = to_e4m3(new_low / key_by, INTERPRETED), to_e4m3(new_high / key_by, INTERPRETED)
        low, high = to_e4m3(low / value_by, INTERPRETED), to_e4m3(high / value_by, INTERPRETED)
    key_mask, value_mask = used[None, :] & is_key[:, None], used[None, :] & is_value[:, None]
    tl.store(key_target + places, new_low.to(k_pages.dtype.element_ty), mask=key_mask)
    tl.store(key_target + HALF + places, new_high.to(k_pages.dtype.element_ty), mask=key_mask)
    tl.store(value_target + places, low.to(v_pages.dtype.element_ty), mask=value_mask)
    tl.store(value_target + HALF + places, high.to(v_pages.dtype.element_ty), mask=value_mask)


def store_kv(
    qkv: Tensor, positions: Tensor, slots: Tensor, cos: Tensor, sin: Tensor, pages: KVPages,
    norms: tuple[Tensor, Tensor] | None = None, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """Turn queries and keys, write keys and values into their pages; returns the turned queries [T, H, D].

    qkv: [T, H + 2K, D], query heads first, any strides with contiguous D.  positions: integers [T].  slots: integers
    [T], page * S + place within it.  cos, sin: [L, D] in any float dtype, halves layout,
    sin negated in its first half (RoFormer, 2104.09864, as Llama lays it out).  pages: any strides with contiguous D.
    norms: weights [D] of an RMSNorm of every query and key head before that (Qwen3).  Arithmetic in float32; values are
    copied unchanged, or, into pages in 8 bits, divided by their head's scale and rounded.
    """
    tokens, rows, dim = qkv.shape
    k_pages, v_pages = pages.keys, pages.values
    _, kv_heads, page_size, _ = k_pages.shape
    heads = rows - 2 * kv_heads
    check_heads(heads, kv_heads, dim)
    check_pages(qkv, pages)
    check_last_contiguous(qkv=qkv, k_pages=k_pages, v_pages=v_pages, cos=cos, sin=sin)
    q = torch.empty((tokens, heads, dim), dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm = norms or (cos, cos)
    scales = pages.scales or (cos, cos)
    store_kv_kernel[(tokens, kv_heads)](
        qkv, positions, slots, cos, sin, q_norm, k_norm, q, k_pages, v_pages, *scales, eps,
        qkv.stride(0), qkv.stride(1), cos.stride(0), q.stride(0), q.stride(1),
        *k_pages.stride()[:3], *v_pages.stride()[:3],
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=dim, PAGE=page_size, BLOCK_G=power_of_two(heads // kv_heads + 2),
        BLOCK_HALF=power_of_two(dim // 2), HAS_NORM=norms is not None,
        FP8=pages.scales is not None, INTERPRETED=is_interpreted(), num_warps=4 if heads // kv_heads > 2 else 2,
    )  # fmt: skip
    return q


def store_kv_reference(
    qkv: Tensor, positions: Tensor, slots: Tensor, cos: Tensor, sin: Tensor, pages: KVPages,
    norms: tuple[Tensor, Tensor] | None = None, eps: float = 0.0,
) -> Tensor:  # fmt: skip
    """The same in plain PyTorch."""
    _, kv_heads, size, _ = pages.keys.shape
    q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_heads, kv_heads, kv_heads], 1)
    if norms is not None:
        q, k = rms_norm(q, norms[0], eps), rms_norm(k, norms[1], eps)
    c, s = (x.index_select(0, positions.long()).to(qkv.dtype).unsqueeze(1) for x in (cos, sin))
    where = slots.div(size, rounding_mode="floor"), slots % size
    k, v = pages.stored(rotate(k, c, s), v)
    raw(pages.keys).transpose(1, 2)[where] = raw(k)
    raw(pages.values).transpose(1, 2)[where] = raw(v)
    return rotate(q, c, s)


def variants(shape: KernelShape, has_norm: bool) -> list[Variant]:
    def launch() -> None:
        qkv = shape.empty(1, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim)
        norms = (shape.empty(shape.head_dim), shape.empty(shape.head_dim)) if has_norm else None
        positions, slots = shape.empty(1, dtype=torch.int32), shape.empty(1, dtype=torch.int32)
        table = shape.empty(1, shape.head_dim)
        store_kv(qkv, positions, slots, table, table, shape.pages(), norms, 1e-6)

    return [Variant("store_kv with norms" if has_norm else "store_kv", launch)]
