"""Logits to tokens, for all rows at once.

A sampled row draws one uniform number, a function of its seed and its position in the output alone, and looks it
up in its cumulative distribution: neither the batch nor preemption changes what a seed gives.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CANDIDATES = 256  # tokens ranked for top-p before all of them are; sorting 8,192 took half as long as a step
Pairs = tuple[Tensor, Tensor]


@dataclass(slots=True)
class Penalties:
    """For the rows int64 [m] that have any: what the request's tokens so far cost them.

    counts: float32 [m, vocab], occurrences in the output.  seen: bool [m, vocab], in prompt or output.
    presence, frequency, repetition: float32 [m, 1].
    """

    rows: Tensor
    counts: Tensor
    seen: Tensor
    presence: Tensor
    frequency: Tensor
    repetition: Tensor


@dataclass(slots=True)
class SamplingBatch:
    """Per row: temperature, top_p, min_p float32 [n]; top_k, uniform as int64 and float64 [n].

    locked: rows int64 [m] inside a quote, and bool [m, vocab], the tokens that no source has there.
    sampled: int64, the rows that draw from the whole vocabulary, and filtered: from what top_k, top_p or min_p leave;
    the others are greedy. Told apart on the host, so that no step waits for the device to say it.
    banned, biased: (row, token) pairs that must not be chosen now, and those that `bias` is added to.
    with_logprobs: int64, rows that want them; num_top: the most alternatives.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    sampled: Tensor
    filtered: Tensor
    with_logprobs: Tensor
    num_top: int = 0
    banned: Pairs | None = None
    locked: Pairs | None = None
    biased: Pairs | None = None
    bias: Tensor | None = None
    penalties: Penalties | None = None


@dataclass(slots=True)
class SampledTokens:
    """tokens: int64 [n].  Of the m rows with logprobs: logprobs float32 [m], top_ids and top_logprobs [m, num_top]."""

    tokens: Tensor
    logprobs: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


def uniform(seeds: npt.NDArray[np.uint64], steps: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), 53 bits, by two rounds of splitmix64 (Steele, Lea, Flood 2014) over (seed, step)."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(_splitmix(seeds) ^ (steps * np.uint64(0xD1342543DE82EF95)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample(logits: Tensor, batch: SamplingBatch) -> SampledTokens:
    """From float32 logits [n, vocab], which are changed in place."""
    wanted = logits.index_select(0, batch.with_logprobs).log_softmax(-1)
    _adjust(logits, batch)
    tokens = _highest(logits)
    for rows, draw in ((batch.sampled, _unfiltered), (batch.filtered, _filtered)):
        if len(rows):
            tokens[rows] = draw(logits[rows] / batch.temperature[rows].clamp(min=1e-5).unsqueeze(1), batch, rows)
    chosen = wanted.gather(1, tokens[batch.with_logprobs].unsqueeze(1)).squeeze(1)
    top = wanted.topk(min(batch.num_top, wanted.shape[1]), -1)
    return SampledTokens(tokens, chosen, top.indices, top.values)


