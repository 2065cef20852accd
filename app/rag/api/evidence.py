"""/api/v1/answers/{id}/evidence: what an answer was made of. An answer has the id of its request."""

from uuid import UUID

from litestar import get
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct

from app.db import Database, get_owned, owned
from app.errors import NotFound
from app.rag.api.evaluation import SourceView
from app.rag.records import Answer, AnswerSource
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class EvidenceOfAnswer(Struct):
    """`flags`: what in the passages spoke to the model."""

    refused: bool
    flags: list[str]
    sources: list[SourceView]


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
        rows = await session.scalars(
            owned(AnswerSource, principal.tenant_id).where(AnswerSource.answer_id == answer_id)
        )
        sources = [SourceView(row.document_id, row.version, row.chunk_id, row.cited) for row in rows]
    return EvidenceOfAnswer(answer.refused, answer.flags, sources)
