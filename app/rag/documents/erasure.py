"""What a deletion leaves to be done outside the database: points and files.

The job is written in the transaction that deletes the document, so that a process that dies right after the commit
leaves nothing behind for good.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.db import Database, now
from app.jobs import QUEUED, SUCCEEDED, Job, Progress
from app.rag.documents.files import FileStore
from app.rag.index.base import VectorIndex
from app.rag.models import Document, DocumentVersion
from app.rag.records import AnswerSource, Turn

FORGET = "forget"


class Erasure:
    """Handler of `forget` jobs."""

    def __init__(self, database: Database, files: FileStore, index: VectorIndex) -> None:
        self._database = database
        self._files = files
        self._index = index

    async def __call__(self, job: Job, progress: Progress) -> None:
        await progress.report("forget", 0, 1)
        await self._erase(job)
        await progress.report("forget", 1, 1)

    async def now(self, job: Job) -> None:
        """Do it before a worker comes to it; twice does no harm."""
        await self._erase(job)
        async with self._database.session() as session:
            done = update(Job).where(Job.id == job.id, Job.status == QUEUED)
            await session.execute(done.values(status=SUCCEEDED, finished_at=now()))
            await session.commit()

    async def _erase(self, job: Job) -> None:
        for version_id in job.payload["files"]:
            await self._files.remove(job.tenant_id, UUID(version_id))
        tenant, document = str(job.tenant_id), job.payload["document_id"]
        await asyncio.to_thread(self._index.delete_document, tenant, document)


async def forget_document(session: AsyncSession, document: Document, versions: Sequence[DocumentVersion]) -> Job:
    """Delete the document, and the turns of conversations that were made of it, in the caller's transaction.

    The document first: from then on no turn is kept of it (`AnswerLog.write`), and what is kept already is found.
    """
    await session.execute(delete(Document).where(Document.id == document.id))
    used = select(AnswerSource.answer_id).where(AnswerSource.document_id == document.id)
    await session.execute(delete(Turn).where(Turn.id.in_(used)))
    job = Job(
        id=uuid7(),
        tenant_id=document.tenant_id,
        kind=FORGET,
        payload={
            "document_id": str(document.id),
            "version": max((row.version for row in versions), default=0),
            "files": [str(row.id) for row in versions],
        },
    )
    session.add(job)
    return job