def _highest(logits: Tensor) -> Tensor:
    """numpy's argmax is vectorised where torch's is not: for 64 rows of 6,144 it takes a tenth of the time."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.is_cpu else logits.argmax(-1)


def _adjust(logits: Tensor, batch: SamplingBatch) -> None:
    if batch.penalties is not None:
        _penalize(logits, batch.penalties)
    if batch.biased is not None and batch.bias is not None:
        logits.index_put_(batch.biased, batch.bias, accumulate=True)
    if batch.banned is not None:
        logits[batch.banned] = float("-inf")
    if batch.locked is not None:
        rows, impossible = batch.locked
        logits[rows] = logits[rows].masked_fill(impossible, float("-inf"))


def _penalize(logits: Tensor, by: Penalties) -> None:
    rows = logits.index_select(0, by.rows)
    repeated = torch.where(rows > 0, rows / by.repetition, rows * by.repetition)
    rows = torch.where(by.seen, repeated, rows)
    rows = rows - by.frequency * by.counts - by.presence * (by.counts > 0)
    logits.index_copy_(0, by.rows, rows)


def _unfiltered(logits: Tensor, batch: SamplingBatch, rows: Tensor) -> Tensor:
    """Tokens of these rows; without a filter nothing need be ranked."""
    return _invert(logits.softmax(-1), batch.uniform[rows]).squeeze(1)


def _filtered(logits: Tensor, batch: SamplingBatch, rows: Tensor) -> Tensor:
    """A GPU sorts everything: how far a row reaches would have to be read back before the next launch."""
    by = Filters(batch.top_k[rows], batch.top_p[rows], batch.min_p[rows], batch.uniform[rows], logits.logsumexp(-1))
    return _ranked(logits, by) if logits.is_cpu else _pick(*_sorted(logits), by)


@dataclass(slots=True)
class Filters:
    """As in SamplingBatch, of the rows in question. total: log of the mass of the whole vocabulary."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor
    total: Tensor

    def of(self, rows: Tensor) -> "Filters":
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows], self.uniform[rows], self.total[rows])


def _ranked(logits: Tensor, by: Filters) -> Tensor:
    """Ranks only as many tokens as can matter, and the whole vocabulary for the rows that reach further.

    Which way a row goes depends on nothing but the row, so that a seed gives the same in any company. Finding the
    end of a flat row's mass by bisection instead of sorting it was no faster (64 rows of 8,192 and of 152,000).
    """
    vocab_size = logits.shape[1]
    count = min(vocab_size, max(_CANDIDATES, int(by.top_k.max())))
    values, order = logits.topk(count)
    tokens = _pick(values, order, by)
    if vocab_size <= _CANDIDATES:
        return tokens
    values = values[:, :_CANDIDATES]
    mass = (values.logsumexp(-1) - by.total).exp()
    short = torch.where(by.min_p > 0, values[:, -1] >= _floor(values, by.min_p), mass < by.top_p)
    far = torch.nonzero(short & (by.top_k == 0)).squeeze(1)
    if len(far):
        tokens[far] = _pick(*_sorted(logits[far]), by.of(far))
    return tokens


def _sorted(logits: Tensor) -> Pairs:
    """Highest first, and where they were. With numpy's vectorised argsort filtering takes half of the time."""
    if not logits.is_cpu:
        return torch.sort(logits, -1, descending=True)
    order = torch.from_numpy(np.argsort(-logits.numpy(), -1))
    return logits.gather(1, order), order


def _floor(values: Tensor, min_p: Tensor) -> Tensor:
    """The lowest logit that min_p keeps; values [n, m] highest first."""
    return values[:, 0] + min_p.clamp(min=1e-30).log()


def _pick(values: Tensor, order: Tensor, by: Filters) -> Tensor:
    """One token per row from logits ranked highest first."""
    limit = torch.where(by.top_k > 0, by.top_k, values.shape[1]).unsqueeze(1)
    outside = torch.arange(values.shape[1], device=values.device) >= limit
    outside = outside | ((values < _floor(values, by.min_p).unsqueeze(1)) & (by.min_p > 0).unsqueeze(1))
    kept = values.masked_fill(outside, float("-inf"))
    total = torch.where((by.top_k > 0) | (by.min_p > 0), kept.logsumexp(-1), by.total)
    probs = (kept - total.unsqueeze(1)).exp()
    outside_p = (probs.cumsum(-1) - probs >= by.top_p.unsqueeze(1)) & (by.top_p < 1).unsqueeze(1)
    outside_p[:, 0] = False
    return order.gather(1, _invert(probs.masked_fill(outside_p, 0.0), by.uniform)).squeeze(1)


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Index [n, 1] of the first place where the cumulative sum exceeds uniform times the total mass."""
    cumulative = probs.double().cumsum(-1)
    target = uniform.unsqueeze(1) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)
    last = cumulative.shape[1] - 1 - (probs > 0).flip(-1).int().argmax(-1, keepdim=True)
    return torch.minimum(index, last)
