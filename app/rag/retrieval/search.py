"""Search as callers see it: the retriever's hits, checked against the database and given their text."""

import asyncio
from dataclasses import dataclass, replace
from time import perf_counter
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, owned
from app.errors import NotFound, Unavailable
from app.rag.answers.citations import Evidence
from app.rag.answers.hostile import flags
from app.rag.documents.chunking import Chunk
from app.rag.documents.filters import FactFilter
from app.rag.documents.service import ANY, DocumentService, get_visible, labels_of, visible
from app.rag.index.base import FloatArray
from app.rag.index.points import chunk_id
from app.rag.models import Chunk as ChunkRow
from app.rag.models import Document
from app.rag.retrieval.rerank import CrossEncoder
from app.rag.retrieval.retriever import Decision, Passage, Retriever, SearchQuery, SearchResult
from app.rag.retrieval.rights import Rights
from app.tenants.principal import Principal

RERANKED = 32  # of the best passages, where a cross-encoder is configured


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
    def flags(self) -> tuple[str, ...]:
        """What in the text, or in what stands above it in a prompt, speaks to the reader: see `hostile`."""
        return flags("\n".join((self.text, self.title, *self.section)))

    @property
    def page(self) -> int | None:
        """The page on which the passage starts, where the format has pages."""
        pages = self.evidence.source.pages
        return next((page.number for page in reversed(pages) if page.start <= self.passage.start), None)


@dataclass(frozen=True)
class Dropped:
    """A hit in a document that the caller may see, which is not shown all the same."""

    passage: Passage
    reason: str


@dataclass(frozen=True)
class FoundList:
    """`dropped` and `decision` explain the search. Of what the caller may not see they say nothing. `vector`: the
    question's, of unit length."""

    passages: list[Found]
    confidence: float
    timings_ms: dict[str, float]
    vector: FloatArray
    decision: Decision | None = None
    dropped: tuple[Dropped, ...] = ()


class SearchService:
    """Runs the retriever off the event loop and fences its hits: the database decides what still counts."""

    def __init__(
        self,
        database: Database,
        retriever: Retriever,
        documents: DocumentService,
        rights: Rights,
        reranker: CrossEncoder | None = None,
    ) -> None:
        self.closed = ""
        """Why nothing is searched at present."""
        self._database = database
        self._reranker = reranker
        self._rights = rights
        self._retriever = retriever
        self._documents = documents

    async def search(
        self,
        principal: Principal,
        text: str,
        k: int,
        collection: str | None = None,
        document_ids: list[UUID] | None = None,
        where: FactFilter = ANY,
    ) -> FoundList:
        """The k best passages among what the caller may see, in documents that `where` fits.

        Raises NotFound when a document is named that the caller cannot see, Unavailable while nothing is searched.
        """
        self._require_open()
        if document_ids:
            await self._require_visible(principal, document_ids)
        if where:
            document_ids = await self._fitting(principal, where, document_ids)
        query = SearchQuery(
            tenant=str(principal.tenant_id),
            atoms=principal.labels,
            text=text,
            k=max(k, RERANKED) if self._reranker else k,
            collection=collection,
            document_ids=tuple(map(str, document_ids or ())) if document_ids or where else None,
        )
        generation = self._rights.generation
        result = await asyncio.to_thread(self._retriever.search, query)
        self._require_open()  # else it may have read an index that was emptied meanwhile
        found, dropped, routed = await self._fence(await self._rights.now(principal, generation), result)
        timings = dict(result.timings_ms)
        if self._reranker and found:
            began = perf_counter()
            found = await asyncio.to_thread(_reranked, self._reranker, text, found)
            timings["rerank"] += (perf_counter() - began) * 1e3
            found = await self._still(await self._rights.now(principal, generation), found)
        decision = replace(result.decision, routed=routed)
        return FoundList(found[:k], result.confidence, timings, result.vector, decision, dropped)

    async def _still(self, principal: Principal, found: list[Found]) -> list[Found]:
        """Without what was deleted, replaced or hidden since the fence: reranking takes its time."""
        ids = {UUID(one.passage.document_id) for one in found}
        async with self._database.session() as session:
            rows = await session.scalars(visible(principal).where(Document.id.in_(ids)))
            current = {(str(row.id), row.current_version) for row in rows}
        return [one for one in found if (one.passage.document_id, one.passage.version) in current]

    async def _fitting(self, principal: Principal, where: FactFilter, among: list[UUID] | None) -> list[UUID]:
        query = where.narrow(visible(principal))
        if among:
            query = query.where(Document.id.in_(among))
        async with self._database.session() as session:
            return list(await session.scalars(query.with_only_columns(Document.id)))

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

    def _require_open(self) -> None:
        if self.closed:
            raise Unavailable(self.closed)

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

    async def _fence(
        self, principal: Principal, result: SearchResult
    ) -> tuple[list[Found], tuple[Dropped, ...], dict[str, float]]:
        """(what may be shown, hits in older versions, routed documents): the index may lag behind a commit, so hits of
        deleted, replaced or hidden documents are dropped."""
        named = (*(passage.document_id for passage in result.passages), *result.decision.routed)
        ids = set(map(UUID, named))
        async with self._database.session() as session:
            documents = {d.id: d for d in await session.scalars(visible(principal).where(Document.id.in_(ids)))}
            labels = await labels_of(session, set(documents))
            sections = await _sections(session, principal, result)
            found, dropped = [], []
            for passage in result.passages:
                document = documents.get(UUID(passage.document_id))
                if document is None:
                    continue
                if document.current_version != passage.version:
                    dropped.append(Dropped(passage, f"version {document.current_version} is the current one"))
                    continue
                try:
                    evidence = await self._evidence(session, principal, passage)
                except NotFound:  # deleted a moment ago
                    continue
                section = sections.get(passage.chunk_id, ())
                found.append(Found(passage, evidence, document.title, section, labels[document.id]))
            routed = {name: value for name, value in result.decision.routed.items() if UUID(name) in documents}
            return found, tuple(dropped), routed

    async def _evidence(self, session: AsyncSession, principal: Principal, passage: Passage) -> Evidence:
        source = await self._documents.source(session, principal.tenant_id, UUID(passage.document_id), passage.version)
        return Evidence(passage.document_id, passage.version, passage.chunk_id, passage.start, passage.end, source)


def _reranked(reranker: CrossEncoder, question: str, found: list[Found]) -> list[Found]:
    """The passages that the cross-encoder had the time to read, by its scores; then the others as they were."""
    scores = reranker.scores(question, [one.text for one in found[:RERANKED]])
    read = [
        replace(one, passage=replace(one.passage, score=score, scores={**one.passage.scores, "reranked": score}))
        for one, score in zip(found, scores, strict=False)
    ]
    return sorted(read, key=lambda one: -one.passage.score) + found[len(scores) :]


async def _sections(session: AsyncSession, principal: Principal, result: SearchResult) -> dict[str, tuple[str, ...]]:
    ids = [UUID(passage.chunk_id) for passage in result.passages]
    rows = await session.scalars(owned(ChunkRow, principal.tenant_id).where(ChunkRow.id.in_(ids)))
    return {str(row.id): tuple(row.section) for row in rows}
