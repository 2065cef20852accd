"""What a request may take and what it took: reserved before any target is asked, settled when it is over."""

import calendar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from uuid import UUID

from sqlalchemy import func

from app.config import LimitSettings
from app.db import Database, owned
from app.errors import BudgetExceeded, RateLimited
from app.gateway.limits import Draw, Granted, Kind, LimitStore, Refused, Unseeded
from app.gateway.models import LedgerEntry
from app.gateway.prices import dollars
from app.gateway.record import Record
from app.gateway.writer import Writer
from app.tenants.principal import Allowance, BudgetLimit, Principal, Window

# How long a budget's counter outlives its last use; a lost one is made again from the ledger.
KEPT_SECONDS = {Window.DAY: 2 * 86_400.0, Window.MONTH: 35 * 86_400.0, Window.TOTAL: 35 * 86_400.0}
NAMES = {Window.DAY: "daily", Window.MONTH: "monthly", Window.TOTAL: "total"}
REQUESTS, TOKENS = "requests", "tokens"


@dataclass
class Reservation:
    """What one request holds of its counters until it is settled."""

    lease: str
    draws: tuple[Draw, ...] = ()
    granted: Granted = field(default_factory=Granted)
    cost_micros: int = 0
    budget_left: int | None = None
    """Micro-dollars left of the tightest budget."""

    def tightest(self, unit: str) -> Draw | None:
        """The rate of requests or tokens of which least is left."""
        rates = [draw for draw in self.draws if draw.kind == Kind.RATE and draw.key.endswith(unit)]
        return min(rates, key=lambda draw: self.granted.remaining[draw.key], default=None)


class Meter:
    """Limits and budgets of callers."""

    def __init__(self, store: LimitStore, database: Database, writer: Writer, settings: LimitSettings) -> None:
        self._store = store
        self._database = database
        self._writer = writer
        self._defaults = Allowance(
            settings.requests_per_minute or None, settings.tokens_per_minute or None, settings.concurrency or None
        )

    async def admit(self, principal: Principal, record: Record, tokens: int, cost_micros: int) -> Reservation:
        """Reserve so many tokens and so much money.

        Raises RateLimited with the seconds to wait, BudgetExceeded, and Unavailable where spend cannot be recorded.
        """
        self._writer.require_room()
        reservation = Reservation(str(record.id), tuple(self._draws(principal, record, tokens, cost_micros)))
        if not reservation.draws:
            return reservation
        answer = await self._store.acquire(reservation.lease, reservation.draws)
        while isinstance(answer, Unseeded):
            await self._seed(principal, record, answer)
            answer = await self._store.acquire(reservation.lease, reservation.draws)
        if isinstance(answer, Refused):
            raise _refusal(answer, cost_micros)
        reservation.granted, reservation.cost_micros = answer, cost_micros
        left = [answer.remaining[draw.key] for draw in reservation.draws if draw.kind == Kind.BUDGET]
        reservation.budget_left = min(left, default=None)
        return reservation

    async def settle(self, reservation: Reservation, tokens: int | None, cost_micros: int) -> None:
        """`tokens`: what was really used; None: nothing is known, the estimate stands."""
        if not reservation.draws:
            return
        actual: dict[str, int] = {}
        for draw in reservation.draws:
            if draw.kind == Kind.BUDGET:
                actual[draw.key] = cost_micros
            elif draw.kind == Kind.RATE and draw.key.endswith(TOKENS) and tokens is not None:
                actual[draw.key] = tokens
        left = await self._store.settle(reservation.lease, reservation.draws, reservation.granted, actual)
        if left:
            reservation.budget_left = min(left.values())

    async def spent(self, tenant_id: UUID, budget: BudgetLimit, at: datetime) -> int:
        """Micro-dollars by the ledger in the budget's window that contains `at`."""
        await self._writer.flush()
        query = owned(LedgerEntry, tenant_id).with_only_columns(func.sum(LedgerEntry.amount_micros))
        if budget.owner == "key":
            query = query.where(LedgerEntry.key_id == budget.owner_id)
        elif budget.owner == "user":
            query = query.where(LedgerEntry.user_id == budget.owner_id)
        if start := window_start(budget.window, at):
            query = query.where(LedgerEntry.created_at >= start)
        async with self._database.session() as session:
            return int(await session.scalar(query) or 0)

    def _draws(self, principal: Principal, record: Record, tokens: int, cost_micros: int) -> list[Draw]:
        tag = f"precedent:{{{principal.tenant_id}}}"
        draws = _allowance(f"{tag}:tenant", "This tenant", principal.tenant_allowance, tokens)
        who = principal.key_id or principal.user_id
        draws += _allowance(f"{tag}:{who}", "This key", _or(principal.allowance, self._defaults), tokens)
        for budget in principal.budgets:
            key = f"{tag}:budget:{budget.id}:{window_name(budget.window, record.created_at)}"
            name = f"The {budget.owner}'s {NAMES[budget.window]} budget"
            kept = KEPT_SECONDS[budget.window]
            draws.append(Draw(key, Kind.BUDGET, name, budget.limit_micros, cost_micros, kept))
        return draws

    async def _seed(self, principal: Principal, record: Record, unseeded: Unseeded) -> None:
        """The ledger says what is spent; what this process has not written yet goes there first."""
        wanted = {draw.key: draw for draw in unseeded.draws}
        for budget in principal.budgets:
            name = f":budget:{budget.id}:{window_name(budget.window, record.created_at)}"
            draw = next((draw for key, draw in wanted.items() if key.endswith(name)), None)
            if draw:
                await self._store.seed(draw, await self.spent(principal.tenant_id, budget, record.created_at))


