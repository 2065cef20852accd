"""Which matters somebody holds: labels given, memberships and inheritance, less what is denied.

A label given to a key or a person counts like membership of its matter. Membership reaches down to the matters below;
so does a denial, and it wins over everything. Labels without a matter stand for themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Select, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.db import owned
from app.tenants.models import Matter, MatterMember

ALLOW, DENY = "allow", "deny"


@dataclass(frozen=True)
class Held:
    """Labels that may be read, and those that must not, whatever else says so."""

    labels: frozenset[str]
    denied: frozenset[str] = frozenset()


async def held(session: AsyncSession, tenant_id: UUID, given: Iterable[str], user_id: UUID | None = None) -> Held:
    """What a person (`user_id`) or key with the labels `given` holds now."""
    labels = frozenset(given)
    if not labels and user_id is None:
        return Held(labels)
    reached = await _labels(session, _below(_start(tenant_id, user_id, ALLOW, labels)))
    denied = await _labels(session, _below(_start(tenant_id, user_id, DENY))) if user_id else frozenset()
    return Held((labels | reached) - denied, denied)


def _start(
    tenant_id: UUID, user_id: UUID | None, access: str, labels: frozenset[str] = frozenset()
) -> Select[tuple[UUID, str]]:
    """The matters that are named: by membership of this kind, or by label."""
    mine = owned(MatterMember, tenant_id).where(MatterMember.user_id == user_id, MatterMember.access == access)
    named = or_(Matter.id.in_(mine.with_only_columns(MatterMember.matter_id)), Matter.label.in_(labels))
    return owned(Matter, tenant_id).where(named).with_only_columns(Matter.id, Matter.label)


def _below(start: Select[tuple[UUID, str]]) -> Select[tuple[str]]:
    """Labels of these matters and of all below them; a UNION ends also where there were a circle."""
    reached = start.cte(recursive=True)
    child = aliased(Matter)
    reached = reached.union(select(child.id, child.label).join(reached, child.parent_id == reached.c.id))
    return select(reached.c.label)


async def _labels(session: AsyncSession, query: Select[tuple[str]]) -> frozenset[str]:
    return frozenset(await session.scalars(query))
