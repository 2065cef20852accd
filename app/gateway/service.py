"""The pipeline of a chat request: decide, reserve, try targets until one answers, stream, settle, record."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

from app.config import RouteSettings, TargetSettings
from app.errors import ModelNotFound
from app.gateway.cache.exact import COMPLETE, Answer, CacheControl, ExactCache, Replay, cacheable, key_of
from app.gateway.cache.kept import CachedSource, CacheQuery, Checked
from app.gateway.cache.semantic import SemanticCache
from app.gateway.capabilities import estimate_tokens
from app.gateway.events import EventBus
from app.gateway.metering import Meter
from app.gateway.prices import Cost
from app.gateway.providers.base import Provider
from app.gateway.record import Record
from app.gateway.resilience import FALLBACK, GuardedTarget, exhausted
from app.gateway.routing import Decision, Router
from app.gateway.schemas import Attempt, ChatRequest, Delta, Usage
from app.gateway.stream import ChatStream, Exchange
from app.gateway.switchboard import Switchboard
from app.gateway.writer import Writer
from app.metrics import Metrics
from app.telemetry import Stages, logger
from app.tenants.principal import Principal

log = logger(__name__)


class Gateway:
    """Sends chat requests to targets. Targets switch only before the first delta."""

    def __init__(
        self,
        board: Switchboard,
        meter: Meter,
        writer: Writer,
        metrics: Metrics,
        events: EventBus,
        cache: ExactCache,
        semantic: SemanticCache,
    ) -> None:
        self.board = board
        self.leaving: list[Provider] = []
        """Of former boards, which still answer what they began."""
        self.writer = writer
        self._meter = meter
        self._metrics = metrics
        self._events = events
        self._cache = cache
        self.semantic = semantic

    @property
    def router(self) -> Router:
        return self.board.router

    @property
    def providers(self) -> dict[str, Provider]:
        return self.board.providers

    async def open(self, principal: Principal, request: ChatRequest, stages: Stages) -> ChatStream:
        """The stream of the first able target whose first delta came; use it as an async context manager.

        Raises ModelNotFound, InvalidRequest where no target could serve the request, RateLimited where the caller's
        limits or all targets' are reached, BudgetExceeded, and UpstreamError or Unavailable when every target failed.
        """
        record = Record.of(principal, request.endpoint, request.model, streamed=request.streamed)
        exchange = Exchange(self.board, replace(request, tenant=str(principal.tenant_id)), record, stages)
        board = exchange.board
        route = _route(board, principal, request.model)
        try:
            with stages.stage("route"):
                decision = await self._decide(principal, exchange, route)
            kept = await self._kept(principal, exchange, route, decision)
            with stages.stage("limits"):
                await self._reserve(principal, exchange, decision)
            if kept:
                return ChatStream(exchange, Replay(kept), self._finish)
            return await self._first_answer([board.targets[name] for name in decision.order], exchange)
        except BaseException as error:
            # Also where the caller went away: what was reserved is given back, and the log says what happened.
            await asyncio.shield(asyncio.create_task(self._abandon(exchange, error)))
            raise

    async def explain(self, principal: Principal, request: ChatRequest) -> Decision:
        """Which way the request would go now. Nothing is reserved, asked or recorded. Raises ModelNotFound."""
        board = self.board
        decision, _ = await board.planner.decide(principal, request, _route(board, principal, request.model))
        return decision

    def pressure(self, model: str) -> float:
        """How near the model's engines are to overload, from 0 to 1. Raises ModelNotFound."""
        return self.board.planner.pressure(self.router.plan(model))

    def resident(self, model: str) -> Mapping[str, int]:
        """What the model's first target has in KV memory for it (prefixes.py). Raises ModelNotFound."""
        first = self.router.plan(model).targets[0]
        return self.board.targets[first].provider.resident(model)

    async def count_tokens(self, principal: Principal, request: ChatRequest) -> tuple[int, bool]:
        """(prompt tokens, whether exact): counted by the first able target's own tokenizer, else estimated.

        Raises ModelNotFound, and InvalidRequest or Forbidden where no target could serve the request.
        """
        board = self.board
        decision, refusal = await board.planner.decide(principal, request, _route(board, principal, request.model))
        if refusal:
            raise refusal
        provider = board.targets[decision.order[0]].provider
        counted = None if provider.unhealthy() else await provider.count_tokens(request)
        return (estimate_tokens(request), False) if counted is None else (counted, True)

    async def _decide(self, principal: Principal, exchange: Exchange, route: RouteSettings) -> Decision:
        """The decision is recorded also where it is that nobody may serve."""
        decision, refusal = await exchange.board.planner.decide(principal, exchange.request, route)
        exchange.record.routing = decision.to_json()
        if refusal:
            raise refusal
        return decision

    async def _kept(
        self, principal: Principal, exchange: Exchange, route: RouteSettings, decision: Decision
    ) -> Answer | None:
        """An answer from a cache, where route and caller want one."""
        request, record = exchange.request, exchange.record
        if request.cache_query is not None and self.semantic.enabled:
            return await self._like(principal, exchange, request.cache_query)
        if not cacheable(request, route):
            return None
        exchange.request = replace(request, relay="")  # what is kept must be read, not handed through
        control = CacheControl.of(request.cache_control)
        key = key_of(principal, request, [exchange.board.targets[name].target for name in decision.order])
        found = self._cache.find(key, control)
        record.cache = "hit" if found else "miss"
        self._metrics.cache("exact", record.cache)
        if found is None:
            exchange.cache_key = key if control.store else None
            return None
        answer, exchange.cache_age = found
        record.target = answer.target.name
        return answer

    async def _like(self, principal: Principal, exchange: Exchange, query: CacheQuery) -> Answer | None:
        """The answer to a like question, or that answer as a draft."""
        with exchange.stages.stage("cache"):
            found = await self.semantic.find(principal, exchange.request, query)
        exchange.lookup, exchange.record.cache = found, found.outcome
        exchange.record.routing["cache"] = {"outcome": found.outcome, "reason": found.reason}
        self._metrics.cache("semantic", found.outcome)
        if found.outcome == "draft":
            exchange.request = replace(exchange.request, draft=found.text)
        if found.outcome != "hit" or found.entry is None:
            return None
        exchange.cache_age = max(0.0, time.time() - found.entry.since)
        guarded = exchange.board.targets.get(found.entry.target)
        target = guarded.target if guarded else TargetSettings(name=found.entry.target)
        exchange.record.target = target.name
        return Answer(target, (Delta(found.text), Delta(finish_reason="stop", usage=Usage())), 0.0, 0.0)

    async def checked(
        self, principal: Principal, stream: ChatStream, text: str, cited: frozenset[CachedSource]
    ) -> None:
        """The answer is complete and every quote in it was found: the semantic cache may keep it, and learn from it."""
        exchange, record = stream.exchange, stream.exchange.record
        if exchange.lookup is None or exchange.lookup.outcome == "hit" or stream.finish_reason != "stop":
            return
        fresh = Checked(text, cited, record.target, record.cost_micros, record.total_ms, record.completion_tokens)
        await self.semantic.conclude(principal, exchange.request, exchange.lookup, fresh)

    async def _reserve(self, principal: Principal, exchange: Exchange, decision: Decision) -> None:
        """Enough for whichever target answers."""
        expected = Usage() if exchange.cache_age is not None else decision.expected
        cost = exchange.board.prices.most(decision.order, decision.model, expected)
        tokens = expected.prompt_tokens + expected.completion_tokens
        exchange.reservation = await self._meter.admit(principal, exchange.record, tokens, cost)

    async def _first_answer(self, targets: list[GuardedTarget], exchange: Exchange) -> ChatStream:
        record = exchange.record
        attempts: list[Attempt] = []
        exchange.overhead_ms = (time.perf_counter() - exchange.started) * 1000
        for number, guarded in enumerate(targets, start=1):
            name = guarded.target.name
            started = time.perf_counter()
            record.fallbacks = len(attempts)
            try:
                deltas = await guarded.open(exchange.request, alternatives=number < len(targets))
            except FALLBACK as error:
                log.warning("target failed", target=name, model=record.model, reason=error.detail)
                attempts.append(Attempt(name, error))
                record.routing.setdefault("attempts", []).append({"target": name, "error": error.detail[:200]})
                continue
            record.target = name
            record.first_delta_ms = (time.perf_counter() - started) * 1000
            return ChatStream(exchange, deltas, self._finish)
        record.fallbacks = len(attempts)
        raise exhausted(attempts)

    async def _abandon(self, exchange: Exchange, error: BaseException) -> None:
        """The request ended before a first delta: nothing was delivered and nothing is owed."""
        exchange.ended(error)
        await self._meter.settle(exchange.reservation, 0, 0)
        self.writer.add(exchange.record.row(), None)
        self._observe(exchange)

    async def _finish(self, stream: ChatStream) -> None:
        """The answer is over: what it cost is settled and written down, once. What was kept costs nothing."""
        exchange, usage, record = stream.exchange, stream.usage, stream.exchange.record
        record.prompt_tokens = usage.prompt_tokens
        record.completion_tokens = usage.completion_tokens
        record.cached_tokens = usage.cached_tokens
        cost, tokens = Cost(), 0
        if exchange.cache_age is None:
            cost = exchange.board.prices.cost(record.target, record.model, usage, exchange.computed_ms())
            tokens = usage.prompt_tokens + usage.completion_tokens
        record.cost_micros = cost.total
        await self._meter.settle(exchange.reservation, tokens, cost.total)
        self.writer.add(record.row(), record.ledger_row(cost))
        self._keep(stream)
        # After the answer is on its way: nobody waits for figures.
        asyncio.get_running_loop().call_soon(self._observe, exchange)

    def _keep(self, stream: ChatStream) -> None:
        """Only what is complete."""
        exchange = stream.exchange
        if exchange.cache_key and exchange.record.status in COMPLETE:
            seconds = exchange.board.router.routes[exchange.record.model].cache_seconds
            self._cache.store(exchange.cache_key, stream.target, stream.kept, seconds)

    def _observe(self, exchange: Exchange) -> None:
        record = exchange.record
        self._events.publish("request", record.summary(), record.tenant_id)
        self._metrics.request(
            model=record.model,
            target=record.target,
            status=record.status,
            fallbacks=record.fallbacks,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            cost_micros=record.cost_micros,
            first_delta_ms=record.first_delta_ms,
            total_ms=record.total_ms,
            overhead_ms=exchange.overhead_ms,
            timings_ms=exchange.stages.timings_ms,
        )


def _route(board: Switchboard, principal: Principal, model: str) -> RouteSettings:
    """Raises ModelNotFound, also for a model that the key's list does not name."""
    if not principal.may_use(model):
        raise ModelNotFound(model)
    return board.router.plan(model)
