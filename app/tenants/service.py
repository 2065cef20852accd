"""Making and revoking tenants and keys; whom a secret belongs to."""

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import and_, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import get_owned, now, owned, take_turn
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound
from app.tenants import audit
from app.tenants.address import Network, networks_of
from app.tenants.models import ApiKey, Budget, Limited, Tenant, User
from app.tenants.principal import LABEL, Allowance, BudgetLimit, Principal, Scope, Window
from app.tenants.rights import Held, held
from app.tenants.roles import WORK, Role, scopes_of

KEY_PREFIX = "prc_"
SHOWN = 12  # characters of a key that may be shown and searched for
MAX_GRACE = timedelta(days=30)
USED_EVERY = timedelta(minutes=1)  # how exactly it is known when a key was last used


@dataclass(frozen=True)
class NewKey:
    """A key at the one moment its secret is known."""

    key: ApiKey
    secret: str


@dataclass(frozen=True)
class KeyRights:
    """What a new key is given. `models` and `networks`: empty means any."""

    scopes: frozenset[str]
    labels: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    expires_at: datetime | None = None
    allowance: Allowance = field(default_factory=Allowance)


def hash_key(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def create_tenant(session: AsyncSession, name: str, actor: Principal | None = None) -> Tenant:
    """Raises Conflict when the name is taken."""
    tenant = Tenant(name=name)
    session.add(tenant)
    await flush(session, f"The tenant {name!r} exists already.")
    who, what = audit.actor_of(actor), f"tenant:{tenant.id}"
    await audit.append(session, who, "tenant.create", what, tenant.id, {"name": name})
    await session.commit()
    return tenant


async def list_tenants(session: AsyncSession) -> list[Tenant]:
    return list(await session.scalars(select(Tenant).order_by(Tenant.name)))


async def get_tenant(session: AsyncSession, name: str) -> Tenant:
    tenant = await session.scalar(select(Tenant).where(Tenant.name == name))
    if tenant is None:
        raise NotFound(f"There is no tenant {name!r}.")
    return tenant


async def create_key(
    session: AsyncSession,
    tenant_id: UUID,
    name: str,
    *,
    scopes: frozenset[str] = frozenset(),
    labels: frozenset[str] = frozenset(),
    expires_at: datetime | None = None,
    rights: KeyRights | None = None,
    creator: Principal | None = None,
) -> NewKey:
    """Make a key. With a `creator` (a key that makes a key) nothing is given that the creator lacks.

    Raises InvalidRequest for unknown scopes and bad labels, Forbidden beyond the creator, Conflict for a name in use.
    """
    given = rights or KeyRights(scopes, labels, expires_at=expires_at)
    _check(given, creator)
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        tenant_id=tenant_id,
        name=name,
        prefix=secret[:SHOWN],
        hash=hash_key(secret),
        scopes=sorted(given.scopes),
        labels=sorted(given.labels),
        models=sorted(given.models),
        networks=sorted(given.networks),
        expires_at=given.expires_at,
        requests_per_minute=given.allowance.requests_per_minute,
        tokens_per_minute=given.allowance.tokens_per_minute,
        concurrency=given.allowance.concurrency,
        user_id=creator.user_id if creator else None,
    )
    session.add(key)
    await flush(session, f"A key named {name!r} exists already.")
    await _noted(session, creator, "key.create", key, {"name": name, "scopes": key.scopes, "labels": key.labels})
    await session.commit()
    return NewKey(key, secret)


async def list_keys(session: AsyncSession, tenant_id: UUID) -> list[ApiKey]:
    return list(await session.scalars(owned(ApiKey, tenant_id).order_by(ApiKey.created_at)))


async def revoke_key(session: AsyncSession, tenant_id: UUID, key_id: UUID, actor: Principal | None = None) -> ApiKey:
    """At once here, within [auth] key_cache_seconds elsewhere; also a secret that a rotation left in grace."""
    key = await get_owned(session, ApiKey, tenant_id, key_id)
    if key.revoked_at is None:
        key.revoked_at = now()
        await _noted(session, actor, "key.revoke", key)
        await session.commit()
    return key


