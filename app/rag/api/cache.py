"""/api/v1/cache/semantic/test: what the semantic cache would do with a question, and why."""

from litestar import post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Struct

from app.rag.answers.service import AnswerService
from app.rag.api.schemas import AnswerRequest
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class LookupView(Struct):
    """`outcome`: hit, draft or miss. `kept`: the question that is compared with, and how alike the two are (cosine)."""

    outcome: str
    reason: str
    similarity: float
    slots: list[str]
    kept: str | None = None
    kept_slots: list[str] = []


@post(
    "/api/v1/cache/semantic/test",
    tags=["cache"],
    guards=[requires_scope(Scope.ADMIN), requires_scope(Scope.ANSWERS)],
    status_code=200,
    summary="What the cache would do with a question",
)
async def test_cache(
    data: JSONBody[AnswerRequest], principal: NamedDependency[Principal], answers: NamedDependency[AnswerService]
) -> LookupView:
    """The documents are searched; no model is asked, and nothing is counted."""
    query, found = await answers.look(principal, data)
    entry = found.entry
    return LookupView(
        outcome=found.outcome,
        reason=found.reason,
        similarity=round(found.similarity, 4),
        slots=sorted(query.slots),
        kept=entry.question if entry else None,
        kept_slots=sorted(entry.slots) if entry else [],
    )
