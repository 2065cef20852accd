"""What was done, by whom: an append-only chain in which every entry holds the hash of the one before.

Who can write to the database can still replace the whole chain; `precedent audit verify` prints its last hash, which
kept elsewhere shows that too.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import now
from app.errors import AppError
from app.tenants.models import AuditEntry, AuditHead
from app.tenants.principal import Principal

CLI = "command line"
GENESIS = "0" * 64
BATCH = 1_000


class BrokenChain(AppError):
    code = "audit_chain_broken"


@dataclass(frozen=True)
class Chain:
    """A chain that was found whole."""

    entries: int
    head: str


def actor_of(principal: Principal | None) -> str:
    if principal is None:
        return CLI
    return f"user:{principal.user_id}" if principal.key_id is None else f"key:{principal.key_id}"


async def append(
    session: AsyncSession,
    actor: str,
    action: str,
    object_: str,
    tenant_id: UUID | None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Add an entry to the session's transaction: it is committed with what it tells of, or not at all.

    Moving the head first locks it until the transaction ends, so that entries of all replicas make one chain.
    """
    moved = update(AuditHead).values(seq=AuditHead.seq + 1).returning(AuditHead.seq, AuditHead.hash)
    seq, previous = (await session.execute(moved)).one()
    entry = AuditEntry(
        seq=seq,
        tenant_id=tenant_id,
        actor=actor,
        action=action,
        object=object_[:200],
        detail=json.loads(json.dumps(dict(detail or {}), default=str)),
        previous_hash=previous,
        created_at=now(),
        hash="",
    )
    entry.hash = digest(entry)
    session.add(entry)
    await session.execute(update(AuditHead).values(hash=entry.hash))


async def take_turn(session: AsyncSession) -> None:
    """For what belongs to no tenant: whoever takes this turn or appends waits until the transaction ends."""
    await session.execute(update(AuditHead).values(created_at=AuditHead.created_at))


def digest(entry: AuditEntry) -> str:
    """SHA-256 of the entry with the hash of the one before, as JSON with sorted keys."""
    said = {
        "seq": entry.seq,
        "tenant_id": str(entry.tenant_id) if entry.tenant_id else None,
        "actor": entry.actor,
        "action": entry.action,
        "object": entry.object,
        "detail": entry.detail,
        "at": _time(entry.created_at),
        "previous": entry.previous_hash,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


async def verify(session: AsyncSession) -> Chain:
    """Walk the chain from its beginning to its end. Raises BrokenChain with the first entry that is not as it was.

    Others may append meanwhile: the end lies between where the head was before and where it is after.
    """
    least = (await _head(session)).entries
    expected, seq = GENESIS, 0
    while True:
        batch = select(AuditEntry).where(AuditEntry.seq > seq).order_by(AuditEntry.seq).limit(BATCH)
        entries = list(await session.scalars(batch))
        for entry in entries:
            seq += 1
            if entry.seq != seq:
                raise BrokenChain(f"Entry {seq} of the audit log is missing.")
            if entry.previous_hash != expected or entry.hash != digest(entry):
                raise BrokenChain(f"Entry {seq} of the audit log was changed.")
            expected = entry.hash
        if len(entries) < BATCH:
            break
    after = await _head(session)
    if not least <= seq <= after.entries or (seq == after.entries and expected != after.head):
        raise BrokenChain(f"The audit log ends after entry {seq}, but {after.entries} were written.")
    return Chain(seq, expected)


async def _head(session: AsyncSession) -> Chain:
    return Chain(*(await session.execute(select(AuditHead.seq, AuditHead.hash))).one())


def _time(at: datetime) -> str:
    return at.isoformat(timespec="microseconds")