def window_start(window: Window, at: datetime) -> datetime | None:
    """When the window began, in UTC; None for the one that always was."""
    midnight = at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return {Window.DAY: midnight, Window.MONTH: midnight.replace(day=1), Window.TOTAL: None}[window]


def window_end(window: Window, at: datetime) -> datetime | None:
    start = window_start(window, at)
    if start is None:
        return None
    days = 1 if window == Window.DAY else calendar.monthrange(start.year, start.month)[1]
    return start + timedelta(days=days)


def window_name(window: Window, at: datetime) -> str:
    return _day_name(window, at.date())


@lru_cache(maxsize=100)
def _day_name(window: Window, day: date) -> str:
    start = window_start(window, datetime(day.year, day.month, day.day, tzinfo=UTC))
    return start.date().isoformat() if start else "total"


def _or(own: Allowance, default: Allowance) -> Allowance:
    def pick(mine: int | None, other: int | None) -> int | None:
        return other if mine is None else mine

    return Allowance(
        pick(own.requests_per_minute, default.requests_per_minute),
        pick(own.tokens_per_minute, default.tokens_per_minute),
        pick(own.concurrency, default.concurrency),
    )


def _allowance(key: str, who: str, allowance: Allowance, tokens: int) -> list[Draw]:
    draws = []
    if allowance.requests_per_minute is not None:
        name = f"{who} may make {allowance.requests_per_minute} requests a minute"
        draws.append(Draw(f"{key}:{REQUESTS}", Kind.RATE, name, allowance.requests_per_minute))
    if allowance.tokens_per_minute is not None:
        name = f"{who} may use {allowance.tokens_per_minute} tokens a minute"
        draws.append(Draw(f"{key}:{TOKENS}", Kind.RATE, name, allowance.tokens_per_minute, tokens))
    if allowance.concurrency is not None:
        name = f"{who} may have {allowance.concurrency} requests at once"
        draws.append(Draw(f"{key}:running", Kind.CONCURRENCY, name, allowance.concurrency))
    return draws


def _refusal(refused: Refused, cost_micros: int) -> BudgetExceeded | RateLimited:
    budget = next((draw for draw in refused.draws if draw.kind == Kind.BUDGET), None)
    if budget:
        return BudgetExceeded(
            f"{budget.name} of ${dollars(budget.limit)} has too little left: this request may cost up to "
            f"${dollars(cost_micros)}. Ask for fewer tokens (max_tokens), wait for the budget's next window, or have "
            "an administrator raise it (PATCH /api/v1/budgets).",
            limit_micros=budget.limit,
            needed_micros=cost_micros,
        )
    return RateLimited(f"{refused.draws[0].name}; this one would exceed that.", retry_after=refused.retry_after)
