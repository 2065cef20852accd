"""What the engine is told at start and what a request may ask of its sampling. Plain data, no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LoadFormat = Literal["auto", "dummy"]
KernelChoice = Literal["auto", "reference", "triton"]
KVCacheDtype = Literal["auto", "fp8"]
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 100.0
MAX_BIASED_TOKENS = 1024


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's settings, fixed for its life. Raises ValueError, naming the field, when one is impossible.

    model: folder with config.json and safetensors, or a Hugging Face hub id; with load_format "dummy" a
        folder or a config.json alone is enough, the weights are random from `seed`.
    revision: commit or tag of a hub model; None takes its default branch.
    checksums: list of SHA-256 sums that the model's files must match (checksums.py); None: SHA256SUMS in the
        model's folder, where there is one.
    device: "auto", "cpu", "cuda" or "cuda:1"; "auto" is the CPU (docs/gpu.md says why).
    dtype: "auto", "float32" or "bfloat16"; "auto" takes bfloat16 on a GPU and where the CPU multiplies it natively
        (avx512_bf16 or AMX), else float32.
    block_size: tokens per KV block.  num_blocks: KV blocks; None sizes the pool by `kv_cache_bytes`.
    kv_cache_dtype: "auto" stores keys and values in `dtype`, "fp8" as e4m3 with a scale per layer and KV head
        (quant/kv_scales.py), which is half or a quarter of the bytes; computing stays in `dtype`.
    kv_cache_bytes: bytes for the KV pool; None is 512 MiB, never more than max_num_seqs full-length requests.
    max_num_batched_tokens: token budget of one step.  max_num_seqs: requests running at once.
    max_model_len: prompt plus output tokens of one request; None takes the checkpoint's, capped by the pool.
    threads: torch threads of the engine thread; None uses every core this process may run on.
    restart_limit: how often AsyncEngine starts anew within ten minutes after failed steps, the first time after
        restart_backoff_s, then after twice as long each time.
    draft_model: folder of a small model with the same tokenizer that guesses where nothing else does; None: none.
    max_draft_tokens: most tokens guessed ahead of a decoding request and verified in one step (spec/); 0: none.
    gpu_memory_utilization: share of the GPU's memory that this process may fill; sizes the pool on a GPU where neither
        num_blocks nor kv_cache_bytes do.
    kernels: "auto" takes Triton on a GPU and plain PyTorch on the CPU; "reference" or "triton" insists.
    fused_kernels: norms and the KV page write by our kernels, else by PyTorch.  shared_prefix_kernel: a prefix is read
        once for several rows, from where the GPU's tuning table says that it pays.  cuda_graphs: decoding steps are
        captured at the start.  overlap: a step is launched before the results of the last one are processed; without
        drafts, so it needs max_draft_tokens=0. What no GPU has verified yet is off (docs/gpu.md).
    deterministic: on our own kernels, a request's numbers are the same bit by bit whatever runs beside it, however its
        prompt is cut and whether drafts are verified; slower, without graphs and shared_prefix_kernel.
    tensor_parallel_size, pipeline_parallel_size: ranks that share each layer, and stages that the layers fall into
        (docs/parallel.md); their product are the processes of this machine that hold the model, on GPUs one device
        each from cuda:0 on. kv_cache_bytes and threads are then those of each.
    adapters: folders of LoRA adapters in PEFT's format by the name that requests give (lora.py); on one rank, without
        cuda_graphs and deterministic.
    stall_s: no step progressed for so long while there was work: not healthy, and waiters fail.
    """

    model: str | Path
    device: str = "auto"
    dtype: str = "auto"
    load_format: LoadFormat = "auto"
    revision: str | None = None
    checksums: Path | None = None
    enable_prefix_cache: bool = True
    block_size: int = 16
    num_blocks: int | None = None
    kv_cache_bytes: int | None = None
    kv_cache_dtype: KVCacheDtype = "auto"
    max_num_batched_tokens: int = 1024
    max_num_seqs: int = 64
    max_model_len: int | None = None
    seed: int = 0
    threads: int | None = None
    restart_limit: int = 5
    restart_backoff_s: float = 0.5
    stall_s: float = 120.0
    max_draft_tokens: int = 8
    draft_model: str | Path | None = None
    gpu_memory_utilization: float = 0.9
    kernels: KernelChoice = "auto"
    fused_kernels: bool = True
    shared_prefix_kernel: bool = False
    cuda_graphs: bool = False
    overlap: bool = False
    deterministic: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    adapters: Mapping[str, Path] = field(default_factory=dict)

    @property
    def num_ranks(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def __post_init__(self) -> None:
        _require(str(self.model) != "", "model must name a folder or a hub id")
        self._check_device()
        dtypes = ("auto", "float32", "bfloat16")
        _require(self.dtype in dtypes, f"dtype must be one of {dtypes}, not {self.dtype!r}")
        pages = ("auto", "fp8")
        _require(self.kv_cache_dtype in pages, f"kv_cache_dtype must be one of {pages}, not {self.kv_cache_dtype!r}")
        _require(self.load_format in ("auto", "dummy"), f"load_format {self.load_format!r} is not auto or dummy")
        positive = ("block_size", "max_num_batched_tokens", "max_num_seqs")
        for name in (*positive, "tensor_parallel_size", "pipeline_parallel_size"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        for name in ("num_blocks", "kv_cache_bytes", "max_model_len", "threads"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1 or None")
        _require(0 <= self.max_draft_tokens <= 64, "max_draft_tokens must be between 0 and 64")
        _require(self.restart_limit >= 0, "restart_limit must be at least 0")
        _require(self.restart_backoff_s >= 0, "restart_backoff_s must be at least 0")
        _require(self.stall_s > 0, "stall_s must be more than 0")
        self._check_ranks()
        self._check_adapters()

    def _check_device(self) -> None:
        kind, _, index = self.device.partition(":")
        known = self.device in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit())
        _require(known, f"device must be 'auto', 'cpu', 'cuda' or 'cuda:1', not {self.device!r}")
        kernels = ("auto", "reference", "triton")
        _require(self.kernels in kernels, f"kernels must be one of {kernels}, not {self.kernels!r}")
        share = self.gpu_memory_utilization
        _require(0 < share <= 1, f"gpu_memory_utilization must be in (0, 1], not {share}")
        plain = not self.deterministic or not (self.cuda_graphs or self.shared_prefix_kernel)
        _require(plain, "deterministic=True runs without cuda_graphs and shared_prefix_kernel")
        alone = not self.overlap or self.max_draft_tokens == 0
        _require(alone, "overlap=True needs max_draft_tokens=0: a draft begins behind a token that is not known yet")

    def _check_ranks(self) -> None:
        if self.num_ranks == 1:
            return
        _require(not self.overlap, "overlap=True runs on one rank alone: the others know no token before it is sampled")
        _require(not self.cuda_graphs, "cuda_graphs=True runs on one rank alone: steps of several are not captured")
        exact = not self.deterministic or self.tensor_parallel_size == 1
        _require(exact, "deterministic=True needs tensor_parallel_size=1: sums over ranks are rounded in another order")
        _require(":" not in self.device, f"several ranks take one GPU each: device must be 'cuda', not {self.device!r}")
        sized = self.device != "cuda" or self.kv_cache_bytes is not None or self.num_blocks is not None
        _require(sized, "several ranks on GPUs need kv_cache_bytes, of each: only a rank alone measures what is left")

    def _check_adapters(self) -> None:
        if not self.adapters:
            return
        _require(all(self.adapters), "adapters must have names")
        plain = self.num_ranks == 1 and not self.cuda_graphs and not self.deterministic
        _require(plain, "adapters run on one rank, without cuda_graphs and deterministic")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop. Raises ValueError, naming field and limit, on bad values.

    The model's logits meet, in this order: repetition, frequency and presence penalty, logit_bias, temperature,
    then top_k, min_p, top_p, each over what the one before left. temperature 0 is greedy: the highest logit.
    top_k: 0 keeps all.  min_p: share of the likeliest token's probability.  top_p: mass kept, in (0, 1].
    presence_penalty, frequency_penalty: subtracted once, or per occurrence, for tokens of the output so far.
    repetition_penalty: divides positive logits of tokens in prompt or output, multiplies negative ones; 1 is off.
    logit_bias: token id to what is added to its logit.
    seed: the same seed gives the same tokens whatever else is in the batch (float32); None draws one.
    stop: strings that end the output and are not part of it.  stop_token_ids: ids that end the output.
    ignore_eos: the model's own end tokens do not end the output.  min_tokens: no end id before that many.
    logprobs: None, or how many alternatives (0 to 20) come with the natural log probability of each sampled
        token; all under the model as it is, before penalties, bias and temperature.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_tokens: int = 256
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        stop: str | tuple[str, ...] = self.stop  # a lone string, as the OpenAI API allows it
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        self._check_distribution()
        self._check_ends()

    def _check_distribution(self) -> None:
        finite = math.isfinite(self.temperature) and self.temperature >= 0
        _require(finite, f"temperature must be a number of at least 0, not {self.temperature}")
        _require(self.top_k >= 0, f"top_k must be 0 (off) or positive, not {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], not {self.top_p}")
        _require(0 <= self.min_p <= 1, f"min_p must be in [0, 1], not {self.min_p}")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(-2 <= getattr(self, name) <= 2, f"{name} must be in [-2, 2], not {getattr(self, name)}")
        in_range = 0 < self.repetition_penalty <= 10
        _require(in_range, f"repetition_penalty must be in (0, 10], not {self.repetition_penalty}")
        few = len(self.logit_bias) <= MAX_BIASED_TOKENS
        _require(few, f"logit_bias names {len(self.logit_bias)} tokens; at most {MAX_BIASED_TOKENS} are allowed")
        for token, bias in self.logit_bias.items():
            small = token >= 0 and abs(bias) <= MAX_LOGIT_BIAS  # also false for NaN
            _require(small, f"logit_bias must map token ids to [-{MAX_LOGIT_BIAS:g}, {MAX_LOGIT_BIAS:g}], not {bias}")

    def _check_ends(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}")
        in_range = 0 <= self.min_tokens <= self.max_tokens
        _require(in_range, f"min_tokens must be between 0 and max_tokens, not {self.min_tokens}")
        _require(all(self.stop), "stop strings must not be empty")
        _require(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids must not be negative")
        _require(self.seed is None or 0 <= self.seed < 2**63, "seed must be in [0, 2**63)")
        some = self.logprobs is None or 0 <= self.logprobs <= MAX_TOP_LOGPROBS
        _require(some, f"logprobs must be None or between 0 and {MAX_TOP_LOGPROBS}, not {self.logprobs}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def has_filters(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def has_penalties(self) -> bool:
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)
