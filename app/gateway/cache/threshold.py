"""How alike two questions must be for one's answer to serve the other: learned, with a bound on how often it is wrong.

Of every pair whose answers were compared (a kept answer against a fresh one), similarity and verdict are known. The
threshold is the lowest similarity above which wrong ones are rarer than `max_error` with 95 % confidence (Clopper and
Pearson's bound), so that it rises after a mistake and sinks again with evidence. The idea of an error bound in place of
a fixed number: Schroeder and others, vCache (2502.03771).
"""

import math
from collections.abc import Iterable

CONFIDENCE = 0.95


def is_rarer(wrong: int, of: int, rate: float) -> bool:
    """Whether `wrong` errors in `of` independent trials show, with CONFIDENCE, that errors are rarer than `rate`."""
    if not 0 < rate < 1:
        return rate >= 1
    logs = (
        math.lgamma(of + 1) - math.lgamma(i + 1) - math.lgamma(of - i + 1) + i * math.log(rate)
        + (of - i) * math.log1p(-rate)
        for i in range(wrong + 1)
    )  # fmt: skip
    return wrong < of and sum(map(math.exp, logs)) <= 1 - CONFIDENCE


def highest_rate(wrong: int, of: int) -> float:
    """The rate of errors that is not exceeded, with CONFIDENCE, after `wrong` errors in `of` trials."""
    low, high = wrong / of, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if is_rarer(wrong, of, middle) else (middle, high)
    return high


def trials_for(rate: float) -> int:
    """How many trials without an error it takes to show that errors are rarer than `rate`."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-rate))


class Threshold:
    """start: where it stands before anything was seen, worth as many right trials as it takes to believe it.

    `value` is infinite where nothing can be believed.
    """

    def __init__(self, start: float, max_error: float, seen: Iterable[tuple[float, bool]] = ()) -> None:
        self._max_error = max_error
        self._trials = [(start, True)] * trials_for(max_error) + list(seen)
        self.value = self._found()

    def learn(self, similarity: float, right: bool) -> None:
        self._trials.append((similarity, right))
        self.value = self._found()

    def _found(self) -> float:
        """Walk down from the most alike: who is wrong there counts for everything below."""
        self._trials.sort(reverse=True)
        wrong, lowest = 0, math.inf
        for i, (similarity, right) in enumerate(self._trials):
            wrong += not right
            last = i + 1 == len(self._trials) or self._trials[i + 1][0] < similarity
            if last and is_rarer(wrong, i + 1, self._max_error):
                lowest = similarity
        return lowest
