"""Tables of documents, their versions, labels and chunks.

A version's text and chunks never change. `Document.current_version` is the fence: whatever the index or a cache
still holds of other versions is not shown.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, TenantScoped

PENDING, READY, FAILED = "pending", "ready", "failed"


class Document(TenantScoped, Base):
    """`current_version` is None until a first version is ready."""

    __tablename__ = "documents"
    __table_args__ = (Index("ix_documents_tenant_collection", "tenant_id", "collection"),)

    collection: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(String(500))
    filename: Mapped[str] = mapped_column(String(255))
    current_version: Mapped[int | None]


class DocumentLabel(Base):
    """A matter the reader must hold to see the document."""

    __tablename__ = "document_labels"
    __table_args__ = (UniqueConstraint("document_id", "label"),)

    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    label: Mapped[str] = mapped_column(String(64))


class DocumentVersion(TenantScoped, Base):
    """`text` is the truth that offsets refer to. `boxes` are packed character boxes, for PDF alone."""

    __tablename__ = "document_versions"
    __table_args__ = (UniqueConstraint("document_id", "version"),)

    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    version: Mapped[int]
    status: Mapped[str] = mapped_column(String(10), default=PENDING)
    error: Mapped[str | None]
    job_id: Mapped[UUID]
    filename: Mapped[str] = mapped_column(String(255))
    media_type: Mapped[str] = mapped_column(String(100))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int]
    text: Mapped[str] = mapped_column(Text, default="", deferred=True)
    pages: Mapped[list[Any]] = mapped_column(default=list)
    boxes: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)


class DocumentFact(TenantScoped, Base):
    """One thing that a version says about itself (`facts.py`), read from text[start:end] of it."""

    __tablename__ = "document_facts"
    __table_args__ = (
        Index("ix_document_facts_document_id_version", "document_id", "version"),
        Index("ix_document_facts_tenant_id_kind_key", "tenant_id", "kind", "key"),
    )

    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    version: Mapped[int]
    kind: Mapped[str] = mapped_column(String(20))
    value: Mapped[str] = mapped_column(String(200))
    key: Mapped[str] = mapped_column(String(200))
    start: Mapped[int]
    end: Mapped[int]


class Chunk(TenantScoped, Base):
    """text[start:end] of a version; `section` is the path of headings above it."""

    __tablename__ = "chunks"
    __table_args__ = (UniqueConstraint("document_id", "version", "ordinal"),)

    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    version: Mapped[int]
    ordinal: Mapped[int]
    start: Mapped[int]
    end: Mapped[int]
    section: Mapped[list[str]]
