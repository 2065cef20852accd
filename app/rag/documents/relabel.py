"""A document's matters change: in one commit for everything that asks the database, then in the index.

Until the index has followed, the fence of `search` holds: who lost the document is not shown it, who gained it finds
it a moment later.
"""

import asyncio
from uuid import UUID

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.db import Database, owned, take_turn
from app.jobs import QUEUED, RUNNING, Job, Progress
from app.rag.documents.background import Background
from app.rag.documents.chunking import Chunk
from app.rag.documents.service import DocumentService, get_visible, labels_of
from app.rag.index.base import VectorIndex
from app.rag.index.embedding import Embedder
from app.rag.index.points import DocumentVersion as IndexedDocument
from app.rag.index.points import chunk_points, document_point
from app.rag.models import PENDING, Document, DocumentLabel, DocumentVersion
from app.rag.models import Chunk as ChunkRow
from app.rag.retrieval.rights import Rights
from app.tenants import audit
from app.tenants.matters import require_open
from app.tenants.principal import Principal, Scope

REINDEX = "reindex"
BATCH = 32
WAIT_SECONDS = 0.5  # before looking again whether a version on its way has arrived


class Relabelling:
    """Changes what a document is filed under."""

    def __init__(self, database: Database, rights: Rights) -> None:
        self._database = database
        self._rights = rights

    async def relabel(self, principal: Principal, document_id: UUID, labels: frozenset[str]) -> None:
        """Raises NotFound for who cannot see it, Forbidden for a label not held, and for taking one away, which lets
        others in, without the scope `admin`; Conflict for a closed matter.
        """
        principal.require_labels(labels)
        async with self._database.session() as session:
            await take_turn(session, Document, document_id)
            await get_visible(session, principal, document_id)
            before = (await labels_of(session, {document_id}))[document_id]
            if before - labels:
                principal.require(Scope.ADMIN)
            await require_open(session, principal.tenant_id, labels - before)
            if before == labels:
                return
            await session.execute(delete(DocumentLabel).where(DocumentLabel.document_id == document_id))
            session.add_all(DocumentLabel(document_id=document_id, label=label) for label in labels)
            session.add(reindexing(principal.tenant_id, document_id))
            detail = {"from": sorted(before), "to": sorted(labels)}
            who, what = audit.actor_of(principal), f"document:{document_id}"
            await audit.append(session, who, "document.labels", what, principal.tenant_id, detail)
            await session.commit()
        self._rights.changed()


def reindexing(tenant_id: UUID, document_id: UUID) -> Job:
    """A job that makes the document's points anew."""
    payload = {"document_id": str(document_id), "version": 0}
    return Job(id=uuid7(), tenant_id=tenant_id, kind=REINDEX, payload=payload)


class Reindexing:
    """Handler of `reindex` jobs: the points of the current version, from what the database holds now."""

    def __init__(
        self,
        database: Database,
        documents: DocumentService,
        index: VectorIndex,
        embedder: Embedder,
        background: Background,
    ) -> None:
        self._database = database
        self._documents = documents
        self._index = index
        self._embedder = embedder
        self._background = background

    async def __call__(self, job: Job, progress: Progress) -> None:
        document_id = UUID(job.payload["document_id"])
        facts = await self._facts(job.tenant_id, document_id)
        while facts:
            await self._restore(facts, progress)
            after = await self._facts(job.tenant_id, document_id)
            if after is None or after.version != facts.version:  # deleted or replaced meanwhile, and just put back
                await asyncio.to_thread(self._index.delete_document, facts.tenant, facts.document_id, facts.version)
            facts = after if after != facts else None
        await self._after_what_is_on_its_way(job, document_id)

    async def _restore(self, facts: IndexedDocument, progress: Progress) -> None:
        text, chunks = await self._content(facts)
        for first in range(0, len(chunks), BATCH):
            await progress.report("index", first, len(chunks))
            batch = chunks[first : first + BATCH]
            points = await self._background.run(chunk_points, facts, text, batch, self._embedder)
            await asyncio.to_thread(self._index.upsert, points)
        point = await self._background.run(document_point, facts, text, self._embedder)
        await asyncio.to_thread(self._index.upsert, [point])
        await progress.report("index", len(chunks), len(chunks))

    async def _facts(self, tenant_id: UUID, document_id: UUID) -> IndexedDocument | None:
        """None where nothing of the document is to be found: it has gone, or no version is ready yet."""
        async with self._database.session() as session:
            document = await session.scalar(owned(Document, tenant_id).where(Document.id == document_id))
            if document is None or document.current_version is None:
                return None
            labels = (await labels_of(session, {document_id}))[document_id]
        return IndexedDocument(
            tenant=str(tenant_id),
            document_id=str(document_id),
            version=document.current_version,
            collection=document.collection,
            labels=tuple(sorted(labels)),
            title=document.title,
            filename=document.filename,
        )

    async def _content(self, facts: IndexedDocument) -> tuple[str, list[Chunk]]:
        tenant_id, document_id = UUID(facts.tenant), UUID(facts.document_id)
        async with self._database.session() as session:
            source = await self._documents.source(session, tenant_id, document_id, facts.version)
            rows = owned(ChunkRow, tenant_id).where(
                ChunkRow.document_id == document_id, ChunkRow.version == facts.version
            )
            chunks = await session.scalars(rows.order_by(ChunkRow.ordinal))
            return source.text, [Chunk(row.ordinal, row.start, row.end, tuple(row.section)) for row in chunks]

    async def _after_what_is_on_its_way(self, job: Job, document_id: UUID) -> None:
        """A version that is being ingested took its labels when it began: look again when it is there."""
        async with self._database.session() as session:
            if not await _pending(session, job.tenant_id, document_id):
                return
            await asyncio.sleep(WAIT_SECONDS)
            session.add(reindexing(job.tenant_id, document_id))
            await session.commit()


async def _pending(session: AsyncSession, tenant_id: UUID, document_id: UUID) -> bool:
    versions = owned(DocumentVersion, tenant_id).where(
        DocumentVersion.document_id == document_id, DocumentVersion.status == PENDING
    )
    on_its_way = versions.join(Job, Job.id == DocumentVersion.job_id).where(Job.status.in_((QUEUED, RUNNING)))
    return await session.scalar(on_its_way.limit(1)) is not None
