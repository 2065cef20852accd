"""Rights while they change: an answer in flight ends, and the index learns a document's new labels.

Everything that is read passes `documents.visible`; what is asked here is only whether it still would.
"""

import time
from collections.abc import Collection
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, owned
from app.errors import Conflict, source_gone
from app.rag.documents.service import visible
from app.rag.models import Document, DocumentLabel
from app.rag.records import Answer, Turn
from app.tenants.auth import Authenticator
from app.tenants.principal import Principal, Scope
from app.tenants.service import renewed

RECHECK_SECONDS = 1.0  # how late a change on another replica is noticed


def rights_changed() -> Conflict:
    """Whether it was deleted or hidden on another replica is not for who can no longer see it."""
    return Conflict("The right to read a document of this answer has gone, or the document has; ask again.")


class Rights:
    """Asks the database again where rights may have changed: here at once, on other replicas within a second."""

    def __init__(self, database: Database, authenticator: Authenticator) -> None:
        self._database = database
        self._authenticator = authenticator

    @property
    def generation(self) -> int:
        return self._authenticator.generation

    def changed(self) -> None:
        """Rights to documents have changed here."""
        self._authenticator.forget()

    async def now(self, principal: Principal, generation: int) -> Principal:
        """The caller, with the rights of now if some have changed since. Raises Conflict where nothing is left."""
        if generation == self.generation:
            return principal
        async with self._database.session() as session:
            current = await renewed(session, principal)
        if current is None:
            raise rights_changed()
        return current

    def watch(self, principal: Principal, sources: Collection[tuple[UUID, int]]) -> "Watch":
        """For an answer that reads these versions of documents."""
        return Watch(self, self._database, principal, dict(sources))


class Watch:
    """Whether an answer in flight may still be read by its caller."""

    def __init__(self, rights: Rights, database: Database, principal: Principal, sources: dict[UUID, int]) -> None:
        self._rights = rights
        self._database = database
        self._principal = principal
        self._sources = sources
        self._generation = -1
        self._checked = 0.0

    async def require(self) -> None:
        """Raises Conflict as soon as a source may not be read any more. Asks the database at most once a second, and
        after every change here.
        """
        generation = self._rights.generation
        if generation == self._generation and time.monotonic() - self._checked < RECHECK_SECONDS:
            return
        async with self._database.session() as session:
            await self._check(session)
        self._generation, self._checked = generation, time.monotonic()

    async def _check(self, session: AsyncSession) -> None:
        principal = await renewed(session, self._principal)
        if principal is None or Scope.ANSWERS not in principal.scopes:
            raise rights_changed()
        query = visible(principal).where(Document.id.in_(self._sources))
        current = {d.id: d.current_version for d in await session.scalars(query)} if self._sources else {}
        if current.keys() != self._sources.keys():
            raise rights_changed()
        if current != self._sources:
            raise source_gone()


async def label_in_use(session: AsyncSession, tenant_id: UUID, label: str) -> bool:
    """Whether a document or a kept answer is filed under the label."""
    documents = owned(Document, tenant_id).join(DocumentLabel, DocumentLabel.document_id == Document.id)
    if await session.scalar(documents.where(DocumentLabel.label == label).with_only_columns(Document.id).limit(1)):
        return True
    kept = owned(Answer, tenant_id).join(Turn, Turn.id == Answer.id).with_only_columns(Answer.labels)
    return any(label in labels for labels in await session.scalars(kept))