async def rotate_key(
    session: AsyncSession, tenant_id: UUID, key_id: UUID, grace: timedelta, actor: Principal | None = None
) -> NewKey:
    """A new secret for the same key; the old one works for the time of grace. Raises Conflict for a revoked key."""
    if not timedelta(0) <= grace <= MAX_GRACE:
        raise InvalidRequest("A rotation's grace is 0 seconds to 30 days.", param="grace_seconds")
    await take_turn(session, ApiKey, key_id)  # of two at once the second keeps the first one's secret in grace
    key = await get_owned(session, ApiKey, tenant_id, key_id)
    if key.revoked_at:
        raise Conflict("A revoked key cannot be rotated.")
    _not_beyond(KeyRights(frozenset(key.scopes), frozenset(key.labels)), actor)
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key.previous_hash, key.previous_until = key.hash, now() + grace
    key.hash, key.prefix = hash_key(secret), secret[:SHOWN]
    await _noted(session, actor, "key.rotate", key, {"grace_seconds": int(grace.total_seconds())})
    await session.commit()
    return NewKey(key, secret)


async def principal_within(session: AsyncSession, operator: Principal, tenant_id: str) -> Principal:
    """The operator in another tenant, without its matters and without the rights to its content. Raises NotFound."""
    try:
        tenant = await session.get(Tenant, UUID(tenant_id))
    except ValueError:
        tenant = None
    if tenant is None:
        raise NotFound(f"There is no tenant {tenant_id}.")
    return replace(
        operator,
        tenant_id=tenant.id,
        tenant=tenant.name,
        scopes=operator.scopes - WORK,
        labels=frozenset(),
        tenant_allowance=allowance_of(tenant),
        budgets=(),
        regions=frozenset(tenant.regions),
        privileged=tenant.privileged,
    )


async def find_principal(session: AsyncSession, secret: str) -> Principal | None:
    """The principal of a valid key; None for unknown, revoked and expired ones. Hashes before it asks."""
    digest = hash_key(secret)
    row = (
        await session.execute(
            select(ApiKey, Tenant, User)
            .join(Tenant, Tenant.id == ApiKey.tenant_id)
            .join(User, User.id == ApiKey.user_id, isouter=True)
            .where(or_(ApiKey.hash == digest, ApiKey.previous_hash == digest))
        )
    ).first()
    if row is None:
        return None
    key, tenant, maker = row
    if not (key.hash == digest or _in_grace(key)) or not _valid(key, maker):
        return None
    await _used(session, key)
    return await _principal_of_key(session, key, tenant, maker)


async def renewed(session: AsyncSession, principal: Principal) -> Principal | None:
    """The same caller with the rights of now; None when the key or the person may not act any more."""
    if principal.key_id is None:
        user = await session.get(User, principal.user_id)
        return await principal_of_user(session, user) if user and not user.disabled_at else None
    query = (
        select(ApiKey, Tenant, User)
        .join(Tenant, Tenant.id == ApiKey.tenant_id)
        .join(User, User.id == ApiKey.user_id, isouter=True)
        .where(ApiKey.id == principal.key_id)
    )
    row = (await session.execute(query)).first()
    if row is None or not _valid(row[0], row[2]):
        return None
    return await _principal_of_key(session, *row)


async def _principal_of_key(session: AsyncSession, key: ApiKey, tenant: Tenant, maker: User | None) -> Principal:
    """A key never holds more than the person who made it holds now."""
    rights = await held(session, key.tenant_id, key.labels)
    if maker:
        own = await held(session, key.tenant_id, maker.labels, maker.id)
        rights = Held(rights.labels & own.labels, own.denied)
    return Principal(
        tenant_id=key.tenant_id,
        tenant=tenant.name,
        key_id=key.id,
        user_id=key.user_id,
        scopes=frozenset(key.scopes),
        labels=rights.labels,
        denied=rights.denied,
        tenant_allowance=allowance_of(tenant),
        allowance=allowance_of(key),
        budgets=await find_budgets(session, key.tenant_id, key.id, key.user_id),
        regions=frozenset(tenant.regions),
        privileged=tenant.privileged,
        role=Role.SERVICE,
        models=frozenset(key.models),
        networks=tuple(key.networks),
    )


