"""Which request gets how many tokens in the next step. No torch, so that it is tested and simulated at scale.

There is no prefill phase and no decode phase: each step gives every request some number of tokens within one
budget, and a request catches up with the tokens it has. Chunked prefill and recomputation after preemption
are then the same path. Nothing is reserved by max_tokens; when blocks run out, the latest arrival is
preempted and computed again later, mostly from the prefix cache.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.engine.blocks import BlockPool
from app.engine.prefix import ROOT, BlockHasher, PrefixGroup, prefix_groups
from app.engine.request import Sequence

WATERMARK = 0.01  # share of the pool that admission leaves for the requests already running


@dataclass(slots=True)
class ScheduledRow:
    """tokens[start : start + num_tokens] of a sequence are computed in this step; `samples` when it catches up."""

    seq: Sequence
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        return self.start + self.num_tokens == len(self.seq.tokens)


@dataclass(slots=True)
class Schedule:
    """One step. Rows with a single token come first. shared_blocks: leading blocks of a row that groups cover."""

    rows: list[ScheduledRow] = field(default_factory=list)
    groups: list[PrefixGroup] = field(default_factory=list)
    shared_blocks: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


class Scheduler:
    """Owns the waiting and the running sequences and their blocks."""

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
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_hit_tokens = 0
        self._computing: dict[bytes, Sequence] = {}  # prompt blocks that a running sequence is about to publish
        self._watermark = max(1, int(pool.total * WATERMARK)) if pool.total > 8 else 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def schedule(self) -> Schedule:
        """The next step: those running first, in order of arrival, then new ones while budget and blocks last."""
        rows: list[ScheduledRow] = []
        preempted = self._schedule_running(rows)
        if not preempted:
            self._admit(rows)
        rows.sort(key=lambda row: row.num_tokens > 1)
        groups, shared = prefix_groups([self._written_blocks(row) for row in rows])
        return Schedule(rows, groups, shared)

    def advance(self, row: ScheduledRow) -> None:
        """The row's keys and values are written: its newly full blocks become findable."""
        seq = row.seq
        seq.num_computed = row.start + row.num_tokens
        if self.hasher is None:
            return
        first, last = row.start // self.block_size, seq.num_computed // self.block_size
        self._extend_keys(seq, last)
        for i in range(first, last):
            self.pool.publish(seq.blocks[i], seq.keys[i])
            self._computing.pop(seq.keys[i], None)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its blocks back."""
        if seq in self.running:
            self.running.remove(seq)
        elif seq in self.waiting:
            self.waiting.remove(seq)
        self._release(seq)

    def _schedule_running(self, rows: list[ScheduledRow]) -> bool:
        budget = self.max_num_batched_tokens
        preempted = False
        i = 0
        while i < len(self.running) and budget > 0:
            seq = self.running[i]
            num_tokens = min(len(seq.tokens) - seq.num_computed, budget)
            while not self._grow(seq, seq.num_computed + num_tokens):
                preempted = True
                if self._preempt_last() is seq:
                    break
            else:
                rows.append(ScheduledRow(seq, seq.num_computed, num_tokens))
                budget -= num_tokens
            i += 1
        return preempted

    def _admit(self, rows: list[ScheduledRow]) -> None:
        budget = self.max_num_batched_tokens - sum(row.num_tokens for row in rows)
        due = sum(self._blocks_due(seq) for seq in self.running)
        postponed: list[Sequence] = []
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self.waiting.popleft()
            if self._is_being_computed(seq):
                postponed.append(seq)
                continue
            self._take_prefix(seq)
            spare = self.pool.available - due - (self._watermark if self.running else 0)
            if self._blocks_due(seq) > spare:
                self._release(seq)
                postponed.append(seq)
                break
            num_tokens = min(len(seq.tokens) - seq.num_computed, budget)
            self._start(seq)
            self._grow(seq, seq.num_computed + num_tokens)
            due += self._blocks_due(seq)
            budget -= num_tokens
            rows.append(ScheduledRow(seq, seq.num_computed, num_tokens))
        self.waiting.extendleft(reversed(postponed))

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
        for key in seq.keys[:matchable]:
            block = self.pool.lookup(key)
            if block is None:
                break
            self.pool.take(block)
            seq.blocks.append(block)
            seq.block_ids.append(block.id)
        seq.num_computed = len(seq.blocks) * self.block_size

    def _start(self, seq: Sequence) -> None:
        self.running.append(seq)
        if not seq.num_preemptions:
            seq.started = self.clock()
            seq.num_cached = seq.num_computed
            self.prefix_hit_tokens += seq.num_computed
        first, last = len(seq.blocks), len(seq.tokens) // self.block_size
        if self.hasher is not None:
            self._extend_keys(seq, last)
        seq.pending = [key for key in seq.keys[first:last] if key not in self._computing]
        self._computing.update((key, seq) for key in seq.pending)

    def _grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Own blocks for the first num_tokens tokens, or change nothing and say no."""
        missing = -(-num_tokens // self.block_size) - len(seq.blocks)
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
        """Drop the latest arrival's blocks and queue it first in line. Written blocks stay in the cache."""
        seq = self.running.pop()
        self._release(seq)
        seq.num_preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(seq)
        return seq

    def _release(self, seq: Sequence) -> None:
        self.pool.release(seq.blocks)
        seq.blocks, seq.block_ids, seq.num_computed = [], [], 0
        for key in seq.pending:
            if self._computing.get(key) is seq:
                del self._computing[key]
        seq.pending = []

    def _extend_keys(self, seq: Sequence, num_blocks: int) -> None:
        assert self.hasher is not None
        size = self.block_size
        while len(seq.keys) < num_blocks:
            start = len(seq.keys) * size
            parent = seq.keys[-1] if seq.keys else ROOT
            label = seq.labels.through(start + size)
            seq.keys.append(self.hasher.key(parent, seq.tokens[start : start + size], label))

    def _written_blocks(self, row: ScheduledRow) -> list[int]:
        return row.seq.block_ids[: row.start // self.block_size]
