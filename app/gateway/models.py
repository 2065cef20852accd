"""Tables of the gateway."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, TenantScoped


class RequestRecord(TenantScoped, Base):
    """The request log: who asked what of whom and what it took. Never prompts or answers.

    `created_at` is when it came. `routing` says why it went where it went, `spans` what took how long.
    """

    __tablename__ = "requests"
    __table_args__ = (
        Index("ix_requests_tenant_created", "tenant_id", "created_at"),
        Index("ix_requests_tenant_newest", "tenant_id", "id"),  # the log's pages, newest first
    )

    key_id: Mapped[UUID | None]
    user_id: Mapped[UUID | None]
    endpoint: Mapped[str] = mapped_column(String(20))
    streamed: Mapped[bool]
    model: Mapped[str] = mapped_column(String(200))
    target: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(40))
    error: Mapped[str | None] = mapped_column(String(500))
    fallbacks: Mapped[int]
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    cost_micros: Mapped[int] = mapped_column(BigInteger)
    cache: Mapped[str] = mapped_column(String(10))
    first_delta_ms: Mapped[float]
    total_ms: Mapped[float]
    routing: Mapped[dict[str, Any]]
    spans: Mapped[list[Any]]


class CachedAnswer(TenantScoped, Base):
    """An entry of the semantic cache: see cache/semantic.py. Evidence and cited: lists of [chunk, document, version].

    `vector`: float32, of unit length. `until`: when it is too old. `target`, cost and time: as it was written.
    """

    __tablename__ = "semantic_answers"

    partition: Mapped[str] = mapped_column(String(64), index=True)
    labels: Mapped[list[str]]
    target: Mapped[str] = mapped_column(String(100))
    question: Mapped[str] = mapped_column(Text)
    vector: Mapped[bytes] = mapped_column(LargeBinary)
    slots: Mapped[list[str]]
    evidence: Mapped[list[Any]]
    cited: Mapped[list[Any]]
    answer: Mapped[str] = mapped_column(Text)
    until: Mapped[datetime]
    cost_micros: Mapped[int] = mapped_column(BigInteger)
    total_ms: Mapped[float]
    completion_tokens: Mapped[int]
    hits: Mapped[int]


class CacheOutcome(TenantScoped, Base):
    """A kept answer was compared with a fresh one: how alike the questions were, and whether both cite the same."""

    __tablename__ = "semantic_outcomes"

    partition: Mapped[str] = mapped_column(String(64), index=True)
    similarity: Mapped[float]
    agreed: Mapped[bool]


class CatalogEntry(Base):
    """A target, route or price made or changed through the API; it takes the place of the file's of the same name."""

    __tablename__ = "catalog"
    __table_args__ = (UniqueConstraint("kind", "name"),)

    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(310))
    body: Mapped[dict[str, Any]]
    updated_at: Mapped[datetime]


class Credential(Base):
    """An upstream's key, encrypted: see app/tenants/sealing.py."""

    __tablename__ = "credentials"

    name: Mapped[str] = mapped_column(String(100), unique=True)
    sealed: Mapped[str] = mapped_column(Text)
    updated_at: Mapped[datetime]


class LedgerEntry(TenantScoped, Base):
    """What one request cost, in micro-dollars: written once, never changed, kept when the request log is not.

    `created_at` is the request's. One entry a request, so that writing a batch a second time changes nothing.
    """

    __tablename__ = "ledger"
    __table_args__ = (Index("ix_ledger_tenant_created", "tenant_id", "created_at"),)

    request_id: Mapped[UUID] = mapped_column(unique=True)
    key_id: Mapped[UUID | None] = mapped_column(index=True)
    user_id: Mapped[UUID | None] = mapped_column(index=True)
    model: Mapped[str] = mapped_column(String(200))
    target: Mapped[str] = mapped_column(String(100))
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    input_micros: Mapped[int] = mapped_column(BigInteger)
    cached_input_micros: Mapped[int] = mapped_column(BigInteger)
    output_micros: Mapped[int] = mapped_column(BigInteger)
    computing_micros: Mapped[int] = mapped_column(BigInteger)
    amount_micros: Mapped[int] = mapped_column(BigInteger)
