"""The semantic cache: a like question, of the same caller's rights, whose cited passages were found again just now.

It never embeds and never retrieves: rag hands it what it found (`CacheQuery`). Every gate must let an answer pass:
  partition  tenant, the caller's very labels, model, prompt and filters: a partition, not a filter
  evidence   every passage the answer cites is among those found now, in the same version
  slots      negation, numbers, dates, parties, duties ... are the same: no similarity tells these apart
  threshold  the similarity above which wrong answers are provably rare here (threshold.py)
All pass: a hit. Slots or threshold unsure: a draft, which the model verifies while it answers anew, so that a false
guess costs time and nothing else. Whether the fresh answer agrees with the kept one is what the threshold learns from;
some hits are drafted for that alone.
"""

import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.config import CacheSettings
from app.db import Database, now, owned
from app.gateway.cache.exact import CacheControl
from app.gateway.cache.kept import CacheQuery, Checked, Kept, Lookup, Partition
from app.gateway.cache.threshold import Threshold
from app.gateway.models import CachedAnswer, CacheOutcome
from app.gateway.schemas import ChatRequest
from app.tenants.principal import Principal

REFRESH_SECONDS = 30.0  # after which a partition is read anew, so that replicas see each other's answers
MAX_PARTITIONS = 2_000
MAX_OUTCOMES = 1_000  # the latest, of a partition
DRAFT_FLOOR = 0.6  # below it the kept answer would only be in the way


@dataclass
class Counts:
    hits: int = 0
    drafts: int = 0
    misses: int = 0


