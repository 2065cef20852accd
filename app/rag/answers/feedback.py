"""What people think of answers, and the questions kept to ask again."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Select, or_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, get_owned, owned, take_turn
from app.errors import InvalidRequest, NotFound
from app.gateway import cursor as cursors
from app.rag.answers.quotes import find, skeleton
from app.rag.documents.service import DocumentService, get_visible, visible
from app.rag.models import Document
from app.rag.records import Answer, AnswerSource, EvaluationCase, Feedback, Turn
from app.tenants import audit
from app.tenants.principal import Principal, Scope


@dataclass(frozen=True)
class Opinion:
    """Feedback with the answer it is about and the passages that fed the answer."""

    feedback: Feedback
    answer: Answer
    sources: list[AnswerSource]


@dataclass(frozen=True)
class NewCase:
    """No document: the question should not be answered. `answer_id`: of which answer the case is made."""

    question: str | None
    document_id: UUID | None
    quote: str | None
    answer_id: UUID | None


class FeedbackService:
    """Of an answer's owner, readable for the tenant's admins as far as they hold its matters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def give(self, principal: Principal, answer_id: UUID, thumb: str, reason: str) -> Opinion:
        """Once for each answer: again replaces. Raises NotFound for what was not answered to the caller."""
        async with self._database.session() as session:
            await take_turn(session, Answer, answer_id)
            answer = await own_answer(session, principal, answer_id)
            mine = owned(Feedback, principal.tenant_id).where(
                Feedback.answer_id == answer.id, Feedback.owner_id == principal.owner_id
            )
            row = await session.scalar(mine)
            if row is None:
                row = Feedback(tenant_id=principal.tenant_id, answer_id=answer.id, owner_id=principal.owner_id)
                session.add(row)
            row.thumb, row.reason = thumb, reason
            await audit.append(
                session,
                audit.actor_of(principal),
                "feedback",
                f"answer:{answer.id}",
                answer.tenant_id,
                {"thumb": thumb},
            )
            await session.commit()
            return (await _opinions(session, principal, [row]))[0]

    async def page(self, principal: Principal, cursor: str | None, limit: int) -> tuple[list[Opinion], str | None]:
        """The tenant's for admins, else one's own; newest first, without those about matters that are not held."""
        query = owned(Feedback, principal.tenant_id)
        if Scope.ADMIN not in principal.scopes:
            query = query.where(Feedback.owner_id == principal.owner_id)
        async with self._database.session() as session:
            rows = await session.scalars(cursors.page(query, Feedback, cursor, limit))
            shown, following = cursors.cut(list(rows), limit)
            return await _opinions(session, principal, shown), following


class EvaluationCases:
    """Questions with what should be answered; visible to those who see the document."""

    def __init__(self, database: Database, documents: DocumentService) -> None:
        self._database = database
        self._documents = documents

    async def create(self, principal: Principal, new: NewCase) -> EvaluationCase:
        """Raises InvalidRequest where the quote is not in the document, or the question is not known."""
        async with self._database.session() as session:
            question = new.question or await self._asked(session, principal, new.answer_id)
            if new.document_id:
                await take_turn(session, Document, new.document_id)
                document = await get_visible(session, principal, new.document_id)
                await self._require_quote(session, document, new.quote)
            elif new.quote:
                raise InvalidRequest("A quote is of a document.", param="document_id")
            case = EvaluationCase(
                tenant_id=principal.tenant_id,
                question=question,
                document_id=new.document_id,
                quote=new.quote,
                answer_id=new.answer_id,
            )
            session.add(case)
            await session.flush()
            who, what = audit.actor_of(principal), f"case:{case.id}"
            await audit.append(session, who, "case.create", what, principal.tenant_id)
            await session.commit()
            return case

    async def page(
        self, principal: Principal, cursor: str | None, limit: int
    ) -> tuple[list[EvaluationCase], str | None]:
        async with self._database.session() as session:
            rows = await session.scalars(cursors.page(_seen(principal), EvaluationCase, cursor, limit))
            return cursors.cut(list(rows), limit)

    async def delete(self, principal: Principal, case_id: UUID) -> None:
        async with self._database.session() as session:
            case = await session.scalar(_seen(principal).where(EvaluationCase.id == case_id))
            if case is None:
                raise NotFound(f"There is no case {case_id}.")
            await session.delete(case)
            who, what = audit.actor_of(principal), f"case:{case_id}"
            await audit.append(session, who, "case.delete", what, principal.tenant_id)
            await session.commit()

    async def _asked(self, session: AsyncSession, principal: Principal, answer_id: UUID | None) -> str:
        """The question of a turn; of other answers the words are not kept."""
        if answer_id is None:
            raise InvalidRequest("A case has a question.", param="question")
        await own_answer(session, principal, answer_id)
        turn = await session.scalar(owned(Turn, principal.tenant_id).where(Turn.id == answer_id))
        if turn is None:
            raise InvalidRequest("The words of this question were not kept; send them.", param="question")
        return str(turn.searched.get("question") or turn.question)

    async def _require_quote(self, session: AsyncSession, document: Document, quote: str | None) -> None:
        if document.current_version is None:
            raise InvalidRequest("The document has no version that is ready.", param="document_id")
        if quote is None:
            return
        source = await self._documents.source(session, document.tenant_id, document.id, document.current_version)
        text = source.text
        if not find(quote, text, 0, len(text), [skeleton(text)]):
            raise InvalidRequest("The quote is not in the document.", param="quote")


async def own_answer(session: AsyncSession, principal: Principal, answer_id: UUID) -> Answer:
    """Raises NotFound for an answer to somebody else, and for one whose matters are not held any more."""
    answer = await get_owned(session, Answer, principal.tenant_id, answer_id)
    if answer.owner_id != principal.owner_id or not principal.labels.issuperset(answer.labels):
        raise NotFound(f"There is no answer {answer_id}.")
    return answer


def _seen(principal: Principal) -> Select[tuple[EvaluationCase]]:
    documents = visible(principal).with_only_columns(Document.id)
    allowed = or_(EvaluationCase.document_id.is_(None), EvaluationCase.document_id.in_(documents))
    return owned(EvaluationCase, principal.tenant_id).where(allowed)


async def _opinions(session: AsyncSession, principal: Principal, rows: Sequence[Feedback]) -> list[Opinion]:
    ids = {row.answer_id for row in rows}
    answers = {a.id: a for a in await session.scalars(owned(Answer, principal.tenant_id).where(Answer.id.in_(ids)))}
    sources: dict[UUID, list[AnswerSource]] = {answer_id: [] for answer_id in ids}
    query = owned(AnswerSource, principal.tenant_id).where(AnswerSource.answer_id.in_(ids))
    for source in await session.scalars(query.order_by(AnswerSource.id)):
        sources[source.answer_id].append(source)
    held = [row for row in rows if principal.labels.issuperset(answers[row.answer_id].labels)]
    return [Opinion(row, answers[row.answer_id], sources[row.answer_id]) for row in held]
