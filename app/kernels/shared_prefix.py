"""Attention to a prefix that several rows share, its pages read once for all of them (cascade attention).

The rows of a group are packed into tall tiles that stream the shared pages once, every row then attends to its own
pages, and merge_lse.py joins the results in float32: all of it in one launch plan, in which groups (also nested ones)
and rows without a group stand side by side. The kernel is that of paged_attention.py: to it a shared prefix is a
range of keys like any other, and a tile's queries may come from anywhere. Sources: Hydragen (2402.05099),
ChunkAttention (2402.15220).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.kernels.tasks import TASK_FIELDS, Ints, PagedRows, Slots, TaskList, Tiles, pieces_of, spread, tile_height

UseShared = Callable[[int, int], bool]
_GAIN = 1.02  # noise must not switch a path on


@dataclass(frozen=True, slots=True)
class SharedRun:
    """Keys first .. last of the block tables of `rows` (int32, ascending) lie in the same pages.

    Runs may nest: a later one whose rows are among an earlier one's begins where that ends.
    """

    rows: Ints
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Cutover:
    """Where reading a shared prefix once was measured to pay, by query tokens of the group and keys of the prefix.

    points: (tokens, keys) to how many times as fast the shared path was. Between measured sizes all neighbours must
    have gained; below the smallest nothing is shared; beyond the largest the largest counts.
    """

    points: dict[tuple[int, int], float]

    def __call__(self, tokens: int, keys: int) -> bool:
        rows = _neighbours(sorted({point[0] for point in self.points}), tokens)
        columns = _neighbours(sorted({point[1] for point in self.points}), keys)
        gains = [self.points.get((row, column), 0.0) for row in rows for column in columns]
        return bool(gains) and min(gains) > _GAIN


def _neighbours(sizes: list[int], wanted: int) -> list[int]:
    """The measured sizes around `wanted`; none where it is smaller than all of them."""
    if not sizes or wanted < sizes[0]:
        return []
    below = [size for size in sizes if size <= wanted][-1:]
    return below + [size for size in sizes if size > wanted][:1]


def never(tokens: int, keys: int) -> bool:
    """The kill switch, and the rule for a device that has not been measured."""
    del tokens, keys
    return False


def accepted_runs(
    rows: PagedRows, narrow: npt.NDArray[np.bool_], shared: Sequence[SharedRun], use_shared: UseShared
) -> tuple[list[SharedRun], Ints]:
    """The runs worth reading once, and per row the leading keys that they cover.

    A run inside one that was turned down takes over its keys, so that what a row has covered stays one range.
    """
    runs, covered = [], np.zeros(len(rows.counts), dtype=np.int32)
    for run in shared:
        members = run.rows[narrow[run.rows]]
        if not len(members):
            continue
        first = int(covered[members[0]])
        tokens = int(rows.counts[members].sum())
        if len(members) > 1 and run.last > first and use_shared(tokens, run.last - first):
            runs.append(SharedRun(members, first, run.last))
            covered[members] = run.last
    return runs, covered


def shared_tasks(rows: PagedRows, runs: list[SharedRun], group: int, tiles: Tiles, slots: Slots) -> TaskList:
    block_m = max(tiles.block_shared, tile_height(group, group))
    tasks, entries, written = [np.zeros((0, TASK_FIELDS), np.int32)], [np.zeros((0, 2), np.int32)], 0
    for run in runs:
        made, used = _run_tasks(rows, run, block_m // group, tiles.shared_split, slots)
        made[:, 0] += written
        tasks.append(made)
        entries.append(used)
        written += len(used)
    return TaskList(np.concatenate(tasks), np.concatenate(entries), block_m)


def _run_tasks(rows: PagedRows, run: SharedRun, size: int, split: int, slots: Slots) -> tuple[Ints, Ints]:
    """Tiles of one piece of the run stand together, so that its pages come from memory once and then from the cache."""
    tokens, _, _ = spread(rows.offsets[run.rows], rows.counts[run.rows])
    pieces, blocks = pieces_of(run.last - run.first, split), pieces_of(len(tokens), size)
    piece, block = (x.reshape(-1).astype(np.int32) for x in np.divmod(np.arange(pieces * blocks), blocks))
    begins = run.first + piece * split
    ends = np.minimum(begins + split, run.last)
    counts = np.minimum(size, len(tokens) - block * size)
    heads = [piece * len(tokens) + block * size, counts, np.full_like(piece, run.rows[0]), begins, ends, ends]
    every = np.tile(tokens, pieces)
    entries = np.stack([every, slots.take(every, np.repeat(np.arange(pieces, dtype=np.int32), len(tokens)))], 1)
    slots.used[tokens] += pieces
    return np.stack(heads, 1).astype(np.int32), entries.astype(np.int32)
