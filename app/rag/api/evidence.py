"""/api/v1/answers/{id}/evidence: what an answer was made of. An answer has the id of its request."""

from uuid import UUID

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, get_owned, owned
from app.errors import NotFound
from app.rag.documents.service import visible
from app.rag.models import Chunk
from app.rag.records import Answer, AnswerSource
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class PassageOfAnswer(Struct):
    """`title`: null where the document is gone, or no longer for the caller. `start`, `end`, `section`: of the passage,
    in the text of that version; null there too, and where an earlier turn of the conversation brought the document in.
    """

    document_id: UUID
    version: int
    chunk_id: UUID | None
    cited: bool
    title: str | None
    section: list[str] | None
    start: int | None
    end: int | None


class EvidenceOfAnswer(Struct):
    """`flags`: what in the passages spoke to the model."""

    refused: bool
    flags: list[str]
    sources: list[PassageOfAnswer]


@get(
    "/api/v1/answers/{answer_id:uuid}/evidence",
    tags=["answers"],
    guards=[requires_scope(Scope.USAGE)],
    summary="The passages that an answer was made of",
)
async def get_evidence(
    answer_id: FromPath[UUID], principal: NamedDependency[Principal], database: NamedDependency[Database]
) -> EvidenceOfAnswer:
    """Kept as long as the request log; only for who holds every matter of its sources."""
    async with database.session() as session:
        answer = await get_owned(session, Answer, principal.tenant_id, answer_id)
        if not principal.labels.issuperset(answer.labels):
            raise NotFound(f"There is no answer {answer_id}.")
        return EvidenceOfAnswer(answer.refused, answer.flags, await _passages(session, principal, answer_id))


async def _passages(session: AsyncSession, principal: Principal, answer_id: UUID) -> list[PassageOfAnswer]:
    of_answer = owned(AnswerSource, principal.tenant_id).where(AnswerSource.answer_id == answer_id)
    sources = list(await session.scalars(of_answer.order_by(AnswerSource.id)))
    documents = visible(principal).subquery()
    named = select(documents.c.id, documents.c.title).where(documents.c.id.in_({row.document_id for row in sources}))
    titles = {document_id: title for document_id, title in await session.execute(named)}
    wanted = owned(Chunk, principal.tenant_id).where(Chunk.id.in_({row.chunk_id for row in sources if row.chunk_id}))
    chunks = {chunk.id: chunk for chunk in await session.scalars(wanted)}
    return [
        _passage(row, titles.get(row.document_id), chunks.get(row.chunk_id) if row.chunk_id else None)
        for row in sources
    ]


def _passage(row: AnswerSource, title: str | None, chunk: Chunk | None) -> PassageOfAnswer:
    place = (chunk.section, chunk.start, chunk.end) if chunk is not None and title is not None else (None, None, None)
    return PassageOfAnswer(row.document_id, row.version, row.chunk_id, row.cited, title, *place)
