"""How long a step takes, learned while serving, and when a request would get its first token. No torch.

A step's time is modelled as linear in five sizes, fitted by least squares with forgetting, so that it follows the
machine: other load, another clock, a longer context.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from math import ceil, exp, log

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_FORGETTING = 0.995  # a step counts half after 140 more
_FIRST, _OUTLIER = 30, 4.0  # steps until expectations count, and what they may be exceeded by
_LEVEL_GAIN, _LASTS = 0.05, 40.0  # of a step in the level; how many steps a level lasts, measured on a busy machine
_LENGTH_GAIN = 0.02
_GOLDEN = 0.6180339887  # its multiples, modulo one, fill the unit interval evenly
_NEAR = 48  # of those who wait, that are looked at one by one
_ALIKE = 0.35  # predictions within 1.4 times of each other are of one size,
_ENOUGH = 24  # and so many make a spread of their own
COVERED = 0.9  # the share of bounds that Coverage watches
_COVERAGE_GAIN, _WIDEST = 0.02, 1.0
_ROUNDS = 4
_SCALES = (1.0, 1 / 1024, 1 / 64, 1 / 65536, 1 / 4194304)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step does. prefill_tokens: in chunks of two or more; decode_rows: rows of one token.

    decode_context: keys those rows see.  prefill_context: the same for all chunk tokens, summed.
    draft_tokens: those of the prefill tokens that are guesses of decoding rows.
    """

    prefill_tokens: int
    decode_rows: int
    decode_context: int
    prefill_context: int
    draft_tokens: int = 0

    def features(self) -> Floats:
        sizes = (1.0, self.prefill_tokens, self.decode_rows, self.decode_context, self.prefill_context)
        return np.array([size * scale for size, scale in zip(sizes, _SCALES, strict=True)])


class StepTimeModel:
    """seconds(shape), once a few steps have been seen; before that `prior_seconds` per token.

    Least squares relative to what was expected, so that short steps are learned as well as long ones; relative to
    what they took, slow steps would count less and the fit came out 13 % short. Weights are never negative: no size
    makes a step shorter. Sizes that always went together share the time between them.
    """

    def __init__(self, prior_seconds: float = 1e-4) -> None:
        self.steps = 0
        self._level = 1.0  # how long steps took lately beside what the fit says: the machine's other work
        self._weights = np.array([1e-3, prior_seconds * 1024, prior_seconds * 64, 0.0, 0.0])
        self._gram, self._target = np.zeros((5, 5)), np.zeros(5)

    def learn(self, shape: StepShape, seconds: float) -> None:
        x = shape.features()
        usual = max(1e-5, float(x @ self._weights))
        if self.steps < _FIRST:
            usual = max(1e-5, seconds)
        seconds = min(seconds, _OUTLIER * usual * max(1.0, self._level))
        self._level += _LEVEL_GAIN * (seconds / usual - self._level)
        x = x / usual
        self._gram = _FORGETTING * self._gram + np.outer(x, x)
        self._target = _FORGETTING * self._target + x * (seconds / usual)
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
        return max(1e-5, self._level * float(shape.features() @ self._weights))

    def over(self, steps: float) -> float:
        """By how much so many steps together will differ from `seconds`: what slows a few goes by in many."""
        lasting = _LASTS / max(1.0, steps) * (1 - exp(-max(1.0, steps) / _LASTS))
        return (1 + lasting * (self._level - 1)) / self._level

    def coefficients(self) -> dict[str, float]:
        """Milliseconds per step, prefill token, decode row, and thousand keys read by decode rows and by chunks."""
        base, prefill, row, context, depth = (self._level * self._weights * _SCALES * 1e3).tolist()
        return {"step": base, "prefill_token": prefill, "decode_row": row, "thousand_keys": context * 1e3,
                "thousand_chunk_keys": depth * 1e3}  # fmt: skip


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


class AnswerLengths:
    """How long answers become: a share is as long as it may be, the others as those that ended earlier lately."""

    def __init__(self, window: int = 256) -> None:
        self._full = 1.0  # share of answers that reached max_tokens, lately
        self._early: deque[int] = deque(maxlen=window)
        self._sorted = np.zeros(0)  # the lengths of the others

    def learn(self, length: int, most: int) -> None:
        self._full += _LENGTH_GAIN * ((length >= most) - self._full)
        if length < most:
            self._early.append(length)
            self._sorted = np.sort(np.array(self._early, dtype=np.float64))

    def left(self, written: Floats, most: Floats) -> Floats:
        """Tokens to come, at least one, of answers with so many written and so many allowed.

        Not the mean of each, for the first of many ends long before the mean: each gets another quantile of those
        lengths that are still possible for it.
        """
        quantiles = (0.5 + np.arange(len(written)) * _GOLDEN) % 1.0
        longer = len(self._sorted) - np.searchsorted(self._sorted, written, side="right")
        early = (quantiles >= self._full) & (longer > 0)
        among = (quantiles[early] - self._full) / (1 - self._full)
        ends = most.copy()
        ends[early] = self._sorted[len(self._sorted) - longer[early] + (among * longer[early]).astype(np.int64)]
        left: Floats = np.maximum(1.0, np.minimum(ends, most) - written)
        return left


