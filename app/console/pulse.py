"""What changes by itself, told to who watches: the engine, the last minute's figures, jobs, budgets.

Nothing is asked while nobody watches. Samples are small and of one tenant each; lists are fetched by who is told that
they changed, so that every rule about who may see what stays in one place.
"""

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import func

from app.db import Database, now, owned
from app.errors import NotFound, UpstreamError
from app.gateway.controllers_engine import state_of
from app.gateway.controllers_replica import local_engine
from app.gateway.events import Event, EventBus
from app.gateway.service import Gateway
from app.gateway.usage import ANSWERED
from app.jobs import QUEUED, RUNNING, Job
from app.telemetry import logger

log = logger(__name__)
BEAT_SECONDS = 0.5
WINDOW_SECONDS = 60.0
Figures = tuple[float, bool, int, int, float]  # when, answered, tokens of the answer, micro-dollars, ms to the first


class LastMinute:
    """Each tenant's requests that ended within the last minute."""

    def __init__(self) -> None:
        self._ended: dict[UUID, deque[Figures]] = defaultdict(deque)

    def heard(self, event: Event) -> None:
        if event.topic != "request" or event.tenant_id is None:
            return
        row: dict[str, Any] = event.data
        answered = row["status"] in ANSWERED
        figures = (time.monotonic(), answered, row["completion_tokens"], row["cost_micros"], row["first_delta_ms"])
        self._ended[event.tenant_id].append(figures)
        self._drop(event.tenant_id)

    def figures(self, tenant_id: UUID) -> dict[str, Any]:
        """Requests, errors, tokens per second, micro-dollars, and the median wait for a first delta in milliseconds."""
        ended = self._drop(tenant_id)
        waits = sorted(wait for *_, wait in ended if wait)
        return {
            "at": now(),
            "requests": len(ended),
            "errors": sum(not answered for _, answered, *_ in ended),
            "tokens_per_s": round(sum(tokens for _, _, tokens, _, _ in ended) / WINDOW_SECONDS, 2),
            "cost_micros": sum(cost for *_, cost, _ in ended),
            "first_delta_p50_ms": waits[len(waits) // 2] if waits else None,
        }

    def _drop(self, tenant_id: UUID) -> deque[Figures]:
        ended = self._ended[tenant_id]
        oldest = time.monotonic() - WINDOW_SECONDS
        while ended and ended[0][0] < oldest:
            ended.popleft()
        return ended


class Pulse:
    """Beats twice a second while the process lives."""

    def __init__(self, events: EventBus, gateway: Gateway, database: Database) -> None:
        self._events = events
        self._gateway = gateway
        self._database = database
        self._minute = LastMinute()
        self._spent: set[UUID] = set()
        self._jobs: dict[UUID, Any] = {}
        self._task: asyncio.Task[None] | None = None
        events.listen(self._minute.heard)
        events.listen(self._heard)

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="pulse")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _heard(self, event: Event) -> None:
        if event.topic == "request" and event.tenant_id and event.data["cost_micros"]:
            self._spent.add(event.tenant_id)

    async def _run(self) -> None:
        beat = 0
        while True:
            try:
                self._engine()
                if beat % 2 == 0:
                    for tenant_id in self._events.watched("beat"):
                        self._events.sample("beat", {"at": now()}, tenant_id)
                    self._figures()
                    await self._changed_jobs()
            except Exception:
                log.exception("the pulse missed a beat, goes on")
            beat += 1
            await asyncio.sleep(BEAT_SECONDS)

    def _engine(self) -> None:
        watching = self._events.watched("engine")
        if not watching:
            return
        try:
            state = msgspec.to_builtins(state_of(local_engine(self._gateway)))
        except (NotFound, UpstreamError):
            return  # no engine in this process, or not yet
        for tenant_id in watching:
            self._events.sample("engine", {"at": now(), **state}, tenant_id)

    def _figures(self) -> None:
        for tenant_id in self._events.watched("metrics"):
            self._events.sample("metrics", self._minute.figures(tenant_id), tenant_id)
        for tenant_id in self._events.watched("budget") & self._spent:
            self._events.publish("budget", {}, tenant_id)
        self._spent.clear()

    async def _changed_jobs(self) -> None:
        """Two small queries a second for each tenant whose jobs are watched: what is active, and which is the newest,
        by which one shows that came and ended between two looks.
        """
        watching = self._events.watched("job")
        self._jobs = {tenant_id: seen for tenant_id, seen in self._jobs.items() if tenant_id in watching}
        for tenant_id in watching:
            found = await self._look(tenant_id)
            if found != self._jobs.get(tenant_id):  # on the first look too: one may just have ended
                self._events.publish("job", {"active": sum(row[2] for row in found[0])}, tenant_id)
            self._jobs[tenant_id] = found

    async def _look(self, tenant_id: UUID) -> tuple[list[Any], UUID | None]:
        jobs = owned(Job, tenant_id)
        columns = (Job.status, Job.stage, func.count(Job.id), func.sum(Job.done))
        active = jobs.where(Job.status.in_((QUEUED, RUNNING))).with_only_columns(*columns)
        newest = jobs.with_only_columns(Job.id).order_by(Job.id.desc()).limit(1)
        async with self._database.session() as session:
            rows = await session.execute(active.group_by(Job.status, Job.stage))
            return [tuple(row) for row in rows], await session.scalar(newest)
