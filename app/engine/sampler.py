"""Logits to tokens, for all rows at once.

A sampled row draws one uniform number, a function of its seed and its position in the output alone, and looks it
up in its cumulative distribution: neither the batch nor preemption changes what a seed gives.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.engine.request import Sequence

_CANDIDATES = 256  # tokens ranked for top-p before all of them are; sorting 8,192 took half as long as a step


@dataclass(slots=True)
class SamplingBatch:
    """Per row: temperature, top_p float32 [n]; top_k, uniform as int64 and float64 [n].

    sampled: int64, the rows that are not greedy.  banned: (row, token) pairs that must not be chosen now.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    uniform: Tensor
    sampled: Tensor
    banned: tuple[list[int], list[int]]
    with_logprobs: bool


def sampling_batch(seqs: Seq[Sequence], eos_token_ids: Seq[int]) -> SamplingBatch:
    params = [seq.sampling for seq in seqs]
    seeds = np.array([seq.seed for seq in seqs], dtype=np.uint64)
    steps = np.array([seq.num_output_tokens for seq in seqs], dtype=np.uint64)
    rows: list[int] = []
    tokens: list[int] = []
    for i, seq in enumerate(seqs):
        if seq.num_output_tokens < seq.sampling.min_tokens:
            ends = {*seq.sampling.stop_token_ids, *eos_token_ids}
            rows += [i] * len(ends)
            tokens += ends
    return SamplingBatch(
        temperature=torch.tensor([p.temperature for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        top_p=torch.tensor([p.top_p for p in params]),
        uniform=torch.from_numpy(uniform(seeds, steps)),
        sampled=torch.tensor([i for i, p in enumerate(params) if not p.is_greedy], dtype=torch.int64),
        banned=(rows, tokens),
        with_logprobs=any(p.logprobs is not None for p in params),
    )


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


def sample(logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor | None]:
    """Tokens int64 [n] from float32 logits [n, vocab], and their natural log probabilities if anybody asked."""
    logprobs = logits.log_softmax(-1) if batch.with_logprobs else None
    if batch.banned[0]:
        logits[batch.banned] = float("-inf")
    tokens = logits.argmax(-1)
    if len(batch.sampled):
        tokens[batch.sampled] = _draw(logits[batch.sampled], batch, batch.sampled)
    if logprobs is None:
        return tokens, None
    return tokens, logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)


def _draw(logits: Tensor, batch: SamplingBatch, rows: Tensor) -> Tensor:
    top_k, top_p, uniform = batch.top_k[rows], batch.top_p[rows], batch.uniform[rows]
    logits = logits / batch.temperature[rows].clamp(min=1e-5).unsqueeze(1)
    filters = (top_k > 0) | (top_p < 1)
    if not bool(filters.any()):
        return _invert(logits.softmax(-1), uniform).squeeze(1)
    tokens = torch.empty(len(rows), dtype=torch.int64)
    probs, order = _filtered(logits[filters], top_k[filters], top_p[filters])
    tokens[filters] = order.gather(1, _invert(probs, uniform[filters])).squeeze(1)
    tokens[~filters] = _invert(logits[~filters].softmax(-1), uniform[~filters]).squeeze(1)
    return tokens


def _filtered(logits: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities, highest first, with everything outside top-k, then top-p, at zero; and the token ids.

    Ranks only as many tokens as can matter, and the whole vocabulary where top-p reaches further than that.
    """
    vocab_size = logits.shape[1]
    count = min(vocab_size, max(_CANDIDATES, int(top_k.max())))
    values, order = logits.topk(count)
    limit = torch.where(top_k > 0, top_k, vocab_size).unsqueeze(1)
    if count < vocab_size and bool((_mass(values, logits) < top_p)[top_k == 0].any()):
        values, order = torch.sort(logits, -1, descending=True)
    outside_k = torch.arange(values.shape[1]) >= limit
    total = torch.where(top_k > 0, values.masked_fill(outside_k, float("-inf")).logsumexp(-1), logits.logsumexp(-1))
    probs = (values - total.unsqueeze(1)).exp().masked_fill(outside_k, 0.0)
    outside_p = (probs.cumsum(-1) - probs >= top_p.unsqueeze(1)) & (top_p < 1).unsqueeze(1)
    outside_p[:, 0] = False
    return probs.masked_fill(outside_p, 0.0), order


def _mass(values: Tensor, logits: Tensor) -> Tensor:
    return (values.logsumexp(-1) - logits.logsumexp(-1)).exp()


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Index [n, 1] of the first place where the cumulative sum exceeds uniform times the total mass."""
    cumulative = probs.double().cumsum(-1)
    target = uniform.unsqueeze(1) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)
    last = cumulative.shape[1] - 1 - (probs > 0).flip(-1).int().argmax(-1, keepdim=True)
    return torch.minimum(index, last)
