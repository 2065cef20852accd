"""Decoding steps as captured graphs: one per bucket of tokens, replayed on inputs that lie at fixed places.

A step fills the buffers of the smallest bucket that holds it; tokens that are missing are dummy requests on a page of
their own. The number of tasks is data, so the same graph serves any context length up to what its buffers hold.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.engine.batch import ForwardBatch
from app.engine.device import Device, Replay
from app.engine.paged_batch import HostBatch
from app.kernels.paged_plan import NO_WINDOW, DevicePlan, DeviceTasks, PagedPlan, count_of
from app.kernels.tasks import TASK_FIELDS, Ints, TaskList, Tiles, tile_height

MAX_SLOT_BYTES = 256 * 1024**2  # partial results of one layer; a step with more runs without a graph
Forward = Callable[[ForwardBatch], Tensor]


def buckets(most: int) -> list[int]:
    """1, 2, 4, 8 and so on, and the most themselves: largest first, so that smaller graphs fit into its memory."""
    sizes = {1 << n for n in range(most.bit_length()) if 1 << n <= most}
    return sorted(sizes | {most}, reverse=True)


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What all graphs of an engine have in common. max_blocks: width of a block table.  max_keys: longest context.

    bytes_per_slot: of a partial result.  tokens_per_row: the most in a row; above 1 to verify drafts.
    shared: whether prefixes may be read once for several rows.
    """

    windows: tuple[int | None, ...]
    max_blocks: int
    max_keys: int
    group: int
    tiles: Tiles
    bytes_per_slot: int
    tokens_per_row: int = 1
    shared: bool = False

    @property
    def height(self) -> int:
        return tile_height(self.tokens_per_row * self.group, self.group)

    def max_slots(self, tokens: int) -> int:
        """Pieces of the longest contexts, one more each where a prefix ends between two."""
        pieces = -(-self.max_keys // self.tiles.split)
        if self.shared:
            pieces = -(-self.max_keys // min(self.tiles.split, self.tiles.shared_split)) + 2
        return max(tokens, min(tokens * pieces, MAX_SLOT_BYTES // self.bytes_per_slot))


class _StaticPlan:
    """The device side of plans of one window, at fixed places."""

    def __init__(self, shape: GraphShape, tokens: int, window: int | None, device: torch.device) -> None:
        def ints(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        most = shape.max_slots(tokens)
        self._most = most
        kinds = [shape.height]
        if shape.shared and window is None:
            kinds.insert(0, max(shape.tiles.block_shared, tile_height(shape.group, shape.group)))
        launches = [DeviceTasks(ints(most, TASK_FIELDS), ints(1), ints(most, 2), height) for height in kinds]
        self.plan = DevicePlan(
            ints(tokens, shape.max_blocks), ints(tokens), launches, ints(tokens, 3), ints(1), most, window or NO_WINDOW
        )

    def holds(self, host: PagedPlan) -> bool:
        launches = self._launches(host)
        fits = host.num_slots <= self._most and all(
            len(work.tasks) <= self._most and len(work.entries) <= self._most for work in launches
        )
        heights = [work.block_m for work in self.plan.launches] == [work.block_m for work in launches]
        return fits and heights and not len(host.wide.tasks) and (len(launches) > 1 or not len(host.shared.tasks))

    def fill(self, host: PagedPlan, refill: Callable[[Tensor, Ints], None]) -> None:
        refill(self.plan.table, host.table)
        refill(self.plan.positions, host.positions)
        refill(self.plan.merges, host.merges)
        refill(self.plan.num_merges, count_of(host.merges))
        for static, work in zip(self.plan.launches, self._launches(host), strict=True):
            refill(static.tasks, work.tasks)
            refill(static.num_tasks, count_of(work.tasks))
            refill(static.entries, work.entries)

    def _launches(self, host: PagedPlan) -> list[TaskList]:
        return [host.shared, host.narrow] if len(self.plan.launches) > 1 else [host.narrow]


class _Graph:
    """One bucket: its buffers and, once captured, its replay."""

    def __init__(self, shape: GraphShape, tokens: int, device: Device) -> None:
        def ints() -> Tensor:
            return torch.zeros(tokens, dtype=torch.int32, device=device.torch)

        self.device = device
        self.static = {window: _StaticPlan(shape, tokens, window, device.torch) for window in shape.windows}
        plans = {window: static.plan for window, static in self.static.items()}
        positions = next(iter(plans.values())).positions
        last = torch.arange(tokens, dtype=torch.int32, device=device.torch)
        self.batch = ForwardBatch(ints(), positions, ints(), last, plans)
        self.replay: Replay | None = None

    def holds(self, host: HostBatch) -> bool:
        return all(static.holds(host.plans[window]) for window, static in self.static.items())

    def fill(self, host: HostBatch) -> None:
        def refill(target: Tensor, values: Ints) -> None:
            if values.size:
                self.device.refill(target, torch.from_numpy(np.ascontiguousarray(values)))

        refill(self.batch.token_ids, host.token_ids)
        refill(self.batch.kv_rows, host.slots)
        for window, static in self.static.items():
            static.fill(host.plans[window], refill)


class DecodeGraphs:
    """Graphs of all buckets, captured before serving."""

    def __init__(self, device: Device, shape: GraphShape, max_tokens: int, forward: Forward) -> None:
        self.shape = shape
        self._device, self._forward = device, forward
        self._graphs = {tokens: _Graph(shape, tokens, device) for tokens in buckets(max_tokens)}

    def capture(self, dummy: Callable[[int], HostBatch]) -> None:
        """dummy(tokens): a batch of so many dummy requests."""
        for tokens, graph in self._graphs.items():
            graph.fill(dummy(tokens))
            graph.replay = self._device.capture(functools.partial(self._forward, graph.batch))

    def bucket(self, counts: list[int]) -> int | None:
        """The smallest that holds rows of so many tokens; None where they are too many or too long."""
        if max(counts) > self.shape.tokens_per_row:
            return None
        return min((size for size in self._graphs if size >= sum(counts)), default=None)

    def run(self, host: HostBatch) -> Tensor | None:
        """Logits of every token of a batch padded to a bucket, to be overwritten by the next run.

        None where its tasks or partial results are more than the bucket's buffers hold.
        """
        graph = self._graphs[host.num_tokens]
        if graph.replay is None or not graph.holds(host):
            return None
        graph.fill(host)
        return graph.replay()
