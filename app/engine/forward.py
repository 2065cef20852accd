"""A schedule to logits: by the reference kernels as it comes, by our own over pages, in graphs where one fits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from app.engine.batch import ForwardBatch, build_batch
from app.engine.decoder import Decoder
from app.engine.device import Device
from app.engine.graphs import DecodeGraphs, GraphShape
from app.engine.kv_cache import KVCache
from app.engine.lora import AdapterBatch
from app.engine.paged_batch import BlockTables, HostBatch, PagedBatches, to_device
from app.engine.request import Request, Sequence, TokenSegment
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.token_pool import TokenPool
from app.kernels.dispatch import TritonKernels
from app.kernels.shared_prefix import never
from app.kernels.variants import KernelShape, Variant

MAX_VERIFIED = 512  # tokens of a step with drafts in a graph, which makes logits of all of them


def nobody(batch: object) -> None:
    """Whom to tell where there are no other ranks."""


class Forward(Protocol):
    def run(self, schedule: Schedule) -> Tensor:
        """float32 [n, vocab] of the n rows that sample, on the device. Other ranks are told the batch first."""

    def follow(self, batch: Any) -> None:
        """On another rank: run what this rank was told."""

    def discard(self, seq: Sequence) -> None:
        """The sequence has ended."""


class ReferenceForward:
    """Plain PyTorch on the CPU."""

    def __init__(
        self, decoder: Decoder, cache: KVCache, tokens: TokenPool, block_size: int,
        tell: Callable[[object], None] = nobody,
    ) -> None:  # fmt: skip
        self._decoder, self._cache, self._tokens, self._size = decoder, cache, tokens, block_size
        self._windows, self._tell = set(decoder.windows), tell

    def run(self, schedule: Schedule) -> Tensor:
        heads = self._decoder.spec.num_kv_heads
        batch = build_batch(schedule, block_size=self._size, num_kv_heads=heads, windows=self._windows)
        batch.token_ids = self._tokens.resolve(batch.token_ids)
        if self._decoder.adapters is not None:
            batch.adapters = self._decoder.adapters.batch(schedule, lambda tokens: tokens)
        self._tell(batch)
        return self._decoder.forward(batch, self._cache)

    def follow(self, batch: ForwardBatch) -> None:
        self._decoder.forward(batch, self._cache)

    def discard(self, seq: Sequence) -> None:
        pass


class PagedForward:
    """Triton kernels. The cache has one block more than the engine knows of: the dummy's, the last.

    Pages need no clearing here: the kernels never read a key that no token has written.
    """

    def __init__(
        self, device: Device, decoder: Decoder, cache: KVCache, kernels: TritonKernels, tokens: TokenPool, *,
        max_seqs: int, max_model_len: int, block_size: int, tell: Callable[[object], None] = nobody,
    ) -> None:  # fmt: skip
        self._device, self._decoder, self._cache, self._tell = device, decoder, cache, tell
        self._kernels, self._tuning, self._tokens = kernels, kernels.tuning, tokens
        self._max_seqs, self._max_len, self._size = max_seqs, max_model_len, block_size
        self._windows = tuple(dict.fromkeys(decoder.windows))
        self._tables = BlockTables(-(-max_model_len // block_size))
        self._dummy = len(cache.keys[0]) - 1
        self._group = decoder.spec.num_heads // decoder.spec.num_kv_heads
        self._batches = PagedBatches(
            self._tables, kernels.tuning, block_size=block_size, group=self._group,
            windows=set(self._windows), dummy_block=self._dummy,
        )  # fmt: skip
        self._graphs: list[DecodeGraphs] = []

    def run(self, schedule: Schedule) -> Tensor:
        counts = [row.num_tokens for row in schedule.rows]
        for graphs in self._graphs:
            bucket = graphs.bucket(counts)
            logits = self._replay(graphs, schedule, bucket - sum(counts)) if bucket is not None else None
            if logits is not None:
                return logits
        adapters = self._decoder.adapters
        named = adapters.batch(schedule, self._device.upload) if adapters is not None else None
        return self._eager(self._batches.host(schedule), named)

    def follow(self, batch: HostBatch) -> None:
        self._eager(batch)

    def compile(self) -> None:
        """Every variant that serving can ask for, so that no request waits for a compiler."""
        spec = self._decoder.spec
        shape = KernelShape(
            spec.num_heads, spec.num_kv_heads, spec.head_dim, self._size, spec.hidden_size,
            self._decoder.weights.norm.dtype, self._device.torch, self._cache.keys[0].dtype,
        )  # fmt: skip
        for variant in self._kernels.variants(shape, has_norm=spec.qk_norm, weights=self._decoder.weights.packed()):
            self._compile(variant)
        self._device.synchronize()

    def _compile(self, variant: Variant) -> None:
        try:
            variant.launch()
        except Exception as error:
            name = self._device.name
            raise ValueError(f"kernel {variant.name} does not run on {name} ({error}); use device='cpu'") from error

    def capture_all(self, max_draft_tokens: int) -> None:
        """For decoding, and for the verification of drafts as far as its rows fit into one tile."""
        self.capture()
        most = min(max_draft_tokens + 1, self._tuning.tiles.narrow // self._group)
        if most > 1:
            self.capture(most)

    def capture(self, tokens_per_row: int = 1) -> None:
        """Graphs for decoding; once more, with more tokens per row, for the verification of drafts."""
        spec = self._decoder.spec
        shape = GraphShape(
            windows=self._windows,
            max_blocks=-(-self._max_len // self._size),
            max_keys=self._max_len,
            group=self._group,
            tiles=self._tuning.tiles,
            bytes_per_slot=4 * spec.num_heads * spec.head_dim,
            tokens_per_row=tokens_per_row,
            shared=self._tuning.use_shared is not never,
        )
        most = max(self._max_seqs, min(self._max_seqs * tokens_per_row, MAX_VERIFIED))
        graphs = DecodeGraphs(self._device, shape, most, self._forward)
        graphs.capture(lambda tokens: self._batches.padded(Schedule(), tokens, shape.height))
        self._graphs.append(graphs)

    def discard(self, seq: Sequence) -> None:
        self._tables.discard(seq)

    def warm(self, chunk: int) -> None:
        """The longest chunk and the most decoding rows, all on the dummy's block: what peak memory is measured by."""
        for count, rows in ((chunk, 1), (1, self._max_seqs)):
            seqs = [self._dummy_sequence(count) for _ in range(rows)]
            self._eager(self._batches.host(Schedule([ScheduledRow(seq, 0, count) for seq in seqs])))
            for seq in seqs:
                self.discard(seq)

    def _dummy_sequence(self, length: int) -> Sequence:
        seq = Sequence(Request("dummy", (TokenSegment([0] * length),)), 0, 1)
        seq.block_ids = [self._dummy] * -(-length // self._size)
        return seq

    def _eager(self, host: HostBatch, adapters: AdapterBatch | None = None) -> Tensor:
        self._tell(host)
        return self._forward(replace(to_device(host, self._device.upload), adapters=adapters))

    def _forward(self, batch: ForwardBatch) -> Tensor:
        """Captured as it is: what is pending is looked up at every replay."""
        return self._decoder.forward(replace(batch, token_ids=self._tokens.resolve(batch.token_ids)), self._cache)

    def _replay(self, graphs: DecodeGraphs, schedule: Schedule, padding: int) -> Tensor | None:
        host = self._batches.padded(schedule, padding, graphs.shape.height)
        logits = graphs.run(host)
        if logits is None:
            return None
        if len(host.last) == len(host.token_ids) - padding:
            return logits[: len(host.last)]
        return logits.index_select(0, self._device.upload(torch.from_numpy(host.last)))
