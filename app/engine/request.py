"""The engine's nouns: what comes in, what runs, what goes out. No torch."""

import random
import time
from dataclasses import dataclass, field, replace
from typing import Literal

from app.engine.blocks import Block
from app.engine.config import SamplingParams
from app.engine.grammar import Grammar, GrammarState
from app.engine.prefix import Label, LabelChain
from app.engine.quote_lock import QuoteLock
from app.engine.spec.counts import SpeculationCounts
from app.engine.spec.drafts import Draft, Drafter

# deadline: it could not start in time.  forgotten: one of its sources was forgotten meanwhile.
FinishReason = Literal["stop", "length", "abort", "deadline", "forgotten"]
Alternatives = list[tuple[int, float]]  # the likeliest tokens at one position, with their log probabilities


class EngineError(Exception):
    """The engine could not finish a request through no fault of the request; it may be sent again."""

    retryable = True


@dataclass(frozen=True, slots=True)
class TokenSegment:
    """A run of prompt tokens with the access atoms (tenant, matters) of its text; empty is firm-wide.

    source_ids: the documents the text is from, so that LLMEngine.forget() finds what was computed from them.
    """

    token_ids: list[int]
    label: Label = field(default_factory=frozenset)
    source_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt, the concatenation of its segments, and how to continue it.

    priority: higher starts earlier; a waiting request gains one level per AGEING_SECONDS (scheduler.py).
    max_queue_seconds: not started by then, it ends with finish_reason "deadline"; None waits as long as it takes.
    quote_sources: numbered passages, the first is [1]; where given, quotes and citation numbers in the output are
    constrained to what they say (quote_lock.py).
    draft_token_ids: an earlier answer that this one may well repeat: verified token by token, never trusted (spec/).
    grammar: what the whole output must look like (grammar.py).
    continues_text: the output goes on where the prompt's text ends, without a chat template in between.
    adapter: one of EngineConfig.adapters that the request is computed with; None: the base model alone.
    """

    request_id: str
    segments: tuple[TokenSegment, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    max_queue_seconds: float | None = None
    quote_sources: tuple[str, ...] = ()
    grammar: Grammar | None = None
    continues_text: bool = False
    draft_token_ids: tuple[int, ...] = ()
    adapter: str | None = None

    @property
    def prompt_token_ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.token_ids]


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Where a request's time went, in milliseconds, and its tokens. ttft_ms is queue plus prefill.

    speculation: what drafts brought, None where none was tried.
    """

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ttft_ms: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_preemptions: int = 0
    speculation: SpeculationCounts | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A finished request. text is empty where the model folder has no tokenizer."""

    request_id: str
    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float] | None
    metrics: RequestMetrics
    top_logprobs: list[Alternatives] | None = None


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step gave one request: its new tokens, and on the last one why it ended and its metrics."""

    request_id: str
    token_ids: list[int]
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    metrics: RequestMetrics | None = None
    top_logprobs: list[Alternatives] | None = None


def choices(request: Request, count: int) -> list[Request]:
    """`n` of the OpenAI API: that many requests that share the prompt's blocks, each with a seed of its own."""
    return [
        replace(request, request_id=f"{request.request_id}/{i}", sampling=_own_seed(request.sampling, i))
        for i in range(count)
    ]


def _own_seed(sampling: SamplingParams, choice: int) -> SamplingParams:
    if sampling.seed is None or choice == 0:
        return sampling
    return replace(sampling, seed=random.Random(f"{sampling.seed}/{choice}").getrandbits(63))


class Sequence:
    """A request inside the engine. Three integers say where it stands:

    num_computed <= len(tokens): tokens whose keys and values are in its blocks; the rest is due.
    num_prompt_tokens <= len(tokens): beyond it lies the output.
    The scheduler owns every field; nobody else writes.
    """

    __slots__ = (
        "adapter", "arrived", "block_ids", "blocks", "draft", "draft_computed", "draft_locks", "draft_of", "drafter",
        "first_token", "grammar", "keys", "labels", "lock", "max_queue_seconds", "max_tokens", "num_cached",
        "num_computed", "num_preemptions",
        "num_prompt_tokens", "overtaken", "pending", "planned", "predicted_ttft", "priority", "rank", "request_id",
        "resident", "sampling", "seed", "sources", "speculation", "started", "tokens", "waits_for",
    )  # fmt: skip

    def __init__(self, request: Request, seed: int, max_tokens: int, arrived: float | None = None) -> None:
        self.request_id = request.request_id
        self.sampling = request.sampling
        self.adapter = request.adapter
        self.priority = request.priority
        self.max_queue_seconds = request.max_queue_seconds
        self.seed = seed
        self.max_tokens = max_tokens
        self.tokens = request.prompt_token_ids
        self.num_prompt_tokens = len(self.tokens)
        self.labels = LabelChain([(len(s.token_ids), s.label) for s in request.segments])
        self.sources = LabelChain([(len(s.token_ids), frozenset(s.source_ids)) for s in request.segments])
        self.lock: QuoteLock | None = None
        self.grammar: GrammarState | None = None
        self.num_computed = 0
        self.num_cached = 0
        self.num_preemptions = 0
        self.blocks: list[Block] = []
        self.block_ids: list[int] = []
        self.keys: list[bytes] = []
        self.pending: list[bytes] = []
        self.waits_for: bytes | None = None
        self.rank = 0.0  # place in the queue, see scheduler.py; lower is sooner
        self.overtaken = 0
        self.resident = 0  # leading blocks last seen in the cache
        self.arrived = time.perf_counter() if arrived is None else arrived
        self.started = 0.0
        self.first_token = 0.0
        self.predicted_ttft = 0.0  # these two are the forecaster's
        self.planned: list[bytes] = []
        self.drafter: Drafter | None = None  # these six are the speculator's
        self.draft_computed = 0  # tokens that the draft model has computed
        self.draft: list[int] = []  # to be tried in the next step
        self.draft_of: Draft | None = None
        self.draft_locks: list[QuoteLock] = []  # the lock after each token of the draft
        self.speculation = SpeculationCounts()

    @property
    def num_output_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def num_due(self) -> int:
        """Tokens to compute; none once the last allowed one is there, though it may be pending (overlap.py)."""
        return 0 if self.num_output_tokens >= self.max_tokens else len(self.tokens) - self.num_computed

    @property
    def output_token_ids(self) -> list[int]:
        return self.tokens[self.num_prompt_tokens :]

    def metrics(self) -> RequestMetrics:
        """As of now; a request that never started has only queued."""
        now = time.perf_counter()
        started = self.started or now
        first = self.first_token or now
        return RequestMetrics(
            queue_ms=(started - self.arrived) * 1e3,
            prefill_ms=(first - started) * 1e3,
            decode_ms=(now - first) * 1e3,
            ttft_ms=(first - self.arrived) * 1e3,
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached,
            num_output_tokens=self.num_output_tokens,
            num_preemptions=self.num_preemptions,
            speculation=self.speculation if self.speculation.steps else None,
        )
