"""How long a step takes, learned while serving, and when a request would get its first token. No torch.

A step's time is modelled as linear in five sizes, fitted by recursive least squares with forgetting, so that it
follows the machine: other load, another clock, a longer context.
"""

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_FORGETTING = 0.995  # a step counts half after 140 more
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
    """seconds(shape), once a few steps have been seen; before that `prior_seconds` per token."""

    def __init__(self, prior_seconds: float = 1e-4) -> None:
        self.steps = 0
        self._prior = prior_seconds
        self._weights = np.array([1e-3, prior_seconds * 1024, prior_seconds * 64, 0.0, 0.0])
        self._covariance = np.eye(5) * 100.0

    def learn(self, shape: StepShape, seconds: float) -> None:
        """Relative errors count, so that short steps are learned as well as long ones."""
        scale = 1.0 / max(seconds, 1e-5)
        x = shape.features() * scale
        gain = self._covariance @ x
        gain /= _FORGETTING + float(x @ gain)
        self._weights += gain * (1.0 - float(x @ self._weights))
        covariance = (self._covariance - np.outer(gain, x @ self._covariance)) / _FORGETTING
        if float(np.trace(covariance)) < 1e6:  # nothing new comes in from a size that never varies
            self._covariance = covariance
        self.steps += 1

    def seconds(self, shape: StepShape) -> float:
        return max(1e-5, float(shape.features() @ np.maximum(self._weights, 0.0)))

    def coefficients(self) -> dict[str, float]:
        """Milliseconds per step, prefill token, decode row and thousand keys read by decode rows."""
        base, prefill, row, context, _ = (np.maximum(self._weights, 0.0) * _SCALES * 1e3).tolist()
        return {"step": base, "prefill_token": prefill, "decode_row": row, "thousand_keys": context * 1e3}


class ResidualQuantiles:
    """Quantiles of actual over predicted among the last `window` requests."""

    def __init__(self, window: int = 256) -> None:
        self._recent: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._sorted)

    def learn(self, predicted: float, actual: float) -> None:
        ratio = actual / max(predicted, 1e-6)
        if len(self._recent) == self._recent.maxlen:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(ratio)
        insort(self._sorted, ratio)

    def quantile(self, q: float) -> float:
        """The smallest ratio that a share q of n requests, counted as n + 1, did not exceed (conformal); 1 if none."""
        count = len(self._sorted)
        if not count:
            return 1.0
        return self._sorted[min(count - 1, max(0, int(np.ceil(q * (count + 1))) - 1))]


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

    tokens_due: uncomputed tokens of running and waiting requests.  finish_seconds: between two requests' ends.
    """

    tokens_due: int
    waiting: int
    running: int
    free_seats: int
    decode_rows: int
    decode_context: int
    blocks_available: int
    finish_seconds: float


def first_token_seconds(
    backlog: Backlog, model: StepTimeModel, *, prompt_tokens: int, cached_tokens: int, budget: int, blocks_needed: int
) -> float:
    """(uncached tokens ahead and mine) / chunk budget x step time, plus the wait for a seat and for pages."""
    mine = prompt_tokens - cached_tokens
    ahead = backlog.tokens_due
    chunk = max(1, budget - backlog.decode_rows)
    full, rest = divmod(ahead + mine, chunk)

    def step(tokens: int) -> float:
        depth = prompt_tokens - mine / 2
        shape = StepShape(tokens, backlog.decode_rows, backlog.decode_context, int(tokens * depth))
        return model.seconds(shape)

    seats = max(0, backlog.waiting + 1 - backlog.free_seats)
    if blocks_needed > backlog.blocks_available and backlog.running:
        seats = max(seats, 1)
    return (full * step(chunk) if full else 0.0) + (step(rest) if rest else 0.0) + seats * backlog.finish_seconds
