"""Conversations: turns that follow each other, of one owner, as far as the owner may still read them.

A turn is shown, exported and used only while every document it was made of may be read and is at the version it was
made of. What the database says at that moment counts; deleting a document takes its turns along in the same commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import Select, delete
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, owned
from app.errors import NotFound
from app.gateway import cursor as cursors
from app.rag.answers.followup import Before, rewrite
from app.rag.answers.log import Asked
from app.rag.answers.opened import OpenAnswer
from app.rag.answers.service import AnswerService
from app.rag.api.schemas import AnswerRequest, SearchedView
from app.rag.documents.service import visible
from app.rag.models import Document
from app.rag.records import Answer, AnswerSource, Conversation, Turn
from app.tenants import audit
from app.tenants.principal import Principal

TITLE_CHARACTERS = 80


@dataclass(frozen=True)
class ShownTurn:
    """A turn that may be read now, with the labels it needed."""

    id: UUID
    created_at: datetime
    question: str
    searched: dict[str, Any]
    answer: dict[str, Any]
    sources: tuple[tuple[UUID, int], ...]
    labels: frozenset[str]


@dataclass(frozen=True)
class History:
    """`hidden`: turns whose documents were replaced, or may not be read any more by the caller."""

    conversation: Conversation
    turns: list[ShownTurn]
    hidden: int


class Conversations:
    """Keeps them, and asks within them."""

    def __init__(self, database: Database, answers: AnswerService) -> None:
        self._database = database
        self._answers = answers

    async def create(self, principal: Principal, title: str) -> Conversation:
        conversation = Conversation(tenant_id=principal.tenant_id, owner_id=principal.owner_id, title=title)
        async with self._database.session() as session:
            session.add(conversation)
            await session.flush()
            who, what = audit.actor_of(principal), f"conversation:{conversation.id}"
            await audit.append(session, who, "conversation.create", what, principal.tenant_id)
            await session.commit()
        return conversation

    async def page(self, principal: Principal, cursor: str | None, limit: int) -> tuple[list[Conversation], str | None]:
        """The caller's own, newest first."""
        async with self._database.session() as session:
            rows = await session.scalars(cursors.page(_mine(principal), Conversation, cursor, limit))
            return cursors.cut(list(rows), limit)

    async def history(self, principal: Principal, conversation_id: UUID) -> History:
        """What the caller may read of it now. Raises NotFound for somebody else's."""
        async with self._database.session() as session:
            conversation = await _get(session, principal, conversation_id)
            query = owned(Turn, principal.tenant_id).where(Turn.conversation_id == conversation.id)
            turns = list(await session.scalars(query.order_by(Turn.id)))
            shown = await _readable(session, principal, turns)
            return History(conversation, shown, len(turns) - len(shown))

    async def delete(self, principal: Principal, conversation_id: UUID) -> None:
        """With all its turns, also those that are hidden; that answers were given stays on record, without words."""
        async with self._database.session() as session:
            conversation = await _get(session, principal, conversation_id)
            await session.execute(delete(Conversation).where(Conversation.id == conversation.id))
            who, what = audit.actor_of(principal), f"conversation:{conversation_id}"
            await audit.append(session, who, "conversation.delete", what, principal.tenant_id)
            await session.commit()

    async def ask(self, principal: Principal, conversation_id: UUID, request: AnswerRequest) -> OpenAnswer:
        """Answer the question as it follows from the turns before, and keep both."""
        history = await self.history(principal, conversation_id)
        last = history.turns[-1] if history.turns else None
        followed = rewrite(request.question, _before(last) if last else None)
        used = last if last and followed.because else None
        asked = Asked(
            conversation_id=conversation_id,
            question=request.question,
            searched=SearchedView(followed.question, followed.because, followed.document, list(followed.topic)),
            carried=used.sources if used else (),
            labels=used.labels if used else frozenset(),
        )
        if not history.conversation.title:
            await self._name(principal, history.conversation, request.question)
        return await self._answers.open(principal, msgspec.structs.replace(request, question=followed.question), asked)

    async def _name(self, principal: Principal, conversation: Conversation, question: str) -> None:
        async with self._database.session() as session:
            row = await _get(session, principal, conversation.id)
            row.title = " ".join(question.split())[:TITLE_CHARACTERS]
            await session.commit()


def _before(turn: ShownTurn) -> Before:
    """The document is the one that the answer's quotes are of, or the one carried into the question."""
    quoted = {citation["document"] for citation in turn.answer["citations"] if citation["verified"]}
    document = quoted.pop() if len(quoted) == 1 else turn.searched.get("document")
    return Before(turn.question, document, tuple(turn.searched.get("topic") or ()))


def _mine(principal: Principal) -> Select[tuple[Conversation]]:
    return owned(Conversation, principal.tenant_id).where(Conversation.owner_id == principal.owner_id)


async def _get(session: AsyncSession, principal: Principal, conversation_id: UUID) -> Conversation:
    row = await session.scalar(_mine(principal).where(Conversation.id == conversation_id))
    if row is None:
        raise NotFound(f"There is no conversation {conversation_id}.")
    return row


async def _readable(session: AsyncSession, principal: Principal, turns: Sequence[Turn]) -> list[ShownTurn]:
    """Those whose labels the caller holds and whose sources the caller sees, at the version they were read at."""
    ids = [turn.id for turn in turns]
    answers = {a.id: a for a in await session.scalars(owned(Answer, principal.tenant_id).where(Answer.id.in_(ids)))}
    sources: dict[UUID, set[tuple[UUID, int]]] = {turn.id: set() for turn in turns}
    for row in await session.scalars(owned(AnswerSource, principal.tenant_id).where(AnswerSource.answer_id.in_(ids))):
        sources[row.answer_id].add((row.document_id, row.version))
    named = {document for each in sources.values() for document, _ in each}
    seen = await session.scalars(visible(principal).where(Document.id.in_(named)))
    current = {(document.id, document.current_version) for document in seen}
    return [
        _shown(turn, answers[turn.id], sources[turn.id])
        for turn in turns
        if principal.labels.issuperset(answers[turn.id].labels) and sources[turn.id] <= current
    ]


def _shown(turn: Turn, answer: Answer, sources: set[tuple[UUID, int]]) -> ShownTurn:
    return ShownTurn(
        id=turn.id,
        created_at=turn.created_at,
        question=turn.question,
        searched=turn.searched,
        answer=turn.answer,
        sources=tuple(sorted(sources)),
        labels=frozenset(answer.labels),
    )
