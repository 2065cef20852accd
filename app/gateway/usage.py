"""What was used, from the ledger and the request log: sums by hour in UTC, and series for charts."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import owned
from app.errors import InvalidRequest
from app.gateway.models import LedgerEntry, RequestRecord

MAX_RANGE = timedelta(days=400)
MAX_POINTS = 1_000
EVERY_TENANT = "tenant"
GROUPS = {
    EVERY_TENANT: LedgerEntry.tenant_id,
    "model": LedgerEntry.model,
    "target": LedgerEntry.target,
    "key": LedgerEntry.key_id,
    "user": LedgerEntry.user_id,
}


@dataclass(frozen=True)
class Range:
    """From `start` (included) to `end` (excluded), whole hours of UTC."""

    start: datetime
    end: datetime


def hours(start: datetime | None, end: datetime | None, at: datetime) -> Range:
    """The range as whole hours; the last day where nothing is given. Raises InvalidRequest."""
    last = _hour(end or at + timedelta(hours=1))
    first = _hour(start) if start else last - timedelta(days=1)
    if end and end > last:
        last += timedelta(hours=1)
    if not timedelta(0) < last - first <= MAX_RANGE:
        raise InvalidRequest("The range must end after its start and be at most 400 days long.", param="start")
    return Range(first, last)


async def hourly(session: AsyncSession, tenant_id: UUID, within: Range, group: str | None, dialect: str) -> list[Any]:
    """Rows (hour, group, requests, prompt, cached, completion tokens, micro-dollars), in order of time; of every tenant
    where that is the group.
    """
    hour = _truncated(dialect)
    by = [hour.label("hour"), *([GROUPS[group].label("group")] if group else [])]
    sums = [
        func.count(LedgerEntry.id).label("requests"),
        func.sum(LedgerEntry.prompt_tokens).label("prompt_tokens"),
        func.sum(LedgerEntry.cached_tokens).label("cached_tokens"),
        func.sum(LedgerEntry.completion_tokens).label("completion_tokens"),
        func.sum(LedgerEntry.amount_micros).label("amount_micros"),
    ]
    whose = select(LedgerEntry) if group == EVERY_TENANT else owned(LedgerEntry, tenant_id)
    query: Select[Any] = whose.with_only_columns(*by, *sums)
    query = query.where(LedgerEntry.created_at >= within.start, LedgerEntry.created_at < within.end)
    return list(await session.execute(query.group_by(*by).order_by(*by)))


async def series(
    session: AsyncSession, tenant_id: UUID, within: Range, step: timedelta
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Per step, and of the whole range: requests, errors, tokens, cost, the first delta's median and 95th percentile.

    Raises InvalidRequest.
    """
    points = math.ceil((within.end - within.start) / step)
    if points > MAX_POINTS:
        raise InvalidRequest(f"That would be {points} points; at most {MAX_POINTS}.", param="step_seconds")
    columns = (
        RequestRecord.created_at,
        RequestRecord.status,
        RequestRecord.completion_tokens,
        RequestRecord.cost_micros,
        RequestRecord.first_delta_ms,
    )
    query = owned(RequestRecord, tenant_id).with_only_columns(*columns)
    query = query.where(RequestRecord.created_at >= within.start, RequestRecord.created_at < within.end)
    found: dict[int, list[Any]] = defaultdict(list)
    result = await session.stream(query.execution_options(yield_per=1_000))
    async for row in result:
        found[int((row.created_at - within.start) / step)].append(row)
    of_steps = [_point(within.start + number * step, found.get(number, [])) for number in range(points)]
    return of_steps, _point(within.start, list(itertools.chain.from_iterable(found.values())))


def _point(at: datetime, rows: Sequence[Any]) -> dict[str, Any]:
    """`None` where nothing is known: no request, no latency."""
    waits = sorted(row.first_delta_ms for row in rows if row.first_delta_ms)
    return {
        "at": at,
        "requests": len(rows),
        "errors": sum(row.status not in ANSWERED for row in rows),
        "completion_tokens": sum(row.completion_tokens for row in rows),
        "cost_micros": sum(row.cost_micros for row in rows),
        "first_delta_p50_ms": _quantile(waits, 0.5),
        "first_delta_p95_ms": _quantile(waits, 0.95),
    }


# How requests end that were answered; what a caller broke off is no error of ours.
ANSWERED = frozenset({"stop", "length", "tool_calls", "content_filter", "cancelled"})


def _quantile(ordered: list[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))], 3) if ordered else None


def _hour(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _truncated(dialect: str) -> Any:
    """The entry's hour in UTC as text, on either database."""
    if dialect == "sqlite":
        return func.strftime("%Y-%m-%dT%H:00:00Z", LedgerEntry.created_at)
    return func.to_char(func.timezone("UTC", LedgerEntry.created_at), 'YYYY-MM-DD"T"HH24:00:00"Z"')
