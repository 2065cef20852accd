"""/api/v1/engine and /api/v1/events: the in-process engine as it is now, and what happens as it happens."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter
from litestar.response import Stream
from msgspec import Struct

from app.errors import InvalidRequest
from app.gateway.controllers_replica import local_engine
from app.gateway.events import TOPICS, Event, EventBus, Watcher, follow
from app.gateway.service import Gateway
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

# After so long a watcher comes back by itself, and its rights are looked at again.
STREAM_SECONDS = 300.0
HEARTBEAT_SECONDS = 15.0


class EngineState(Struct):
    """`stats` and `load` as in app/engine/facts.py; `unhealthy`: why it cannot serve."""

    unhealthy: str | None
    stats: dict[str, Any]
    load: dict[str, Any]


class BlockRun(Struct, array_like=True):
    """[state, how many]: free, cached, used or pinned."""

    state: str
    count: int


class BlockMap(Struct):
    """The KV blocks by number, run-length encoded."""

    total: int
    runs: list[BlockRun]


class EngineController(Controller):
    path = "/api/v1/engine"
    tags = ("engine",)
    guards = (requires_scope(Scope.USAGE),)

    @get("/state", summary="What the engine does now")
    async def state(self, gateway: NamedDependency[Gateway]) -> EngineState:
        local = local_engine(gateway)
        reason = local.unhealthy()
        if reason:
            return EngineState(reason, {}, {})
        return EngineState(None, dataclasses.asdict(local.stats()), dataclasses.asdict(local.load()))

    @get("/blocks", summary="The map of KV blocks")
    async def blocks(self, gateway: NamedDependency[Gateway]) -> BlockMap:
        runs = await asyncio.to_thread(local_engine(gateway).block_runs)
        return BlockMap(sum(count for _, count in runs), [BlockRun(state, count) for state, count in runs])


@get("/api/v1/events", tags=["events"], guards=[requires_scope(Scope.USAGE)], summary="What happens, as it happens")
async def watch(
    request: Request[Any, Any, Any],
    principal: NamedDependency[Principal],
    events: NamedDependency[EventBus],
    topics: FromQuery[str | None] = None,
    last_event_id: Annotated[str | None, QueryParameter(max_length=100)] = None,
) -> Stream:
    """Server-sent events of the topics request, config (operators) and engine (operators), with commas; all where none
    is named. A browser that comes back says in Last-Event-ID what it saw last and gets what it missed; the event
    `reset` says that nobody can tell, and that everything must be fetched anew. Comments keep idle connections open.
    """
    wanted = frozenset(topics.split(",")) if topics else TOPICS
    if unknown := wanted - TOPICS:
        raise InvalidRequest(f"There is no topic {min(unknown)!r}.", param="topics")
    watcher = Watcher(principal.tenant_id, wanted, operator=Scope.OPERATOR in principal.scopes)
    last = request.headers.get("last-event-id") or last_event_id
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return Stream(_frames(events, watcher, last), media_type="text/event-stream", headers=headers)


async def _frames(events: EventBus, watcher: Watcher, last: str | None) -> AsyncGenerator[bytes, None]:
    until = asyncio.get_running_loop().time() + STREAM_SECONDS
    with events.watching(watcher):
        missed = events.missed(watcher, last) if last else []
        yield _reset(events) if missed is None else b": hello\n\n"
        for event in missed or []:
            yield _frame(events, event)
        async for following in follow(watcher, HEARTBEAT_SECONDS, until):
            yield b": still here\n\n" if following is None else _frame(events, following)
        if watcher.lost:
            yield _reset(events)


def _frame(events: EventBus, event: Event) -> bytes:
    data = msgspec.json.encode(event.data)
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (events.id_of(event).encode(), event.topic.encode(), data)


def _reset(events: EventBus) -> bytes:
    return b"id: %b\nevent: reset\ndata: {}\n\n" % events.id_of().encode()
