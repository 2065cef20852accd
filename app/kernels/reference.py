"""Plain PyTorch kernels: the CPU path, and the truth that faster ones are tested against.

Shapes: T tokens of the step, H query heads, K key/value heads, G = H // K, D head size, N pages of S tokens.
A layer's pages are [N, K, S, D]: a page of one head is a small matrix, so that a row's pages are operands of
a batched matmul as they lie in the pool. Softmax statistics are float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from app.kernels.pages import KVPages, numbers, raw
from app.kernels.plan import AttentionPlan, ContextPart, DecodePart, OwnPart, PrefixPart

_QUERY_BYTES = 512  # as many queries at once as one column of their scores may take: they stay in the L2/L3 cache
Visible = Callable[[int, int], tuple[Tensor, tuple[int, int]]]
_LOWEST = -1e30  # instead of -inf for what is not visible: -inf - -inf is NaN
_LEAST_TOTAL, _MOST_TOTAL = 1e-20, 1e30  # of 2,000 weights, far from what float32's range cuts off


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, statistics in float32. Any leading shape."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, halves layout (Llama). x [T, heads, D]; cos, sin [T, 1, D], sin negated in its first half."""
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), sin)


def store_kv(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, rows: Tensor) -> None:
    """Write k, v [T, K, D] into pages [N, K, S, D]; rows int64 [T * K] index pages seen as [N * K * S, D]."""
    dim = k.shape[-1]
    raw(k_pages).view(-1, dim).index_copy_(0, rows, raw(k).reshape(-1, dim))
    raw(v_pages).view(-1, dim).index_copy_(0, rows, raw(v).reshape(-1, dim))


def attend(q: Tensor, k: Tensor, v: Tensor, pages: KVPages, rows: Tensor, plan: AttentionPlan, scale: float) -> Tensor:
    """Store this step's keys and values, and attend. q [T, H, D], k and v [T, K, D], rows as in store_kv -> [T, H, D].

    Of pages in 8 bits, what a chunk has just computed is read as it was stored, so that it does not matter how a
    prompt was cut. Scales belong to whole heads: queries and results are multiplied instead of every key and value.
    """
    k, v = pages.stored(k, v)
    store_kv(k, v, pages.keys, pages.values, rows)
    if pages.scales is None:
        return paged_attention(q, k, v, pages.keys, pages.values, plan, scale)
    group = q.shape[1] // k.shape[1]
    key_scale, value_scale = (x.repeat_interleave(group)[:, None] for x in pages.scales)
    k, v = numbers(k, q.dtype), numbers(v, q.dtype)
    out = paged_attention(q, k, v, pages.keys, pages.values, plan, key_scale * scale)
    return out.mul_(value_scale)


def paged_attention(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, plan: AttentionPlan, scale: float | Tensor
) -> Tensor:
    """Attention of one layer and step. q [T, H, D], k and v [T, K, D] of this step, already stored -> [T, H, D].

    scale: of scores, one or one for each query head, float32 [H, 1].
    """
    q = (q * scale).to(q.dtype)
    out = torch.empty_like(q, dtype=torch.float32 if plan.needs_lse else q.dtype)
    lse = torch.empty(q.shape[:2], dtype=torch.float32) if plan.needs_lse else None
    for own in plan.own:
        _write(out, lse, own.flat, *_own_attention(q, k, v, own))
    for decode in plan.decode:
        _write(out, lse, decode.tokens, *_decode_attention(q, k_pages, v_pages, decode, lse is not None))
    if lse is None:
        return out
    for prefix in plan.prefix:
        merge_lse(out, lse, prefix.tokens, *_prefix_attention(q, k_pages, v_pages, prefix))
    for context in plan.context:
        merge_lse(out, lse, context.flat, *_context_attention(q, k_pages, v_pages, context))
    return out.to(q.dtype)


