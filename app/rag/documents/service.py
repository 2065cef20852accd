"""Documents and their versions: filing, reading, replacing and deleting, always under the caller's rights."""

import hashlib
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
from sqlalchemy import Select, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import undefer
from uuid_utils.compat import uuid7

from app.db import Database, get_owned, owned, take_turn
from app.errors import Conflict, NotFound
from app.jobs import Job
from app.rag.answers.citations import SourceText
from app.rag.documents.erasure import Erasure, forget_document
from app.rag.documents.files import FileStore as FileStore
from app.rag.documents.filters import FactFilter, facts_of
from app.rag.forget import Forgetting
from app.rag.index.base import VectorIndex
from app.rag.models import PENDING, READY, Document, DocumentFact, DocumentLabel, DocumentVersion
from app.rag.parsing import Page
from app.tenants import audit
from app.tenants.matters import require_open
from app.tenants.models import Tenant
from app.tenants.principal import Principal

INGEST = "ingest"
MAX_CACHED_SOURCES = 64
ANY = FactFilter()


@dataclass(frozen=True)
class Upload:
    """One file as it came."""

    filename: str
    media_type: str
    data: bytes


@dataclass(frozen=True)
class Filed:
    """What became of an upload; no job where the same content was there already."""

    document: Document
    version: int
    job: Job | None


@dataclass(frozen=True)
class DocumentInfo:
    """A document with its labels, its versions, newest first, and what its current version says about itself."""

    document: Document
    labels: frozenset[str]
    versions: list[DocumentVersion]
    facts: list[DocumentFact]


def visible(principal: Principal) -> Select[tuple[Document]]:
    """SELECT of the documents whose every label the caller holds."""
    hidden = select(DocumentLabel.id).where(
        DocumentLabel.document_id == Document.id, DocumentLabel.label.not_in(principal.labels)
    )
    return owned(Document, principal.tenant_id).where(~hidden.exists())


async def get_visible(session: AsyncSession, principal: Principal, document_id: UUID) -> Document:
    """Raises NotFound for what is absent, another tenant's, or under a matter the caller does not hold."""
    document = await session.scalar(visible(principal).where(Document.id == document_id))
    if document is None:
        raise NotFound(f"There is no document {document_id}.")
    return document


async def labels_of(session: AsyncSession, document_ids: set[UUID]) -> dict[UUID, frozenset[str]]:
    """Labels by document."""
    found: dict[UUID, set[str]] = {document_id: set() for document_id in document_ids}
    rows = await session.scalars(select(DocumentLabel).where(DocumentLabel.document_id.in_(document_ids)))
    for row in rows:
        found[row.document_id].add(row.label)
    return {document_id: frozenset(labels) for document_id, labels in found.items()}


