"""Counters that requests draw on: rates, requests at once, budgets. One interface, here in this process' memory.

A request draws on all of its counters in one atomic step or on none. Rates are exact in one direction: within any
window of time no more is ever granted than the limit; what was granted comes back up to a sixtieth of the window late,
since it is counted by sixtieths. Budgets hold what is spent and what running requests have reserved.

`app/gateway/limits_redis.py` is the same for several replicas; tests/gateway/test_limits.py runs against both.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

MINUTE = 60.0
SLICES = 60
# How long a request that found too many others running is told to wait: nobody knows when one of them ends.
BUSY_SECONDS = 1.0
MAX_IDLE_COUNTERS = 10_000


class Kind(StrEnum):
    RATE = "rate"
    CONCURRENCY = "concurrency"
    BUDGET = "budget"


@dataclass(frozen=True)
class Draw:
    """What one request takes from one counter.

    `name` says to people which counter it is. `window`: of rates, in seconds; of budgets, how long the counter is kept.
    """

    key: str
    kind: Kind
    name: str
    limit: int
    amount: int = 1
    window: float = MINUTE


@dataclass(frozen=True)
class Granted:
    """`remaining` by key after this request. `slices`: where the amounts of rates were counted."""

    remaining: dict[str, int] = field(default_factory=dict)
    slices: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """Nothing was taken. `draws`: which counters had too little. `retry_after`: seconds until rates would allow it."""

    draws: tuple[Draw, ...]
    retry_after: float


@dataclass(frozen=True)
class Unseeded:
    """Nothing was taken: these budgets' counters do not exist yet and must be told what is spent."""

    draws: tuple[Draw, ...]


class LimitStore(Protocol):
    failures: int
    """How often shared counters did not answer."""

    async def acquire(self, lease: str, draws: Sequence[Draw]) -> Granted | Refused | Unseeded:
        """Take everything or nothing. `lease` names the request; it ends in `settle`."""
        ...

    async def settle(
        self, lease: str, draws: Sequence[Draw], granted: Granted, actual: Mapping[str, int]
    ) -> dict[str, int]:
        """The request is over. `actual` by key: what it really took; a rate not named keeps what it drew, a budget
        not named is given back. Returns what remains of the budgets.
        """
        ...

    async def seed(self, draw: Draw, spent: int) -> None:
        """Create a budget's counter with what the ledger says; one that exists stays as it is."""
        ...

    async def close(self) -> None: ...


