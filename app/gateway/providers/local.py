"""A model of the in-process engine as a provider: with the other local_* the one door between gateway and engine.

A model that sleeps is woken by the request that asks for it, and not put to sleep while one is in flight.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from app.config import EngineSettings
from app.errors import AppError, RateLimited, Unavailable, UpstreamError, source_gone
from app.gateway.capabilities import CHOICES, COMPLETION, PREDICTION, RESPONSE_FORMAT, TOOL_FIELDS, TOP_K
from app.gateway.providers.advert import Advert
from app.gateway.providers.base import Forecast, TransientError
from app.gateway.providers.local_advert import Residency, advertise, asleep, queue_ms
from app.gateway.providers.local_config import Devices, engine_config
from app.gateway.schemas import ChatRequest, Delta, Message
from app.telemetry import logger

if TYPE_CHECKING:
    from app.engine import AsyncEngine, EngineStats, TokenSegment
    from app.engine.facts import EngineLoad
    from app.engine.prefix import Label, LabelCount
    from app.engine.resident import Resident
    from app.engine.spec.counts import SpeculationCounts
    from app.gateway.providers.local_request import Prompt, RequestBuilder

log = logger(__name__)

# Requests in flight may finish for so long when the process stops.
DRAIN_SECONDS = 5.0
# At most so much later somebody who found no room may come back.
RETRY_SECONDS = 5.0
# Who waited for the model to wake waits for a seat as long as is left, and so long at least.
MIN_QUEUE_SECONDS = 0.1
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

    def __init__(self, settings: EngineSettings, name: str = "local", devices: Devices | None = None) -> None:
        """devices: shared with the other models of the process."""
        self.name, self.settings = name, settings
        self._devices = devices or Devices()
        self._engine: AsyncEngine | None = None
        self._resident: Resident | None = None
        self._builder: RequestBuilder | None = None
        self._residency = Residency()
        self._advertised = False
        self._prefixes: list[tuple[Message, ...]] = []  # to be kept for good once the model was found
        self._gone: dict[str, None] = {}  # sources that no request may bring any more, the latest last

    @property
    def takes(self) -> frozenset[str]:
        """Tools only where the model's chat template knows of them."""
        with_tools = self._builder is not None and self._builder.tools is not None
        return TAKES | TOOL_FIELDS if with_tools else TAKES

    async def start(self) -> None:
        """Load the model in the engine's thread; where others fill the device, only prepare it.

        Raises whatever loading raises, and ConfigurationError where there could never be room for it.
        """
        from app.engine import AsyncEngine
        from app.engine.resident import Resident

        config = engine_config(self.settings)
        place = self._devices.place(config.device, config.num_ranks)
        self._engine = AsyncEngine(config)
        self._resident = Resident(self.name, self._engine, place, pinned=self.settings.pinned)
        self._resident.on_change = self._changed
        await self._resident.open()
        await self._found(self._engine)

    async def _found(self, engine: "AsyncEngine") -> None:
        """What is done once, when the model has been checked and its tokenizer is there."""
        from app.engine.quant.report import objection
        from app.gateway.providers.local_request import RequestBuilder

        if self._builder is not None:
            return
        if engine.warm.folder is not None and (reason := objection(engine.warm.folder)):
            log.warning("quantized model without a passed report", model=self.name, objection=reason)
        if engine.tokenizer is not None:
            longest, adapters = self.settings.max_queue_seconds or None, self.settings.adapter_models
            self._builder = RequestBuilder(engine.tokenizer, longest, adapters)
            await self._keep(engine, self._builder)

    async def _keep(self, engine: "AsyncEngine", builder: "RequestBuilder") -> None:
        for messages in self._prefixes:
            try:
                segments = builder.prompt(ChatRequest(model="", messages=messages)).segments
                await engine.pin(list(takewhile(lambda segment: not segment.label, segments)))
            except (ValueError, AppError) as error:
                log.warning("a prefix is not kept", model=self.name, reason=str(error))

    @property
    def opened(self) -> bool:
        """Whether the model was found and checked."""
        return self._resident is not None

    async def wake(self) -> None:
        """For operators, also after the engine was given up or could not start. Raises RateLimited and Unavailable as a
        request would."""
        self.model.revive()
        try:
            async with self._awake():
                pass
        except TransientError as error:
            raise Unavailable(error.detail) from error
        await self._found(self.model.engine)  # where its start failed

    @property
    def model(self) -> "Resident":
        """On its device, or asleep. Raises UpstreamError before start()."""
        if self._resident is None:
            raise UpstreamError("The in-process engine is not started.")
        return self._resident

    def _changed(self, resident: "Resident") -> None:
        """An operator sees in the log where a start went, and what was put to sleep."""
        figures = {"bytes": resident.num_bytes, "device": resident.arbiter.device, "used": resident.arbiter.used}
        if resident.state == "awake":
            seconds = {f"{stage}_s": round(took, 3) for stage, took in resident.start_seconds.items()}
            figures |= {**seconds, "total_s": round(sum(resident.start_seconds.values()), 3)}
        log.info(f"model {resident.state}", model=self.name, **figures)
        self._devices.tell(self.name, resident.state)

    def pin(self, messages: tuple[Message, ...]) -> None:
        """Before start(): what is firm-wide at the start of a chat with these messages is computed when the model
        starts, or at its first wake where that fails, and stays."""
        self._prefixes.append(messages)

    async def forget(self, source_ids: Collection[str]) -> None:
        """Drop whatever was computed from these documents; answers that read them end with a Conflict, and so do those
        that were on their way here with what was read before."""
        self._gone.update(dict.fromkeys(source_ids))
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]
        if self._engine is not None:
            await self._engine.forget(source_ids)

    async def close(self) -> None:
        if self._resident is not None:
            await self._resident.close(drain_seconds=DRAIN_SECONDS)

    def unhealthy(self) -> str | None:
        """A model that sleeps is well."""
        return "the model is not loaded" if self._resident is None else self._resident.trouble

    def relays(self, request: ChatRequest) -> bool:
        return False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        from app.gateway.providers.local_answer import read_ahead

        async with aclosing(read_ahead(self._awake_stream(request))) as deltas:  # who reads slowly keeps nothing awake
            async for delta in deltas:
                yield delta

    async def _awake_stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        engine, _ = self._ready()
        prompt = await self._prompt(request)
        async with self._awake() as waited, aclosing(self._answer(engine, request, prompt, waited)) as deltas:
            async for delta in deltas:
                yield (
                    replace(delta, timings_ms={"wake": waited * 1000, **(delta.timings_ms or {})}) if waited else delta
                )
                waited = 0.0  # told once

    @asynccontextmanager
    async def _awake(self) -> AsyncIterator[float]:
        """Seconds that the request waited for the model, 0 for one that is awake. Raises RateLimited where it waited as
        long as it may wait in the queue, TransientError where the model cannot be woken."""
        from app.engine import EngineError

        began, awake = time.monotonic(), self.model.state == "awake"
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.model.use(self.settings.max_queue_seconds or None))
            except TimeoutError:
                wait = min(RETRY_SECONDS, max(1.0, self.model.wake_s()))
                raise RateLimited("There was no room for the model in time.", retry_after=wait) from None
            except EngineError as error:
                raise TransientError(str(error)) from error
            yield 0.0 if awake else time.monotonic() - began

    async def _answer(
        self, engine: "AsyncEngine", request: ChatRequest, prompt: "Prompt", waited: float
    ) -> AsyncGenerator[Delta, None]:
        from app.engine import EngineError
        from app.gateway.providers.local_answer import several

        segments = prompt.segments
        if any(source in self._gone for segment in segments for source in segment.source_ids):
            raise source_gone()
        try:
            if self._advertised:
                adapter = self._adapter(request.model)
                keys = engine.keys(segments, adapter)
                self._residency.served(request, adapter, prompt.ends, keys, engine.config.block_size)
            streams = self._choices(engine, request, segments, waited)
        except EngineError as error:
            raise TransientError(str(error)) from error
        async with aclosing(streams[0] if len(streams) == 1 else several(streams)) as deltas:
            async for delta in deltas:
                yield delta

    def _choices(
        self, engine: "AsyncEngine", request: ChatRequest, segments: "list[TokenSegment]", waited: float
    ) -> list[AsyncGenerator[Delta, None]]:
        from app.gateway.providers.local_answer import Answer, one

        _, builder = self._ready()
        work = builder.build(request, segments)
        if waited and work.max_queue_seconds:
            work = replace(work, max_queue_seconds=max(MIN_QUEUE_SECONDS, work.max_queue_seconds - waited))
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
        from app.engine import EngineLoad

        engine = self._running()
        return EngineLoad(waiting=self.model.waiting) if engine is None else engine.load()

    def block_runs(self) -> list[tuple[str, int, int]]:
        """The KV blocks by number as runs of one state and owner. Raises UpstreamError before start()."""
        from app.engine.inside import owned_runs

        engine = self._running()
        return [] if engine is None else owned_runs(engine.engine.scheduler)

    def waiting_for(self) -> dict[str, int]:
        """Waiting requests by what they wait for: wake, or as the engine says. Raises UpstreamError before start()."""
        from app.engine.inside import waiting_for

        engine, waking = self._running(), self.model.waiting
        return ({"wake": waking} if waking else {}) | ({} if engine is None else waiting_for(engine.engine.scheduler))

    def accepted(self) -> "SpeculationCounts":
        """What drafts brought since the model woke. Raises UpstreamError before start()."""
        from app.engine import SpeculationCounts

        engine = self._running()
        return SpeculationCounts() if engine is None else engine.engine.speculator.totals

    def label_counts(self) -> "dict[Label, LabelCount]":
        """Prompt tokens and prefix cache hits by access label. Raises UpstreamError before start()."""
        engine = self._running()
        return {} if engine is None else engine.label_counts()

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Exact: the chat template's own tokens are counted too."""
        return _count(await self._segments(request))

    async def forecast(self, request: ChatRequest) -> Forecast | None:
        """The engine knows its queue, its speed and what of the prompt is in its cache; asleep, how long it wakes."""
        segments = await self._segments(request)
        engine = self._running()
        if engine is None:
            return Forecast(self.model.first_token_s(_count(segments)) * 1000)
        predicted = engine.predict_ttft(engine.keys(segments, self._adapter(request.model)), quantile=0.9)
        return Forecast(predicted.quantile_s * 1000, predicted.cached_tokens)

    def queue_ms(self) -> float | None:
        if self.unhealthy():
            return None
        engine = self._running()
        return self.model.first_token_s(1) * 1000 if engine is None else queue_ms(engine)

    def resident(self, model: str) -> Mapping[str, int]:
        """Kept track of from the first time it is asked."""
        self._advertised = True
        engine, adapter = None if self.unhealthy() else self._running(), self._adapter(model)
        return {} if engine is None else self._residency.resident(engine, {adapter})[adapter]

    async def probe(self) -> None:
        if reason := self.unhealthy():
            raise TransientError(f"The in-process engine is not well: {reason}.")

    def advert(self) -> Advert:
        """What gateways in other processes route by; from now on it is kept track of."""
        self._advertised = True
        if reason := self.unhealthy():
            return Advert(self.takes, reason)
        engine = self._running()
        if engine is None:
            return asleep(self.model, self.takes)
        return advertise(engine, self.takes, self._residency, self.settings.adapter_models)

    async def _segments(self, request: ChatRequest) -> "list[TokenSegment]":
        return (await self._prompt(request)).segments

    async def _prompt(self, request: ChatRequest) -> "Prompt":
        """Long prompts are tokenized in a thread: the event loop serves others meanwhile."""
        _, builder = self._ready()
        if sum(len(message.text) for message in request.messages) > INLINE_CHARACTERS:
            return await asyncio.to_thread(builder.prompt, request)
        return builder.prompt(request)

    def _adapter(self, model: str) -> str | None:
        return self.settings.adapter_models.get(model)

    def _running(self) -> "AsyncEngine | None":
        """None while the model is not awake. Raises UpstreamError before start()."""
        return self._engine if self.model.state == "awake" else None

    def _ready(self) -> "tuple[AsyncEngine, RequestBuilder]":
        if self._engine is None:
            raise UpstreamError("The in-process engine is not started.")
        if self._builder is None:
            raise UpstreamError("The in-process model has no tokenizer.")
        return self._engine, self._builder


def _count(segments: "list[TokenSegment]") -> int:
    return sum(len(segment.token_ids) for segment in segments)