class SemanticCache:
    """Entries are in the database; partitions in use also in memory."""

    def __init__(
        self,
        database: Database,
        settings: CacheSettings,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._settings = settings
        self._rng = rng or random.Random()
        self._clock = clock
        self._partitions: OrderedDict[str, Partition] = OrderedDict()
        self._counts: dict[UUID, Counts] = {}

    @property
    def enabled(self) -> bool:
        return self._settings.semantic_seconds > 0

    def counts(self, tenant_id: UUID) -> Counts:
        """Of this process, since its start."""
        return self._counts.setdefault(tenant_id, Counts())

    async def find(self, principal: Principal, request: ChatRequest, query: CacheQuery) -> Lookup:
        """What is kept for such a question. Counted."""
        found = await self.look(principal, request, query)
        if found.outcome == "hit" and self._rng.random() < self._settings.semantic_audit:
            found = replace(found, outcome="draft", reason=f"verified by sample ({found.reason})")
        counts = self.counts(principal.tenant_id)
        match found.outcome:
            case "hit":
                counts.hits += 1
                await self._used(found)
            case "draft":
                counts.drafts += 1
            case "miss":
                counts.misses += 1
        return found

    async def look(self, principal: Principal, request: ChatRequest, query: CacheQuery) -> Lookup:
        """As find, but nothing is counted, and no hit is verified by sample."""
        name = partition_of(principal, request, query)
        if not self.enabled or not CacheControl.of(request.cache_control).read:
            return Lookup("miss", "not asked for", name)
        partition = await self._partition(principal.tenant_id, name)
        judged = [
            self._judge(similarity, entry, query, partition.threshold.value, name)
            for similarity, entry in partition.nearest(query.vector)
        ]
        for outcome in ("hit", "draft", "miss"):
            for found in judged:
                if found.outcome == outcome:
                    return found
        return Lookup("miss", "nothing is kept yet", name)

    def _judge(self, similarity: float, entry: Kept, query: CacheQuery, threshold: float, name: str) -> Lookup:
        def miss(reason: str) -> Lookup:
            return Lookup("miss", reason, name, similarity)

        if entry.until <= self._clock():
            return miss("too old")
        if not entry.cited <= set(query.evidence):
            return miss("what it cites is not among the passages found now")
        passing = Lookup("hit", "all gates passed", name, similarity, entry.as_numbered_in(query.evidence), entry)
        if entry.asks(query.question) and entry.evidence == query.evidence:
            return replace(passing, reason="the same question and passages")
        if different := entry.slots ^ query.slots:
            reason = f"differs in {', '.join(sorted(different)[:4])}"
        elif similarity >= threshold:
            return passing
        else:
            reason = f"{similarity:.3f} alike, needed here: {threshold:.3f}"
        return (
            miss("no like question") if similarity < DRAFT_FLOOR else replace(passing, outcome="draft", reason=reason)
        )

    async def conclude(self, principal: Principal, request: ChatRequest, found: Lookup, fresh: Checked) -> None:
        """After a draft or a miss a fresh answer has come that may be kept.

        Nothing is learned from refusals or unchecked answers, which do not come here: whether the kept one was right
        is not known from them; nor where slots differ, since no similarity decides there.
        """
        query = request.cache_query
        if query is None:
            return
        agrees = found.entry is not None and found.entry.cited == fresh.cited
        if found.entry is not None and found.entry.slots == query.slots:
            await self._learn(principal.tenant_id, found, found.entry, agrees)
        if found.entry is not None and agrees and found.entry.asks(query.question):
            return
        if self.enabled and CacheControl.of(request.cache_control).store:
            await self._keep(principal, query, found.partition, fresh)

    async def _learn(self, tenant_id: UUID, found: Lookup, entry: Kept, agreed: bool) -> None:
        partition = await self._partition(tenant_id, found.partition)
        partition.threshold.learn(found.similarity, agreed)
        outcome = CacheOutcome(
            tenant_id=tenant_id, partition=found.partition, similarity=found.similarity, agreed=agreed
        )
        async with self._database.session() as session:
            session.add(outcome)
            await self._delete(session, [] if agreed else [entry.id])

    async def _keep(self, principal: Principal, query: CacheQuery, name: str, fresh: Checked) -> None:
        partition = await self._partition(principal.tenant_id, name)
        row = CachedAnswer(
            id=uuid7(),
            created_at=now(),
            tenant_id=principal.tenant_id,
            partition=name,
            labels=sorted(principal.labels),
            target=fresh.target,
            question=query.question,
            vector=query.vector.astype(np.float32).tobytes(),
            slots=sorted(query.slots),
            evidence=[source.row() for source in query.evidence],
            cited=[source.row() for source in sorted(fresh.cited, key=lambda source: source.chunk)],
            answer=fresh.text,
            until=now() + timedelta(seconds=self._settings.semantic_seconds),
            cost_micros=fresh.cost_micros,
            total_ms=fresh.total_ms,
            completion_tokens=fresh.completion_tokens,
            hits=0,
        )
        surplus = partition.entries[: max(0, len(partition.entries) + 1 - self._settings.semantic_entries)]
        async with self._database.session() as session:
            session.add(row)
            await self._delete(session, [entry.id for entry in surplus])
        partition.entries = [*partition.entries, Kept.of(row)]

    async def forget(self, sources: Collection[str]) -> None:
        """Drop what was made of these documents (`id`) or versions of them (`id/version`).

        It could not be served any more, since evidence is fenced; but text that must be gone is gone.
        """
        wanted = set(sources)
        async with self._database.session() as session:
            rows = (await session.execute(select(CachedAnswer.id, CachedAnswer.evidence))).all()
            await self._delete(session, [row_id for row_id, evidence in rows if _names(evidence) & wanted])

    async def purge(self, principal: Principal, entry_id: UUID | None = None) -> int:
        """Drop one entry, or all that the caller may see of its tenant; says how many."""
        gone = [row.id for row in await self.visible(principal) if entry_id in (None, row.id)]
        async with self._database.session() as session:
            await self._delete(session, gone)
        return len(gone)

    async def visible(self, principal: Principal) -> list[CachedAnswer]:
        """The tenant's entries whose every label the caller holds, newest first."""
        async with self._database.session() as session:
            rows = owned(CachedAnswer, principal.tenant_id).where(CachedAnswer.until > now())
            found = await session.scalars(rows.order_by(CachedAnswer.id.desc()))
            return [row for row in found if principal.labels.issuperset(row.labels)]

    async def _delete(self, session: AsyncSession, ids: list[UUID]) -> None:
        """From database and memory, with whatever else the session holds."""
        if ids:
            await session.execute(delete(CachedAnswer).where(CachedAnswer.id.in_(ids)))
        await session.commit()
        gone = set(ids)
        for partition in self._partitions.values():
            partition.entries = [entry for entry in partition.entries if entry.id not in gone]

    async def _used(self, found: Lookup) -> None:
        if found.entry is None:
            return
        async with self._database.session() as session:
            row = update(CachedAnswer).where(CachedAnswer.id == found.entry.id)
            await session.execute(row.values(hits=CachedAnswer.hits + 1))
            await session.commit()

    async def _partition(self, tenant_id: UUID, name: str) -> Partition:
        known = self._partitions.get(name)
        if known is not None and 0 <= self._clock() - known.read_at < REFRESH_SECONDS:
            self._partitions.move_to_end(name)
            return known
        rows = owned(CachedAnswer, tenant_id).where(CachedAnswer.partition == name, CachedAnswer.until > now())
        outcomes = owned(CacheOutcome, tenant_id).where(CacheOutcome.partition == name)
        async with self._database.session() as session:
            entries = [Kept.of(row) for row in await session.scalars(rows.order_by(CachedAnswer.id))]
            latest = outcomes.order_by(CacheOutcome.id.desc()).limit(MAX_OUTCOMES)
            seen = [(row.similarity, row.agreed) for row in await session.scalars(latest)]
        threshold = Threshold(self._settings.semantic_threshold, self._settings.semantic_max_error, seen)
        made = self._partitions[name] = Partition(self._clock(), entries, threshold)
        self._partitions.move_to_end(name)
        while len(self._partitions) > MAX_PARTITIONS:
            self._partitions.popitem(last=False)
        return made


def partition_of(principal: Principal, request: ChatRequest, query: CacheQuery) -> str:
    """SHA-256 of who may see the answer and of everything it depends on besides question and passages."""
    hints = sorted(request.hints.regions), request.hints.privileged
    parts = (str(principal.tenant_id), sorted(principal.labels), request.model, query.scope, hints)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _names(evidence: list[Any]) -> set[str]:
    return {name for _, document, version in evidence for name in (str(document), f"{document}/{version}")}
