"""Does the index hold exactly what the database says? After a kill -9, a restored backup, or by command.

Expected is one point for each chunk with ink of a document's current version, and one for the document itself, all
under the document's labels of now. Versions that are being ingested are left alone.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, owned
from app.jobs import QUEUED, RUNNING, Job
from app.rag.documents.relabel import reindexing
from app.rag.documents.service import DocumentService, labels_of
from app.rag.index.base import KINDS, Hit, SearchFilter, VectorIndex
from app.rag.index.points import chunk_id
from app.rag.models import PENDING, Chunk, Document, DocumentVersion
from app.tenants.models import Tenant

SCAN = 1000  # points read at a time


@dataclass
class Report:
    """Of one tenant. `missing`: points that should be there. `stale`: points of versions that are not current.
    `mislabelled`: points that a caller with the document's labels does not get. `orphans`: points of no document.
    """

    tenant: str
    documents: int = 0
    chunks: int = 0
    points: int = 0
    missing: int = 0
    stale: int = 0
    mislabelled: int = 0
    orphans: int = 0
    repaired: int = 0

    @property
    def clean(self) -> bool:
        return not (self.missing or self.stale or self.mislabelled or self.orphans)


@dataclass
class _Finding:
    """`stale`: number of points by version. `points` are all of the document."""

    expected: int = 0
    points: int = 0
    missing: int = 0
    mislabelled: int = 0
    stale: Counter[int] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.mislabelled or self.stale)


class Reconciler:
    """Compares, and on demand repairs: stale and orphaned points are deleted, documents with others made anew."""

    def __init__(self, database: Database, documents: DocumentService, index: VectorIndex, dimension: int) -> None:
        self._database = database
        self._documents = documents
        self._index = index
        self._probe = np.full(dimension, dimension**-0.5, dtype=np.float32)

    async def run(self, *, repair: bool, tenant_id: UUID | None = None) -> list[Report]:
        """One report a tenant, all of them or this one."""
        async with self._database.session() as session:
            rows = select(Tenant).order_by(Tenant.name)
            tenants = list(await session.scalars(rows.where(Tenant.id == tenant_id) if tenant_id else rows))
        return [await self._tenant(tenant, repair=repair) for tenant in tenants]

    async def _tenant(self, tenant: Tenant, *, repair: bool) -> Report:
        report, known = Report(tenant.name), 0
        # Counted first: what is filed meanwhile makes no orphans.
        report.points = await asyncio.to_thread(self._index.count, str(tenant.id), kind=None)
        async with self._database.session() as session:
            ids = list(await session.scalars(owned(Document, tenant.id).with_only_columns(Document.id)))
        for document_id in ids:
            finding = await self._find(tenant.id, document_id)
            if not finding.clean:  # a second look: it may have changed under the first
                finding = await self._find(tenant.id, document_id)
            known += finding.points
            _add(report, finding)
            if repair and not finding.clean:
                report.repaired += await self._repair(tenant.id, document_id, finding)
        report.orphans = max(0, report.points - known)
        if repair and report.orphans:
            report.repaired += await self._erase_orphans(tenant.id)
        return report

    async def _find(self, tenant_id: UUID, document_id: UUID) -> _Finding:
        """First what the index holds, then what it should: a version that was published in between is current, and
        one that is not yet is on its way.
        """
        async with self._database.session() as session:
            labels = (await labels_of(session, {document_id}))[document_id]
            points, hits = await asyncio.to_thread(self._look, str(tenant_id), str(document_id), labels)
            moving = await _on_their_way(session, tenant_id, document_id)
            row = owned(Document, tenant_id).where(Document.id == document_id)
            document = await session.scalar(row.execution_options(populate_existing=True))
            expected = await self._expected(session, document) if document else set()
        current = document.current_version if document else None
        here = {hit.chunk_id for hit in hits if hit.version == current}
        return _Finding(
            expected=len(expected),
            points=points,
            missing=len(expected - here),
            mislabelled=points - len(hits),
            stale=Counter(hit.version for hit in hits if hit.version != current and hit.version not in moving),
        )

    def _look(self, tenant: str, document_id: str, labels: frozenset[str]) -> tuple[int, list[Hit]]:
        """(number of the document's points, those of them that a caller with its labels gets)."""
        points = 0
        hits: list[Hit] = []
        for kind in KINDS:
            count = self._index.count(tenant, document_id, kind=kind)
            where = SearchFilter(tenant, labels, None, (document_id,))
            hits += self._index.search(self._probe, None, where, count, kind=kind).dense if count else ()
            points += count
        return points, hits

    async def _expected(self, session: AsyncSession, document: Document) -> set[str]:
        """Ids of the points that the current version has."""
        version = document.current_version
        if version is None:
            return set()
        source = await self._documents.source(session, document.tenant_id, document.id, version)
        rows = owned(Chunk, document.tenant_id).where(Chunk.document_id == document.id, Chunk.version == version)
        chunks = await session.scalars(rows)
        inked = {str(chunk.id) for chunk in chunks if source.text[chunk.start : chunk.end].strip()}
        return inked | {chunk_id(str(document.id), version, 0, "document")}

    async def _repair(self, tenant_id: UUID, document_id: UUID, finding: _Finding) -> int:
        for version in finding.stale:
            await asyncio.to_thread(self._index.delete_document, str(tenant_id), str(document_id), version)
        async with self._database.session() as session:
            tried_again = set(finding.stale) & await _on_their_way(session, tenant_id, document_id)
            if finding.missing or finding.mislabelled or tried_again:
                session.add(reindexing(tenant_id, document_id))
                await session.commit()
        return 1

    async def _erase_orphans(self, tenant_id: UUID) -> int:
        """Delete the points of documents that the database does not know."""
        named = await asyncio.to_thread(self._named, str(tenant_id))
        async with self._database.session() as session:
            # Asked after the index: a document is there before its points are.
            known = set(await session.scalars(owned(Document, tenant_id).with_only_columns(Document.id)))
        gone = {document_id for document_id in named if UUID(document_id) not in known}
        for document_id in gone:
            await asyncio.to_thread(self._index.delete_document, str(tenant_id), document_id)
        return len(gone)

    def _named(self, tenant: str) -> set[str]:
        """Ids of all documents of which the index has points."""
        named: set[str] = set()
        for kind in KINDS:
            points, after = self._index.scan(kind, None, SCAN)
            while points:
                named |= {point.payload["document_id"] for point in points if point.payload["tenant"] == tenant}
                points, after = self._index.scan(kind, after, SCAN) if after else ([], None)
        return named


def _add(report: Report, finding: _Finding) -> None:
    report.documents += 1
    report.chunks += max(0, finding.expected - 1)
    report.missing += finding.missing
    report.stale += finding.stale.total()
    report.mislabelled += finding.mislabelled


async def _on_their_way(session: AsyncSession, tenant_id: UUID, document_id: UUID) -> set[int]:
    """Versions whose job is waiting or at work: what the index holds of them is theirs."""
    pending = owned(DocumentVersion, tenant_id).where(
        DocumentVersion.document_id == document_id, DocumentVersion.status == PENDING
    )
    alive = pending.join(Job, Job.id == DocumentVersion.job_id).where(Job.status.in_((QUEUED, RUNNING)))
    return set(await session.scalars(alive.with_only_columns(DocumentVersion.version)))
