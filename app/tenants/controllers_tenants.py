"""/api/v1/tenants for who runs the installation, /api/v1/tenant and /api/v1/audit for a tenant's own admins."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import UNSET, Meta, Struct, UnsetType
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, owned
from app.errors import NotFound
from app.tenants import audit, service
from app.tenants.auth import Authenticator, requires_scope
from app.tenants.models import AuditEntry, Tenant
from app.tenants.principal import TENANT_SCOPES, Principal, Scope

Name = Annotated[str, Meta(min_length=1, max_length=100)]
Region = Annotated[str, Meta(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9._-]+$")]
Most = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TenantRequest(Struct, forbid_unknown_fields=True):
    name: Name


class TenantChange(Struct, forbid_unknown_fields=True):
    """Only what is given is changed. `regions` empty: any; limits null: none."""

    regions: list[Region] | UnsetType = UNSET
    privileged: bool | UnsetType = UNSET
    requests_per_minute: Most | UnsetType | None = UNSET
    tokens_per_minute: Most | UnsetType | None = UNSET
    concurrency: Most | UnsetType | None = UNSET


class TenantView(Struct):
    id: UUID
    name: str
    regions: Sequence[str]
    privileged: bool
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    created_at: datetime


class TenantList(Struct):
    tenants: list[TenantView]


class AuditView(Struct):
    """`hash` covers the entry and `previous_hash`."""

    seq: int
    created_at: datetime
    actor: str
    action: str
    object: str
    detail: dict[str, Any]
    previous_hash: str
    hash: str


class AuditList(Struct):
    """`next_before`: the `before` of the next page; null on the last."""

    entries: list[AuditView]
    next_before: int | None


def view(tenant: Tenant) -> TenantView:
    return TenantView(**{name: getattr(tenant, name) for name in TenantView.__struct_fields__})


async def _tenant(session: AsyncSession, tenant_id: UUID) -> Tenant:
    tenant = await session.get(Tenant, tenant_id)
    if tenant is None:
        raise NotFound(f"There is no tenant {tenant_id}.")
    return tenant


class TenantController(Controller):
    path = "/api/v1/tenants"
    tags = ("tenants",)
    guards = (requires_scope(Scope.OPERATOR),)

    @get(summary="All tenants")
    async def list_tenants(self, database: NamedDependency[Database]) -> TenantList:
        async with database.session() as session:
            return TenantList([view(tenant) for tenant in await service.list_tenants(session)])

    @post(summary="Make a tenant")
    async def create_tenant(
        self,
        data: JSONBody[TenantRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> TenantView:
        async with database.session() as session:
            return view(await service.create_tenant(session, data.name, principal))

    @patch("/{tenant_id:uuid}", summary="Change a tenant's regions, privilege and limits")
    async def change_tenant(
        self,
        tenant_id: FromPath[UUID],
        data: JSONBody[TenantChange],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> TenantView:
        changes: dict[str, Any] = msgspec.to_builtins(data)
        async with database.session() as session:
            tenant = await _tenant(session, tenant_id)
            for name, value in changes.items():
                setattr(tenant, name, value)
            actor = audit.actor_of(principal)
            await audit.append(session, actor, "tenant.change", f"tenant:{tenant.id}", tenant.id, changes)
            await session.commit()
        authenticator.forget()
        return view(tenant)

    @post("/{tenant_id:uuid}/keys", summary="Make a first key for a tenant; its secret is shown once")
    async def create_key(
        self,
        tenant_id: FromPath[UUID],
        data: JSONBody[TenantRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> dict[str, str]:
        """It has every right within the tenant, and none beyond; its name is the body's."""
        rights = service.KeyRights(TENANT_SCOPES)
        async with database.session() as session:
            await _tenant(session, tenant_id)
            new = await service.create_key(session, tenant_id, data.name, rights=rights)
            return {"id": str(new.key.id), "secret": new.secret}


@get("/api/v1/tenant", tags=["tenants"], guards=[requires_scope(Scope.USAGE)], summary="The caller's own tenant")
async def own_tenant(principal: NamedDependency[Principal], database: NamedDependency[Database]) -> TenantView:
    async with database.session() as session:
        return view(await _tenant(session, principal.tenant_id))


@get("/api/v1/audit", tags=["tenants"], guards=[requires_scope(Scope.ADMIN)], summary="What was done, newest first")
async def list_audit(
    principal: NamedDependency[Principal],
    database: NamedDependency[Database],
    before: Annotated[int | None, QueryParameter(ge=1, le=2**62)] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=500)] = 50,
    action: FromQuery[str | None] = None,
    actor: FromQuery[str | None] = None,
) -> AuditList:
    """Of the caller's tenant. `precedent audit verify` checks the chain of the whole installation."""
    query = owned(AuditEntry, principal.tenant_id)
    if before is not None:
        query = query.where(AuditEntry.seq < before)
    for column, value in ((AuditEntry.action, action), (AuditEntry.actor, actor)):
        if value is not None:
            query = query.where(column == value)
    async with database.session() as session:
        rows = list(await session.scalars(query.order_by(AuditEntry.seq.desc()).limit(limit + 1)))
    entries = [AuditView(**{name: getattr(row, name) for name in AuditView.__struct_fields__}) for row in rows[:limit]]
    return AuditList(entries, entries[-1].seq if len(rows) > limit else None)
