"""What every answer was made of, kept in the transaction in which its turn, if it is one, is kept as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, now, take_turn
from app.errors import NotFound, source_gone
from app.rag.api.schemas import AnswerView, SearchedView
from app.rag.models import Document
from app.rag.records import Answer, AnswerSource, Conversation, Feedback, Turn
from app.rag.retrieval.search import Found
from app.tenants.principal import Principal


@dataclass(frozen=True)
class Asked:
    """A question in a conversation: as it was put, as it was searched for, and the earlier sources that shaped it."""

    conversation_id: UUID
    question: str
    searched: SearchedView
    carried: tuple[tuple[UUID, int], ...] = ()
    labels: frozenset[str] = frozenset()


class AnswerLog:
    """Writes answers down. Words are kept of turns alone."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(
        self, principal: Principal, model: str, view: AnswerView, found: Sequence[Found], asked: Asked | None
    ) -> None:
        """Raises Conflict where a turn's document was deleted, and NotFound where its conversation was, meanwhile: its
        words would outlive them.
        """
        labels = frozenset[str]().union(*(one.labels for one in found), asked.labels if asked else ())
        answer = Answer(
            id=view.id,
            tenant_id=principal.tenant_id,
            owner_id=principal.owner_id,
            model=model[:200],
            served_by=view.served_by[:100],
            refused=view.refused,
            labels=sorted(labels),
            flags=list(view.flags),
        )
        async with self._database.session() as session:
            session.add(answer)
            await session.flush()
            sources = _sources(principal.tenant_id, view, found, asked)
            session.add_all(sources)
            if asked:
                await _require_there(session, asked, {source.document_id for source in sources})
                session.add(_turn(principal.tenant_id, view, asked))
            await session.commit()

    async def expire(self, days: int) -> None:
        """Forget answers that are older, unless they stand in a conversation or have feedback."""
        kept = select(Turn.id).union(select(Feedback.answer_id))
        old = delete(Answer).where(Answer.created_at < now() - timedelta(days=days), Answer.id.not_in(kept))
        async with self._database.session() as session:
            await session.execute(old)
            await session.commit()


async def _require_there(session: AsyncSession, asked: Asked, documents: set[UUID]) -> None:
    """None of these is deleted before the transaction ends."""
    if not await take_turn(session, Conversation, asked.conversation_id):
        raise NotFound(f"There is no conversation {asked.conversation_id}.")
    there = select(Document.id).where(Document.id.in_(documents)).with_for_update(read=True, key_share=True)
    if set(await session.scalars(there)) != documents:
        raise source_gone()


def _sources(tenant_id: UUID, view: AnswerView, found: Sequence[Found], asked: Asked | None) -> list[AnswerSource]:
    cited = {citation.chunk_id for citation in view.citations}
    read = [
        AnswerSource(
            tenant_id=tenant_id,
            answer_id=view.id,
            document_id=UUID(one.passage.document_id),
            version=one.passage.version,
            chunk_id=UUID(one.passage.chunk_id),
            cited=one.passage.chunk_id in cited,
        )
        for one in found
    ]
    carried = [
        AnswerSource(
            tenant_id=tenant_id, answer_id=view.id, document_id=document, version=version, chunk_id=None, cited=False
        )
        for document, version in (asked.carried if asked else ())
    ]
    return read + carried


def _turn(tenant_id: UUID, view: AnswerView, asked: Asked) -> Turn:
    kept: dict[str, Any] = msgspec.to_builtins(view)
    return Turn(
        id=view.id,
        tenant_id=tenant_id,
        conversation_id=asked.conversation_id,
        question=asked.question,
        searched=msgspec.to_builtins(asked.searched),
        answer=kept,
    )
