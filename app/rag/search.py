"""Search as callers see it: the retriever's hits, checked against the database and given their text."""

import asyncio
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, owned
from app.errors import NotFound
from app.rag.chunking import Chunk
from app.rag.citations import Evidence
from app.rag.documents import DocumentService, get_visible, labels_of, visible
from app.rag.models import Chunk as ChunkRow
from app.rag.models import Document
from app.rag.points import chunk_id
from app.rag.retrieval import Passage, Retriever, SearchQuery, SearchResult
from app.tenants.principal import Principal


@dataclass(frozen=True)
class Found:
    """A passage with what people and prompts need of its document."""

    passage: Passage
    evidence: Evidence
    title: str
    section: tuple[str, ...]
    labels: frozenset[str]

    @property
    def text(self) -> str:
        return self.evidence.source.text[self.passage.start : self.passage.end]

    @property
    def page(self) -> int | None:
        """The page on which the passage starts, where the format has pages."""
        pages = self.evidence.source.pages
        return next((page.number for page in reversed(pages) if page.start <= self.passage.start), None)


@dataclass(frozen=True)
class FoundList:
    passages: list[Found]
    confidence: float
    timings_ms: dict[str, float]


class SearchService:
    """Runs the retriever off the event loop and fences its hits: the database decides what still counts."""

    def __init__(self, database: Database, retriever: Retriever, documents: DocumentService) -> None:
        self._database = database
        self._retriever = retriever
        self._documents = documents

    async def search(
        self,
        principal: Principal,
        text: str,
        k: int,
        collection: str | None = None,
        document_ids: list[UUID] | None = None,
    ) -> FoundList:
        """The k best passages among what the caller may see.

        Raises NotFound when a document is named that the caller cannot see.
        """
        if document_ids:
            await self._require_visible(principal, document_ids)
        query = SearchQuery(
            tenant=str(principal.tenant_id),
            atoms=principal.labels,
            text=text,
            k=k,
            collection=collection,
            document_ids=tuple(str(d) for d in document_ids) if document_ids else None,
        )
        result = await asyncio.to_thread(self._retriever.search, query)
        found = await self._fence(principal, result)
        return FoundList(found, result.confidence, dict(result.timings_ms))

    async def given(self, principal: Principal, document_id: UUID, chunks: list[Chunk]) -> list[Found]:
        """Chunks of a document's current text as if they had been found; for evaluation with gold passages."""
        async with self._database.session() as session:
            document = await get_visible(session, principal, document_id)
            version = document.current_version or 1
            labels = (await labels_of(session, {document_id}))[document_id]
            found = []
            for one in chunks:
                name = chunk_id(str(document_id), version, one.ordinal)
                passage = Passage(str(document_id), version, name, one.start, one.end, 1.0)
                evidence = await self._evidence(session, principal, passage)
                found.append(Found(passage, evidence, document.title, one.section, labels))
            return found

    async def _require_visible(self, principal: Principal, document_ids: list[UUID]) -> None:
        async with self._database.session() as session:
            seen = set(
                await session.scalars(
                    visible(principal).where(Document.id.in_(document_ids)).with_only_columns(Document.id)
                )
            )
        for document_id in document_ids:
            if document_id not in seen:
                raise NotFound(f"There is no document {document_id}.")

    async def _fence(self, principal: Principal, result: SearchResult) -> list[Found]:
        """Drop hits of deleted, replaced or hidden documents; the index may lag behind a commit."""
        ids = {UUID(passage.document_id) for passage in result.passages}
        async with self._database.session() as session:
            documents = {d.id: d for d in await session.scalars(visible(principal).where(Document.id.in_(ids)))}
            labels = await labels_of(session, set(documents))
            sections = await _sections(session, principal, result)
            found = []
            for passage in result.passages:
                document = documents.get(UUID(passage.document_id))
                if document is None or document.current_version != passage.version:
                    continue
                evidence = await self._evidence(session, principal, passage)
                section = sections.get(passage.chunk_id, ())
                found.append(Found(passage, evidence, document.title, section, labels[document.id]))
            return found

    async def _evidence(self, session: AsyncSession, principal: Principal, passage: Passage) -> Evidence:
        source = await self._documents.source(session, principal.tenant_id, UUID(passage.document_id), passage.version)
        return Evidence(passage.document_id, passage.version, passage.chunk_id, passage.start, passage.end, source)


async def _sections(session: AsyncSession, principal: Principal, result: SearchResult) -> dict[str, tuple[str, ...]]:
    ids = [UUID(passage.chunk_id) for passage in result.passages]
    rows = await session.scalars(owned(ChunkRow, principal.tenant_id).where(ChunkRow.id.in_(ids)))
    return {str(row.id): tuple(row.section) for row in rows}
