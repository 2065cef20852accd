"""How many tokens to try: as many as are expected to pay for their place in the step. No torch.

A draft of k tokens accepted one after the other with probability p each adds p + p^2 + ... + p^k tokens to a step and
k tokens' work. What a token of work costs and what the plain step yields come from the measured step-time model, so
at high load, where a step is all work and no waiting, drafts stop by themselves.
"""

import math
from collections import defaultdict
from collections.abc import Hashable

_DECAY = 0.98  # of what was seen before, per draft
_PRIOR = (3.0, 1.5)  # accepted and tried, before anything was seen: try a little, learn soon
_SURE = 0.97  # no estimate is higher, so that no draft is endless
PROBE = 64  # a kind of draft that does not pay is tried again after so many occasions, by one token


class Acceptance:
    """The share of draft tokens accepted, by kind of draft, over recent drafts of all requests."""

    def __init__(self) -> None:
        self._tried: dict[Hashable, float] = defaultdict(lambda: _PRIOR[0])
        self._accepted: dict[Hashable, float] = defaultdict(lambda: _PRIOR[1])
        self._passed: dict[Hashable, int] = defaultdict(int)

    def estimate(self, kind: Hashable) -> float:
        return min(_SURE, self._accepted[kind] / self._tried[kind])

    def learn(self, kind: Hashable, tried: int, accepted: int) -> None:
        """tried counts up to and with the first token that was refused: what stood behind it was never judged."""
        self._tried[kind] = _DECAY * self._tried[kind] + tried
        self._accepted[kind] = _DECAY * self._accepted[kind] + accepted

    def length(self, kind: Hashable, available: int, least: float) -> int:
        """Tokens of this kind of draft that are each accepted with a probability of at least `least`."""
        p = self.estimate(kind)
        if least <= 0:
            return available
        count = int(math.log(least) / math.log(p)) if least < 1 and p > 0 else 0
        if count == 0:
            self._passed[kind] += 1
            if self._passed[kind] < PROBE:
                return 0
            self._passed[kind], count = 0, 1
        return min(count, available)


def least_acceptance(rows: int, step_seconds: float, token_seconds: float) -> float:
    """The probability at which a further token is worth its time.

    Without it the step gives `rows` tokens in `step_seconds`; it takes `token_seconds` more.
    """
    return rows * token_seconds / max(step_seconds, 1e-9)
