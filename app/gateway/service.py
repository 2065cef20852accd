"""The pipeline of a chat request: plan, try targets until one answers, stream, record."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from uuid import UUID

from opentelemetry import trace

from app.config import TargetSettings
from app.db import Database
from app.errors import AppError, Unavailable, UpstreamError, UpstreamTimeout
from app.gateway.models import RequestRecord
from app.gateway.providers.base import Provider
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

    async def open(self, principal: Principal, request: ChatRequest, stages: Stages) -> "ChatStream":
        """The stream of the first permitted target whose first delta came; use it as an async context manager.

        Raises ModelNotFound, InvalidRequest, or UpstreamError when every target failed.
        """
        plan = self.router.plan(request.model)
        record = _record(principal, request)
        attempts: list[Attempt] = []
        with stages.stage("route"):
            for target in plan.targets:
                try:
                    return await self._try(target, request, stages, record, len(attempts))
                except (UpstreamError, Unavailable) as error:
                    log.warning("target failed", target=target.name, model=request.model, reason=error.detail)
                    attempts.append(Attempt(target.name, error))
                except AppError as error:
                    await self._save(record, status=error.code, fallbacks=len(attempts))
                    raise
        await self._save(record, status="upstream_error", fallbacks=len(attempts))
        raise _exhausted(attempts)

    async def _try(
        self,
        target: TargetSettings,
        request: ChatRequest,
        stages: Stages,
        record: RequestRecord,
        fallbacks: int,
    ) -> "ChatStream":
        provider = self.providers[target.name]
        if reason := provider.unhealthy():
            raise Unavailable(f"The target {target.name!r} is not ready: {reason}.")
        started = time.perf_counter()
        deltas = provider.stream(request)
        try:
            async with asyncio.timeout(target.timeout_seconds):
                first = await anext(deltas)
        except TimeoutError as error:
            await deltas.aclose()
            raise UpstreamTimeout(
                f"The target {target.name!r} sent nothing in {target.timeout_seconds:g} s."
            ) from error
        except StopAsyncIteration as error:
            raise UpstreamError(f"The target {target.name!r} sent an empty answer.") from error
        record.target, record.fallbacks = target.name, fallbacks
        record.first_delta_ms = (time.perf_counter() - started) * 1000
        return ChatStream(self, target, first, deltas, stages, record)

    async def _save(self, record: RequestRecord, *, status: str, fallbacks: int | None = None) -> None:
        record.status = status
        if fallbacks is not None:
            record.fallbacks = fallbacks
        async with self._database.session() as session:
            session.add(record)
            await session.commit()


class ChatStream:
    """An answer on its way. Iterate inside `async with`; leaving it stops the target and writes the request log."""

    def __init__(
        self,
        gateway: Gateway,
        target: TargetSettings,
        first: Delta,
        rest: AsyncGenerator[Delta, None],
        stages: Stages,
        record: RequestRecord,
    ) -> None:
        self.served_by = target.name
        self.usage = Usage()
        self.finish_reason: str | None = None
        self._gateway = gateway
        self._timeout = target.timeout_seconds
        self._first = first
        self._rest = rest
        self._stages = stages
        self._record = record
        self._started = time.perf_counter()

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
        delta: Delta | None = self._first
        while delta is not None:
            self._note(delta)
            yield delta
            delta = await self._next()

    async def _next(self) -> Delta | None:
        try:
            async with asyncio.timeout(self._timeout):
                return await anext(self._rest)
        except StopAsyncIteration:
            return None
        except TimeoutError as error:
            raise UpstreamTimeout(f"The target {self.served_by!r} stopped answering.") from error

    def _note(self, delta: Delta) -> None:
        self.finish_reason = delta.finish_reason or self.finish_reason
        self.usage = delta.usage or self.usage
        for stage, milliseconds in (delta.timings_ms or {}).items():
            self._stages.add(stage, milliseconds)

    async def _finish(self, error: BaseException | None) -> None:
        await self._rest.aclose()
        self._record.prompt_tokens = self.usage.prompt_tokens
        self._record.completion_tokens = self.usage.completion_tokens
        self._record.cached_tokens = self.usage.cached_tokens
        self._record.total_ms = self._record.first_delta_ms + (time.perf_counter() - self._started) * 1000
        span = trace.get_current_span()
        span.set_attribute("gen_ai.usage.input_tokens", self.usage.prompt_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", self.usage.completion_tokens)
        await self._gateway._save(self._record, status=_status(self.finish_reason, error))


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
    if error is not None or finish_reason is None:
        return "cancelled"
    return finish_reason


def _exhausted(attempts: list[Attempt]) -> AppError:
    if len(attempts) == 1:
        return attempts[0].error
    reasons = " ".join(f"{attempt.target}: {attempt.error.detail}" for attempt in attempts)
    return UpstreamError(f"Every target failed. {reasons}")
