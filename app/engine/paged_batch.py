"""From a schedule to the input of kernels that run over pages: one transfer to the device per step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from app.engine.batch import ForwardBatch, runs, tokens_of
from app.engine.request import Sequence
from app.engine.schedule import Schedule
from app.kernels.paged_plan import PagedPlan, build_plan, pack, place, sections, split_packed
from app.kernels.shared_prefix import SharedRun
from app.kernels.tasks import Ints, PagedRows
from app.kernels.tuning import Tuning


@dataclass(frozen=True, slots=True)
class HostBatch:
    """A ForwardBatch still on the host, as int32. slots [T]: page * block_size + place of each token."""

    token_ids: Ints
    slots: Ints
    last: Ints
    plans: Mapping[int | None, PagedPlan]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


class BlockTables:
    """Block ids of the sequences as rows of one array, written once per block and not once per step."""

    def __init__(self, max_blocks: int) -> None:
        self._table = np.zeros((0, max_blocks), dtype=np.int32)
        self._free: list[int] = []
        self._places: dict[Sequence, int] = {}
        self._known: dict[Sequence, tuple[list[int], int]] = {}

    def rows(self, seqs: list[Sequence], *, whole: bool = False) -> Ints:
        """[R, most blocks] of these sequences, or whole rows of max_blocks; beyond a sequence's blocks anything."""
        places = np.array([self._refreshed(seq) for seq in seqs], dtype=np.int64)
        width = self._table.shape[1] if whole else max(len(seq.block_ids) for seq in seqs)
        return self._table[places, :width]

    def discard(self, seq: Sequence) -> None:
        place = self._places.pop(seq, None)
        if place is not None:
            self._free.append(place)
            self._known.pop(seq, None)

    def _refreshed(self, seq: Sequence) -> int:
        """A preempted sequence gets a new list of blocks; otherwise a list only grows."""
        if seq not in self._places:
            self._places[seq] = self._free.pop() if self._free else self._grown()
        place, ids = self._places[seq], seq.block_ids
        known, count = self._known.get(seq, (ids, 0))
        if known is not ids:
            count = 0
        if count < len(ids):
            self._table[place, count : len(ids)] = ids[count:]
            self._known[seq] = ids, len(ids)
        return place

    def _grown(self) -> int:
        """Preempted sequences keep their places, so there may be more than run at once."""
        old = len(self._table)
        self._table = np.concatenate([self._table, np.zeros((old + 4, self._table.shape[1]), dtype=np.int32)])
        self._free += range(old + 1, len(self._table))
        return old


class PagedBatches:
    """Builds the batches of one engine. windows: those of the model's layers.  dummy_block: of padding."""

    def __init__(
        self, tables: BlockTables, tuning: Tuning, *, block_size: int, group: int, windows: set[int | None],
        dummy_block: int,
    ) -> None:  # fmt: skip
        self.tables = tables
        self._tuning, self._size, self._group, self._windows = tuning, block_size, group, windows
        self._dummy_block = dummy_block

    def host(self, schedule: Schedule) -> HostBatch:
        return self._host(schedule, self._rows(schedule, 0, whole=False), height=16)

    def padded(self, schedule: Schedule, padding: int, height: int) -> HostBatch:
        """For a graph: so many dummy requests of one token more, and decoding tiles of no less than `height`."""
        return self._host(schedule, self._rows(schedule, padding, whole=True), height)

    def _host(self, schedule: Schedule, rows: PagedRows, height: int) -> HostBatch:
        tokens = [token for row in schedule.rows for token in tokens_of(row)]
        shared = [self._run(group.rows, group.start, len(group.block_ids)) for group in schedule.groups]
        plans = {window: self._plan(rows, shared, window, height) for window in self._windows}
        samples = np.array([row.num_samples for row in schedule.rows], dtype=np.int64)
        last = runs((rows.offsets + rows.counts)[: len(samples)] - samples, samples)
        token_ids = np.zeros(int(rows.counts.sum()), dtype=np.int32)
        token_ids[: len(tokens)] = tokens
        return HostBatch(token_ids, self._slots(rows), last.astype(np.int32), plans)

    def _rows(self, schedule: Schedule, padding: int, *, whole: bool) -> PagedRows:
        starts = [row.start for row in schedule.rows] + [0] * padding
        counts = [row.num_tokens for row in schedule.rows] + [1] * padding
        table = self.tables.rows([row.seq for row in schedule.rows], whole=whole)
        dummies = np.full((padding, table.shape[1]), self._dummy_block, dtype=np.int32)
        return PagedRows(np.array(starts, np.int32), np.array(counts, np.int32), np.concatenate([table, dummies]))

    def _run(self, rows: tuple[int, ...], start: int, length: int) -> SharedRun:
        return SharedRun(np.array(rows, dtype=np.int32), start * self._size, (start + length) * self._size)

    def _plan(self, rows: PagedRows, shared: list[SharedRun], window: int | None, height: int) -> PagedPlan:
        tuning = self._tuning
        return build_plan(
            rows, group=self._group, tiles=tuning.tiles, window=window, height=height, shared=shared,
            use_shared=tuning.use_shared,
        )  # fmt: skip

    def _slots(self, rows: PagedRows) -> Ints:
        row = np.repeat(np.arange(len(rows.counts)), rows.counts)
        place = np.arange(len(row)) - rows.offsets[row] + rows.starts[row]
        slots: Ints = (rows.table[row, place // self._size] * self._size + place % self._size).astype(np.int32)
        return slots


def to_device(host: HostBatch, upload: Callable[[Tensor], Tensor]) -> ForwardBatch:
    """upload: brings one int32 tensor to the device."""
    parts = [host.token_ids, host.slots, host.last]
    bounds = []
    for plan in host.plans.values():
        bounds.append(len(parts))
        parts += sections(plan)
    bounds.append(len(parts))
    views = split_packed(upload(pack(parts)), [part.shape for part in parts])
    plans = {
        window: place(plan, views[bounds[i] : bounds[i + 1]]) for i, (window, plan) in enumerate(host.plans.items())
    }
    positions = next(iter(plans.values())).positions
    return ForwardBatch(views[0], positions, views[1], views[2], plans)
