"""Matters of a tenant and their members: who may give whom which right.

Nobody gives what they do not hold, nobody changes their own access, and a denial holds against every role. A tenant's
matters change one after the other: what a change was allowed by must still hold when it is written.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import get_owned, now, owned, take_turn
from app.errors import Conflict, Forbidden, InvalidRequest, NotFound
from app.tenants import audit
from app.tenants.models import ApiKey, Matter, MatterMember, Tenant, User
from app.tenants.principal import LABEL, Principal, Scope
from app.tenants.rights import ALLOW, DENY
from app.tenants.roles import require_change
from app.tenants.service import flush

LabelUse = Callable[[AsyncSession, UUID, str], Awaitable[bool]]


@dataclass(frozen=True)
class NewMatter:
    label: str
    name: str
    description: str = ""
    parent_id: UUID | None = None


class Matters:
    """`in_use` says whether something is filed under a label; rooms above know what."""

    def __init__(self, in_use: LabelUse) -> None:
        self._in_use = in_use

    async def page(self, session: AsyncSession, actor: Principal) -> list[Matter]:
        """Those the caller may know of, by label."""
        rows = await session.scalars(owned(Matter, actor.tenant_id).order_by(Matter.label))
        return [row for row in rows if _may_know(actor, row)]

    async def get(self, session: AsyncSession, actor: Principal, matter_id: UUID) -> Matter:
        """Raises NotFound also for a matter that is denied or none of the caller's business."""
        matter = await get_owned(session, Matter, actor.tenant_id, matter_id)
        if not _may_know(actor, matter):
            raise NotFound(f"There is no matter {matter_id}.")
        return matter

    async def create(self, session: AsyncSession, actor: Principal, new: NewMatter) -> Matter:
        """Who makes a matter is in it. A label that is used already makes a matter for those who hold it alone."""
        if not LABEL.fullmatch(new.label):
            raise InvalidRequest(f"The label {new.label!r} is not a valid matter name.", param="label")
        await take_turn(session, Tenant, actor.tenant_id)
        if new.label not in actor.labels and await self._taken(session, actor.tenant_id, new.label):
            raise Forbidden(f"The label {new.label!r} is in use, and you do not hold it.")
        if new.parent_id:
            await self.get(session, actor, new.parent_id)
        matter = Matter(
            tenant_id=actor.tenant_id,
            label=new.label,
            name=new.name,
            description=new.description,
            parent_id=new.parent_id,
        )
        session.add(matter)
        await flush(session, f"A matter with the label {new.label!r} exists already.")
        await _let_in(session, actor, matter)
        await _noted(session, actor, "matter.create", matter, {"label": new.label, "parent_id": new.parent_id})
        await session.commit()
        return matter

    async def change(self, session: AsyncSession, actor: Principal, matter_id: UUID, changes: dict[str, Any]) -> Matter:
        """`changes`: any of name, description, parent_id, closed. A new parent lets its members in, so that the matter
        must be held.
        """
        await take_turn(session, Tenant, actor.tenant_id)
        matter = await self.get(session, actor, matter_id)
        if "parent_id" in changes:
            actor.require_labels(frozenset({matter.label}))
            await self._require_above(session, actor, matter, changes["parent_id"])
        for name in ("name", "description", "parent_id"):
            if name in changes:
                setattr(matter, name, changes[name])
        if "closed" in changes:
            matter.closed_at = (matter.closed_at or now()) if changes["closed"] else None
        await _noted(session, actor, "matter.change", matter, changes)
        await session.commit()
        return matter

    async def delete(self, session: AsyncSession, actor: Principal, matter_id: UUID) -> None:
        """Raises Conflict while something is filed under it or below it: its wall would fall with it."""
        await take_turn(session, Tenant, actor.tenant_id)
        matter = await self.get(session, actor, matter_id)
        actor.require_labels(frozenset({matter.label}))
        if await session.scalar(owned(Matter, actor.tenant_id).where(Matter.parent_id == matter.id).limit(1)):
            raise Conflict("This matter has matters below it.")
        if await self._in_use(session, actor.tenant_id, matter.label):
            raise Conflict("There are documents or answers under this matter; close it instead.")
        await _noted(session, actor, "matter.delete", matter, {"label": matter.label})
        await session.delete(matter)
        await session.commit()

    async def members(self, session: AsyncSession, actor: Principal, matter_id: UUID) -> list[tuple[User, str]]:
        """(person, allow or deny), by e-mail address."""
        await self.get(session, actor, matter_id)
        rows = (
            owned(MatterMember, actor.tenant_id)
            .join(User, User.id == MatterMember.user_id)
            .where(MatterMember.matter_id == matter_id)
            .with_only_columns(User, MatterMember.access)
            .order_by(User.email)
        )
        return [(user, access) for user, access in await session.execute(rows)]

    async def put_member(
        self, session: AsyncSession, actor: Principal, matter_id: UUID, user_id: UUID, access: str
    ) -> User:
        """Raises Forbidden for oneself, for an owner unless by an owner, and for giving a matter that is not held."""
        matter, user, present = await self._membership(session, actor, matter_id, user_id)
        _may_change(actor, user, matter, gives=access == ALLOW)
        if present:
            present.access = access
        else:
            session.add(MatterMember(tenant_id=actor.tenant_id, matter_id=matter_id, user_id=user_id, access=access))
        await _noted(session, actor, f"matter.{access}", matter, {"user": user_id, "email": user.email})
        await session.commit()
        return user

    async def remove_member(self, session: AsyncSession, actor: Principal, matter_id: UUID, user_id: UUID) -> None:
        """Lifting a denial gives rights, so that it takes who holds the matter."""
        matter, user, present = await self._membership(session, actor, matter_id, user_id)
        if present is None:
            raise NotFound(f"The person {user_id} is not named in this matter.")
        _may_change(actor, user, matter, gives=present.access == DENY)
        await session.delete(present)
        await _noted(session, actor, "matter.remove", matter, {"user": user_id, "was": present.access})
        await session.commit()

    async def _membership(
        self, session: AsyncSession, actor: Principal, matter_id: UUID, user_id: UUID
    ) -> tuple[Matter, User, MatterMember | None]:
        await take_turn(session, Tenant, actor.tenant_id)
        matter = await self.get(session, actor, matter_id)
        user = await get_owned(session, User, actor.tenant_id, user_id)
        rows = owned(MatterMember, actor.tenant_id)
        query = rows.where(MatterMember.matter_id == matter_id, MatterMember.user_id == user_id)
        return matter, user, await session.scalar(query)

    async def _taken(self, session: AsyncSession, tenant_id: UUID, label: str) -> bool:
        """Whether anybody holds the label or anything is filed under it."""
        if await session.scalar(owned(Matter, tenant_id).where(Matter.label == label)):
            return True
        for holder in (User, ApiKey):
            given = await session.scalars(owned(holder, tenant_id).with_only_columns(holder.labels))
            if any(label in labels for labels in given):
                return True
        return await self._in_use(session, tenant_id, label)

    async def _require_above(
        self, session: AsyncSession, actor: Principal, matter: Matter, parent_id: UUID | None
    ) -> None:
        """Raises Conflict for a parent that is the matter itself or below it."""
        above = await self.get(session, actor, parent_id) if parent_id else None
        while above:
            if above.id == matter.id:
                raise Conflict("A matter cannot be below itself.")
            above = await session.get(Matter, above.parent_id) if above.parent_id else None