class DocumentService:
    """Files documents and hands them out. Ingestion itself is a job."""

    def __init__(self, database: Database, files: FileStore, index: VectorIndex, forgetting: Forgetting) -> None:
        self._database = database
        self._files = files
        self.erasure = Erasure(database, files, index)
        self._forgetting = forgetting
        self._sources: OrderedDict[tuple[UUID, int], SourceText] = OrderedDict()

    async def add(self, principal: Principal, upload: Upload, collection: str, labels: frozenset[str]) -> Filed:
        """File a new document, unless the caller sees the same content there already under the same labels: of two who
        file the same at once, the second finds the first one's.
        """
        principal.require_labels(labels)
        async with self._database.session() as session:
            await require_open(session, principal.tenant_id, labels)
            document = Document(
                id=uuid7(),
                tenant_id=principal.tenant_id,
                collection=collection,
                title=upload.filename,
                filename=upload.filename,
            )
            version, job = await self._file(document, upload, 1)
            await take_turn(session, Tenant, principal.tenant_id)  # not before the file is written: that takes a while
            if twin := await self._twin(session, principal, version.sha256, collection, labels):
                await self._files.remove(version.tenant_id, version.id)
                return twin
            session.add(document)
            await session.flush()
            session.add_all(DocumentLabel(document_id=document.id, label=label) for label in labels)
            session.add_all([version, job])
            await session.commit()
            return Filed(document, 1, job)

    async def replace(self, principal: Principal, document_id: UUID, upload: Upload) -> Filed:
        """File a new version; the old one answers until the new one is ready."""
        async with self._database.session() as session:
            await take_turn(session, Document, document_id)  # two at once are two versions
            document = await get_visible(session, principal, document_id)
            await require_open(session, principal.tenant_id, (await labels_of(session, {document_id}))[document_id])
            versions = owned(DocumentVersion, principal.tenant_id).where(DocumentVersion.document_id == document_id)
            newest = await session.scalar(versions.order_by(DocumentVersion.version.desc()).limit(1))
            digest = hashlib.sha256(upload.data).hexdigest()
            if newest and newest.sha256 == digest and newest.version == document.current_version:
                return Filed(document, newest.version, None)
            number = newest.version + 1 if newest else 1
            version, job = await self._file(document, upload, number)
            session.add_all([version, job])
            await session.commit()
            return Filed(document, number, job)

    async def page(
        self, principal: Principal, collection: str | None, limit: int, offset: int, where: FactFilter = ANY
    ) -> tuple[list[DocumentInfo], int]:
        """A page of the visible documents, newest first, and how many there are."""
        query = where.narrow(visible(principal))
        if collection is not None:
            query = query.where(Document.collection == collection)
        async with self._database.session() as session:
            total = await session.scalar(select(func.count()).select_from(query.subquery())) or 0
            page = query.order_by(Document.created_at.desc(), Document.id).limit(limit).offset(offset)
            documents = list(await session.scalars(page))
            return await self._infos(session, principal, documents), total

    async def get(self, principal: Principal, document_id: UUID) -> DocumentInfo:
        async with self._database.session() as session:
            document = await get_visible(session, principal, document_id)
            return (await self._infos(session, principal, [document]))[0]

    async def text(self, principal: Principal, document_id: UUID, version: int | None) -> tuple[DocumentVersion, str]:
        """The text of a ready version (default: the current one) that all offsets refer to."""
        async with self._database.session() as session:
            document = await get_visible(session, principal, document_id)
            number = version or document.current_version
            row = await session.scalar(
                owned(DocumentVersion, principal.tenant_id)
                .where(DocumentVersion.document_id == document_id, DocumentVersion.version == number)
                .options(undefer(DocumentVersion.text))
            )
            if row is None:
                raise NotFound(f"The document {document_id} has no version {number}.")
            if row.status != READY:
                raise Conflict(f"Version {number} is {row.status}; it has no text.")
            return row, row.text

    async def source(self, session: AsyncSession, tenant_id: UUID, document_id: UUID, version: int) -> SourceText:
        """Text, pages and boxes of a version. Versions never change, so recent ones are kept in memory."""
        key = (document_id, version)
        if key not in self._sources:
            row = await session.scalar(
                owned(DocumentVersion, tenant_id)
                .where(DocumentVersion.document_id == document_id, DocumentVersion.version == version)
                .options(undefer(DocumentVersion.text), undefer(DocumentVersion.boxes))
            )
            if row is None:
                raise NotFound(f"The document {document_id} has no version {version}.")
            boxes = unpack_boxes(row.boxes) if row.boxes else None
            self._sources[key] = SourceText(row.text, tuple(Page(**page) for page in row.pages), boxes)
            if len(self._sources) > MAX_CACHED_SOURCES:
                self._sources.popitem(last=False)
        self._sources.move_to_end(key)
        return self._sources[key]

    async def delete(self, principal: Principal, document_id: UUID) -> None:
        """Delete a document with all its versions. Committing fences it; answers and caches, index and files follow."""
        async with self._database.session() as session:
            await take_turn(session, Document, document_id)  # a version that is being filed goes with it
            document = await get_visible(session, principal, document_id)
            versions = list(
                await session.scalars(
                    owned(DocumentVersion, principal.tenant_id).where(DocumentVersion.document_id == document_id)
                )
            )
            job = await forget_document(session, document, versions)
            who, what = audit.actor_of(principal), f"document:{document_id}"
            await audit.append(session, who, "document.delete", what, principal.tenant_id, {"versions": len(versions)})
            await session.commit()
        await self._forgetting.document(document_id)
        for version in versions:
            self._sources.pop((document_id, version.version), None)
        await self.erasure.now(job)

    async def job(self, principal: Principal, job_id: UUID) -> Job:
        """A job of the caller's tenant; one about a document the caller may not see is not found either."""
        async with self._database.session() as session:
            job = await get_owned(session, Job, principal.tenant_id, job_id)
            still_there = await session.get(Document, UUID(job.payload["document_id"]))
            if still_there:
                await get_visible(session, principal, still_there.id)
            return job

    async def _file(self, document: Document, upload: Upload, number: int) -> tuple[DocumentVersion, Job]:
        """Write the original; nothing counts until the caller has committed the version's row and its job."""
        job = Job(
            id=uuid7(),
            tenant_id=document.tenant_id,
            kind=INGEST,
            payload={"document_id": str(document.id), "version": number},
        )
        version = DocumentVersion(
            id=uuid4(),
            job_id=job.id,
            tenant_id=document.tenant_id,
            document_id=document.id,
            version=number,
            filename=upload.filename,
            media_type=upload.media_type,
            sha256=hashlib.sha256(upload.data).hexdigest(),
            size=len(upload.data),
        )
        await self._files.write(version, upload.data)
        return version, job

    async def _twin(
        self,
        session: AsyncSession,
        principal: Principal,
        digest: str,
        collection: str,
        labels: frozenset[str],
    ) -> Filed | None:
        """The same content under the same labels: current, or on its way (then with its job)."""
        alive = or_(DocumentVersion.version == Document.current_version, DocumentVersion.status == PENDING)
        same = (
            visible(principal)
            .join(DocumentVersion, DocumentVersion.document_id == Document.id)
            .where(Document.collection == collection, DocumentVersion.sha256 == digest, alive)
            .add_columns(DocumentVersion)
        )
        for document, version in (await session.execute(same)).tuples():
            if (await labels_of(session, {document.id}))[document.id] == labels:
                job = await session.get(Job, version.job_id) if version.status == PENDING else None
                return Filed(document, version.version, job)
        return None

    async def _infos(
        self, session: AsyncSession, principal: Principal, documents: list[Document]
    ) -> list[DocumentInfo]:
        ids = {document.id for document in documents}
        labels = await labels_of(session, ids)
        versions: dict[UUID, list[DocumentVersion]] = {document_id: [] for document_id in ids}
        rows = owned(DocumentVersion, principal.tenant_id).where(DocumentVersion.document_id.in_(ids))
        for row in await session.scalars(rows.order_by(DocumentVersion.version.desc())):
            versions[row.document_id].append(row)
        facts = await facts_of(session, documents)
        return [DocumentInfo(d, labels[d.id], versions[d.id], facts[d.id]) for d in documents]


def pack_boxes(boxes: npt.NDArray[np.float32]) -> bytes:
    """Character boxes [n, 4] in points as zlib-compressed int16 tenths of a point; NaN becomes −32768."""
    tenths = np.clip(np.round(boxes * 10), -32767, 32767)
    return zlib.compress(np.where(np.isnan(tenths), -32768, tenths).astype("<i2").tobytes(), 6)


def unpack_boxes(packed: bytes) -> npt.NDArray[np.float32]:
    """The inverse of `pack_boxes`, to a tenth of a point."""
    tenths = np.frombuffer(zlib.decompress(packed), dtype="<i2").reshape(-1, 4)
    boxes: npt.NDArray[np.float32] = np.where(tenths == -32768, np.nan, tenths / 10).astype(np.float32)
    return boxes
