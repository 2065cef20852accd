"""/api/v1/budgets: what the tenant, its keys and its people may spend."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from app.db import Database, get_owned, now, owned
from app.errors import InvalidRequest
from app.gateway.metering import Meter, window_end
from app.tenants import audit
from app.tenants.auth import Authenticator, requires_scope
from app.tenants.models import ApiKey, Budget, User
from app.tenants.principal import Principal, Scope, Window
from app.tenants.service import budget_limit

Micros = Annotated[int, Meta(ge=0, le=2**53)]


class BudgetRequest(Struct, forbid_unknown_fields=True):
    """`key_id` or `user_id`: whose it is; neither: the whole tenant's. Amounts are micro-dollars."""

    window: Window
    limit_micros: Micros
    key_id: UUID | None = None
    user_id: UUID | None = None


class BudgetChange(Struct, forbid_unknown_fields=True):
    limit_micros: Micros


class BudgetView(Struct):
    """`spent_micros`: by the ledger in the present window, which ends at `resets_at` (null: never)."""

    id: UUID
    window: Window
    limit_micros: int
    spent_micros: int
    key_id: UUID | None
    user_id: UUID | None
    resets_at: datetime | None
    created_at: datetime


class BudgetList(Struct):
    budgets: list[BudgetView]


class BudgetController(Controller):
    path = "/api/v1/budgets"
    tags = ("budgets",)

    @get(guards=[requires_scope(Scope.USAGE)], summary="Budgets with what is spent")
    async def list_budgets(
        self,
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        meter: NamedDependency[Meter],
    ) -> BudgetList:
        async with database.session() as session:
            rows = list(await session.scalars(owned(Budget, principal.tenant_id).order_by(Budget.created_at)))
        return BudgetList([await _view(row, meter) for row in rows])

    @post(guards=[requires_scope(Scope.ADMIN)], summary="Make a budget")
    async def create_budget(
        self,
        data: JSONBody[BudgetRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        meter: NamedDependency[Meter],
        authenticator: NamedDependency[Authenticator],
    ) -> BudgetView:
        """What was spent before in the same window counts."""
        if data.key_id and data.user_id:
            raise InvalidRequest("A budget is a key's or a person's, not both.", param="user_id")
        async with database.session() as session:
            if data.key_id:
                await get_owned(session, ApiKey, principal.tenant_id, data.key_id)
            if data.user_id:
                await get_owned(session, User, principal.tenant_id, data.user_id)
            row = Budget(
                tenant_id=principal.tenant_id,
                key_id=data.key_id,
                user_id=data.user_id,
                window=data.window,
                limit_micros=data.limit_micros,
            )
            session.add(row)
            await session.flush()
            detail = {"window": data.window, "limit_micros": data.limit_micros}
            actor, subject = audit.actor_of(principal), f"budget:{row.id}"
            await audit.append(session, actor, "budget.create", subject, principal.tenant_id, detail)
            await session.commit()
        authenticator.forget()
        return await _view(row, meter)

    @patch("/{budget_id:uuid}", guards=[requires_scope(Scope.ADMIN)], summary="Change a budget's limit")
    async def change_budget(
        self,
        budget_id: FromPath[UUID],
        data: JSONBody[BudgetChange],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        meter: NamedDependency[Meter],
        authenticator: NamedDependency[Authenticator],
    ) -> BudgetView:
        async with database.session() as session:
            row = await get_owned(session, Budget, principal.tenant_id, budget_id)
            row.limit_micros = data.limit_micros
            actor, subject = audit.actor_of(principal), f"budget:{row.id}"
            detail = {"limit_micros": data.limit_micros}
            await audit.append(session, actor, "budget.change", subject, principal.tenant_id, detail)
            await session.commit()
        authenticator.forget()
        return await _view(row, meter)

    @delete("/{budget_id:uuid}", status_code=204, guards=[requires_scope(Scope.ADMIN)], summary="Delete a budget")
    async def delete_budget(
        self,
        budget_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> None:
        async with database.session() as session:
            row = await get_owned(session, Budget, principal.tenant_id, budget_id)
            await session.delete(row)
            actor, subject = audit.actor_of(principal), f"budget:{budget_id}"
            await audit.append(session, actor, "budget.delete", subject, principal.tenant_id)
            await session.commit()
        authenticator.forget()


async def _view(row: Budget, meter: Meter) -> BudgetView:
    at = now()
    window = Window(row.window)
    return BudgetView(
        id=row.id,
        window=window,
        limit_micros=row.limit_micros,
        spent_micros=await meter.spent(row.tenant_id, budget_limit(row), at),
        key_id=row.key_id,
        user_id=row.user_id,
        resets_at=window_end(window, at),
        created_at=row.created_at,
    )
