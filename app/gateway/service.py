"""The pipeline of a chat request: plan, leave out who cannot serve, try targets until one answers, stream, record."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from uuid import UUID

from opentelemetry import trace

from app.config import TargetSettings
from app.db import Database
from app.errors import AppError
from app.gateway.capabilities import estimate_text, estimate_tokens, needs, refusal, too_long
from app.gateway.models import RequestRecord
from app.gateway.providers.base import Provider
from app.gateway.resilience import FALLBACK, DeltaStream, GuardedTarget, exhausted
from app.gateway.routing import Router
from app.gateway.schemas import Attempt, ChatRequest, Delta, Usage
from app.telemetry import Stages, logger
from app.tenants.principal import Principal

log = logger(__name__)


class Gateway:
    """Sends chat requests to targets. Targets switch only before the first delta."""

    def __init__(self, database: Database, router: Router, providers: dict[str, Provider]) -> None:
        self._database = database
        self.router = router
        self.providers = providers
        self.targets = {name: GuardedTarget(router.targets[name], provider) for name, provider in providers.items()}

    async def open(self, principal: Principal, request: ChatRequest, stages: Stages) -> "ChatStream":
        """The stream of the first able target whose first delta came; use it as an async context manager.

        Raises ModelNotFound, InvalidRequest where no target could serve the request, RateLimited when all are limited,
        and UpstreamError or Unavailable when every target failed.
        """
        record = _record(principal, request)
        request = replace(request, tenant=str(principal.tenant_id))
        targets = self.router.plan(request.model).targets
        attempts: list[Attempt] = []
        with stages.stage("route"):
            try:
                return await self._first_answer(self._able(request, targets), request, stages, record, attempts)
            except AppError as error:
                record.fallbacks = len(attempts)
                await self.save(record, status=error.code)
                raise

    async def count_tokens(self, request: ChatRequest) -> tuple[int, bool]:
        """(prompt tokens, whether exact): counted by the first able target's own tokenizer, else estimated.

        Raises ModelNotFound, and InvalidRequest where no target could serve the request.
        """
        able = self._able(request, self.router.plan(request.model).targets)
        provider = able[0].provider
        counted = None if provider.unhealthy() else await provider.count_tokens(request)
        return (estimate_tokens(request), False) if counted is None else (counted, True)

    def _able(self, request: ChatRequest, targets: tuple[TargetSettings, ...]) -> list[GuardedTarget]:
        """The targets that take what the request needs and whose declared context it fits."""
        needed = needs(request)
        guarded = [self.targets[target.name] for target in targets]
        missing = [needed - target.provider.takes for target in guarded]
        if all(missing):
            raise refusal(request.model, min(missing, key=len))
        able = [target for target, lacks in zip(guarded, missing, strict=True) if not lacks]
        reasons = [too_long(request, target.target.max_context) for target in able]
        fitting = [target for target, reason in zip(able, reasons, strict=True) if reason is None]
        if not fitting and reasons[-1]:
            raise reasons[-1]
        return fitting

    async def _first_answer(
        self,
        targets: list[GuardedTarget],
        request: ChatRequest,
        stages: Stages,
        record: RequestRecord,
        attempts: list[Attempt],
    ) -> "ChatStream":
        for number, guarded in enumerate(targets, start=1):
            name = guarded.target.name
            started = time.perf_counter()
            try:
                deltas = await guarded.open(request, alternatives=number < len(targets))
            except FALLBACK as error:
                log.warning("target failed", target=name, model=request.model, reason=error.detail)
                attempts.append(Attempt(name, error))
                continue
            record.target, record.fallbacks = name, len(attempts)
            record.first_delta_ms = (time.perf_counter() - started) * 1000
            return ChatStream(self, deltas, request, stages, record)
        raise exhausted(attempts)

    async def save(self, record: RequestRecord, *, status: str) -> None:
        """Write a row of the request log."""
        record.status = status
        async with self._database.session() as session:
            session.add(record)
            await session.commit()


class ChatStream:
    """An answer on its way. Iterate inside `async with`; leaving it stops the target and writes the request log."""

    def __init__(
        self,
        gateway: Gateway,
        deltas: DeltaStream,
        request: ChatRequest,
        stages: Stages,
        record: RequestRecord,
    ) -> None:
        self.served_by = deltas.target.name
        self.usage = Usage()
        self.finish_reason: str | None = None
        self.stop_sequence: str | None = None
        self._gateway = gateway
        self._deltas = deltas
        self._request = request
        self._stages = stages
        self._record = record
        self._started = time.perf_counter()
        self._texts: list[str] = []

    async def __aenter__(self) -> "ChatStream":
        return self

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._iterate()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_back: TracebackType | None
    ) -> None:
        # A caller that went away cancels this task; the target must be stopped and the row written all the same.
        await asyncio.shield(asyncio.create_task(self._finish(error)))

    async def _iterate(self) -> AsyncIterator[Delta]:
        async for delta in self._deltas:
            self._note(delta)
            yield delta

    def _note(self, delta: Delta) -> None:
        self._texts.append(delta.text)
        self.usage = delta.usage or self.usage
        for stage, milliseconds in (delta.timings_ms or {}).items():
            self._stages.add(stage, milliseconds)
        if delta.finish_reason:
            self.finish_reason = delta.finish_reason
            self.stop_sequence = delta.stop_sequence
            if delta.usage is None:
                self._estimate()

    def _estimate(self) -> None:
        """Where the target did not say: what was known, or else what the texts amount to."""
        delivered = estimate_text("".join(self._texts))
        self.usage = Usage(
            self.usage.prompt_tokens or estimate_tokens(self._request),
            max(self.usage.completion_tokens, delivered),
            self.usage.cached_tokens,
        )

    async def _finish(self, error: BaseException | None) -> None:
        try:
            await self._deltas.aclose()
        except Exception:
            log.exception("target could not be stopped", target=self.served_by)
        if self.finish_reason is None:
            self._estimate()
        self._record.prompt_tokens = self.usage.prompt_tokens
        self._record.completion_tokens = self.usage.completion_tokens
        self._record.cached_tokens = self.usage.cached_tokens
        self._record.total_ms = self._record.first_delta_ms + (time.perf_counter() - self._started) * 1000
        span = trace.get_current_span()
        span.set_attribute("gen_ai.usage.input_tokens", self.usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", self.usage.completion_tokens)
        await self._gateway.save(self._record, status=_status(self.finish_reason, error))


def _record(principal: Principal, request: ChatRequest) -> RequestRecord:
    key: UUID = principal.key_id
    return RequestRecord(
        tenant_id=principal.tenant_id,
        key_id=key,
        model=request.model,
        target="",
        fallbacks=0,
        prompt_tokens=0,
        completion_tokens=0,
        cached_tokens=0,
        first_delta_ms=0.0,
        total_ms=0.0,
    )


def _status(finish_reason: str | None, error: BaseException | None) -> str:
    if isinstance(error, AppError):
        return error.code
    return finish_reason or "cancelled"
