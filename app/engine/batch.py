"""From a schedule to tensors: the tokens of a step and its attention plan. numpy until the last moment."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.engine.lora import AdapterBatch
from app.engine.schedule import Schedule, ScheduledRow
from app.kernels.paged_plan import DevicePlan
from app.kernels.plan import AttentionPlan, ContextPart, DecodePart, OwnPart, PrefixPart

Ints = npt.NDArray[np.int64]
_VIEW_DENSITY = 0.5  # a range of pages is used in place when at least this share of it is wanted


@dataclass(slots=True)
class ForwardBatch:
    """One step's input. T tokens, R rows.

    token_ids, positions: integers [T].  kv_rows: where keys and values go, and plans: one attention plan per sliding
    window in the model (None: no window), both as app.kernels.dispatch says for the kernels in use.  last: integers
    [n], the flat token of each row that samples.  adapters: of the rows, None where none has one.
    """

    token_ids: Tensor
    positions: Tensor
    kv_rows: Tensor
    last: Tensor
    plans: Mapping[int | None, AttentionPlan | DevicePlan]
    adapters: AdapterBatch | None = None


def build_batch(schedule: Schedule, *, block_size: int, num_kv_heads: int, windows: set[int | None]) -> ForwardBatch:
    rows = schedule.rows
    starts = np.array([row.start for row in rows], dtype=np.int64)
    counts = np.array([row.num_tokens for row in rows], dtype=np.int64)
    offsets = np.cumsum(counts) - counts
    tokens = [token for row in rows for token in tokens_of(row)]
    positions = np.arange(len(tokens)) + np.repeat(starts - offsets, counts)
    blocks = _blocks(rows, block_size)
    within = positions % block_size
    heads = np.arange(num_kv_heads)
    kv_rows = (blocks[:, None] * num_kv_heads + heads) * block_size + within[:, None]
    samples = np.array([row.num_samples for row in rows], dtype=np.int64)
    last = runs(offsets + counts - samples, samples)
    builder = _PlanBuilder(schedule, block_size, starts, counts, offsets)
    plans = {window: builder.plan(window) for window in windows}
    return ForwardBatch(torch.tensor(tokens), _tensor(positions), _tensor(kv_rows.reshape(-1)), _tensor(last), plans)


def tokens_of(row: ScheduledRow) -> list[int]:
    """What the row computes, its draft included."""
    own = row.seq.tokens[row.start : row.start + row.num_tokens - len(row.draft)]
    return own + row.draft if row.draft else own


def runs(starts: Ints, lengths: Ints) -> Ints:
    """starts[0], starts[0] + 1, … for lengths[0] numbers, then the same for the next."""
    before: Ints = np.cumsum(lengths) - lengths
    every: Ints = np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)
    return every


def _tensor(values: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _blocks(rows: list[ScheduledRow], size: int) -> Ints:
    """The block of each scheduled token. No numpy call for each row: most have a single token."""
    ids: list[int] = []
    for row in rows:
        end, first = row.start + row.num_tokens, row.start // size
        if row.num_tokens == 1:
            ids.append(row.seq.block_ids[first])
            continue
        for i, block in enumerate(row.seq.block_ids[first : -(-end // size)], first):
            ids += [block] * (min(end, (i + 1) * size) - max(row.start, i * size))
    return np.array(ids, dtype=np.int64)


def _bucket(length: int) -> int:
    """Two buckets per octave, so that padding stays under half and the number of parts is logarithmic."""
    if length <= 16:
        return 16
    step = 1 << ((length - 1).bit_length() - 2)
    return -(-length // step) * step


class _PlanBuilder:
    """Sorts the rows of a step into parts; see app/kernels/plan.py for what each part means."""

    def __init__(self, schedule: Schedule, block_size: int, starts: Ints, counts: Ints, offsets: Ints) -> None:
        self.schedule = schedule
        self.size = block_size
        self.starts, self.counts, self.offsets = starts, counts, offsets

    def plan(self, window: int | None) -> AttentionPlan:
        covered = self._first_blocks(window)
        plan = AttentionPlan()
        decode: dict[int, list[int]] = defaultdict(list)
        own: dict[int, list[int]] = defaultdict(list)
        context: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, row in enumerate(self.schedule.rows):
            if row.num_tokens == 1:
                decode[0].append(i)
                continue
            length = _bucket(row.num_tokens)
            own[length].append(i)
            left = -(-row.start // self.size) - covered[i]
            if left > 0:
                context[length, _bucket(left * self.size)].append(i)
        plan.decode = [self._decode(members, covered, window) for members in decode.values()]
        plan.own = [self._own(members, window) for members in own.values()]
        plan.context = [self._context(members, covered, window) for members in context.values()]
        if window is None:
            plan.prefix = [self._prefix(group.rows, group.block_ids) for group in self.schedule.groups]
        return plan

    def _first_blocks(self, window: int | None) -> list[int]:
        """Per row the first block it reads by itself: after the shared ones, or where its window begins."""
        if window is None:
            return self.schedule.shared_blocks
        first = np.maximum(0, self.starts - window + 1) // self.size
        return [int(x) for x in first]

    def _prefix(self, rows: tuple[int, ...], block_ids: tuple[int, ...]) -> PrefixPart:
        tokens = np.concatenate([np.arange(self.counts[i]) + self.offsets[i] for i in rows])
        return PrefixPart(_tensor(tokens), torch.tensor(block_ids))

    def _padding(self, members: list[int]) -> tuple[Ints, Ints, Ints]:
        """tokens [R, Q], places [n], flat [n] of the rows padded to the longest of them."""
        counts, offsets = self.counts[members], self.offsets[members]
        column = np.arange(int(counts.max()))
        real = column < counts[:, None]
        tokens = offsets[:, None] + np.minimum(column, counts[:, None] - 1)
        return tokens, np.flatnonzero(real), tokens[real]

    def _own(self, members: list[int], window: int | None) -> OwnPart:
        tokens, places, flat = self._padding(members)
        return OwnPart(_tensor(tokens), _tensor(places), _tensor(flat), window)

    def _tables(self, members: list[int], first: list[int], ends: Ints) -> tuple[Ints, Ints]:
        """Blocks [R, P] from `first` to the one holding token `ends - 1` and how many of them are real.

        Padding repeats the row's first block, so that no row ever touches another's pages.
        """
        rows = self.schedule.rows
        lasts = [-(-int(end) // self.size) for end in ends]
        tables = [rows[i].seq.block_ids[first[i] : last] for i, last in zip(members, lasts, strict=True)]
        lengths = np.array([len(table) for table in tables], dtype=np.int64)
        padded = np.repeat([[table[0]] for table in tables], int(lengths.max()), axis=1)
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = [b for table in tables for b in table]
        return padded, lengths

    def _context(self, members: list[int], first: list[int], window: int | None) -> ContextPart:
        tokens, places, flat = self._padding(members)
        starts = self.starts[members]
        pages, _ = self._tables(members, first, starts)
        begins = np.array([first[i] * self.size for i in members])
        keys = begins[:, None] + np.arange(pages.shape[1] * self.size)
        mask = (keys < starts[:, None])[:, None, :]
        if window is not None:
            queries = starts[:, None] + np.arange(tokens.shape[1])
            mask = mask & (queries[:, :, None] - keys[:, None, :] < window)
        visible = None if mask.all() else _tensor(mask)
        return ContextPart(_tensor(tokens), _tensor(places), _tensor(flat), _tensor(pages), visible)

    def _decode(self, members: list[int], first: list[int], window: int | None) -> DecodePart:
        ends = self.starts[members] + 1
        tables, lengths = self._tables(members, first, ends)
        real = np.arange(tables.shape[1]) < lengths[:, None]
        begins = np.array([first[i] * self.size for i in members])
        keys = begins[:, None] + np.arange(tables.shape[1] * self.size)
        visible = keys < ends[:, None]
        if window is not None:
            visible &= keys > ends[:, None] - 1 - window
        mask = torch.zeros(visible.shape).masked_fill_(_tensor(~visible), float("-inf"))
        pages, selected, num = _selection(tables[real])
        owner, places = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
        slots = np.zeros_like(tables)
        slots[real] = selected
        slots = np.where(real, slots, slots[:, :1])
        owner[selected] = np.nonzero(real)[0]
        places[selected] = np.flatnonzero(real)
        tokens, bag = _tensor(self.offsets[members]), _tensor(selected)
        bag_offsets = _tensor(np.cumsum(lengths) - lengths)
        return DecodePart(
            tokens, pages, _tensor(owner), _tensor(slots), _tensor(places), bag, bag_offsets, mask[:, None, None]
        )


def _selection(wanted: Ints) -> tuple[tuple[int, int] | Tensor, Ints, int]:
    """How to get at the wanted pages: a view of a dense range where no page is wanted twice, else a gather.

    Returns the pages, the place of each wanted one among them, and how many there are.
    """
    low, high = int(wanted.min()), int(wanted.max()) + 1
    dense = len(wanted) >= _VIEW_DENSITY * (high - low)
    if dense and np.bincount(wanted - low).max() == 1:
        return (low, high), wanted - low, high - low
    return _tensor(wanted), np.arange(len(wanted)), len(wanted)