async def principal_of_user(session: AsyncSession, user: User) -> Principal:
    """A person who is logged in."""
    tenant = await session.get_one(Tenant, user.tenant_id)
    rights = await held(session, user.tenant_id, user.labels, user.id)
    return Principal(
        tenant_id=user.tenant_id,
        tenant=tenant.name,
        key_id=None,
        user_id=user.id,
        scopes=scopes_of(user.role, operator=user.operator),
        labels=rights.labels,
        denied=rights.denied,
        tenant_allowance=allowance_of(tenant),
        budgets=await find_budgets(session, user.tenant_id, None, user.id),
        regions=frozenset(tenant.regions),
        privileged=tenant.privileged,
        role=user.role,
    )


def _valid(key: ApiKey, maker: User | None) -> bool:
    expired = key.expires_at is not None and key.expires_at <= now()
    return not (key.revoked_at or expired or (maker and maker.disabled_at))


def _in_grace(key: ApiKey) -> bool:
    return key.previous_until is not None and key.previous_until > now()


async def _used(session: AsyncSession, key: ApiKey) -> None:
    at = now()
    if key.last_used_at is None or at - key.last_used_at > USED_EVERY:
        key.last_used_at = at
        await session.commit()


async def _noted(
    session: AsyncSession, actor: Principal | None, action: str, key: ApiKey, detail: dict[str, Any] | None = None
) -> None:
    await audit.append(session, audit.actor_of(actor), action, f"key:{key.id}", key.tenant_id, detail)


async def find_budgets(
    session: AsyncSession, tenant_id: UUID, key_id: UUID | None, user_id: UUID | None
) -> tuple[BudgetLimit, ...]:
    """The budgets that a caller draws on: the tenant's, its key's and its user's."""
    whole = and_(Budget.key_id.is_(None), Budget.user_id.is_(None))
    mine = [column == value for column, value in ((Budget.key_id, key_id), (Budget.user_id, user_id)) if value]
    rows = await session.scalars(owned(Budget, tenant_id).where(or_(whole, *mine)).order_by(Budget.id))
    return tuple(budget_limit(row) for row in rows)


def budget_limit(row: Budget) -> BudgetLimit:
    owner = "key" if row.key_id else "user" if row.user_id else "tenant"
    owner_id = row.key_id or row.user_id or row.tenant_id
    return BudgetLimit(row.id, owner, owner_id, Window(row.window), row.limit_micros)


def allowance_of(row: Limited) -> Allowance:
    return Allowance(row.requests_per_minute, row.tokens_per_minute, row.concurrency)


def _check(rights: KeyRights, creator: Principal | None) -> None:
    unknown = rights.scopes - set(Scope)
    if unknown:
        raise InvalidRequest(f"There is no scope {sorted(unknown)[0]!r}.", param="scopes")
    for label in sorted(rights.labels):
        if not LABEL.fullmatch(label):
            raise InvalidRequest(f"The label {label!r} is not a valid matter name.", param="labels")
    networks_of(tuple(sorted(rights.networks)))
    _not_beyond(rights, creator)


def _not_beyond(rights: KeyRights, creator: Principal | None) -> None:
    """A key never exceeds who makes or renews it."""
    if creator is None:
        return
    if not (rights.scopes <= creator.scopes and rights.labels <= creator.labels):
        raise Forbidden("A key cannot give scopes or labels that it does not hold itself.")
    if creator.models and not (rights.models and rights.models <= creator.models):
        raise Forbidden("A key that is bound to models cannot give others.")
    if creator.networks:
        given = networks_of(tuple(sorted(rights.networks)))
        inside = all(any(_subnet(network, own) for own in networks_of(creator.networks)) for network in given)
        if not given or not inside:
            raise Forbidden("A key that is bound to networks cannot give others.")


def _subnet(network: Network, other: Network) -> bool:
    return network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]  # versions agree


async def flush(session: AsyncSession, conflict: str) -> None:
    """Send what was added. Raises Conflict where it violates a unique key."""
    try:
        await session.flush()
    except IntegrityError as error:
        await session.rollback()
        raise Conflict(conflict) from error
