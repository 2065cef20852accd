"""The in-process engine as a provider: with local_request and local_answer the one door between gateway and engine."""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from app.config import EngineSettings
from app.errors import UpstreamError, source_gone
from app.gateway.capabilities import CHOICES, COMPLETION, PREDICTION, RESPONSE_FORMAT, TOOL_FIELDS, TOP_K
from app.gateway.providers.advert import Advert
from app.gateway.providers.base import Forecast, TransientError
from app.gateway.providers.local_advert import Residency, advertise, queue_ms
from app.gateway.schemas import ChatRequest, Delta, Message

if TYPE_CHECKING:
    from app.engine import AsyncEngine, EngineStats, TokenSegment
    from app.engine.config import KernelChoice
    from app.engine.facts import EngineLoad
    from app.engine.prefix import Label, LabelCount
    from app.engine.spec.counts import SpeculationCounts
    from app.gateway.providers.local_request import Prompt, RequestBuilder

# Requests in flight may finish for so long when the process stops.
DRAIN_SECONDS = 5.0
# Tokenizing more characters than this takes long enough to be worth a thread.
INLINE_CHARACTERS = 20_000
# Forgotten sources remembered; a request that still brings one has been on its way for moments, not for days.
MAX_GONE = 100_000
TAKES = frozenset(
    {COMPLETION, TOP_K, RESPONSE_FORMAT, CHOICES, PREDICTION, "logprobs", "top_logprobs", "logit_bias", "min_p",
     "min_tokens", "ignore_eos", "stop_token_ids", "presence_penalty", "frequency_penalty", "repetition_penalty"}
)  # fmt: skip


