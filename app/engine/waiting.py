"""Who of the waiting is next: by priority and age, within a span the longest resident prefix first. No torch.

A request's rank is arrival / AGEING_SECONDS - priority; lower is sooner. One level of priority is worth
AGEING_SECONDS of waiting, so nobody starves, and since "now" falls out of every comparison ranks never change.
Among requests whose ranks lie within REORDER_SPAN of the first, the one with the largest part of its prompt in the
cache goes first: what it would read is there now and may be evicted later. Parts count in eighths, so that a few blocks
more or less do not shuffle a queue that waits for seats. Each such overtaking is counted, and a request that
was overtaken MAX_OVERTAKES times lets nobody of a later rank pass any more.
"""

import heapq
import itertools
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from app.engine.request import Sequence

AGEING_SECONDS = 10.0
REORDER_SPAN = 0.5  # levels: five seconds of arrival
MAX_OVERTAKES = 8
WINDOW = 32  # requests looked at in one step


def _rank(seq: Sequence) -> float:
    return seq.rank


class WaitingQueue:
    """Sequences by rank. Those that wait for somebody to compute their prefix are overtaken at no charge."""

    def __init__(self) -> None:
        self._seqs: list[Sequence] = []
        self._deadlines: list[tuple[float, int, Sequence]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._seqs)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._seqs)

    def __contains__(self, seq: Sequence) -> bool:
        return self._place(seq) is not None

    def add(self, seq: Sequence) -> None:
        seq.rank = seq.arrived / AGEING_SECONDS - seq.priority
        if seq.max_queue_seconds is not None and not seq.started:
            heapq.heappush(self._deadlines, (seq.arrived + seq.max_queue_seconds, next(self._numbers), seq))
        insort(self._seqs, seq, key=_rank)

    def remove(self, seq: Sequence) -> None:
        place = self._place(seq)
        assert place is not None
        del self._seqs[place]

    def start(self, seq: Sequence) -> None:
        """Take it out; whoever was before it and could have started has been overtaken."""
        place = self._place(seq)
        assert place is not None
        for passed in self._seqs[max(0, place - WINDOW) : place]:
            passed.overtaken += passed.waits_for is None
        del self._seqs[place]

    def expired(self, now: float) -> list[Sequence]:
        """Sequences that have never started and whose deadline has passed; each is named once."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            seq = heapq.heappop(self._deadlines)[2]
            if not seq.started and seq in self:
                found.append(seq)
        return found

    def candidates(self, resident: Callable[[Sequence], int]) -> list[Sequence]:
        """In the order in which they should start. resident: eighths of the prompt found in the cache."""
        if not self._seqs:
            return []
        last = self._seqs[0].rank + REORDER_SPAN
        near = [seq for seq in self._seqs[:WINDOW] if seq.rank <= last]
        far = self._seqs[len(near) : WINDOW]
        return sorted(near, key=lambda seq: (-resident(seq), seq.rank)) + far

    def may_start(self, seq: Sequence) -> bool:
        """Whether nobody before it has been overtaken too often."""
        for other in self._seqs[:WINDOW]:
            if other is seq:
                return True
            if other.overtaken >= MAX_OVERTAKES and other.waits_for is None:
                return False
        return True

    def _place(self, seq: Sequence) -> int | None:
        for place in range(bisect_left(self._seqs, seq.rank, key=_rank), len(self._seqs)):
            if self._seqs[place] is seq:
                return place
            if self._seqs[place].rank > seq.rank:
                break
        return None
