"""Launch step N, then process step N - 1: the device does not wait while the host schedules and delivers.

A sampled token is pending until its step has landed: the sequence carries a placeholder, the device finds the token in
the pool (token_pool.py). What a sequence does next must not depend on a pending token, so a step waits for the one
before it when some row has a penalty, a grammar or a quote lock, and a sequence with its last allowed token pending is
left out. A sequence that turns out to have ended is in one more step, whose result for it is dropped; its blocks go
back at once, since later writes to them come later on the device too. Off until a GPU has verified it (docs/gpu.md).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from app.engine.cost import StepShape
from app.engine.request import Sequence
from app.engine.runner import Launched
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.token_pool import TokenPool


@dataclass(frozen=True, slots=True)
class Flight:
    """A step on the device. samples: of each row at its launch, how many tokens."""

    schedule: Schedule
    launched: Launched
    samples: list[int]
    shape: StepShape
    began: float

    def seconds(self) -> float:
        return time.perf_counter() - self.began


def waits(seq: Sequence) -> bool:
    """Whether what this sequence may sample depends on the token before."""
    return seq.sampling.has_penalties or seq.grammar is not None or seq.lock is not None


def take_off(schedule: Schedule, launch: Callable[[Schedule], Launched], tokens: TokenPool) -> Flight:
    """Launch, and put placeholders where tokens will be."""
    began, samples = time.perf_counter(), [row.num_samples for row in schedule.rows]
    flight = Flight(schedule, launch(schedule), samples, schedule.shape(), began)
    for row, sampled in zip(schedule.rows, samples, strict=True):
        row.seq.num_computed = row.start + row.num_tokens
        if sampled:
            row.seq.tokens.append(tokens.pending(row.seq))
    return flight


def without_placeholders(row: ScheduledRow) -> list[int]:
    """Cut the sequence's tokens where this row's new one belongs; returns what stood after it."""
    at = row.start + row.num_tokens
    ahead = row.seq.tokens[at + 1 :]
    del row.seq.tokens[at:]
    return ahead
