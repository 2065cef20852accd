"""An answer on its way to the caller: who reads it to the end, or stops, leaves behind what it took."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType

from opentelemetry import trace

from app.errors import AppError
from app.gateway.cache.exact import Replay
from app.gateway.cache.kept import Lookup
from app.gateway.capabilities import estimate_text, estimate_tokens
from app.gateway.metering import Reservation
from app.gateway.providers.tee import text_of
from app.gateway.record import Record
from app.gateway.resilience import DeltaStream
from app.gateway.schemas import ChatRequest, Delta, Usage
from app.gateway.switchboard import Switchboard
from app.telemetry import Stages, logger

log = logger(__name__)
# Stages that the target reports as its own computing.
COMPUTING = ("prefill", "decode")


class Exchange:
    """A request on its way through the gateway, and everything that is known about it by now."""

    def __init__(self, board: Switchboard, request: ChatRequest, record: Record, stages: Stages) -> None:
        self.board = board
        self.request = request
        self.record = record
        self.stages = stages
        self.reservation = Reservation(str(record.id))
        self.started = time.perf_counter()
        self.overhead_ms = 0.0
        """Of our own, before any target was asked."""
        self.cache_key: bytes | None = None
        """Under which a complete answer is kept; None: it is not."""
        self.cache_age: float | None = None
        """Of a kept answer, in seconds; None: this one is new."""
        self.lookup: Lookup | None = None
        """What the semantic cache said; None: it was not asked."""

    def ended(self, error: BaseException | None, finish_reason: str | None = None) -> None:
        """How, and after how long."""
        self.record.status = finish_reason or "cancelled"
        if isinstance(error, AppError):
            self.record.fail(error.code, error.detail)
        self.record.total_ms = (time.perf_counter() - self.started) * 1000
        self.record.spans = self.stages.spans()

    def computed_ms(self) -> int:
        """Milliseconds for which the target computed: what it said, else all the time it took."""
        said = [self.stages.timings_ms[stage] for stage in COMPUTING if stage in self.stages.timings_ms]
        return round(sum(said) if said else self.record.total_ms)


class ChatStream:
    """Iterate inside `async with`; leaving it stops the target, settles what was reserved and writes the log."""

    def __init__(
        self, exchange: Exchange, deltas: DeltaStream | Replay, finish: Callable[["ChatStream"], Awaitable[None]]
    ) -> None:
        self.exchange = exchange
        self.target = deltas.target
        self.served_by = deltas.target.name
        self.usage = Usage()
        self.kept: list[Delta] = []
        """All deltas, where the answer may be kept."""
        self.finish_reason: str | None = None
        self.stop_sequence: str | None = None
        self._deltas = deltas
        self._finish = finish
        self._texts: list[str] = []
        self._handed: list[bytes] = []

    async def __aenter__(self) -> "ChatStream":
        return self

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        # A caller that went away cancels this task; the target must be stopped and the row written all the same.
        await asyncio.shield(asyncio.create_task(self._close(error)))

    async def _iterate(self) -> AsyncIterator[Delta]:
        async for delta in self._deltas:
            self._note(delta)
            yield delta

    def _note(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        if delta.raw and not delta.finish_reason:
            self._handed.append(delta.raw)
        if self.exchange.cache_key:
            self.kept.append(delta)
        self.usage = delta.usage or self.usage
        for stage, milliseconds in (delta.timings_ms or {}).items():
            self.exchange.stages.add(stage, milliseconds)
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason
            self.stop_sequence = delta.stop_sequence
            if delta.usage is None:
                self._estimate()

    def _estimate(self) -> None:
        """Where the target did not say: what was known, or else what the texts amount to."""
        delivered = estimate_text("".join(self._texts) + text_of(b"".join(self._handed)))
        self.usage = Usage(
            self.usage.prompt_tokens or estimate_tokens(self.exchange.request),
            max(self.usage.completion_tokens, delivered),
            self.usage.cached_tokens,
        )

    def _describe(self, span: trace.Span) -> None:
        """By the conventions for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/)."""
        span.set_attributes(
            {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": self.target.provider or "precedent",
                "gen_ai.request.model": self.exchange.request.model,
                "gen_ai.response.model": self.target.model or self.exchange.request.model,
                "gen_ai.response.finish_reasons": (self.finish_reason or "cancelled",),
                "gen_ai.usage.input_tokens": self.usage.prompt_tokens,
                "gen_ai.usage.output_tokens": self.usage.completion_tokens,
                "precedent.target": self.served_by,
                "precedent.cache": self.exchange.record.cache,
            }
        )

    async def _close(self, error: BaseException | None) -> None:
        try:
            await self._deltas.aclose()
        except Exception:
            log.exception("target could not be stopped", target=self.served_by)
        if self.finish_reason is None:
            self._estimate()
        self.exchange.ended(error, self.finish_reason)
        self._describe(trace.get_current_span())
        await self._finish(self)