class LocalProvider:
    """Turns labelled text segments into labelled token segments, and tokens back into deltas.

    torch is imported by `start()`, not before: a gateway without a local model never pays for it.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine: AsyncEngine | None = None
        self._builder: RequestBuilder | None = None
        self._residency = Residency()
        self._advertised = False
        self._gone: dict[str, None] = {}  # sources that no request may bring any more, the latest last

    @property
    def takes(self) -> frozenset[str]:
        """Tools only where the model's chat template knows of them."""
        with_tools = self._builder is not None and self._builder.tools is not None
        return TAKES | TOOL_FIELDS if with_tools else TAKES

    async def start(self) -> None:
        """Load the model in the engine's thread. Raises whatever loading raises."""
        from app.engine import AsyncEngine, EngineConfig
        from app.gateway.providers.local_request import RequestBuilder

        s = self._settings
        config = EngineConfig(
            model=s.model_source,
            revision=s.revision or None,
            checksums=Path(s.checksums) if s.checksums else None,
            device=s.device,
            dtype=s.dtype,
            max_num_seqs=s.max_num_seqs,
            max_num_batched_tokens=s.max_num_batched_tokens,
            max_model_len=s.max_model_len or None,
            kv_cache_bytes=s.kv_cache_bytes or None,
            gpu_memory_utilization=s.gpu_memory_utilization,
            kernels=cast("KernelChoice", s.kernels),
            fused_kernels=s.fused_kernels,
            shared_prefix_kernel=s.shared_prefix_kernel,
            cuda_graphs=s.cuda_graphs,
            overlap=s.overlap,
            threads=s.threads or None,
            max_draft_tokens=s.max_draft_tokens,
            draft_model=s.draft_model or None,
            tensor_parallel_size=s.tensor_parallel_size,
            pipeline_parallel_size=s.pipeline_parallel_size,
        )
        self._engine = AsyncEngine(config)
        await self._engine.start()
        if self._engine.tokenizer is not None:
            self._builder = RequestBuilder(self._engine.tokenizer, s.max_queue_seconds or None)

    async def pin(self, messages: tuple[Message, ...]) -> None:
        """Compute what is firm-wide at the start of a chat with these messages, and keep it for good."""
        engine, builder = self._ready()
        segments = builder.prompt(ChatRequest(model="", messages=messages)).segments
        await engine.pin(list(takewhile(lambda segment: not segment.label, segments)))

    async def forget(self, source_ids: Collection[str]) -> None:
        """Drop whatever was computed from these documents; answers that read them end with a Conflict, and so do those
        that were on their way here with what was read before."""
        self._gone.update(dict.fromkeys(source_ids))
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]
        if self._engine is not None:
            await self._engine.forget(source_ids)

    async def close(self) -> None:
        if self._engine:
            await self._engine.stop(drain_seconds=DRAIN_SECONDS)

    def unhealthy(self) -> str | None:
        if self._engine is None:
            return "the model is not loaded"
        return None if self._engine.healthy else self._engine.reason

    def relays(self, request: ChatRequest) -> bool:
        return False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        from app.engine import EngineError
        from app.gateway.providers.local_answer import several

        engine, _ = self._ready()
        prompt = await self._prompt(request)
        segments = prompt.segments
        if self._advertised:
            keys = engine.keys(segments)
            self._residency.served(request, prompt.ends, keys, engine.engine.config.block_size)
        if any(source in self._gone for segment in segments for source in segment.source_ids):
            raise source_gone()
        try:
            streams = self._choices(engine, request, segments)
        except EngineError as error:
            raise TransientError(str(error)) from error
        async with aclosing(streams[0] if len(streams) == 1 else several(streams)) as deltas:
            async for delta in deltas:
                yield delta

    def _choices(
        self, engine: "AsyncEngine", request: ChatRequest, segments: "list[TokenSegment]"
    ) -> list[AsyncGenerator[Delta, None]]:
        from app.gateway.providers.local_answer import Answer, one

        _, builder = self._ready()
        work = builder.build(request, segments)
        count = int(request.upstream_only.get(CHOICES) or 1)
        started = engine.generate_choices(work, count) if count > 1 else [engine.generate(work)]
        tokens, tokenizer = _count(segments), engine.tokenizer
        assert tokenizer is not None  # there is a builder
        answers = [Answer(tokenizer, tokens, index, builder.parser(request)) for index in range(count)]
        return [one(deltas, answer) for deltas, answer in zip(started, answers, strict=True)]

    def stats(self) -> "EngineStats":
        """The engine's own counters. Raises UpstreamError before start()."""
        if self._engine is None:
            raise UpstreamError("The in-process engine is not started.")
        return self._engine.stats()

    def load(self) -> "EngineLoad":
        """What runs and waits, and how fast steps are. Raises UpstreamError before start()."""
        return self._ready()[0].load()

    def block_runs(self) -> list[tuple[str, int, int]]:
        """The KV blocks by number as runs of one state and owner. Raises UpstreamError before start()."""
        from app.engine.inside import owned_runs

        return owned_runs(self._ready()[0].engine.scheduler)

    def waiting_for(self) -> dict[str, int]:
        """Waiting requests by what they wait for. Raises UpstreamError before start()."""
        from app.engine.inside import waiting_for

        return waiting_for(self._ready()[0].engine.scheduler)

    def accepted(self) -> "SpeculationCounts":
        """What drafts brought since the start. Raises UpstreamError before start()."""
        return self._ready()[0].engine.speculator.totals

    def label_counts(self) -> "dict[Label, LabelCount]":
        """Prompt tokens and prefix cache hits by access label. Raises UpstreamError before start()."""
        return self._ready()[0].label_counts()

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Exact: the chat template's own tokens are counted too."""
        return _count(await self._segments(request))

    async def forecast(self, request: ChatRequest) -> Forecast | None:
        """The engine knows its queue, its speed and what of the prompt is in its cache."""
        engine, _ = self._ready()
        predicted = engine.predict_ttft(await self._segments(request), quantile=0.9)
        return Forecast(predicted.quantile_s * 1000, predicted.cached_tokens)

    def queue_ms(self) -> float | None:
        if self.unhealthy():
            return None
        return queue_ms(self._ready()[0])

    def resident(self) -> Mapping[str, int]:
        """Kept track of from the first time it is asked."""
        self._advertised = True
        return {} if self.unhealthy() else self._residency.resident(self._ready()[0])

    async def probe(self) -> None:
        if reason := self.unhealthy():
            raise TransientError(f"The in-process engine is not well: {reason}.")

    def advert(self) -> Advert:
        """What gateways in other processes route by; from now on it is kept track of."""
        self._advertised = True
        if reason := self.unhealthy():
            return Advert(self.takes, reason)
        return advertise(self._ready()[0], self.takes, self._residency)

    async def _segments(self, request: ChatRequest) -> "list[TokenSegment]":
        return (await self._prompt(request)).segments

    async def _prompt(self, request: ChatRequest) -> "Prompt":
        """Long prompts are tokenized in a thread: the event loop serves others meanwhile."""
        _, builder = self._ready()
        if sum(len(message.text) for message in request.messages) > INLINE_CHARACTERS:
            return await asyncio.to_thread(builder.prompt, request)
        return builder.prompt(request)

    def _ready(self) -> "tuple[AsyncEngine, RequestBuilder]":
        if self._engine is None:
            raise UpstreamError("The in-process engine is not started.")
        if self._builder is None:
            raise UpstreamError("The in-process model has no tokenizer.")
        return self._engine, self._builder


def _count(segments: "list[TokenSegment]") -> int:
    return sum(len(segment.token_ids) for segment in segments)
