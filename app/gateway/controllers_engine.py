"""/api/v1/engine and /api/v1/events: the in-process engine as it is now, and what happens as it happens."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping
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
from app.gateway.providers.local import LocalProvider
from app.gateway.service import Gateway
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

# After so long a watcher comes back by itself, and its rights are looked at again.
STREAM_SECONDS = 300.0
HEARTBEAT_SECONDS = 15.0


class EngineState(Struct):
    """`stats` and `load` as in app/engine/facts.py; `unhealthy`: why it cannot serve. `waiting_for`: waiting requests
    by reason: seat, room, prefix or preempted. `accepted_by_position`: drafts whose token at that position held.
    """

    unhealthy: str | None
    stats: dict[str, Any] = {}
    load: dict[str, Any] = {}
    waiting_for: dict[str, int] = {}
    draft_steps: int = 0
    accepted_by_position: list[int] = []


class LabelHits(Struct):
    """Prompt tokens under an access label, and those found in the cache. `label`: matters, or a name for a kind."""

    label: str
    requests: int
    prompt_tokens: int
    hit_tokens: int


class PrefixHits(Struct):
    """The caller's own labels; all other tenants' are one line."""

    labels: list[LabelHits]


class BlockRun(Struct, array_like=True):
    """[state, how many, whose]: free, cached, used or pinned; the number of a running request, -1 for a block that
    several read, -2 for nobody's.
    """

    state: str
    count: int
    owner: int


class BlockMap(Struct):
    """The KV blocks by number, run-length encoded."""

    total: int
    runs: list[BlockRun]


def state_of(local: LocalProvider) -> EngineState:
    reason = local.unhealthy()
    if reason:
        return EngineState(reason)
    drafts = local.accepted()
    return EngineState(
        None,
        dataclasses.asdict(local.stats()),
        dataclasses.asdict(local.load()),
        local.waiting_for(),
        drafts.steps,
        list(drafts.by_position),
    )


def _hits_of(counts: Mapping[frozenset[str], Any], tenant_id: str) -> list[LabelHits]:
    """Labels of the tenant by the names of their matters; what belongs to others as one line."""
    found: dict[str, LabelHits] = {}
    for atoms, count in counts.items():
        own = all(tenant_id in atom for atom in atoms)
        matters = sorted(atom.rsplit(":", 1)[1] for atom in atoms if atom.startswith("matter:"))
        name = ", ".join(matters) or ("the tenant's own" if atoms else "everybody's")
        line = found.setdefault(
            name if own else "other tenants'", LabelHits(name if own else "other tenants'", 0, 0, 0)
        )
        line.requests += count.requests
        line.prompt_tokens += count.prompt_tokens
        line.hit_tokens += count.hit_tokens
    return sorted(found.values(), key=lambda line: -line.prompt_tokens)


class EngineController(Controller):
    path = "/api/v1/engine"
    tags = ("engine",)
    guards = (requires_scope(Scope.USAGE),)

    @get("/state", summary="What the engine does now")
    async def state(self, gateway: NamedDependency[Gateway], model: FromQuery[str | None] = None) -> EngineState:
        """`model`: of which, where the process has several; the first where none is named."""
        return state_of(local_engine(gateway, model))

    @get("/blocks", summary="The map of KV blocks")
    async def blocks(self, gateway: NamedDependency[Gateway], model: FromQuery[str | None] = None) -> BlockMap:
        runs = await asyncio.to_thread(local_engine(gateway, model).block_runs)
        return BlockMap(sum(count for _, count, _ in runs), [BlockRun(*run) for run in runs])

    @get("/prefixes", summary="Prefix cache hits by access label")
    async def prefixes(
        self,
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
        model: FromQuery[str | None] = None,
    ) -> PrefixHits:
        return PrefixHits(_hits_of(local_engine(gateway, model).label_counts(), str(principal.tenant_id)))


# What one needs to watch a topic; `beat` alone says nothing but that the server is there.
WATCHING = {topic: Scope.USAGE for topic in TOPICS} | {"job": Scope.DOCUMENTS_READ, "beat": None}


@get("/api/v1/events", tags=["events"], summary="What happens, as it happens")
async def watch(
    request: Request[Any, Any, Any],
    principal: NamedDependency[Principal],
    events: NamedDependency[EventBus],
    topics: FromQuery[str | None] = None,
    last_event_id: Annotated[str | None, QueryParameter(max_length=100)] = None,
) -> Stream:
    """Server-sent events of the topics request, job, budget, config and model (operators), and samples: engine twice a
    second, metrics and beat once. `topics` with commas; where none is named, all that the caller may watch. A browser
    that comes back says in Last-Event-ID what it saw last and gets what it missed; the event `reset` says that nobody
    can tell, and that everything must be fetched anew. Comments keep idle connections open.
    """
    allowed = frozenset(topic for topic, scope in WATCHING.items() if scope is None or scope in principal.scopes)
    wanted = frozenset(topics.split(",")) if topics else allowed
    if unknown := wanted - TOPICS:
        raise InvalidRequest(f"There is no topic {min(unknown)!r}.", param="topics")
    for topic in wanted - allowed:
        principal.require(WATCHING[topic] or Scope.USAGE)
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
    number = b"id: %b\n" % events.id_of(event).encode() if event.number else b""
    return b"%bevent: %b\ndata: %b\n\n" % (number, event.topic.encode(), data)


def _reset(events: EventBus) -> bytes:
    return b"id: %b\nevent: reset\ndata: {}\n\n" % events.id_of().encode()
