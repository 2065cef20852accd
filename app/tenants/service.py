"""Making and revoking tenants and keys."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import get_owned, now, owned
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound
from app.tenants.models import ApiKey, Tenant
from app.tenants.principal import LABEL, Principal, Scope

KEY_PREFIX = "prc_"
SHOWN = 12  # characters of a key that may be shown and searched for


@dataclass(frozen=True)
class NewKey:
    """A key at the one moment its secret is known."""

    key: ApiKey
    secret: str


def hash_key(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def create_tenant(session: AsyncSession, name: str) -> Tenant:
    """Raises Conflict when the name is taken."""
    tenant = Tenant(name=name)
    session.add(tenant)
    await _commit(session, f"The tenant {name!r} exists already.")
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
    scopes: frozenset[str],
    labels: frozenset[str] = frozenset(),
    expires_at: datetime | None = None,
    creator: Principal | None = None,
) -> NewKey:
    """Make a key. With a `creator` (a key that makes a key) nothing is given that the creator lacks.

    Raises InvalidRequest for unknown scopes and bad labels, Forbidden beyond the creator, Conflict for a name in use.
    """
    _check(scopes, labels, creator)
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        tenant_id=tenant_id,
        name=name,
        prefix=secret[:SHOWN],
        hash=hash_key(secret),
        scopes=sorted(scopes),
        labels=sorted(labels),
        expires_at=expires_at,
    )
    session.add(key)
    await _commit(session, f"A key named {name!r} exists already.")
    return NewKey(key, secret)


async def list_keys(session: AsyncSession, tenant_id: UUID) -> list[ApiKey]:
    return list(await session.scalars(owned(ApiKey, tenant_id).order_by(ApiKey.created_at)))


async def revoke_key(session: AsyncSession, tenant_id: UUID, key_id: UUID) -> ApiKey:
    key = await get_owned(session, ApiKey, tenant_id, key_id)
    if key.revoked_at is None:
        key.revoked_at = now()
        await session.commit()
    return key


async def find_principal(session: AsyncSession, secret: str) -> Principal | None:
    """The principal of a valid key; None for unknown, revoked and expired ones. Hashes before it asks."""
    row = (
        await session.execute(
            select(ApiKey, Tenant.name)
            .join(Tenant, Tenant.id == ApiKey.tenant_id)
            .where(ApiKey.hash == hash_key(secret))
        )
    ).first()
    if row is None:
        return None
    key, tenant = row
    if key.revoked_at or (key.expires_at and key.expires_at <= now()):
        return None
    return Principal(key.tenant_id, tenant, key.id, frozenset(key.scopes), frozenset(key.labels))


def _check(scopes: frozenset[str], labels: frozenset[str], creator: Principal | None) -> None:
    unknown = scopes - set(Scope)
    if unknown:
        raise InvalidRequest(f"There is no scope {sorted(unknown)[0]!r}.", param="scopes")
    for label in sorted(labels):
        if not LABEL.fullmatch(label):
            raise InvalidRequest(f"The label {label!r} is not a valid matter name.", param="labels")
    if creator and not (scopes <= creator.scopes and labels <= creator.labels):
        raise Forbidden("A key cannot give scopes or labels that it does not hold itself.")


async def _commit(session: AsyncSession, conflict: str) -> None:
    try:
        await session.commit()
    except IntegrityError as error:
        await session.rollback()
        raise Conflict(conflict) from error
