"""People of a tenant: making, changing, disabling them."""

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import get_owned, now, owned, take_turn
from app.errors import Conflict, Forbidden, InvalidRequest
from app.tenants import audit
from app.tenants.models import Tenant, User
from app.tenants.principal import LABEL, Principal
from app.tenants.rights import held
from app.tenants.roles import OF_PEOPLE, Role, require_change
from app.tenants.service import flush
from app.tenants.sessions import end_sessions


@dataclass(frozen=True)
class NewUser:
    """`password_hash` None: the person logs in through OpenID Connect alone."""

    email: str
    name: str
    role: str
    labels: frozenset[str] = frozenset()
    operator: bool = False
    password_hash: str | None = None
    subject: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


async def create_user(session: AsyncSession, tenant_id: UUID, new: NewUser, actor: Principal | None) -> User:
    """Raises InvalidRequest, Forbidden beyond the actor's rights, and Conflict for an address in use."""
    _check(new.role, new.labels)
    if "@" not in new.email:
        raise InvalidRequest("An e-mail address contains an @.", param="email")
    if actor:
        wishes: dict[str, object] = {"role": new.role, "labels": sorted(new.labels)}
        require_change(actor, None, Role.MEMBER, wishes | ({"operator": True} if new.operator else {}))
    user = User(
        tenant_id=tenant_id,
        email=new.email.lower(),
        name=new.name,
        role=new.role,
        labels=sorted(new.labels),
        operator=new.operator,
        password_hash=new.password_hash,
        subject=new.subject,
    )
    session.add(user)
    await flush(session, "There is somebody with this e-mail address already.")
    await _noted(session, actor, "user.create", user, {"email": user.email, "role": user.role, **new.extra})
    await session.commit()
    return user


async def list_users(session: AsyncSession, tenant_id: UUID) -> list[User]:
    return list(await session.scalars(owned(User, tenant_id).order_by(User.email)))


async def change_user(
    session: AsyncSession, tenant_id: UUID, user_id: UUID, changes: dict[str, Any], actor: Principal | None
) -> User:
    """`changes`: any of name, role, labels, operator, disabled, each authorised by itself.

    Raises Forbidden, and Conflict where the tenant would be left without an owner. Lost rights hold within a second.
    """
    await take_turn(session, Tenant, tenant_id)  # two owners who take the right from each other leave none
    user = await get_owned(session, User, tenant_id, user_id)
    _check(changes.get("role", user.role), frozenset(changes.get("labels", ())))
    if actor:
        require_change(actor, user.id, user.role, changes)
    loses_owner = user.role == Role.OWNER and (changes.get("role", Role.OWNER) != Role.OWNER or changes.get("disabled"))
    if loses_owner and await _owners(session, tenant_id) == 1:
        raise Conflict("A tenant keeps at least one owner.")
    for name in ("name", "role", "operator"):
        if name in changes:
            setattr(user, name, changes[name])
    if "labels" in changes:
        user.labels = sorted(changes["labels"])
    if "disabled" in changes:
        user.disabled_at = now() if changes["disabled"] else None
        await end_sessions(session, user.id)
    await _noted(session, actor, "user.change", user, changes)
    await session.commit()
    return user


async def set_password(
    session: AsyncSession, tenant_id: UUID, user_id: UUID, password_hash: str, actor: Principal | None
) -> User:
    """All sessions of the person end. Raises Forbidden: one's own, or an admin somebody else's."""
    user = await get_owned(session, User, tenant_id, user_id)
    if actor and actor.user_id != user.id:
        require_change(actor, user.id, user.role, {"disabled": False})
        beyond = await held(session, tenant_id, user.labels, user.id)
        if beyond.labels & actor.denied:  # who could log in as somebody else would be past the wall
            raise Forbidden("This person holds a matter that is denied to you.")
    user.password_hash = password_hash
    await end_sessions(session, user.id)
    await _noted(session, actor, "user.password", user, {})
    await session.commit()
    return user


async def _owners(session: AsyncSession, tenant_id: UUID) -> int:
    active = owned(User, tenant_id).where(User.role == Role.OWNER, User.disabled_at.is_(None))
    return await session.scalar(active.with_only_columns(func.count(User.id))) or 0


def _check(role: str, labels: frozenset[str]) -> None:
    if role not in OF_PEOPLE:
        raise InvalidRequest(f"There is no role {role!r} for people.", param="role")
    for label in sorted(labels):
        if not LABEL.fullmatch(label):
            raise InvalidRequest(f"The label {label!r} is not a valid matter name.", param="labels")


async def _noted(
    session: AsyncSession, actor: Principal | None, action: str, user: User, detail: dict[str, Any]
) -> None:
    await audit.append(session, audit.actor_of(actor), action, f"user:{user.id}", user.tenant_id, detail)
