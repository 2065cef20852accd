"""/api/v1/requests, usage and metrics: what happened, what it cost."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter
from msgspec import Struct
from sqlalchemy import Select

from app.db import Database, get_owned, now, owned
from app.errors import InvalidRequest
from app.gateway import cursor as cursors
from app.gateway import usage
from app.gateway.models import LedgerEntry, RequestRecord
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

USAGE = (requires_scope(Scope.USAGE),)
Limit = Annotated[int, QueryParameter(ge=1, le=cursors.MAX_LIMIT)]


class RequestView(Struct):
    """`status`: how the answer ended, or the code of the error. `cost_micros`: micro-dollars."""

    id: UUID
    created_at: datetime
    key_id: UUID | None
    user_id: UUID | None
    endpoint: str
    streamed: bool
    model: str
    target: str
    status: str
    error: str | None
    fallbacks: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost_micros: int
    cache: str
    first_delta_ms: float
    total_ms: float


class RequestDetail(RequestView, kw_only=True):
    """`routing`: why it went where it went. `spans`: name, start_ms, duration_ms. `cost_lines`: by token class."""

    routing: dict[str, Any]
    spans: Sequence[Any]
    cost_lines: dict[str, int]


class RequestList(Struct):
    """`next_cursor`: null on the last page."""

    requests: list[RequestView]
    next_cursor: str | None


class UsageBucket(Struct):
    """`hour` begins it, in UTC. `group`: the model, target, key or user, where that was asked for."""

    hour: str
    group: str | None
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    amount_micros: int


class UsageView(Struct):
    """From the ledger: the buckets' amounts sum to `total_micros` exactly."""

    start: datetime
    end: datetime
    buckets: list[UsageBucket]
    total_micros: int


class SeriesPoint(Struct):
    """Null: nothing is known, because nothing happened."""

    at: datetime
    requests: int
    errors: int
    completion_tokens: int
    cost_micros: int
    first_delta_p50_ms: float | None
    first_delta_p95_ms: float | None


class SeriesView(Struct):
    """`total`: the whole range as one point."""

    start: datetime
    end: datetime
    step_seconds: int
    points: list[SeriesPoint]
    total: SeriesPoint


class RequestController(Controller):
    path = "/api/v1/requests"
    tags = ("requests",)
    guards = USAGE

    @get(summary="The request log, newest first")
    async def list_requests(
        self,
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        cursor: FromQuery[str | None] = None,
        limit: Limit = 50,
        model: FromQuery[str | None] = None,
        target: FromQuery[str | None] = None,
        status: FromQuery[str | None] = None,
        key_id: FromQuery[UUID | None] = None,
        user_id: FromQuery[UUID | None] = None,
        endpoint: FromQuery[str | None] = None,
        error: FromQuery[str | None] = None,
        since: FromQuery[datetime | None] = None,
        until: FromQuery[datetime | None] = None,
    ) -> RequestList:
        """`status`: as shown, or `failed` for all that were not answered. `error`: text that the error contains."""
        query = owned(RequestRecord, principal.tenant_id)
        equal = {"model": model, "target": target, "key_id": key_id, "user_id": user_id, "endpoint": endpoint}
        for column, value in equal.items():
            if value is not None:
                query = query.where(getattr(RequestRecord, column) == value)
        query = _narrowed(query, status, error, since, until)
        async with database.session() as session:
            rows = list(await session.scalars(cursors.page(query, RequestRecord, cursor, limit)))
        shown, following = cursors.cut(rows, limit)
        return RequestList([_view(row) for row in shown], following)

    @get("/{request_id:uuid}", summary="One request with its spans, routing decision and cost lines")
    async def get_request(
        self,
        request_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> RequestDetail:
        async with database.session() as session:
            row = await get_owned(session, RequestRecord, principal.tenant_id, request_id)
            mine = owned(LedgerEntry, principal.tenant_id)
            entry = await session.scalar(mine.where(LedgerEntry.request_id == request_id))
        values = {name: getattr(row, name) for name in RequestView.__struct_fields__}
        return RequestDetail(**values, routing=row.routing, spans=row.spans, cost_lines=_lines(entry))


def _narrowed(
    query: Select[Any], status: str | None, error: str | None, since: datetime | None, until: datetime | None
) -> Select[Any]:
    if status == "failed":
        query = query.where(RequestRecord.status.not_in(usage.ANSWERED))
    elif status:
        query = query.where(RequestRecord.status == status)
    if error:
        query = query.where(RequestRecord.error.icontains(error, autoescape=True))
    for name, given in (("since", since), ("until", until)):
        if given is not None:
            at = _zoned(given, name)
            query = query.where(RequestRecord.created_at >= at if name == "since" else RequestRecord.created_at < at)
    return query.where(RequestRecord.id >= cursors.first_id(since)) if since else query


def _zoned(given: datetime, name: str) -> datetime:
    if given.tzinfo is None:
        raise InvalidRequest(f"{name!r} needs a time zone, such as 2026-11-20T00:00:00Z.", param=name)
    return given


def _view(row: RequestRecord) -> RequestView:
    return RequestView(**{name: getattr(row, name) for name in RequestView.__struct_fields__})


def _lines(entry: LedgerEntry | None) -> dict[str, int]:
    names = ("input", "cached_input", "output", "computing")
    return {name: getattr(entry, f"{name}_micros") for name in names} if entry else {}


@get("/api/v1/usage", tags=["requests"], guards=[*USAGE], summary="Usage by hour in UTC, from the ledger")
async def get_usage(
    principal: NamedDependency[Principal],
    database: NamedDependency[Database],
    start: FromQuery[datetime | None] = None,
    end: FromQuery[datetime | None] = None,
    group: FromQuery[str | None] = None,
) -> UsageView:
    """`group`: model, target, key or user; for operators also tenant, then of all of them. Without `start` the last
    24 hours.
    """
    if group is not None and group not in usage.GROUPS:
        raise InvalidRequest(f"'group' is one of {', '.join(usage.GROUPS)}.", param="group")
    if group == usage.EVERY_TENANT:
        principal.require(Scope.OPERATOR)
    within = usage.hours(start and _zoned(start, "start"), end and _zoned(end, "end"), now())
    async with database.session() as session:
        rows = await usage.hourly(session, principal.tenant_id, within, group, database.url.get_backend_name())
    buckets = [
        UsageBucket(
            row.hour,
            str(row.group) if group and row.group is not None else None,
            row.requests,
            int(row.prompt_tokens),
            int(row.cached_tokens),
            int(row.completion_tokens),
            int(row.amount_micros),
        )
        for row in rows
    ]
    return UsageView(within.start, within.end, buckets, sum(bucket.amount_micros for bucket in buckets))


@get("/api/v1/metrics/series", tags=["requests"], guards=[*USAGE], summary="Figures over time, for charts")
async def get_series(
    principal: NamedDependency[Principal],
    database: NamedDependency[Database],
    start: FromQuery[datetime | None] = None,
    end: FromQuery[datetime | None] = None,
    step_seconds: Annotated[int, QueryParameter(ge=60, le=86_400)] = 3600,
) -> SeriesView:
    within = usage.hours(start and _zoned(start, "start"), end and _zoned(end, "end"), now())
    async with database.session() as session:
        points, total = await usage.series(session, principal.tenant_id, within, timedelta(seconds=step_seconds))
    shown = [SeriesPoint(**point) for point in points]
    return SeriesView(within.start, within.end, step_seconds, shown, SeriesPoint(**total))