def merge_lse(out: Tensor, lse: Tensor, tokens: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Join attention over other keys into out [T, H, D] and lse [T, H] (natural log, float32) in place."""
    old = lse.index_select(0, tokens)
    new = torch.logaddexp(old, part_lse)
    kept = out.index_select(0, tokens) * (old - new).exp_().unsqueeze(-1)
    joined = kept.addcmul_(part.float(), (part_lse - new).exp_().unsqueeze(-1))
    out.index_copy_(0, tokens, joined)
    lse.index_copy_(0, tokens, new)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, visible: Visible | None = None) -> tuple[Tensor, Tensor]:
    """Scaled queries q [B, M, D] against k, v [B, L, D] -> out float32 [B, M, D], lse float32 [B, M].

    visible(start, stop) says what queries start..stop see: bool [B or 1, stop - start or 1, n] and the range
    of n keys outside of which they see nothing. A query that sees no key weighs nothing when merged.
    """
    if q.dtype == torch.float32 and visible is None:
        return _flash(q, k, v)
    attend = _attend_float32 if q.dtype == torch.float32 else _attend_rounded
    out = torch.empty(q.shape, dtype=torch.float32)
    lse = torch.empty(q.shape[:2], dtype=torch.float32)
    at_once = _QUERY_BYTES // q.dtype.itemsize
    for start in range(0, q.shape[1], at_once):
        stop = min(q.shape[1], start + at_once)
        mask, (low, high) = visible(start, stop) if visible is not None else (None, (0, k.shape[1]))
        part = q[:, start:stop], k[:, low:high], v[:, low:high]
        out[:, start:stop], lse[:, start:stop] = attend(*part, None if mask is None else ~mask)
    return out, lse


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own: in float32 a fifth faster than two matmuls, in bfloat16 2.8 times slower (Zen 5, torch 2.13)."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), scale=1.0)
    return out.squeeze(0), lse.squeeze(0)


def _scores(q: Tensor, k: Tensor, hidden: Tensor | None) -> Tensor:
    scores = torch.bmm(q, k.transpose(1, 2))
    return scores if hidden is None else scores.masked_fill_(hidden, _LOWEST)


def _attend_float32(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    weights, lse = _softmax(_scores(q, k, hidden))
    return torch.bmm(weights, v), lse


def _softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    """float32 weights over the last dimension and their lse. torch's softmax and two maxima take half the time of
    its float32 exp alone, which its logsumexp and any softmax by hand would need."""
    weights = scores.softmax(-1)
    return weights, scores.amax(-1) - weights.amax(-1).log_()


def _attend_rounded(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """bfloat16 has float32's range, so scores as they are in practice need no maximum subtracted before exp, which
    saves a third of the time around the two matmuls. Totals far from 1 tell when it is needed after all."""
    weights = _scores(q, k, hidden).exp_()
    total = weights.sum(-1, keepdim=True).float()
    lse = total.log()
    least, most = torch.aminmax(total)
    if not (float(least) > _LEAST_TOTAL and float(most) < _MOST_TOTAL):
        scores = _scores(q, k, hidden)
        highest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(highest).exp_()
        total = weights.sum(-1, keepdim=True).float()
        lse = total.log() + highest
    return torch.bmm(weights, v).float().div_(total), lse.squeeze(-1)


def _causal(group: int, window: int | None) -> Visible:
    """Queries of a chunk over its own keys, `group` query heads folded into each position."""

    def visible(start: int, stop: int) -> tuple[Tensor, tuple[int, int]]:
        low = 0 if window is None else max(0, start // group - window + 1)
        high = (stop - 1) // group + 1
        ages = (torch.arange(start, stop) // group).unsqueeze(1) - torch.arange(low, high)
        mask = ages >= 0 if window is None else (ages >= 0) & (ages < window)
        return mask.unsqueeze(0), (low, high)

    return visible


def _masked(mask: Tensor) -> Visible:
    """mask bool [B, 1 or M, L]."""

    def visible(start: int, stop: int) -> tuple[Tensor, tuple[int, int]]:
        return (mask if mask.shape[1] == 1 else mask[:, start:stop]), (0, mask.shape[2])

    return visible


def _write(out: Tensor, lse: Tensor | None, tokens: Tensor, part: Tensor, part_lse: Tensor | None) -> None:
    out.index_copy_(0, tokens, part.to(out.dtype))
    if lse is not None and part_lse is not None:
        lse.index_copy_(0, tokens, part_lse)


def _own_attention(q: Tensor, k: Tensor, v: Tensor, part: OwnPart) -> tuple[Tensor, Tensor]:
    kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    keys, values = (_padded(x, part.tokens).transpose(1, 2).flatten(0, 1) for x in (k, v))
    out, lse = dense_attention(_folded(q, part.tokens, kv_heads), keys, values, _causal(group, part.window))
    return _unfolded(out, lse, part.tokens, part.places, kv_heads)


def _folded(q: Tensor, tokens: Tensor, kv_heads: int) -> Tensor:
    """q [T, H, D] at tokens [R, Q] -> [R * K, Q * G, D]: the query heads of a KV head become rows."""
    rows, length = tokens.shape
    query = _padded(q, tokens).view(rows, length, kv_heads, -1, q.shape[2])
    return query.transpose(1, 2).reshape(rows * kv_heads, -1, q.shape[2])


def _unfolded(out: Tensor, lse: Tensor, tokens: Tensor, places: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """The reverse of _folded, for the real places only: [n, H, D] and [n, H]."""
    rows, length = tokens.shape
    out = out.view(rows, kv_heads, length, -1, out.shape[2]).transpose(1, 2).reshape(rows * length, -1, out.shape[2])
    lse = lse.view(rows, kv_heads, length, -1).transpose(1, 2).reshape(rows * length, -1)
    return out.index_select(0, places), lse.index_select(0, places)


def _padded(x: Tensor, tokens: Tensor) -> Tensor:
    return x.index_select(0, tokens.flatten()).view(*tokens.shape, *x.shape[1:])


def _decode_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, part: DecodePart, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """One small matmul per selected page and head; only scores, not keys, are arranged by row."""
    rows, places = part.slots.shape
    heads, dim = q.shape[1:]
    kv_heads, size = k_pages.shape[1:3]
    k, v = (numbers(_select(x, part.pages), q.dtype) for x in (k_pages, v_pages))
    query = q.index_select(0, part.tokens).view(rows, kv_heads, -1, dim)
    by_page = torch.bmm(query.index_select(0, part.owner).flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    by_row = by_page.view(len(part.owner), -1).index_select(0, part.slots.flatten())
    by_row = by_row.view(rows, places, kv_heads, -1, size).permute(0, 2, 3, 1, 4)
    weights, lse = _softmax(by_row.reshape(rows, kv_heads, heads // kv_heads, -1).float() + part.mask)
    weights = weights.to(q.dtype).view(rows, kv_heads, -1, places, size).permute(0, 3, 1, 2, 4)
    weights = weights.reshape(rows * places, -1).index_select(0, part.places).view(len(part.owner) * kv_heads, -1, size)
    partial = torch.bmm(weights, v.flatten(0, 1)).view(-1, heads * dim)
    out = F.embedding_bag(part.bag, partial, part.bag_offsets, mode="sum").view(rows, heads, dim)
    return out, lse.view(rows, heads) if with_lse else None


def _select(pages: Tensor, which: tuple[int, int] | Tensor) -> Tensor:
    return pages[which[0] : which[1]] if isinstance(which, tuple) else pages.index_select(0, which)


def _prefix_attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, part: PrefixPart) -> tuple[Tensor, Tensor]:
    tokens, kv_heads = part.tokens[None], k_pages.shape[1]
    k, v = (_gathered(x, part.pages[None], q.dtype) for x in (k_pages, v_pages))
    out, lse = dense_attention(_folded(q, tokens, kv_heads), k, v)
    rows = out.view(kv_heads, len(part.tokens), -1, out.shape[2]).transpose(0, 1).flatten(1, 2)
    return rows, lse.view(kv_heads, len(part.tokens), -1).transpose(0, 1).flatten(1)


def _context_attention(q: Tensor, k_pages: Tensor, v_pages: Tensor, part: ContextPart) -> tuple[Tensor, Tensor]:
    kv_heads = k_pages.shape[1]
    k, v = (_gathered(x, part.pages, q.dtype) for x in (k_pages, v_pages))
    mask = None if part.mask is None else part.mask.repeat_interleave(kv_heads, 0)
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(q.shape[1] // kv_heads, 1)
    query = _folded(q, part.tokens, kv_heads)
    out, lse = dense_attention(query, k, v, None if mask is None else _masked(mask))
    return _unfolded(out, lse, part.tokens, part.places, kv_heads)


def _gathered(pages: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """pages [N, K, S, D], ids [R, P] -> contiguous [R * K, P * S, D] in this dtype."""
    rows, places = ids.shape
    _, kv_heads, size, dim = pages.shape
    taken = numbers(pages.index_select(0, ids.flatten()), dtype).view(rows, places, kv_heads, size, dim)
    return taken.transpose(1, 2).reshape(rows * kv_heads, places * size, dim)
