"""The ingestion job: original → text → chunks → vectors → index, then one commit that makes the version current.

Every stage can run again: points and chunks of a half-done attempt are replaced. Until the commit, nobody is shown
anything of the new version; after it, nothing of the old one.
"""

import asyncio
from dataclasses import asdict
from uuid import UUID, uuid5

from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, get_owned, owned
from app.errors import AppError, NotFound
from app.jobs import Job, Progress
from app.rag.chunking import Chunk, chunk
from app.rag.documents import FileStore, labels_of, pack_boxes
from app.rag.embedding import Embedder
from app.rag.index import IndexPoint, VectorIndex
from app.rag.models import FAILED, READY, Document, DocumentVersion
from app.rag.models import Chunk as ChunkRow
from app.rag.parsing import ParsedDocument, parse
from app.rag.retrieval import chunk_points, document_point

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
    ) -> None:
        self._database = database
        self._files = files
        self._index = index
        self._embedder = embedder
        self._chunk_characters = chunk_characters

    async def __call__(self, job: Job, progress: Progress) -> None:
        """Raises UnreadableDocument and kin, after noting the reason on the version."""
        document, version, labels = await self._load(job)
        try:
            await self._ingest(document, version, labels, progress)
        except AppError as error:
            await self._fail(version, error)
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
        parsed = await asyncio.to_thread(parse, data, version.filename, version.media_type or None)
        await progress.report("chunk", 0, 1)
        chunks = await asyncio.to_thread(
            chunk, parsed.text, parsed.headings, parsed.pages, self._chunk_characters
        )
        rows = _chunk_rows(version, chunks)
        await self._index_points(document, version, labels, parsed, chunks, rows, progress)
        await self._publish(document, version, parsed, rows)

    async def _index_points(
        self,
        document: Document,
        version: DocumentVersion,
        labels: frozenset[str],
        parsed: ParsedDocument,
        chunks: list[Chunk],
        rows: list[ChunkRow],
        progress: Progress,
    ) -> None:
        raise NotImplementedError

    async def _publish(
        self, document: Document, version: DocumentVersion, parsed: ParsedDocument, rows: list[ChunkRow]
    ) -> None:
        """One commit: text, chunks and the current version; then the old version's points go."""
        packed = await asyncio.to_thread(pack_boxes, parsed.boxes) if parsed.boxes is not None else None
        values = {
            "status": READY,
            "text": parsed.text,
            "pages": [asdict(page) for page in parsed.pages],
            "boxes": packed,
            "media_type": parsed.media_type,
        }
        async with self._database.session() as session:
            await self._replace_chunks(session, version, rows)
            await session.execute(
                update(DocumentVersion).where(DocumentVersion.id == version.id).values(**values)
            )
            current = {
                "current_version": version.version,
                "title": parsed.title,
                "filename": version.filename,
            }
            await session.execute(update(Document).where(Document.id == document.id).values(**current))
            await session.commit()
        for old in range(1, version.version):
            await asyncio.to_thread(
                self._index.delete_document, str(document.tenant_id), str(document.id), old
            )
