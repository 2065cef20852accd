"""/api/v1/keys and /api/v1/me."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated
from uuid import UUID

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from app.db import Database
from app.tenants import service
from app.tenants.auth import requires_scope
from app.tenants.models import ApiKey
from app.tenants.principal import Principal, Scope

Name = Annotated[str, Meta(min_length=1, max_length=100)]


class KeyRequest(Struct, forbid_unknown_fields=True):
    name: Name
    scopes: list[str]
    labels: list[str] = []
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class KeyView(Struct):
    id: UUID
    name: str
    prefix: str
    scopes: Sequence[str]
    labels: Sequence[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class NewKeyView(Struct):
    """`secret` is shown this once."""

    key: KeyView
    secret: str


class KeyList(Struct):
    keys: list[KeyView]


class Me(Struct):
    tenant_id: UUID
    tenant: str
    scopes: list[str]
    labels: list[str]


def view(key: ApiKey) -> KeyView:
    return KeyView(key.id, key.name, key.prefix, key.scopes, key.labels, key.created_at, key.expires_at, key.revoked_at)


@get("/api/v1/me", tags=["tenants"], summary="Who am I")
async def me(principal: NamedDependency[Principal]) -> Me:
    return Me(principal.tenant_id, principal.tenant, sorted(principal.scopes), sorted(principal.labels))


class KeyController(Controller):
    path = "/api/v1/keys"
    tags = ("tenants",)
    guards = (requires_scope(Scope.KEYS),)

    @get(summary="List the tenant's keys")
    async def list_keys(self, principal: NamedDependency[Principal], database: NamedDependency[Database]) -> KeyList:
        async with database.session() as session:
            return KeyList([view(key) for key in await service.list_keys(session, principal.tenant_id)])

    @post(summary="Make a key; its secret is shown once")
    async def create_key(
        self,
        data: JSONBody[KeyRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> NewKeyView:
        async with database.session() as session:
            new = await service.create_key(
                session,
                principal.tenant_id,
                data.name,
                scopes=frozenset(data.scopes),
                labels=frozenset(data.labels),
                expires_at=data.expires_at,
                creator=principal,
            )
            return NewKeyView(view(new.key), new.secret)

    @delete("/{key_id:uuid}", status_code=200, summary="Revoke a key")
    async def revoke_key(
        self,
        key_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> KeyView:
        async with database.session() as session:
            return view(await service.revoke_key(session, principal.tenant_id, key_id))
