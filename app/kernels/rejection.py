"""Verification of drafted tokens: accept with min(1, p / q), else draw from the normalised (p - q)+. Lossless."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from app.kernels.variants import KernelShape, Variant

_BLOCK = 1024


@triton.jit
def _leftover(target, draft, drafted, index, used, rejected, HAS_DRAFT: tl.constexpr):
    """What p leaves after q, float64; q is one-hot at `drafted` where the draft has no probabilities."""
    p = tl.load(target + index, mask=used, other=0.0).to(tl.float64)
    if HAS_DRAFT:
        q = tl.load(draft + index, mask=used & (rejected > 0), other=0.0).to(tl.float64)
    else:
        q = ((index == drafted) & (rejected > 0)).to(tl.float64)
    left = p - q
    return p, tl.where(left > 0, left, 0.0)


@triton.jit(do_not_specialize=["vocab_size", "most"])
def rejection_kernel(
    target, firsts, draft_tokens, counts, draft, accept_uniform, draw_uniform, out, accepted_out, vocab_size, most,
    target_stride, draft_stride, BLOCK: tl.constexpr, HAS_DRAFT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    first = tl.load(firsts + row).to(tl.int64)
    count = tl.load(counts + row)
    accepted = count * 0
    going = count * 0 + 1
    for i in range(0, count):
        token = tl.load(draft_tokens + row * most + i)
        p = tl.load(target + (first + i) * target_stride + token).to(tl.float64)
        q = p * 0 + 1
        if HAS_DRAFT:
            q = tl.load(draft + (row * most + i).to(tl.int64) * draft_stride + token).to(tl.float64)
        # u < p / q without the division: a q of zero accepts whatever p has.
        going = going * (tl.load(accept_uniform + row * most + i) * q < p).to(tl.int32)
        tl.store(out + row * (most + 1) + i, token, mask=going > 0)
        accepted += going

    rejected = (accepted < count).to(tl.int32)
    place = row * most + tl.minimum(accepted, most - 1)
    drafted = tl.load(draft_tokens + place, mask=rejected > 0, other=-1)
    p_row = target + (first + accepted) * target_stride
    q_row = draft + place.to(tl.int64) * draft_stride
    mass = tl.full([BLOCK], 0.0, tl.float64)
    p_mass = tl.full([BLOCK], 0.0, tl.float64)
    for start in range(0, vocab_size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        p, left = _leftover(p_row, q_row, drafted, index, index < vocab_size, rejected, HAS_DRAFT)
        p_mass += p
        mass += left
    total = tl.sum(mass)
    # Nothing is left where p and q are equal up to rounding: then any draw from p is right.
    from_p = total <= 0
    wanted = tl.load(draw_uniform + row) * tl.where(from_p, tl.sum(p_mass), total)
    below = total * 0
    found = vocab_size
    last = vocab_size * 0
    for start in range(0, vocab_size, BLOCK):
        index = start + tl.arange(0, BLOCK)
        p, left = _leftover(p_row, q_row, drafted, index, index < vocab_size, rejected, HAS_DRAFT)
        weight = tl.where(from_p, p, left)
        reached = (below + tl.cumsum(weight, 0) > wanted) & (weight > 0)
        found = tl.minimum(found, tl.min(tl.where(reached, index, vocab_size)))
        last = tl.maximum(last, tl.max(tl.where(weight > 0, index, 0)))
        below += tl.sum(weight)
    drawn = tl.where(found < vocab_size, found, last)
    tl.store(out + row * (most + 1) + accepted, drawn.to(tl.int64))
    tl.store(accepted_out + row, accepted)


def rejection_sample(
    target: Tensor, firsts: Tensor, draft_tokens: Tensor, counts: Tensor, draft: Tensor | None,
    accept_uniform: Tensor, draw_uniform: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Tokens int64 [R, k + 1] (accepted drafts, then one drawn token, then -1) and accepted int32 [R].

    target: float32 [n, V], the model's distribution after penalties, temperature, filters and masks at every
    drafted place and the one after; row r's are firsts[r] .. firsts[r] + counts[r] (int32 [R]).  draft_tokens:
    int64 [R, k], of which counts[r] count.  draft: float32 [R, k, V], the distributions they were drawn from;
    None: the drafts were not drawn but chosen.  accept_uniform [R, k], draw_uniform [R]: float64 in [0, 1).
    target's rows may have any stride, the rest is contiguous; k at least 1.
    Source: Leviathan, Kalman, Matias (2211.17192). The draw inverts the cumulative sum in float64.
    """
    rows, most = draft_tokens.shape
    if target.dtype is not torch.float32 or most < 1:
        raise ValueError(f"rejection_sample takes float32 and drafts of at least 1, not {target.dtype} and {most}")
    out = torch.full((rows, most + 1), -1, dtype=torch.int64, device=target.device)
    accepted = torch.empty(rows, dtype=torch.int32, device=target.device)
    rejection_kernel[(rows,)](
        target, firsts, draft_tokens, counts, target if draft is None else draft, accept_uniform, draw_uniform,
        out, accepted, target.shape[1], most, target.stride(0), target.shape[1],
        BLOCK=_BLOCK, HAS_DRAFT=draft is not None, num_warps=4,
    )  # fmt: skip
    return out, accepted


def rejection_sample_reference(
    target: Tensor, firsts: Tensor, draft_tokens: Tensor, counts: Tensor, draft: Tensor | None,
    accept_uniform: Tensor, draw_uniform: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The same in plain PyTorch, row by row."""
    rows, most = draft_tokens.shape
    out, accepted = torch.full((rows, most + 1), -1, dtype=torch.int64), torch.zeros(rows, dtype=torch.int32)
    one_hot = torch.nn.functional.one_hot(draft_tokens.clamp(min=0), target.shape[1])
    q = one_hot.double() if draft is None else draft.double()
    for r in range(rows):
        p = target[int(firsts[r]) : int(firsts[r]) + int(counts[r]) + 1].double()
        places = torch.arange(int(counts[r]))
        tokens = draft_tokens[r, places]
        ok = accept_uniform[r, places] * q[r, places, tokens] < p[places, tokens]
        n = int(ok.long().cumprod(0).sum())
        left = (p[n] - q[r, n]).clamp(min=0) if n < len(places) else p[n]
        left = p[n] if float(left.sum()) <= 0 else left
        cumulative = left.cumsum(0)
        index = int(torch.searchsorted(cumulative, draw_uniform[r].double() * cumulative[-1], right=True))
        out[r, :n] = tokens[:n]
        out[r, n] = min(index, int(left.nonzero().max()))
        accepted[r] = n
    return out, accepted


def variants(shape: KernelShape, vocab_size: int, most: int) -> list[Variant]:
    def launch(with_draft: bool) -> None:
        def of(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=shape.device)

        target, draft = of(most + 1, vocab_size, dtype=torch.float32), of(1, most, vocab_size, dtype=torch.float32)
        tokens, ints = of(1, most, dtype=torch.int64), of(1, dtype=torch.int32)
        uniforms = of(1, most, dtype=torch.float64), of(1, dtype=torch.float64)
        rejection_sample(target, ints, tokens, ints, draft if with_draft else None, *uniforms)

    return [
        Variant("rejection of chosen drafts", lambda: launch(False)),
        Variant("rejection of drawn drafts", lambda: launch(True)),
    ]
