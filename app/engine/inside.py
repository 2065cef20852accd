"""What one sees who looks into the engine: who waits for what, whose blocks are whose. May be asked from any thread.

Lists are copied before they are looked through; what changes meanwhile is one step old. No torch.
"""

import itertools
from collections import Counter
from collections.abc import Iterable

from app.engine.request import Sequence
from app.engine.scheduler import Scheduler

SHARED = -1  # owner of a block that several requests read
NOBODY = -2


def waiting_for(scheduler: Scheduler) -> dict[str, int]:
    """Waiting requests by what they wait for: preempted (to come back), prefix (which somebody else computes), seat, or
    room (blocks, or tokens of a step's budget).
    """
    seated = len(scheduler.running) < scheduler.max_num_seqs
    return dict(Counter(_reason(seq, seated) for seq in list(scheduler.waiting)))


def _reason(seq: Sequence, seated: bool) -> str:
    if seq.num_preemptions:
        return "preempted"
    if seq.waits_for is not None:
        return "prefix"
    return "room" if seated else "seat"


def owned_runs(scheduler: Scheduler) -> list[tuple[str, int, int]]:
    """The blocks by id as runs of (state, how many, whose): the number of a running request, SHARED or NOBODY."""
    owners: dict[int, int] = {}
    for number, seq in enumerate(list(scheduler.running)):
        for block in list(seq.block_ids):
            owners[block] = SHARED if block in owners else number
    runs = []
    first = 0
    for state, count in scheduler.pool.runs():
        whose: Iterable[int] = (owners.get(block, NOBODY) for block in range(first, first + count))
        runs += [(state, sum(1 for _ in group), owner) for owner, group in itertools.groupby(whose)]
        first += count
    return runs