async def require_open(session: AsyncSession, tenant_id: UUID, labels: frozenset[str]) -> None:
    """Raises Conflict where one of the labels is of a closed matter: nothing more is filed there."""
    closed = owned(Matter, tenant_id).where(Matter.label.in_(labels), Matter.closed_at.is_not(None))
    if matter := await session.scalar(closed.order_by(Matter.label).limit(1)):
        raise Conflict(f"The matter {matter.label!r} is closed.")


def _may_know(actor: Principal, matter: Matter) -> bool:
    return matter.label in actor.labels or (Scope.ADMIN in actor.scopes and matter.label not in actor.denied)


def _may_change(actor: Principal, user: User, matter: Matter, *, gives: bool) -> None:
    require_change(actor, user.id, user.role, {"labels": [matter.label] if gives else []})


async def _let_in(session: AsyncSession, actor: Principal, matter: Matter) -> None:
    """The maker, unless it is an operator from another tenant."""
    if await session.scalar(owned(User, matter.tenant_id).where(User.id == actor.user_id)):
        session.add(MatterMember(tenant_id=matter.tenant_id, matter_id=matter.id, user_id=actor.user_id, access=ALLOW))
    if key := await session.scalar(owned(ApiKey, matter.tenant_id).where(ApiKey.id == actor.key_id)):
        key.labels = sorted({*key.labels, matter.label})


async def _noted(session: AsyncSession, actor: Principal, action: str, matter: Matter, detail: dict[str, Any]) -> None:
    await audit.append(session, audit.actor_of(actor), action, f"matter:{matter.id}", matter.tenant_id, detail)
