"""Runs a schedule: owns the weights, the KV pages and the device. The only place that calls the decoder."""

import json
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers.utils.hub import cached_file

from app.engine import memory
from app.engine.architecture import DecoderSpec, read_spec
from app.engine.checksums import verify_folder
from app.engine.config import EngineConfig
from app.engine.decoder import Decoder
from app.engine.device import Device, Download, open_device, upload_all
from app.engine.forward import Forward, PagedForward, ReferenceForward
from app.engine.kv_cache import KVCache
from app.engine.laps import Laps
from app.engine.loader import DecoderWeights, dummy_weights, load_weights
from app.engine.request import Alternatives, Sequence
from app.engine.sampler import SampledTokens, sample
from app.engine.sampling_batch import SamplingBatches
from app.engine.schedule import Schedule
from app.engine.sizing import pool_budget
from app.engine.spec.model import DraftModel, read_draft_spec
from app.engine.token_pool import TokenPool
from app.kernels.dispatch import ReferenceKernels, Switches, TritonKernels, choose

DEFAULT_KV_BYTES = 512 * 1024**2
_OPTIONAL_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "chat_template.jinja", "tokenizer.model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens in the order of ForwardBatch.last; by the index of a token among them, what was asked for besides."""

    token_ids: list[int]
    logprobs: dict[int, float] = field(default_factory=dict)
    top_logprobs: dict[int, Alternatives] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Found:
    """SampledTokens on their way to the host."""

    tokens: Download
    logprobs: Download
    top_ids: Download
    top_logprobs: Download

    @classmethod
    def of(cls, found: SampledTokens, device: Device) -> "Found":
        parts = found.tokens, found.logprobs, found.top_ids, found.top_logprobs
        return cls(*map(device.download, parts))

    def wait(self) -> SampledTokens:
        return SampledTokens(self.tokens.wait(), self.logprobs.wait(), self.top_ids.wait(), self.top_logprobs.wait())


@dataclass(frozen=True, slots=True)
class Launched:
    """A step whose results may not be there yet.

    rows: which of its tokens have log probabilities.  num_top: how many alternatives each token's request wants.
    """

    found: Found | None
    rows: list[int]
    num_top: list[int]

    def wait(self) -> Sampled:
        return Sampled([]) if self.found is None else _sampled(self.found.wait(), self.rows, self.num_top)


def resolve_folder(model: str | Path, revision: str | None = None) -> Path:
    """A local folder or config.json as it is; anything else is fetched from the Hugging Face hub (cached)."""
    path = Path(model)
    if path.exists():
        if revision is not None:
            raise ValueError(f"revision {revision!r} is of a hub model; {path} is a folder: pin it by checksums")
        return path
    if path.is_absolute() or str(model).count("/") != 1:
        raise ValueError(f"model {str(model)!r} is neither an existing folder nor a hub id like 'Qwen/Qwen3-0.6B'")
    return _download(str(model), revision)


def _download(model: str, revision: str | None) -> Path:
    """The files this engine reads, from the hub into its local cache. OSError where there is no such model."""

    def fetch(name: str) -> str | None:
        path: str | None = cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return path

    config = cached_file(model, "config.json", revision=revision)
    index = fetch("model.safetensors.index.json")
    shards = json.loads(Path(index).read_text())["weight_map"].values() if index else ["model.safetensors"]
    for name in (*_OPTIONAL_FILES, *sorted(set(shards))):
        fetch(name)
    return Path(str(config)).parent