@dataclass(frozen=True, slots=True)
class Backlog:
    """What lies before a new request, as of the last step.

    running: tokens written and allowed of each answer.  waiting: in their order the uncomputed tokens, the prompt's
    and those allowed of each.  catching_up: uncomputed tokens of the running.  blocks_per_end: what one of them
    gives back.  tokens_per_row, drafts_per_row: of a decoding row in a step, lately.
    """

    running: tuple[tuple[int, int], ...]
    waiting: tuple[tuple[int, int, int], ...]
    catching_up: int
    free_seats: int
    decode_context: int
    blocks_available: int
    blocks_per_end: float
    tokens_per_row: float = 1.0
    drafts_per_row: float = 0.0


class Outlook:
    """Goes through the steps to come: who is before a request gets a seat as somebody ends, in the queue's order."""

    def __init__(self, backlog: Backlog, model: StepTimeModel, lengths: AnswerLengths, budget: int, block: int) -> None:
        self._model, self._block = model, block
        self._rows = len(backlog.running)
        self._context = backlog.decode_context / max(1, self._rows)
        self._drafts = backlog.drafts_per_row
        self._chunk = max(1, budget - int(self._rows * (1 + self._drafts)))
        self._seats, self._blocks, self._freed = backlog.free_seats, backlog.blocks_available, backlog.blocks_per_end
        self._per_row = backlog.tokens_per_row
        self._base = model.seconds(StepShape(0, 0, 0, 0))
        self._decoding = self._decode_seconds()
        self._seconds = self._step = 0.0
        self._tokens, self._prefill = backlog.catching_up, self._chunks(backlog.catching_up, int(self._context))
        written, most = np.array(backlog.running, dtype=np.float64).reshape(-1, 2).T
        self._ends: list[float] = (lengths.left(written, most) / self._per_row).tolist()
        heapq.heapify(self._ends)
        self._pass(backlog.waiting, lengths)

    def first_token(self, due: int, prompt_tokens: int) -> float:
        """Seconds until the first token of one more request, the last in the queue; to be asked once."""
        self._seat(due, prompt_tokens)
        own = max(1, ceil(self._tokens / self._chunk))
        return (self._seconds + own * self._decoding + self._prefill) * self._model.over(self._step + own)

    def _pass(self, waiting: tuple[tuple[int, int, int], ...], lengths: AnswerLengths) -> None:
        """All who wait; the far end of a long queue by its means, for then it is known well enough when seats free."""
        if not waiting:
            return
        most = np.array([most for *_, most in waiting], dtype=np.float64)
        steps = lengths.left(np.zeros(len(most)), most) / self._per_row
        for (due, prompt, _), length in zip(waiting[:_NEAR], steps[:_NEAR].tolist(), strict=True):
            self._seat(due, prompt)
            heapq.heappush(self._ends, self._step + ceil(self._tokens / self._chunk) + length)
        if far := waiting[_NEAR:]:
            turns = float(steps[_NEAR:].sum()) / len(self._ends)
            self._step += turns
            self._ends = [end + turns for end in self._ends]
            self._seconds += turns * self._decoding
            self._seconds += self._chunks(sum(x[0] for x in far), sum(x[1] for x in far) // len(far))

    def _seat(self, due: int, prompt_tokens: int) -> None:
        need = due // self._block + 1
        while self._ends and (self._seats <= 0 or self._blocks < need):
            self._until(heapq.heappop(self._ends))
            self._seats, self._blocks = self._seats + 1, int(self._blocks + self._freed)
        self._seats, self._blocks = self._seats - 1, self._blocks - need
        self._tokens += due
        self._prefill += self._chunks(due, prompt_tokens - due)

    def _until(self, end: float) -> None:
        if end > self._step:
            steps = max(end - self._step, ceil(self._tokens / self._chunk))
            self._seconds += steps * self._decoding + self._prefill
            self._step, self._tokens, self._prefill = end, 0, 0.0

    def _decode_seconds(self) -> float:
        context, drafts = int(self._rows * self._context), int(self._rows * self._drafts)
        return self._model.seconds(StepShape(drafts, self._rows, context, int(drafts * self._context)))

    def _chunks(self, tokens: int, before: int) -> float:
        """What this part of a prompt adds to the steps that compute it."""
        if not tokens:
            return 0.0
        return self._model.seconds(StepShape(tokens, 0, 0, tokens * (before + tokens // 2))) - self._base
