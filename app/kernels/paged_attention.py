"""Attention over KV pages for prefill, decoding and draft verification: one kernel, whatever the query lengths.

The grid is a fixed number of programs that take tasks in turns (paged_plan.py says what a task is), so that a
captured graph can be replayed with another number of tasks, and no program is started for nothing.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.launch import (
    check_heads,
    check_last_contiguous,
    check_pages,
    has_room,
    num_programs,
    power_of_two,
    upcast,
)
from app.kernels.merge_lse import merge_partials
from app.kernels.paged_plan import DevicePlan, DeviceTasks
from app.kernels.pages import KVPages
from app.kernels.tasks import TASK_FIELDS, Tiles
from app.kernels.variants import KernelShape, Variant

LOG2_E = math.log2(math.e)
# The first two stages fetch page ids: with 5, two tiles of keys and values are on their way.
_STAGES, _FEWER_STAGES = 5, 3
_TWO_WARPGROUPS = 128 * 128 * 2  # bytes of a query tile that needs the registers of two


@triton.jit
def _attend(
    query, query_position, top, total, acc, keys, key_ptr, value_ptr, page_row, begin, end, window, scale,
    k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One inner step of the online softmax (2205.14135): BLOCK_N keys against a tile of queries, in log2."""
    dims = tl.arange(0, BLOCK_D)
    readable = (keys < end) if MASKED else (keys >= 0)
    page = tl.load(page_row + keys // PAGE, mask=readable, other=0).to(tl.int64)
    slot = keys % PAGE
    valid = readable[:, None] & (dims < HEAD_DIM)[None, :]
    k = tl.load(key_ptr + (page * k_stride_page + slot * k_stride_slot)[:, None] + dims[None, :], mask=valid, other=0.0)
    v = tl.load(
        value_ptr + (page * v_stride_page + slot * v_stride_slot)[:, None] + dims[None, :], mask=valid, other=0.0
    )
    k = k.to(query.dtype)  # pages in 8 bits are widened, which is exact, and never summed as they are
    v = v.to(query.dtype)
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    if MASKED:
        seen = readable[None, :] & (keys[None, :] <= query_position[:, None])
        seen = seen & (keys[None, :] > query_position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
    highest = tl.maximum(top, tl.max(scores, 1))
    # Queries that have seen no key yet: -inf - -inf would be NaN.
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp2(scores - shift[:, None])
    kept = tl.exp2(top - shift)
    total = total * kept + tl.sum(weights, 1)
    acc = tl.dot(weights.to(v.dtype), v, acc * kept[:, None], input_precision="ieee")
    return highest, total, acc


@triton.jit(do_not_specialize=["table_stride", "window"])
def paged_attention_kernel(
    q, k_pages, v_pages, k_scale, v_scale, out, partial, partial_lse, tasks, num_tasks, entries, positions, table,
    table_stride, window, scale,
    q_stride_token, q_stride_head, out_stride_token, out_stride_head,
    k_stride_page, k_stride_head, k_stride_slot, v_stride_page, v_stride_head, v_stride_slot,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, UPCAST: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, BLOCK_D)
    rows = tl.arange(0, BLOCK_M)
    for item in range(tl.program_id(0), tl.load(num_tasks) * KV_HEADS, tl.num_programs(0)):
        task = tasks + (item // KV_HEADS) * 6
        kv_head = item % KV_HEADS
        first_entry = tl.load(task)
        num_entries = tl.load(task + 1)
        page_row = table + tl.load(task + 2).to(tl.int64) * table_stride
        begin = tl.load(task + 3)
        unmasked = tl.load(task + 4)
        end = tl.load(task + 5)

        # The query heads of a KV head are rows of the tile beside each other (GQA packing).
        used = rows < num_entries * GROUP
        entry = entries + (first_entry + rows // GROUP) * 2
        token = tl.load(entry, mask=used, other=0).to(tl.int64)
        slot = tl.load(entry + 1, mask=used, other=-1).to(tl.int64)
        query_position = tl.load(positions + token, mask=used, other=0)
        head = kv_head * GROUP + rows % GROUP
        tile = used[:, None] & (dims < HEAD_DIM)[None, :]
        query_ptr = q + (token * q_stride_token + head * q_stride_head)[:, None] + dims[None, :]
        query = tl.load(query_ptr, mask=tile, other=0.0)
        if UPCAST:
            query = query.to(tl.float32)

        score_scale = scale
        if FP8:
            score_scale = scale * tl.load(k_scale + kv_head)
        key_ptr = k_pages + kv_head.to(tl.int64) * k_stride_head
        value_ptr = v_pages + kv_head.to(tl.int64) * v_stride_head
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        whole = begin + (unmasked - begin) // BLOCK_N * BLOCK_N
        for start in range(begin, whole, BLOCK_N):
            top, total, acc = _attend(
                query, query_position, top, total, acc, start + tl.arange(0, BLOCK_N), key_ptr, value_ptr, page_row,
                begin, end, window, score_scale, k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
                PAGE, HEAD_DIM, BLOCK_D, False,
            )  # fmt: skip
        for start in range(whole, end, BLOCK_N):
            top, total, acc = _attend(
                query, query_position, top, total, acc, start + tl.arange(0, BLOCK_N), key_ptr, value_ptr, page_row,
                begin, end, window, score_scale, k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
                PAGE, HEAD_DIM, BLOCK_D, True,
            )  # fmt: skip

        result = acc / tl.where(total > 0, total, 1.0)[:, None]
        if FP8:
            result *= tl.load(v_scale + kv_head)
        direct = slot < 0
        out_ptr = out + (token * out_stride_token + head * out_stride_head)[:, None] + dims[None, :]
        tl.store(out_ptr, result.to(out.dtype.element_ty), mask=tile & direct[:, None])
        place = slot * (KV_HEADS * GROUP) + head
        parted = used & (slot >= 0)
        tl.store(partial + (place * HEAD_DIM)[:, None] + dims[None, :], result, mask=tile & parted[:, None])
        lse = tl.where(total > 0, (top + tl.log2(tl.where(total > 0, total, 1.0))) * 0.6931471805599453, float("-inf"))
        tl.store(partial_lse + place, lse, mask=parted)


def paged_attention(
    q: Tensor, pages: KVPages, plan: DevicePlan, scale: float, tiles: Tiles,
    partials: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Attention of one layer and step over keys and values that are already in their pages -> [T, H, D].

    q: [T, H, D], any strides with contiguous D.  pages: likewise; H a multiple of K, page offsets in 64 bits. float32,
    float16 or bfloat16, all the same, or pages in 8 bits; scores, sums and partial results float32.
    plan: from paged_plan.build_plan for this group size H // K.  partials: float32 [slots, H, D] and [slots, H]
    to use, made here if None.  Sources: FlashAttention-2 (2307.08691), flash-decoding for the split over keys,
    PagedAttention (2309.06180), and "Anatomy of a Triton Attention Kernel" (2511.11581) for packed query heads.
    """
    tokens, heads, dim = q.shape
    kv_heads = pages.keys.shape[1]
    check_heads(heads, kv_heads, dim)
    check_pages(q, pages)
    check_last_contiguous(q=q, k_pages=pages.keys, v_pages=pages.values)
    out = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    partial, partial_lse = partials or _partials(plan, heads, dim, q.device)
    for work in plan.launches:
        _launch(q, pages, out, partial, partial_lse, plan, work, scale, tiles)
    if len(plan.merges):
        merge_partials(out, partial, partial_lse, plan.merges, plan.num_merges)
    return out


def _partials(plan: DevicePlan, heads: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    partial = torch.empty((plan.num_slots, heads, dim), dtype=torch.float32, device=device)
    return partial, torch.empty((plan.num_slots, heads), dtype=torch.float32, device=device)


def _launch(
    q: Tensor, pages: KVPages, out: Tensor, partial: Tensor, partial_lse: Tensor, plan: DevicePlan,
    work: DeviceTasks, scale: float, tiles: Tiles,
) -> None:  # fmt: skip
    _, heads, dim = q.shape
    k_pages, v_pages = pages.keys, pages.values
    _, kv_heads, page_size, _ = k_pages.shape
    scales = pages.scales or (partial_lse, partial_lse)
    deep = q.element_size() == 2 and has_room(q.device)
    warps = 8 if work.block_m * power_of_two(dim) * q.element_size() >= _TWO_WARPGROUPS else 4
    paged_attention_kernel[(num_programs(q.device),)](
        q, k_pages, v_pages, *scales, out, partial, partial_lse,
        work.tasks, work.num_tasks, work.entries, plan.positions, plan.table,
        plan.table.stride(0), plan.window, scale * LOG2_E,
        q.stride(0), q.stride(1), out.stride(0), out.stride(1), *k_pages.stride()[:3], *v_pages.stride()[:3],
        KV_HEADS=kv_heads, GROUP=heads // kv_heads, HEAD_DIM=dim, BLOCK_D=power_of_two(dim), PAGE=page_size,
        BLOCK_M=work.block_m, BLOCK_N=tiles.block_n, UPCAST=upcast(q.dtype),
        FP8=pages.scales is not None, num_warps=warps, num_stages=_STAGES if deep else _FEWER_STAGES,
    )  # fmt: skip


def heights(group: int, tiles: Tiles) -> list[int]:
    """Tile heights that plans ask for: those of decoding and verification, of chunks, and of shared prefixes."""
    least = max(16, power_of_two(group))
    narrow = [1 << n for n in range(4, 9) if least <= 1 << n <= max(least, power_of_two(tiles.narrow))]
    return sorted({*narrow, max(least, tiles.block_wide), max(least, tiles.block_shared)})


def variants(shape: KernelShape, tiles: Tiles) -> list[Variant]:
    def variant(height: int) -> Variant:
        return Variant(f"paged_attention height {height}", lambda: _warm(shape, tiles, height))

    return [variant(height) for height in heights(shape.num_heads // shape.num_kv_heads, tiles)]


def _warm(shape: KernelShape, tiles: Tiles, height: int) -> None:
    """No task at all: compilation is what counts."""

    def ints(*size: int) -> Tensor:
        return shape.empty(*size, dtype=torch.int32)

    work = DeviceTasks(ints(1, TASK_FIELDS), ints(1), ints(1, 2), height)
    plan = DevicePlan(ints(1, 1), ints(1), [work], ints(0, 3), ints(1), 1, 1)
    q = shape.empty(1, shape.num_heads, shape.head_dim)
    paged_attention(q, shape.pages(), plan, 1.0, tiles)