def resolve_dtype(name: str, device: torch.device | None = None) -> torch.dtype:
    """ "auto" is bfloat16 on a GPU, and on a CPU that multiplies it natively. Measured on a Zen 5 core with batches of
    8 and more tokens: linear layers 3-5x faster than float32; at one token about equal."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device is not None and device.type == "cuda":
        return torch.bfloat16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def resolve_threads(threads: int | None) -> int:
    return threads or len(os.sched_getaffinity(0))


class ModelRunner:
    """run(schedule) is one forward pass and one sampling of everybody who caught up."""

    def __init__(
        self, config: EngineConfig, kept: DecoderWeights | None = None, laps: Laps | None = None
    ) -> None:  # fmt: skip
        """kept: weights in host memory, which are copied to the device instead of being read from the files."""
        laps = laps or Laps()
        folder = resolve_folder(config.model, config.revision)
        self.folder = folder
        verify_folder(folder, config.checksums)
        laps.lap("verify")
        self.spec = read_spec(folder)
        self.device = open_device(config.device)
        self.dtype = resolve_dtype(config.dtype, self.device.torch)
        self.block_size = config.block_size
        self.kernels = choose_kernels(config, self.device, self.spec, self.dtype)
        draft = resolve_folder(config.draft_model) if config.draft_model and config.max_draft_tokens else None
        longest = longest_request(config, self.spec)
        if isinstance(self.kernels, ReferenceKernels):  # a GPU's pool is measured with the model in place
            _, longest = pool_shape(config, self.spec, self.dtype, draft)
        with self._on_device():
            self.decoder = Decoder(self.spec, self._load(config, kept), longest, self.kernels)
            drafter = self._draft_decoder(draft, config, longest) if draft is not None else None
        laps.lap("weights")
        self.num_blocks, self.max_model_len = pool_shape(config, self.spec, self.dtype, draft, self._budget(config))
        self.tokens = TokenPool(config.max_num_seqs, self.device)
        self._keeps_tokens = config.overlap
        self.cache, self._forward = self._prepared(config, self.decoder)
        self.draft_model: DraftModel | None = None
        if drafter is not None:
            cache, forward = self._prepared(config, drafter)
            self.draft_model = DraftModel(forward, cache)
        self.sampling = SamplingBatches(self.spec.vocab_size, self.spec.eos_token_ids)
        self._drafter = drafter
        laps.lap("kv_pool")

    def num_bytes(self) -> int:
        """Of weights and KV pages, the draft model's included."""
        return memory.num_bytes(self._holdings())

    def release(self) -> None:
        """Give the device's memory back; the runner is of no use afterwards."""
        memory.free(self._holdings())
        self._forward = self.draft_model = None  # type: ignore[assignment]  # with its graphs
        self.device.release()

    def _holdings(self) -> list[object]:
        """What grows with the model and its pool."""
        drafts = [self._drafter.weights] if self._drafter is not None else []
        pages = [self.draft_model.cache] if self.draft_model is not None else []
        return [self.decoder.weights, self.cache, *drafts, *pages]

    def _load(self, config: EngineConfig, kept: DecoderWeights | None) -> DecoderWeights:
        if kept is not None:
            return memory.to_device(kept, self.device.torch)
        if config.load_format == "dummy":
            return dummy_weights(self.spec, self.dtype, config.seed)
        weights = load_weights(self.folder, self.spec, self.dtype)
        if config.deterministic and weights.packed():
            raise ValueError(f"deterministic=True runs plain weights only; those of {self.folder} are quantized")
        return weights

    def _on_device(self) -> AbstractContextManager[object]:
        """Tensors are made there. On the CPU they are anyway, and the context would cost time."""
        return nullcontext() if self.device.torch.type == "cpu" else self.device.torch

    def _budget(self, config: EngineConfig) -> int | None:
        if isinstance(self.kernels, ReferenceKernels):
            return None
        return pool_budget(config, self.device, self.decoder, self.kernels, longest_request(config, self.spec))

    def _draft_decoder(self, folder: Path, config: EngineConfig, longest: int) -> Decoder:
        spec = read_draft_spec(folder, self.spec, longest)
        kernels = choose_kernels(config, self.device, spec, self.dtype)
        return Decoder(spec, load_weights(folder, spec, self.dtype), longest, kernels)

    def _prepared(self, config: EngineConfig, decoder: Decoder) -> tuple[KVCache, Forward]:
        """The pages of this model, and what runs it over them."""
        size, kernels = config.block_size, decoder.kernels
        if not isinstance(kernels, TritonKernels):
            cache = KVCache.allocate(decoder.spec, self.num_blocks, size, self.dtype)
            return cache, ReferenceForward(decoder, cache, self.tokens, size)
        cache = KVCache.allocate(decoder.spec, self.num_blocks + 1, size, self.dtype, self.device.torch)
        forward = PagedForward(
            self.device, decoder, cache, kernels, self.tokens, max_seqs=config.max_num_seqs,
            max_model_len=self.max_model_len, block_size=size,
        )  # fmt: skip
        forward.compile()
        if config.cuda_graphs:
            # What writes drafts decodes; it never verifies any.
            forward.capture_all(config.max_draft_tokens if decoder is self.decoder else 0)
        return cache, forward

    def clear(self, block_ids: list[int]) -> None:
        """Zero these pages, in both models' caches."""
        self.cache.clear(block_ids)
        if self.draft_model is not None:
            self.draft_model.cache.clear(block_ids)

    def prepare(self, schedule: Schedule) -> None:
        """Clear what former owners left in the blocks that this step begins; our own kernels never read that."""
        if isinstance(self.kernels, ReferenceKernels):
            self.clear(schedule.partial_blocks)

    def run(self, schedule: Schedule) -> Sampled:
        return self.launch(schedule).wait()

    def launch(self, schedule: Schedule) -> Launched:
        """Everything up to the copy of the results to the host, which is still under way on a GPU."""
        if self.draft_model is not None:
            self.draft_model.read(schedule)
        logits = self._forward.run(schedule)
        rows = [row for row in schedule.rows if row.samples]
        if not rows:
            return Launched(None, [], [])
        request = self.sampling.batch([row.seq for row in rows], [row.draft for row in rows])
        wanted = [row.seq.sampling.logprobs or 0 for row in rows for _ in range(row.num_samples)]
        with_logprobs = request.with_logprobs.tolist()
        with self._on_device():
            found = sample(logits, upload_all(request, self.device))
        if self._keeps_tokens:
            self.tokens.keep([row.seq for row in rows], found.tokens)
        return Launched(Found.of(found, self.device), with_logprobs, wanted)

    def discard(self, seq: Sequence) -> None:
        """The sequence has ended."""
        self.sampling.discard(seq)
        self._forward.discard(seq)
        if self.draft_model is not None:
            self.draft_model.discard(seq)
        self.tokens.discard(seq)


