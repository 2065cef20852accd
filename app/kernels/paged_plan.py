"""From rows and page tables to the launches of paged attention, and their way to the device in one transfer.

tasks.py says what the pieces mean.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.kernels.shared_prefix import SharedRun, UseShared, accepted_runs, never, shared_tasks
from app.kernels.tasks import Ints, PagedRows, Slots, TaskList, Tiles, pieces_of, spread, starts_of, tile_height

NO_WINDOW = 1 << 30
_ALIGNMENT = 4  # int32 values: Triton specialises on pointers of 16 bytes, so every section starts on one


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """Everything that paged attention needs to know about a step, on the host.

    positions: int32 [T], place of each token in its sequence.  merges: int32 [m, 3], token, first slot, slots.
    num_slots: partial results in all.  window: keys a token sees including itself, or NO_WINDOW.
    """

    table: Ints
    positions: Ints
    merges: Ints
    narrow: TaskList
    wide: TaskList
    shared: TaskList
    num_slots: int
    window: int

    @property
    def launches(self) -> list[TaskList]:
        return [tasks for tasks in (self.shared, self.narrow, self.wide) if len(tasks.tasks)]


def build_plan(
    rows: PagedRows,
    *,
    group: int,
    tiles: Tiles,
    window: int | None = None,
    height: int = 16,
    shared: Sequence[SharedRun] = (),
    use_shared: UseShared = never,
) -> PagedPlan:
    """group: query heads per key head.  height: least query rows of a decoding tile.
    use_shared(tokens, keys): whether reading a run once pays at that size.

    A window makes rows of a group see different keys, so there nothing is shared. Chunks do not take part either:
    their own tiles read a page once for as many query rows as a shared tile has.
    """
    narrow = rows.counts * group <= tiles.narrow
    runs, covered = accepted_runs(rows, narrow, shared if window is None else (), use_shared)
    positions = np.repeat(rows.starts - rows.offsets, rows.counts) + np.arange(rows.counts.sum())
    height = max(height, tile_height(int((rows.counts * group)[narrow].max(initial=1)), group))
    begins = _Begins(tiles, window)
    few = _Blocks.of(rows, np.flatnonzero(narrow), height // group, covered, begins)
    many = _Blocks.of(rows, np.flatnonzero(~narrow), max(1, tiles.block_wide // group), np.zeros_like(covered), begins)
    slots = Slots(_slot_counts(rows, runs, few, tiles))
    together = shared_tasks(rows, runs, group, tiles, slots)
    return PagedPlan(
        table=rows.table,
        positions=positions.astype(np.int32),
        merges=slots.merges(),
        narrow=few.tasks(rows, slots, tiles.split, height, window),
        wide=many.tasks(rows, slots, None, max(tiles.block_wide, tile_height(group, group)), window),
        shared=together,
        num_slots=int(slots.counts[slots.counts > 1].sum()),
        window=window or NO_WINDOW,
    )


def _slot_counts(rows: PagedRows, runs: list[SharedRun], few: "_Blocks", tiles: Tiles) -> Ints:
    """Partial results of every token: of the pieces of its block and of the runs its row is in."""
    by_row = np.zeros(len(rows.counts), dtype=np.int32)
    for run in runs:
        by_row[run.rows] += pieces_of(run.last - run.first, tiles.shared_split)
    counts = np.repeat(by_row, rows.counts)
    tokens, block, _ = spread(few.tokens, few.counts)
    counts[tokens] += few.pieces(tiles.split)[block]
    counts[counts == 0] = 1  # a chunk's tokens
    return counts


@dataclass(frozen=True, slots=True)
class _Begins:
    """The first key that a run of tokens reads."""

    tiles: Tiles
    window: int | None

    def of(self, covered: Ints, places: Ints) -> Ints:
        """covered: what was read for the row already.  places: of the run's first token. On a multiple of an inner
        step, so that a token's keys are summed in the same order wherever its run begins."""
        if self.window is None:
            return covered
        first: Ints = np.maximum(0, places - self.window + 1) // self.tiles.block_n * self.tiles.block_n
        return first.astype(np.int32)


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Runs of a row's tokens that share a tile: first token, number of tokens, row, keys begin .. end,
    and the first token's place in its sequence."""

    tokens: Ints
    counts: Ints
    rows: Ints
    begins: Ints
    ends: Ints
    places: Ints

    @classmethod
    def of(
        cls, rows: PagedRows, members: npt.NDArray[np.int64], size: int, covered: Ints, begins: _Begins
    ) -> "_Blocks":
        """The tokens of these rows, `size` at a time. A block reads up to its last token, from where its first sees."""
        counts = rows.counts[members]
        _, owner, number = spread(np.zeros(len(members), np.int32), -(-counts // size))
        row, skipped = members[owner].astype(np.int32), number * size
        length = np.minimum(size, counts[owner] - skipped).astype(np.int32)
        places = (rows.starts[row] + skipped).astype(np.int32)
        first = begins.of(covered[row], places)
        return cls(rows.offsets[row] + skipped, length, row, first, places + length, places)

    def pieces(self, split: int | None) -> Ints:
        if split is None:
            return np.ones_like(self.counts)
        pieces: Ints = np.maximum(1, -(-(self.ends - self.begins) // split)).astype(np.int32)
        return pieces

    def tasks(self, rows: PagedRows, slots: Slots, split: int | None, block_m: int, window: int | None) -> TaskList:
        _, block, piece = spread(self.tokens, self.pieces(split))
        begins, ends = self.begins[block], self.ends[block]
        if split is not None:
            begins = begins + piece * split
            ends = np.minimum(begins + split, ends)
        unmasked = np.clip(self.places[block] + 1, begins, ends) if window is None else begins
        tokens, task, _ = spread(self.tokens[block], self.counts[block])
        entries = np.stack([tokens, slots.take(tokens, piece[task])], 1)
        heads = [starts_of(self.counts[block]), self.counts[block], self.rows[block], begins, unmasked, ends]
        return TaskList(_longest_first(np.stack(heads, 1).astype(np.int32)), entries.astype(np.int32), block_m)


def _longest_first(tasks: Ints) -> Ints:
    """Programs take tasks in turns; long ones last would leave the others waiting."""
    return tasks[np.argsort(tasks[:, 3] - tasks[:, 5], kind="stable")]


@dataclass(slots=True)
class DeviceTasks:
    """A TaskList on the device; the kernel reads num_tasks int32 [1], so that a graph can be replayed with another."""

    tasks: Tensor
    num_tasks: Tensor
    entries: Tensor
    block_m: int


@dataclass(slots=True)
class DevicePlan:
    """A PagedPlan on the device. num_merges: int32 [1]."""

    table: Tensor
    positions: Tensor
    launches: list[DeviceTasks]
    merges: Tensor
    num_merges: Tensor
    num_slots: int
    window: int


def to_device(plan: PagedPlan, copy: Callable[[Tensor], Tensor]) -> DevicePlan:
    """copy: brings one int32 tensor to the device."""
    parts = sections(plan)
    return place(plan, split_packed(copy(pack(parts)), [part.shape for part in parts]))


def sections(plan: PagedPlan) -> list[Ints]:
    """Everything of a plan that has to be on the device, in the order that place() takes."""
    parts = [plan.table, plan.positions, plan.merges, count_of(plan.merges)]
    for launch in plan.launches:
        parts += [launch.tasks, count_of(launch.tasks), launch.entries]
    return parts


def place(plan: PagedPlan, parts: Sequence[Tensor]) -> DevicePlan:
    """The plan with its sections on the device."""
    table, positions, merges, num_merges, *rest = parts
    launches = [
        DeviceTasks(rest[3 * i], rest[3 * i + 1], rest[3 * i + 2], launch.block_m)
        for i, launch in enumerate(plan.launches)
    ]
    return DevicePlan(table, positions, launches, merges, num_merges, plan.num_slots, plan.window)


def count_of(records: Ints) -> Ints:
    return np.array([len(records)], dtype=np.int32)


def pack(parts: Sequence[Ints]) -> Tensor:
    """One int32 tensor of all parts, each starting on a multiple of 16 bytes."""
    padded = [np.pad(part.reshape(-1), (0, -part.size % _ALIGNMENT)) for part in parts]
    return torch.from_numpy(np.concatenate(padded, dtype=np.int32, casting="no"))


def split_packed(packed: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of the parts of a packed tensor."""
    views, at = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        views.append(packed[at : at + size].view(shape))
        at += size + -size % _ALIGNMENT
    return views
