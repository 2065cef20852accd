"""Choosing documents by what they say about themselves, and reading that back for people."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import InvalidRequest
from app.rag.documents import facts
from app.rag.documents.facts import Fact, law_key
from app.rag.documents.parties import party_key
from app.rag.models import Document, DocumentFact

MAX_VALUE = 200  # characters of a value or key


@dataclass(frozen=True, slots=True)
class FactFilter:
    """Every condition that is set must hold for the current version.

    `parties` by name without legal form, in part ("quillmark" finds Quillmark Software GmbH); dates are those of the
    document: its effective date, or the date of signing where it names no other.
    """

    parties: tuple[str, ...] = ()
    governing_law: str | None = None
    document_type: str | None = None
    effective_from: date | None = None
    effective_to: date | None = None
    expires_from: date | None = None
    expires_to: date | None = None

    def __bool__(self) -> bool:
        return self != FactFilter()

    def narrow(self, documents: Select[tuple[Document]]) -> Select[tuple[Document]]:
        """Raises InvalidRequest for a party's name without a letter."""
        for party in self.parties:
            documents = documents.where(_has(facts.PARTY, _contains(party_key(party), "parties")))
        if self.governing_law is not None:
            documents = documents.where(_has(facts.LAW, DocumentFact.key == law_key(self.governing_law)))
        if self.document_type is not None:
            wanted = " ".join(self.document_type.lower().split())
            documents = documents.where(_has(facts.TYPE, _contains(wanted, "document_type")))
        if between := _between(self.effective_from, self.effective_to):
            agreed = and_(_has(facts.AGREED, *between), ~_has(facts.EFFECTIVE))
            documents = documents.where(or_(_has(facts.EFFECTIVE, *between), agreed))
        if between := _between(self.expires_from, self.expires_to):
            documents = documents.where(_has(facts.EXPIRY, *between))
        return documents


def _has(kind: str, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    current = (DocumentFact.document_id == Document.id, DocumentFact.version == Document.current_version)
    return exists().where(*current, DocumentFact.kind == kind, *conditions)


def _contains(key: str, param: str) -> ColumnElement[bool]:
    if not key:
        raise InvalidRequest("A name to filter by needs at least one letter or digit.", param=param)
    return DocumentFact.key.contains(key, autoescape=True)


def _between(first: date | None, last: date | None) -> list[ColumnElement[bool]]:
    """ISO dates sort as text."""
    conditions = []
    if first is not None:
        conditions.append(DocumentFact.key >= first.isoformat())
    if last is not None:
        conditions.append(DocumentFact.key <= last.isoformat())
    return conditions


def rows(tenant_id: UUID, document_id: UUID, version: int, found: Iterable[Fact]) -> list[DocumentFact]:
    """What `facts.facts` found, as rows of the version."""
    return [
        DocumentFact(
            tenant_id=tenant_id,
            document_id=document_id,
            version=version,
            kind=fact.kind,
            value=fact.value[:MAX_VALUE],
            key=fact.key[:MAX_VALUE],
            start=fact.start,
            end=fact.end,
        )
        for fact in found
    ]


async def facts_of(session: AsyncSession, documents: Iterable[Document]) -> dict[UUID, list[DocumentFact]]:
    """Facts of the current version of each document, in order of position. The documents must be the caller's."""
    current = {document.id: document.current_version for document in documents}
    found: dict[UUID, list[DocumentFact]] = {document_id: [] for document_id in current}
    query = select(DocumentFact).where(DocumentFact.document_id.in_(current)).order_by(DocumentFact.start)
    for row in await session.scalars(query):
        if row.version == current[row.document_id]:
            found[row.document_id].append(row)
    return found
