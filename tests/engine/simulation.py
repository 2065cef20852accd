"""The real scheduler, pool and prefix cache with a pretended model: pages hold what a model would have written."""

from collections.abc import Sequence as Seq
from typing import Any

from app.engine.blocks import BlockPool
from app.engine.config import SamplingParams
from app.engine.prefix import BlockHasher, Label, prefix_groups
from app.engine.request import Request, Sequence, TokenSegment
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.scheduler import Scheduler

SIZE = 4


class Simulation:
    """step() checks everything that must hold between schedule and advance."""

    def __init__(self, num_blocks: int = 20, *, budget: int = 16, seats: int = 4, cache: bool = True) -> None:
        self.now = 0.0
        self.pool = BlockPool(num_blocks)
        self.scheduler = Scheduler(
            self.pool, BlockHasher("model", SIZE) if cache else None, max_num_batched_tokens=budget,
            max_num_seqs=seats, block_size=SIZE, clock=lambda: self.now,
        )  # fmt: skip
        self.live: list[Sequence] = []
        self.ended: dict[str, str] = {}
        self.started: list[str] = []
        self.pages: list[list[Any]] = [["garbage"] * SIZE for _ in range(num_blocks)]
        self.page_labels: list[Label | None] = [None] * num_blocks

    def add(self, name: str, segments: Seq[TokenSegment], max_tokens: int = 4, **options: Any) -> Sequence:
        request = Request(name, tuple(segments), SamplingParams(max_tokens=max_tokens), **options)
        seq = Sequence(request, seed=len(name), max_tokens=max_tokens, arrived=self.now)
        self.live.append(seq)
        self.scheduler.add(seq)
        return seq

    def end(self, seq: Sequence, reason: str) -> None:
        self.scheduler.finish(seq)
        self.live.remove(seq)
        self.ended[seq.request_id] = reason

    def forget(self, sources: set[str]) -> None:
        for seq in self.scheduler.users_of(sources):
            self.end(seq, "forgotten")
        self.pool.forget(sources)

    def step(self) -> Schedule:
        self.now += 0.01
        for seq in self.scheduler.expired():
            self.end(seq, "deadline")
        running = set(self.scheduler.running)
        schedule = self.scheduler.schedule()
        self.started += [row.seq.request_id for row in schedule.rows if row.seq not in running]
        self._check_schedule(schedule)
        for block in schedule.partial_blocks:
            self.pages[block] = [None] * SIZE
        for row in schedule.rows:
            self._read_and_write(row)
        for row in schedule.rows:
            self._advance(row)
        return schedule

    def run(self, limit: int = 2000) -> None:
        for _ in range(limit):
            if not self.scheduler.has_work:
                return
            self.step()
        raise AssertionError("no end in sight")

    def _check_schedule(self, schedule: Schedule) -> None:
        scheduler, rows = self.scheduler, schedule.rows
        assert schedule.num_tokens <= scheduler.max_num_batched_tokens and len(rows) <= scheduler.max_num_seqs
        assert len({row.seq for row in rows}) == len(rows) and all(row.seq in scheduler.running for row in rows)
        assert all(row.num_tokens for row in rows), "a row of no tokens is none"
        scheduled = {row.seq for row in rows}
        decoding = [seq for seq in scheduler.running if len(seq.tokens) - seq.num_computed == 1]
        assert scheduled.issuperset(decoding), "nobody who decodes is left out"
        assert (schedule.groups, schedule.shared_blocks) == prefix_groups(
            [row.seq.block_ids[: row.start // SIZE] for row in rows]
        )

    def _read_and_write(self, row: ScheduledRow) -> None:
        seq = row.seq
        for position in range(row.start):
            block = seq.block_ids[position // SIZE]
            assert self.pages[block][position % SIZE] == tuple(seq.tokens[: position + 1])
            full = position // SIZE * SIZE + SIZE
            assert full > row.start or self.page_labels[block] == seq.labels.through(full)
        for position in range(row.start, row.start + row.num_tokens):
            block = seq.blocks[position // SIZE]
            assert block.ref_count == 1 and block.key is None, "written by its only owner, before it can be found"
            self.pages[block.id][position % SIZE] = tuple(seq.tokens[: position + 1])
            self.page_labels[block.id] = seq.labels.through(position // SIZE * SIZE + SIZE)
        end = row.start + row.num_tokens
        assert end % SIZE == 0 or self.pages[seq.block_ids[end // SIZE]][end % SIZE :] == [None] * (SIZE - end % SIZE)

    def _advance(self, row: ScheduledRow) -> None:
        samples = row.samples
        self.scheduler.advance(row)
        if samples:
            row.seq.tokens.append(sum(row.seq.tokens[-3:]) % 3)
            if row.seq.num_output_tokens >= row.seq.max_tokens:
                self.end(row.seq, "length")