class MemoryLimits:
    """Counters of one process. No await inside a decision, so that decisions are atomic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, lease_seconds: float = 1800.0) -> None:
        self.failures = 0
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._rates: dict[str, _Rate] = {}
        self._running: dict[str, dict[str, float]] = {}
        self._budgets: dict[str, _Budget] = {}
        self._sweep_at = MAX_IDLE_COUNTERS

    async def acquire(self, lease: str, draws: Sequence[Draw]) -> Granted | Refused | Unseeded:
        now = self._clock()
        unseeded = tuple(d for d in draws if d.kind == Kind.BUDGET and d.key not in self._budgets)
        if unseeded:
            return Unseeded(unseeded)
        waits = {draw: wait for draw in draws if (wait := self._wait(draw, now)) is not None}
        if waits:
            return Refused(tuple(waits), max(waits.values()))
        self._sweep(now)
        granted = Granted()
        for draw in draws:
            granted.remaining[draw.key] = self._take(lease, draw, now, granted.slices)
        return granted

    async def settle(
        self, lease: str, draws: Sequence[Draw], granted: Granted, actual: Mapping[str, int]
    ) -> dict[str, int]:
        now = self._clock()
        remaining: dict[str, int] = {}
        for draw in draws:
            if draw.kind == Kind.RATE:
                self._correct(draw, granted.slices[draw.key], actual.get(draw.key, draw.amount) - draw.amount, now)
            elif draw.kind == Kind.CONCURRENCY:
                self._running.get(draw.key, {}).pop(lease, None)
            else:
                remaining[draw.key] = draw.limit - self._budgets[draw.key].settle(lease, actual.get(draw.key, 0), now)
        return remaining

    async def seed(self, draw: Draw, spent: int) -> None:
        self._budgets.setdefault(draw.key, _Budget(spent))

    async def close(self) -> None:
        """Nothing to close."""

    def _wait(self, draw: Draw, now: float) -> float | None:
        """None where the counter has enough; else seconds until it might."""
        if draw.kind == Kind.RATE:
            return rate_wait(self._slices(draw, now), draw, now)
        if draw.kind == Kind.CONCURRENCY:
            return None if len(self._alive(draw.key, now)) < draw.limit else BUSY_SECONDS
        return None if self._budgets[draw.key].committed(now) + draw.amount <= draw.limit else 0.0

    def _take(self, lease: str, draw: Draw, now: float, slices: dict[str, int]) -> int:
        """Draw the amount; returns what is left."""
        if draw.kind == Kind.RATE:
            counted = self._slices(draw, now)
            slices[draw.key] = current = slice_of(now, draw.window)
            counted[current] = counted.get(current, 0) + draw.amount
            return draw.limit - sum(counted.values())
        if draw.kind == Kind.CONCURRENCY:
            running = self._alive(draw.key, now)
            running[lease] = now + self._lease_seconds
            return draw.limit - len(running)
        budget = self._budgets[draw.key]
        budget.held[lease] = (draw.amount, now + self._lease_seconds)
        return draw.limit - budget.committed(now)

    def _correct(self, draw: Draw, where: int, difference: int, now: float) -> None:
        counted = self._slices(draw, now)
        if where in counted:
            counted[where] += difference
        elif difference > 0:
            current = slice_of(now, draw.window)
            counted[current] = counted.get(current, 0) + difference

    def _slices(self, draw: Draw, now: float) -> dict[int, int]:
        rate = self._rates.setdefault(draw.key, _Rate(draw.window))
        rate.expire(now)
        return rate.counted

    def _alive(self, key: str, now: float) -> dict[str, float]:
        running = self._running.setdefault(key, {})
        for lost in [lease for lease, until in running.items() if until <= now]:
            del running[lost]
        return running

    def _sweep(self, now: float) -> None:
        """Counters nobody draws on any more are forgotten when there are many of them."""
        if len(self._rates) + len(self._running) < self._sweep_at:
            return
        for rate in self._rates.values():
            rate.expire(now)
        self._rates = {key: rate for key, rate in self._rates.items() if rate.counted}
        self._running = {key: running for key, running in self._running.items() if running}
        self._sweep_at = max(MAX_IDLE_COUNTERS, 2 * (len(self._rates) + len(self._running)))


@dataclass
class _Rate:
    window: float
    counted: dict[int, int] = field(default_factory=dict)

    def expire(self, now: float) -> None:
        oldest = oldest_slice(now, self.window)
        for expired in [number for number in self.counted if number < oldest]:
            del self.counted[expired]


@dataclass
class _Budget:
    spent: int
    held: dict[str, tuple[int, float]] = field(default_factory=dict)

    def committed(self, now: float) -> int:
        for lost in [lease for lease, (_, until) in self.held.items() if until <= now]:
            del self.held[lost]
        return self.spent + sum(amount for amount, _ in self.held.values())

    def settle(self, lease: str, actual: int, now: float) -> int:
        self.held.pop(lease, None)
        self.spent += actual
        return self.committed(now)


def slice_of(now: float, window: float) -> int:
    return int(now / (window / SLICES))


def oldest_slice(now: float, window: float) -> int:
    """The oldest slice of which a part may still lie within the window."""
    return slice_of(now, window) - SLICES


def rate_wait(counted: Mapping[int, int], draw: Draw, now: float) -> float | None:
    """None where the rate has room for the draw; else seconds until enough of what was counted has left the window."""
    excess = sum(counted.values()) + draw.amount - draw.limit
    if excess <= 0:
        return None
    for number in sorted(counted):
        excess -= counted[number]
        if excess <= 0:
            return max(0.0, (number + 1 + SLICES) * draw.window / SLICES - now)
    return draw.window  # more than the limit by itself: it never fits
