"""The ingestion job: original → text → chunks → vectors → index, then one commit that makes the version current.

Every stage can run again: points and chunks of a half-done attempt are replaced. Until the commit, nobody is shown
anything of the new version; after it, nothing of the old one. The commit counts only for the attempt that holds the
job: cancelled or overtaken, it takes its points away again.
"""

from dataclasses import asdict
from uuid import UUID

from sqlalchemy import delete, or_, update

from app.db import Database, get_owned, owned, take_turn
from app.errors import AppError, NotFound
from app.jobs import Job, Progress, Superseded
from app.rag.documents.background import Background
from app.rag.documents.chunking import Chunk, chunk
from app.rag.documents.facts import Fact
from app.rag.documents.facts import facts as facts_in
from app.rag.documents.filters import rows
from app.rag.documents.service import FileStore, labels_of, pack_boxes
from app.rag.forget import Forgetting
from app.rag.index.base import VectorIndex
from app.rag.index.embedding import Embedder
from app.rag.index.points import DocumentVersion as IndexedDocument
from app.rag.index.points import chunk_id, chunk_points, document_point
from app.rag.models import FAILED, READY, Document, DocumentFact, DocumentVersion
from app.rag.models import Chunk as ChunkRow
from app.rag.parsing import ParsedDocument, parse

BATCH = 32  # chunks embedded between two progress reports


class Ingestion:
    """Handler of `ingest` jobs."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        index: VectorIndex,
        embedder: Embedder,
        chunk_characters: int,
        forgetting: Forgetting,
        background: Background,
    ) -> None:
        self._database = database
        self._files = files
        self._index = index
        self._embedder = embedder
        self._chunk_characters = chunk_characters
        self._forgetting = forgetting
        self._background = background

    async def __call__(self, job: Job, progress: Progress) -> None:
        """Raises UnreadableDocument and kin, after noting the reason on the version."""
        document, version, labels = await self._load(job)
        if version.status == READY:  # the last attempt died between its commit and the end of the job
            await self._forget_older(document, version)
            return
        try:
            await self._ingest(document, version, labels, progress)
        except AppError as error:
            await self._fail(version, progress, error.detail)
            raise
        except Superseded as gone:
            if gone.cancelled:
                await self._remove_points(document, version)
            raise
        except Exception:
            await self._fail(version, progress, "The server made a mistake while ingesting this; it has been logged.")
            raise

    async def _load(self, job: Job) -> tuple[Document, DocumentVersion, frozenset[str]]:
        document_id, number = UUID(job.payload["document_id"]), job.payload["version"]
        async with self._database.session() as session:
            document = await get_owned(session, Document, job.tenant_id, document_id)
            version = await session.scalar(
                owned(DocumentVersion, job.tenant_id).where(
                    DocumentVersion.document_id == document_id, DocumentVersion.version == number
                )
            )
            if version is None:
                raise NotFound(f"The document {document_id} has no version {number}.")
            return document, version, (await labels_of(session, {document_id}))[document_id]

    async def _ingest(
        self, document: Document, version: DocumentVersion, labels: frozenset[str], progress: Progress
    ) -> None:
        await progress.report("parse", 0, 1)
        data = await self._files.read(version)
        parsed = await self._background.run(parse, data, version.filename, version.media_type or None)
        await progress.report("chunk", 0, 1)
        chunks = await self._background.run(chunk, parsed.text, parsed.headings, parsed.pages, self._chunk_characters)
        facts = IndexedDocument(
            tenant=str(document.tenant_id),
            document_id=str(document.id),
            version=version.version,
            collection=document.collection,
            labels=tuple(sorted(labels)),
            title=parsed.title,
            filename=version.filename,
        )
        await self._index_points(facts, parsed, chunks, progress)
        found = await self._background.run(facts_in, parsed.text)
        await self._publish(document, version, parsed, chunks, found, progress)

    async def _index_points(
        self, facts: IndexedDocument, parsed: ParsedDocument, chunks: list[Chunk], progress: Progress
    ) -> None:
        """Embed and store, batch by batch; what a half-done attempt left goes first."""
        await self._background.run(self._index.delete_document, facts.tenant, facts.document_id, facts.version)
        for first in range(0, len(chunks), BATCH):
            await progress.report("embed", first, len(chunks))
            batch = chunks[first : first + BATCH]
            points = await self._background.run(chunk_points, facts, parsed.text, batch, self._embedder)
            await self._background.run(self._index.upsert, points)
        await progress.report("index", len(chunks), len(chunks))
        point = await self._background.run(document_point, facts, parsed.text, self._embedder)
        await self._background.run(self._index.upsert, [point])

    async def _publish(
        self,
        document: Document,
        version: DocumentVersion,
        parsed: ParsedDocument,
        chunks: list[Chunk],
        found: list[Fact],
        progress: Progress,
    ) -> None:
        """One commit: text, chunks, facts and the current version; then the points of older versions go."""
        packed = await self._background.run(pack_boxes, parsed.boxes) if parsed.boxes is not None else None
        values = {
            "status": READY,
            "error": None,
            "text": parsed.text,
            "pages": [asdict(page) for page in parsed.pages],
            "boxes": packed,
            "media_type": parsed.media_type,
        }
        current = {
            "current_version": version.version,
            "title": parsed.title[:500],
            "filename": version.filename,
        }
        older = or_(Document.current_version.is_(None), Document.current_version < version.version)
        async with self._database.session() as session:
            await progress.hold(session)
            published = await take_turn(session, Document, document.id)
            if published:
                for table in (ChunkRow, DocumentFact):  # of a half-done attempt
                    await session.execute(
                        delete(table).where(table.document_id == document.id, table.version == version.version)
                    )
                session.add_all(_row(version, one) for one in chunks)
                session.add_all(rows(document.tenant_id, document.id, version.version, found))
                await session.execute(update(DocumentVersion).where(DocumentVersion.id == version.id).values(**values))
                mine = update(Document).where(Document.id == document.id, older)
                published = bool((await session.execute(mine.values(**current))).rowcount)  # type: ignore[attr-defined]
            await session.commit()
        if published:
            await self._forget_older(document, version)
        else:  # deleted or overtaken while we worked
            await self._remove_points(document, version)

    async def _forget_older(self, document: Document, version: DocumentVersion) -> None:
        await self._forgetting.versions_before(document.id, version.version)
        for old in range(1, version.version):
            await self._background.run(self._index.delete_document, str(document.tenant_id), str(document.id), old)

    async def _remove_points(self, document: Document, version: DocumentVersion) -> None:
        owner, name = str(document.tenant_id), str(document.id)
        await self._background.run(self._index.delete_document, owner, name, version.version)

    async def _fail(self, version: DocumentVersion, progress: Progress, reason: str) -> None:
        async with self._database.session() as session:
            await progress.hold(session)
            failed = update(DocumentVersion).where(DocumentVersion.id == version.id)
            await session.execute(failed.values(status=FAILED, error=reason))
            await session.commit()


def _row(version: DocumentVersion, one: Chunk) -> ChunkRow:
    return ChunkRow(
        id=UUID(chunk_id(str(version.document_id), version.version, one.ordinal)),
        tenant_id=version.tenant_id,
        document_id=version.document_id,
        version=version.version,
        ordinal=one.ordinal,
        start=one.start,
        end=one.end,
        section=list(one.section),
    )