def _sampled(found: SampledTokens, rows: list[int], num_top: list[int]) -> Sampled:
    sampled = Sampled(found.tokens.tolist())
    if not rows:
        return sampled
    sampled.logprobs.update(zip(rows, found.logprobs.tolist(), strict=True))
    for i, ids, values in zip(rows, found.top_ids.tolist(), found.top_logprobs.tolist(), strict=True):
        sampled.top_logprobs[i] = list(zip(ids[: num_top[i]], values[: num_top[i]], strict=True))
    return sampled


def choose_kernels(
    config: EngineConfig, device: Device, spec: DecoderSpec, dtype: torch.dtype
) -> ReferenceKernels | TritonKernels:
    """Decided once; see dispatch.py."""
    return choose(
        config.kernels, device.torch, device.name, group=spec.num_heads // spec.num_kv_heads, head_dim=spec.head_dim,
        dtype=dtype,
        switches=Switches(config.shared_prefix_kernel, config.fused_kernels, config.deterministic),
    )  # fmt: skip


def longest_request(config: EngineConfig, spec: DecoderSpec) -> int:
    """Prompt and output that settings and model allow, whatever the pool holds."""
    return min(config.max_model_len or spec.max_position, spec.max_position)


def pool_shape(
    config: EngineConfig, spec: DecoderSpec, dtype: torch.dtype, draft: Path | None = None, budget: int | None = None
) -> tuple[int, int]:
    """Number of KV blocks, and the longest request (prompt and output) that they and the model can hold.

    A draft model's pages are in the same blocks and count. budget: bytes of the pool where a device measured them.
    """
    longest = longest_request(config, spec)
    useful = config.max_num_seqs * -(-longest // config.block_size)
    specs = [spec] if draft is None else [spec, read_spec(draft)]
    per_block = sum(one.kv_bytes_per_token(dtype) for one in specs) * config.block_size
    budget = budget or config.kv_cache_bytes or DEFAULT_KV_BYTES
    num_blocks = config.num_blocks or min(useful, budget // per_block)
    if num_blocks < 1:
        raise ValueError(f"kv_cache_bytes={budget} holds no block of {per_block} bytes; raise it")
    longest = min(longest, num_blocks * config.block_size)
    if config.max_model_len is not None and longest < config.max_model_len:
        raise ValueError(
            f"max_model_len={config.max_model_len} is more than the model ({spec.max_position}) or the KV pool "
            f"({num_blocks * config.block_size}) holds; lower it or raise kv_cache_bytes"
        )
    return num_blocks, longest
