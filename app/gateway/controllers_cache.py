"""/api/v1/cache/semantic: what the semantic cache holds for the tenant, what it saved, and emptying it."""

from datetime import datetime
from uuid import UUID

from litestar import Controller, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct

from app.db import Database
from app.errors import NotFound
from app.gateway.models import CachedAnswer
from app.gateway.service import Gateway
from app.tenants import audit
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class SemanticCacheView(Struct):
    """Lookups are this process's since its start; entries and what they saved are those the caller may see.

    Saved: cost, waiting and tokens of the answers that need not be written again.
    """

    enabled: bool
    hits: int
    drafts: int
    misses: int
    entries: int
    saved_micros: int
    saved_ms: float
    saved_tokens: int


class CacheEntryView(Struct):
    """`slots`: what another question must have in common, word for word. `documents`: those that the answer cites."""

    id: UUID
    created_at: datetime
    until: datetime
    question: str
    answer: str
    slots: list[str]
    labels: list[str]
    documents: list[str]
    target: str
    hits: int


class CacheEntryList(Struct):
    entries: list[CacheEntryView]


class Purged(Struct):
    entries: int


class SemanticCacheController(Controller):
    path = "/api/v1/cache/semantic"
    tags = ("cache",)
    guards = (requires_scope(Scope.ADMIN),)

    @get(summary="What the semantic cache holds and saved")
    async def state(
        self, principal: NamedDependency[Principal], gateway: NamedDependency[Gateway]
    ) -> SemanticCacheView:
        cache = gateway.semantic
        counts, rows = cache.counts(principal.tenant_id), await cache.visible(principal)
        return SemanticCacheView(
            enabled=cache.enabled,
            hits=counts.hits,
            drafts=counts.drafts,
            misses=counts.misses,
            entries=len(rows),
            saved_micros=sum(row.hits * row.cost_micros for row in rows),
            saved_ms=sum(row.hits * row.total_ms for row in rows),
            saved_tokens=sum(row.hits * row.completion_tokens for row in rows),
        )

    @get("/entries", summary="Its entries, newest first")
    async def entries(self, principal: NamedDependency[Principal], gateway: NamedDependency[Gateway]) -> CacheEntryList:
        """Those whose every matter the caller holds."""
        return CacheEntryList([_view(row) for row in await gateway.semantic.visible(principal)])

    @delete(status_code=200, summary="Empty it")
    async def purge(
        self,
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
        database: NamedDependency[Database],
    ) -> Purged:
        """Of the entries that the caller may see."""
        count = await gateway.semantic.purge(principal)
        await _note(database, principal, "cache.purge", {"entries": count})
        return Purged(count)

    @delete("/entries/{entry_id:uuid}", status_code=204, summary="Drop one entry")
    async def drop(
        self,
        entry_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
        database: NamedDependency[Database],
    ) -> None:
        if not await gateway.semantic.purge(principal, entry_id):
            raise NotFound(f"There is no cache entry {entry_id}.")
        await _note(database, principal, "cache.drop", {"entry": str(entry_id)})


async def _note(database: Database, principal: Principal, action: str, detail: dict[str, object]) -> None:
    async with database.session() as session:
        await audit.append(session, audit.actor_of(principal), action, "semantic cache", principal.tenant_id, detail)
        await session.commit()


def _view(row: CachedAnswer) -> CacheEntryView:
    return CacheEntryView(
        id=row.id,
        created_at=row.created_at,
        until=row.until,
        question=row.question,
        answer=row.answer,
        slots=row.slots,
        labels=row.labels,
        documents=sorted({document for _, document, _ in row.cited}),
        target=row.target,
        hits=row.hits,
    )
