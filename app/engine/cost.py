"""How long a step takes, learned while serving, and when a request would get its first token. No torch.

A step's time is modelled as linear in five sizes, fitted by least squares with forgetting, so that it follows the
machine: other load, another clock, a longer context.
"""

import heapq
import itertools
from collections.abc import Hashable
from dataclasses import dataclass
from math import ceil, exp, log

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_FORGETTING = 0.995  # a step counts half after 140 more
_ALIKE = 0.35  # predictions within 1.4 times of each other are of one size,
_ENOUGH = 24  # and so many make a spread of their own
COVERED = 0.9  # the share of bounds that Coverage watches
_COVERAGE_GAIN, _WIDEST = 0.01, 1.0
_ROUNDS = 4
_SCALES = (1.0, 1 / 1024, 1 / 64, 1 / 65536, 1 / 4194304)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step does. prefill_tokens: in chunks of two or more; decode_rows: rows of one token.

    decode_context: keys those rows see.  prefill_context: the same for all chunk tokens, summed.
    """

    prefill_tokens: int
    decode_rows: int
    decode_context: int
    prefill_context: int

    def features(self) -> Floats:
        sizes = (1.0, self.prefill_tokens, self.decode_rows, self.decode_context, self.prefill_context)
        return np.array([size * scale for size, scale in zip(sizes, _SCALES, strict=True)])


class StepTimeModel:
    """seconds(shape), once a few steps have been seen; before that `prior_seconds` per token.

    Least squares of the relative error, so that short steps are learned as well as long ones, with weights that are
    never negative: no size makes a step shorter. Sizes that always went together share the time between them.
    """

    def __init__(self, prior_seconds: float = 1e-4) -> None:
        self.steps = 0
        self._weights = np.array([1e-3, prior_seconds * 1024, prior_seconds * 64, 0.0, 0.0])
        self._gram, self._target = np.zeros((5, 5)), np.zeros(5)

    def learn(self, shape: StepShape, seconds: float) -> None:
        x = shape.features() / max(seconds, 1e-5)
        self._gram = _FORGETTING * self._gram + np.outer(x, x)
        self._target = _FORGETTING * self._target + x
        self._descend(self._gram.tolist(), self._target.tolist())
        self.steps += 1

    def _descend(self, gram: list[list[float]], target: list[float]) -> None:
        """A few rounds of coordinate descent from where the weights are."""
        weights: list[float] = self._weights.tolist()
        for _ in range(_ROUNDS):
            for i, row in enumerate(gram):
                if row[i] > 0:
                    others = sum(g * w for g, w in zip(row, weights, strict=True)) - row[i] * weights[i]
                    weights[i] = max(0.0, (target[i] - others) / row[i])
        self._weights = np.array(weights)

    def seconds(self, shape: StepShape) -> float:
        return max(1e-5, float(shape.features() @ self._weights))

    def coefficients(self) -> dict[str, float]:
        """Milliseconds per step, prefill token, decode row and thousand keys read by decode rows."""
        base, prefill, row, context, _ = (self._weights * _SCALES * 1e3).tolist()
        return {"step": base, "prefill_token": prefill, "decode_row": row, "thousand_keys": context * 1e3}


class ResidualQuantiles:
    """Quantiles of actual over predicted among the last `window` requests whose predictions were of this size.

    An idle engine errs by a step, a queue by how long answers turn out: one spread for both would cover neither.
    Requests that still wait are not among them, so an error that grows with the queue is learned late.
    """

    def __init__(self, window: int = 512) -> None:
        self._logs = np.zeros((2, window))  # of predictions, and of actual over predicted
        self._count = 0

    def __len__(self) -> int:
        return min(self._count, self._logs.shape[1])

    def learn(self, predicted: float, actual: float) -> None:
        predicted = max(predicted, 1e-6)
        self._logs[:, self._count % self._logs.shape[1]] = log(predicted), log(max(actual, 1e-6) / predicted)
        self._count += 1

    def quantiles(self, predicted: float, *levels: float) -> list[float]:
        """For each level q the smallest ratio that a share q of n requests, counted as n + 1, did not exceed
        (conformal); 1 if there were none."""
        sizes, ratios = self._logs[:, : len(self)]
        near = ratios[np.abs(sizes - log(max(predicted, 1e-6))) < _ALIKE]
        if len(near) < _ENOUGH:
            near = ratios
        count = len(near)
        if not count:
            return [1.0 for _ in levels]
        ranked = np.sort(near)
        places = (min(count - 1, max(0, ceil(q * (count + 1)) - 1)) for q in levels)
        return [exp(float(ranked[place])) for place in places]


class Coverage:
    """Keeps a share of promised times true while errors drift together, as those of a queue do: a miss widens all
    further bounds, a hit narrows them by as much less as balances at that share (adaptive conformal inference, Gibbs
    and Candes 2021). A miss counts when its time is over, not when the token comes at last. log_factor: on bounds."""

    def __init__(self) -> None:
        self.log_factor = 0.0
        self._open: set[Hashable] = set()
        self._ends: list[tuple[float, int, Hashable]] = []
        self._numbers = itertools.count()

    def promise(self, key: Hashable, until: float) -> None:
        self._open.add(key)
        heapq.heappush(self._ends, (until, next(self._numbers), key))

    def came(self, key: Hashable, now: float) -> None:
        self.settle(now)
        if key in self._open:
            self._open.remove(key)
            self._learn(missed=False)

    def forget(self, key: Hashable) -> None:
        self._open.discard(key)

    def settle(self, now: float) -> None:
        while self._ends and self._ends[0][0] < now:
            key = heapq.heappop(self._ends)[2]
            if key in self._open:
                self._open.remove(key)
                self._learn(missed=True)

    def _learn(self, *, missed: bool) -> None:
        factor = self.log_factor + _COVERAGE_GAIN * (missed - (1 - COVERED))
        self.log_factor = min(_WIDEST, max(-_WIDEST, factor))


@dataclass(frozen=True, slots=True)
class TTFTPrediction:
    """Seconds until the first token: the median, and what a share `quantile` of requests stay below."""

    median_s: float
    quantile_s: float
    quantile: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """What lies before a new request, as of the last step.

    tokens_due: uncomputed tokens of running and waiting requests.  tokens_per_end: output tokens of all requests
    between two requests' ends, lately.
    """

    tokens_due: int
    waiting: int
    running: int
    free_seats: int
    decode_rows: int
    decode_context: int
    blocks_available: int
    tokens_per_end: float


def first_token_seconds(
    backlog: Backlog, model: StepTimeModel, *, prompt_tokens: int, cached_tokens: int, budget: int, blocks_needed: int
) -> float:
    """(uncached tokens ahead and mine) / chunk budget x step time; where somebody must end first, for want of a seat
    or of pages, at least the steps until then, of which those before count."""
    mine = prompt_tokens - cached_tokens
    ahead = backlog.tokens_due
    rows, context = backlog.decode_rows, backlog.decode_context
    chunk = max(1, budget - rows)
    full, rest = divmod(ahead + mine, chunk)

    def step(tokens: int) -> float:
        depth = prompt_tokens - mine / 2
        return model.seconds(StepShape(tokens, rows, context, int(tokens * depth)))

    ends = max(0, backlog.waiting + 1 - backlog.free_seats)
    if blocks_needed > backlog.blocks_available and backlog.running:
        ends = max(ends, 1)
    steps_until = ends * backlog.tokens_per_end / max(1, backlog.running)
    decoding = max(0.0, steps_until - full - bool(rest)) * step(0)
    return (full * step(chunk) if full else 0.0) + (step(rest) if rest else 0.0) + decoding
