"""Runs a schedule: owns the weights, the KV pages and the device. The only place that calls the decoder."""

import json
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
from app.engine.kv_cache import page_dtype
from app.engine.laps import Laps
from app.engine.loader import DecoderWeights, load_weights
from app.engine.lora_files import load_adapters
from app.engine.model import choose_kernels, device_of, on_device, prepare, read_weights
from app.engine.parallel.joining import Meeting
from app.engine.parallel.layout import Layout, Part
from app.engine.parallel.ranks import Ranks
from app.engine.parallel.wire import Clear, Pool, Task
from app.engine.request import Alternatives, Sequence
from app.engine.sampler import SampledTokens, sample
from app.engine.sampling_batch import SamplingBatches
from app.engine.schedule import Schedule
from app.engine.sizing import pool_budget
from app.engine.spec.model import DraftModel, read_draft_spec
from app.engine.token_pool import TokenPool
from app.kernels.dispatch import ReferenceKernels

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
        known = "a hub id like 'Qwen/Qwen3-0.6B', nor stored under that name (`precedent model list`)"
        raise ValueError(f"model {str(model)!r} is neither an existing folder nor {known}")
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
        self.layout = Layout.of(config)
        part = self.layout.part(self.spec)
        self.device = open_device(device_of(config, 0))
        self.dtype = resolve_dtype(config.dtype, self.device.torch)
        self.kernels = choose_kernels(config, self.device, part.spec, self.dtype)
        self.tokens = TokenPool(config.max_num_seqs, self.device)
        self.sampling = SamplingBatches(self.spec.vocab_size, self.spec.eos_token_ids)
        self._keeps_tokens = config.overlap
        self.ranks = Ranks(self.layout.num_ranks)
        try:
            self._build(config, part, kept, laps)
        except BaseException:
            self.ranks.close()
            raise

    def _build(self, config: EngineConfig, part: Part, kept: DecoderWeights | None, laps: Laps) -> None:
        """Weights and pages. The pool is that of a rank: the first has as many layers as any."""
        draft = resolve_folder(config.draft_model) if config.draft_model and config.max_draft_tokens else None
        longest = longest_request(config, self.spec)
        if isinstance(self.kernels, ReferenceKernels):  # a GPU's pool is measured with the model in place
            _, longest = pool_shape(config, part.spec, self.dtype, draft)
        self.decoder = self._joined(config, part, longest, kept)
        with on_device(self.device):
            self.decoder.adapters = load_adapters(config.adapters, self.spec, self.dtype)
        self._drafter = self._draft_decoder(draft, config, longest) if draft is not None else None
        laps.lap("weights")
        pool = Pool(*pool_shape(config, part.spec, self.dtype, draft, self._budget(config)))
        self.num_blocks, self.max_model_len = pool.num_blocks, pool.max_model_len
        self.ranks.tell(pool)
        self.cache, self._forward = prepare(
            config, self.device, self.decoder, self.tokens, pool, verified=config.max_draft_tokens, tell=self.ranks.tell
        )
        self.draft_model: DraftModel | None = None
        if self._drafter is not None:  # what writes drafts decodes; it never verifies any
            cache, forward = prepare(config, self.device, self._drafter, self.tokens, pool)
            self.draft_model = DraftModel(forward, cache)
        laps.lap("kv_pool")

    def num_bytes(self) -> int:
        """Of weights and KV pages on rank 0, the draft model's included."""
        return memory.num_bytes(self._holdings())

    def release(self) -> None:
        """End the other ranks, give the device's memory back; the runner is of no use afterwards."""
        self.ranks.close()
        memory.free(self._holdings())
        self._forward = self.draft_model = None  # type: ignore[assignment]  # with its graphs
        self.device.release()

    def _holdings(self) -> list[object]:
        """What grows with the model and its pool."""
        drafts = [self._drafter.weights] if self._drafter is not None else []
        pages = [self.draft_model.cache] if self.draft_model is not None else []
        return [self.decoder.weights, self.decoder.adapters, self.cache, *drafts, *pages]

    def _joined(self, config: EngineConfig, part: Part, longest: int, kept: DecoderWeights | None) -> Decoder:
        """Every rank loads its part at the same time; then they meet."""
        ranks, layout = self.ranks, self.layout
        others = range(1, layout.num_ranks)
        ranks.start([Task(i, config, self.folder, self.spec, self.dtype, longest, ranks.store) for i in others])
        with on_device(self.device):
            weights = read_weights(config, self.folder, part, self.dtype) if kept is None else self._copied(kept)
            ranks.wait_until_loaded()
            meeting = Meeting(layout, 0, ranks.store, self.device.torch, config.stall_s, ranks.lost)
            decoder, peers = meeting.join(part, weights, longest, self.kernels)
        ranks.met(peers)
        return decoder

    def _copied(self, kept: DecoderWeights) -> DecoderWeights:
        return memory.to_device(kept, self.device.torch)

    def _budget(self, config: EngineConfig) -> int | None:
        if isinstance(self.kernels, ReferenceKernels) or config.num_ranks > 1:
            return None
        return pool_budget(config, self.device, self.decoder, self.kernels, longest_request(config, self.spec))

    def _draft_decoder(self, folder: Path, config: EngineConfig, longest: int) -> Decoder:
        """Whole on rank 0, however many there are."""
        spec = read_draft_spec(folder, self.spec, longest)
        kernels = choose_kernels(config, self.device, spec, self.dtype)
        with on_device(self.device):
            return Decoder(spec, load_weights(folder, spec, self.dtype), longest, kernels)

    def clear(self, block_ids: list[int]) -> None:
        """Zero these pages, in both models' caches, on every rank."""
        if not block_ids:
            return
        self.ranks.tell(Clear(block_ids))
        self.cache.clear(block_ids)
        if self.draft_model is not None:
            self.draft_model.cache.clear(block_ids)

    def prepare(self, schedule: Schedule) -> None:
        """Clear what former owners left in the blocks that this step begins; our own kernels never read that."""
        if isinstance(self.kernels, ReferenceKernels):
            self.clear(schedule.partial_blocks)

    def run(self, schedule: Schedule) -> Sampled:
        sampled = self.launch(schedule).wait()
        self.ranks.check()
        return sampled

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
        with on_device(self.device):
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
    pages = page_dtype(config.kv_cache_dtype, dtype)
    per_block = sum(one.kv_bytes_per_token(pages) for one in specs) * config.block_size
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
