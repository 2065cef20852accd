"""/api/v1: feedback on answers, and cases for `precedent eval cases`."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Meta, Struct

from app.gateway import cursor as cursors
from app.rag.answers.feedback import EvaluationCases, FeedbackService, NewCase, Opinion
from app.rag.api.schemas import Question
from app.rag.records import EvaluationCase
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

ANSWERS = (requires_scope(Scope.ANSWERS),)
Limit = Annotated[int, QueryParameter(ge=1, le=cursors.MAX_LIMIT)]


class FeedbackRequest(Struct, forbid_unknown_fields=True):
    thumb: Literal["up", "down"]
    reason: Annotated[str, Meta(max_length=2000)] = ""


class SourceView(Struct):
    """A passage that was in the prompt; without a chunk, a document that an earlier turn brought into the question."""

    document_id: UUID
    version: int
    chunk_id: UUID | None
    cited: bool


class FeedbackView(Struct):
    id: UUID
    created_at: datetime
    answer_id: UUID
    thumb: str
    reason: str
    model: str
    served_by: str
    refused: bool
    evidence: list[SourceView]


class FeedbackList(Struct):
    """`next_cursor`: null on the last page."""

    feedback: list[FeedbackView]
    next_cursor: str | None


class CaseRequest(Struct, forbid_unknown_fields=True):
    """Without a document, the question should be refused. `answer_id`: the case is made of an answer, whose question
    is taken where it was asked in a conversation and none is given.
    """

    question: Question | None = None
    document_id: UUID | None = None
    quote: Annotated[str, Meta(min_length=1, max_length=4000)] | None = None
    answer_id: UUID | None = None


class CaseView(Struct):
    id: UUID
    created_at: datetime
    question: str
    document_id: UUID | None
    quote: str | None
    answer_id: UUID | None


class CaseList(Struct):
    """`next_cursor`: null on the last page."""

    cases: list[CaseView]
    next_cursor: str | None


@post(
    "/api/v1/answers/{answer_id:uuid}/feedback",
    tags=["answers"],
    guards=ANSWERS,
    summary="Say what an answer was worth",
)
async def give_feedback(
    answer_id: FromPath[UUID],
    data: JSONBody[FeedbackRequest],
    principal: NamedDependency[Principal],
    feedback: NamedDependency[FeedbackService],
) -> FeedbackView:
    """Once for each answer; again replaces it."""
    return _opinion(await feedback.give(principal, answer_id, data.thumb, data.reason))


@get("/api/v1/feedback", tags=["answers"], guards=ANSWERS, summary="Feedback, newest first: one's own, for admins all")
async def list_feedback(
    principal: NamedDependency[Principal],
    feedback: NamedDependency[FeedbackService],
    cursor: FromQuery[str | None] = None,
    limit: Limit = 50,
) -> FeedbackList:
    rows, following = await feedback.page(principal, cursor, limit)
    return FeedbackList([_opinion(row) for row in rows], following)


class CaseController(Controller):
    path = "/api/v1/evaluation/cases"
    tags = ("evaluation",)
    guards = ANSWERS

    @post(summary="Keep a question with what should be answered")
    async def create(
        self,
        data: JSONBody[CaseRequest],
        principal: NamedDependency[Principal],
        cases: NamedDependency[EvaluationCases],
    ) -> CaseView:
        new = NewCase(data.question, data.document_id, data.quote, data.answer_id)
        return _case(await cases.create(principal, new))

    @get(summary="Cases whose documents the caller sees, newest first")
    async def list_cases(
        self,
        principal: NamedDependency[Principal],
        cases: NamedDependency[EvaluationCases],
        cursor: FromQuery[str | None] = None,
        limit: Limit = 100,
    ) -> CaseList:
        rows, following = await cases.page(principal, cursor, limit)
        return CaseList([_case(row) for row in rows], following)

    @delete("/{case_id:uuid}", summary="Delete a case")
    async def remove(
        self,
        case_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        cases: NamedDependency[EvaluationCases],
    ) -> None:
        await cases.delete(principal, case_id)


def _case(row: EvaluationCase) -> CaseView:
    return CaseView(**{name: getattr(row, name) for name in CaseView.__struct_fields__})


def _opinion(opinion: Opinion) -> FeedbackView:
    row, answer = opinion.feedback, opinion.answer
    return FeedbackView(
        id=row.id,
        created_at=row.created_at,
        answer_id=row.answer_id,
        thumb=row.thumb,
        reason=row.reason,
        model=answer.model,
        served_by=answer.served_by,
        refused=answer.refused,
        evidence=[SourceView(s.document_id, s.version, s.chunk_id, s.cited) for s in opinion.sources],
    )
