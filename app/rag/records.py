"""Tables of answers: what each was made of, the conversations they stand in, and what people think of them.

`Answer` and `AnswerSource` never hold text: which chunk of which version fed which answer is kept of every answer,
the words only where somebody keeps them on purpose, in a conversation, in feedback or as a case for evaluation.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, TenantScoped


class Answer(TenantScoped, Base):
    """`owner_id`: the person or key that asked. `labels`: all matters of its sources, at the time."""

    __tablename__ = "answers"

    owner_id: Mapped[UUID]
    model: Mapped[str] = mapped_column(String(200))
    served_by: Mapped[str] = mapped_column(String(100))
    refused: Mapped[bool]
    labels: Mapped[list[str]]
    flags: Mapped[list[str]]


class AnswerSource(TenantScoped, Base):
    """A passage that was in the prompt, or (`chunk_id` None) a document that an earlier turn brought into the question.

    No foreign key to the document: that a source is missing must be seen.
    """

    __tablename__ = "answer_sources"

    answer_id: Mapped[UUID] = mapped_column(ForeignKey("answers.id", ondelete="CASCADE"), index=True)
    document_id: Mapped[UUID] = mapped_column(index=True)
    version: Mapped[int]
    chunk_id: Mapped[UUID | None]
    cited: Mapped[bool]


class Conversation(TenantScoped, Base):
    """Of one owner. The title is the first question, shortened."""

    __tablename__ = "conversations"
    __table_args__ = (Index("ix_conversations_tenant_owner", "tenant_id", "owner_id"),)

    owner_id: Mapped[UUID]
    title: Mapped[str] = mapped_column(String(200), default="")


class Turn(TenantScoped, Base):
    """A question with its answer; the id is the answer's. `searched`: what was asked instead, and why."""

    __tablename__ = "turns"

    id: Mapped[UUID] = mapped_column(ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True)
    conversation_id: Mapped[UUID] = mapped_column(ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    question: Mapped[str] = mapped_column(Text)
    searched: Mapped[dict[str, Any]]
    answer: Mapped[dict[str, Any]]


class Feedback(TenantScoped, Base):
    """What its owner thinks of an answer: up or down, and why."""

    __tablename__ = "feedback"
    __table_args__ = (UniqueConstraint("answer_id", "owner_id"),)

    answer_id: Mapped[UUID] = mapped_column(ForeignKey("answers.id", ondelete="CASCADE"))
    owner_id: Mapped[UUID]
    thumb: Mapped[str] = mapped_column(String(4))
    reason: Mapped[str] = mapped_column(Text, default="")


class EvaluationCase(TenantScoped, Base):
    """A question with the document and the words that answer it; no document: nothing should be answered.

    The quote is text of the document and goes with it.
    """

    __tablename__ = "evaluation_cases"

    question: Mapped[str] = mapped_column(Text)
    document_id: Mapped[UUID | None] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"), index=True)
    quote: Mapped[str | None] = mapped_column(Text)
    answer_id: Mapped[UUID | None]
