"""Which request gets how many tokens in the next step. No torch, so that it is tested and simulated at scale.

There is no prefill phase and no decode phase: each step gives every request some number of tokens within one
budget, and a request catches up with the tokens it has. Chunked prefill and recomputation after preemption
are then the same path. Rows that decode come first, so that no long prompt stops them. Nothing is reserved by
max_tokens; when blocks run out, the last in rank is preempted and computed again later, mostly from the cache.
"""

import time
from bisect import insort
from collections.abc import Callable, Collection

from app.engine.blocks import BlockPool
from app.engine.pace import Pace
from app.engine.prefix import BlockHasher, LabelCounts, PrefixGroup, prefix_groups, root
from app.engine.request import Sequence
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.waiting import WaitingQueue

WATERMARK = 0.01  # share of the pool that admission leaves for the requests already running
LONG_PROMPT = 4  # a prompt of more steps than this is long: beside decoding rows its chunks are kept short


class Scheduler:
    """Owns the waiting and the running sequences and their blocks. running is sorted by rank."""

    def __init__(
        self, pool: BlockPool, hasher: BlockHasher | None, *, max_num_batched_tokens: int, max_num_seqs: int,
        block_size: int, clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.pool = pool
        self.hasher = hasher  # None: no prefix cache
        self.block_size = block_size
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self.labels = LabelCounts()
        self._computing: dict[bytes, Sequence] = {}  # prompt blocks that a running sequence is about to publish
        self._watermark = max(1, int(pool.total * WATERMARK)) if pool.total > 8 else 0
        self._long_chunk = max_num_batched_tokens
        self._pace = Pace(max_num_batched_tokens // 2)
        self._grouped: list[Sequence] = []  # the rows of the last step, and what prefix_groups() said of them
        self._groups: tuple[list[PrefixGroup], list[int]] = [], []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        self._resident(seq)
        self.waiting.add(seq)

    def expired(self) -> list[Sequence]:
        """Waiting sequences whose deadline has passed, for finish()."""
        return self.waiting.expired(self.clock())

    def schedule(self) -> Schedule:
        """The next step: those running first, then new ones while budget, seats and blocks last."""
        rows: list[ScheduledRow] = []
        if not self._schedule_running(rows) and self.waiting:
            self._admit(rows)
        rows.sort(key=lambda row: not row.decodes)
        groups, shared = self._prefix_groups(rows)
        return Schedule(rows, groups, shared, self._partial_blocks(rows))

    def advance(self, row: ScheduledRow, refused: int = 0) -> None:
        """The row's keys and values are written, and what held of its draft is appended: full blocks become findable.

        refused: how many tokens of its draft did not hold; their slots will be written again.
        """
        seq = row.seq
        seq.num_computed = row.start + row.num_tokens - refused
        if self.hasher is None:
            return
        first, last = row.start // self.block_size, seq.num_computed // self.block_size
        if first == last:
            return
        self._extend_keys(seq, last)
        for i in range(first, min(last, len(seq.blocks))):  # fewer where it was preempted since (overlap.py)
            self.pool.publish(seq.blocks[i], seq.keys[i], seq.sources.through((i + 1) * self.block_size))
            self._computing.pop(seq.keys[i], None)

    def took(self, schedule: Schedule, seconds: float) -> None:
        """A step of this schedule took so long."""
        chunks = [row for row in schedule.rows if not row.decodes]
        long = sum(row.num_tokens for row in chunks if self._is_long(row.seq))
        others = sum(row.num_tokens for row in chunks) - long
        self._pace.took(seconds, long_tokens=long, other_tokens=others, decode_rows=len(schedule.rows) - len(chunks))

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if seq in self.waiting:
            self.waiting.remove(seq)
        elif seq in self.running:
            self.running.remove(seq)
        self._release(seq)

    def users_of(self, source_ids: Collection[str]) -> list[Sequence]:
        """Waiting and running sequences that contain one of these sources. One that merely shares a block with them
        says the same there in words of its own."""
        return [
            seq
            for seq in (*self.running, *self.waiting)
            if not seq.sources.through(len(seq.tokens)).isdisjoint(source_ids)
        ]

    def _schedule_running(self, rows: list[ScheduledRow]) -> bool:
        """Those that decode, then those that catch up, each by rank. Whether somebody had to be preempted."""
        budget = self.max_num_batched_tokens
        due = {seq: seq.num_due for seq in self.running}
        self._long_chunk = self._long_prompt_chunk()
        gone: set[Sequence] = set()
        for seq in sorted(self.running, key=lambda seq: due[seq] > 1):
            num_tokens = self._chunk(seq, due[seq], budget)
            while seq not in gone and num_tokens and not self._grow(seq, seq.num_computed + num_tokens):
                gone.add(self._preempt_last())
            if num_tokens and seq not in gone:
                row = ScheduledRow(seq, seq.num_computed, num_tokens)
                if seq.draft:
                    self._add_draft(row, budget - num_tokens)
                rows.append(row)
                budget -= row.num_tokens
        rows[:] = [row for row in rows if row.seq not in gone]
        return bool(gone)

    def _add_draft(self, row: ScheduledRow, budget: int) -> None:
        """As much of the draft as budget and free blocks allow; nobody is preempted for a guess."""
        draft, row.seq.draft = row.seq.draft[: max(0, budget)], []
        spare = self.pool.available > self._watermark + len(self.running)
        if draft and row.samples and spare and self._grow(row.seq, row.start + row.num_tokens + len(draft)):
            row.draft = draft
            row.num_tokens += len(draft)

    def _chunk(self, seq: Sequence, due: int, budget: int) -> int:
        return min(due, budget, self._long_chunk if self._is_long(seq) else budget)

    def _is_long(self, seq: Sequence) -> bool:
        return seq.num_prompt_tokens > LONG_PROMPT * self.max_num_batched_tokens

    def _long_prompt_chunk(self) -> int:
        """Tokens of a long prompt in this step: half the budget where others need some, less beside decoding rows."""
        if len(self.running) + len(self.waiting) <= 1:
            return self.max_num_batched_tokens
        if any(len(seq.tokens) - seq.num_computed == 1 for seq in self.running):
            return self._pace.tokens()
        return max(1, self.max_num_batched_tokens // 2)

    def _admit(self, rows: list[ScheduledRow]) -> None:
        if len(self.running) >= self.max_num_seqs:
            return
        budget = self.max_num_batched_tokens - sum(row.num_tokens for row in rows)
        due = sum(self._blocks_due(seq) for seq in self.running)
        for seq in self.waiting.candidates(self._resident_eighths):
            if budget <= 0 or len(self.running) >= self.max_num_seqs:
                return
            if self._is_being_computed(seq) or not self.waiting.may_start(seq):
                continue
            self._take_prefix(seq)
            spare = self.pool.available - due - (self._watermark if self.running else 0)
            if self._blocks_due(seq) > spare:
                self._release(seq)
                return
            num_tokens = self._chunk(seq, len(seq.tokens) - seq.num_computed, budget)
            if not num_tokens:  # a long prompt, in a step that goes without any
                self._release(seq)
                continue
            self._start(seq)
            self._grow(seq, seq.num_computed + num_tokens)
            due += self._blocks_due(seq)
            budget -= num_tokens
            rows.append(ScheduledRow(seq, seq.num_computed, num_tokens))

    def _resident(self, seq: Sequence) -> int:
        """Leading blocks of the prompt in the cache, found by walking on from where they ended last time."""
        if self.hasher is None:
            return 0
        matchable = (len(seq.tokens) - 1) // self.block_size
        self._extend_keys(seq, matchable)
        count = seq.resident
        while count and self.pool.lookup(seq.keys[count - 1]) is None:
            count -= 1
        while count < matchable and self.pool.lookup(seq.keys[count]) is not None:
            count += 1
        seq.resident = count
        return count

    def _resident_eighths(self, seq: Sequence) -> int:
        return 8 * self._resident(seq) * self.block_size // len(seq.tokens)

    def _is_being_computed(self, seq: Sequence) -> bool:
        """Whether somebody running is about to write the first block this prompt lacks: waiting is cheaper."""
        if self.hasher is None:
            return False
        if seq.waits_for is not None and seq.waits_for in self._computing:
            return True
        matchable = (len(seq.tokens) - 1) // self.block_size
        self._extend_keys(seq, matchable)
        missing = next((key for key in seq.keys[:matchable] if self.pool.lookup(key) is None), None)
        seq.waits_for = missing if missing in self._computing else None
        return seq.waits_for is not None

    def _take_prefix(self, seq: Sequence) -> None:
        """Refer to every resident leading block; at least one token is left to compute."""
        if self.hasher is None:
            return
        matchable = (len(seq.tokens) - 1) // self.block_size
        for i, key in enumerate(seq.keys[:matchable]):
            block = self.pool.lookup(key)
            if block is None:
                break
            self.pool.take(block)
            self.pool.attribute(block, seq.sources.through((i + 1) * self.block_size))
            seq.blocks.append(block)
            seq.block_ids.append(block.id)
        seq.num_computed = len(seq.blocks) * self.block_size

    def _start(self, seq: Sequence) -> None:
        self.waiting.start(seq)
        insort(self.running, seq, key=lambda seq: seq.rank)
        if not seq.num_preemptions:
            seq.started = self.clock()
            seq.num_cached = seq.num_computed
            self.prefix_hit_tokens += seq.num_computed
            self.labels.count(seq.labels, seq.num_cached)
        first, last = len(seq.blocks), len(seq.tokens) // self.block_size
        if self.hasher is not None:
            self._extend_keys(seq, last)
        seq.pending = [key for key in seq.keys[first:last] if key not in self._computing]
        self._computing.update((key, seq) for key in seq.pending)

    def _grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Own blocks for the first num_tokens tokens, or change nothing and say no."""
        missing = -(-num_tokens // self.block_size) - len(seq.blocks)
        if missing <= 0:
            return True
        if missing > self.pool.available:
            return False
        for _ in range(missing):
            block = self.pool.allocate()
            seq.blocks.append(block)
            seq.block_ids.append(block.id)
        return True

    def _blocks_due(self, seq: Sequence) -> int:
        return max(0, -(-len(seq.tokens) // self.block_size) - len(seq.blocks))

    def _preempt_last(self) -> Sequence:
        """Drop the blocks of the last in rank and queue it again. Written blocks stay in the cache."""
        seq = self.running.pop()
        self._release(seq)
        seq.num_preemptions += 1
        self.preemptions += 1
        self.waiting.add(seq)
        return seq

    def _release(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks, seq.block_ids, seq.num_computed, seq.draft = [], [], 0, []
        for key in seq.pending:
            if self._computing.get(key) is seq:
                del self._computing[key]
        seq.pending = []

    def _extend_keys(self, seq: Sequence, num_blocks: int) -> None:
        assert self.hasher is not None
        size = self.block_size
        while len(seq.keys) < num_blocks:
            start = len(seq.keys) * size
            parent = seq.keys[-1] if seq.keys else root(seq.adapter)
            label = seq.labels.through(start + size)
            seq.keys.append(self.hasher.key(parent, seq.tokens[start : start + size], label))

    def _prefix_groups(self, rows: list[ScheduledRow]) -> tuple[list[PrefixGroup], list[int]]:
        """Rows share blocks that they were admitted with, so nothing changes while the rows are the same."""
        seqs = [row.seq for row in rows]
        if seqs != self._grouped:
            self._grouped = seqs
            self._groups = prefix_groups([row.seq.block_ids[: row.start // self.block_size] for row in rows])
        return self._groups

    def _partial_blocks(self, rows: list[ScheduledRow]) -> list[int]:
        """Last blocks that are touched for the first time and not filled."""
        size, found = self.block_size, []
        for row in rows:
            end = row.start + row.num_tokens
            if end % size and (end - 1) // size * size >= row.start:
                found.append(row.seq.block_ids[(end - 1) // size])
        return found
