"""/api/v1/keys and /api/v1/me."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated
from uuid import UUID

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct

from app.db import Database
from app.tenants import service
from app.tenants.auth import Authenticator, requires_scope
from app.tenants.models import ApiKey
from app.tenants.principal import Allowance, Principal, Scope

Name = Annotated[str, Meta(min_length=1, max_length=100)]


Most = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class KeyRequest(Struct, forbid_unknown_fields=True):
    """`models` and `networks` (CIDR): the only ones the key may ask and be used from; empty: any."""

    name: Name
    scopes: list[str]
    labels: list[str] = []
    models: list[str] = []
    networks: list[str] = []
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None
    requests_per_minute: Most | None = None
    tokens_per_minute: Most | None = None
    concurrency: Most | None = None


class RotationRequest(Struct, forbid_unknown_fields=True):
    """For so many seconds the old secret works beside the new one."""

    grace_seconds: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 0


class KeyView(Struct):
    id: UUID
    name: str
    prefix: str
    scopes: Sequence[str]
    labels: Sequence[str]
    models: Sequence[str]
    networks: Sequence[str]
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    previous_until: datetime | None
    last_used_at: datetime | None


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
    return KeyView(**{name: getattr(key, name) for name in KeyView.__struct_fields__})


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
                rights=_rights(data),
                creator=principal,
            )
            return NewKeyView(view(new.key), new.secret)

    @post("/{key_id:uuid}/rotate", summary="Give a key a new secret; the old one works for the grace")
    async def rotate_key(
        self,
        key_id: FromPath[UUID],
        data: JSONBody[RotationRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> NewKeyView:
        grace = timedelta(seconds=data.grace_seconds)
        async with database.session() as session:
            new = await service.rotate_key(session, principal.tenant_id, key_id, grace, principal)
        authenticator.forget()
        return NewKeyView(view(new.key), new.secret)

    @delete("/{key_id:uuid}", status_code=200, summary="Revoke a key")
    async def revoke_key(
        self,
        key_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        authenticator: NamedDependency[Authenticator],
    ) -> KeyView:
        async with database.session() as session:
            revoked = await service.revoke_key(session, principal.tenant_id, key_id, principal)
        authenticator.forget()
        return view(revoked)


def _rights(data: KeyRequest) -> service.KeyRights:
    return service.KeyRights(
        scopes=frozenset(data.scopes),
        labels=frozenset(data.labels),
        models=frozenset(data.models),
        networks=frozenset(data.networks),
        expires_at=data.expires_at,
        allowance=Allowance(data.requests_per_minute, data.tokens_per_minute, data.concurrency),
    )
