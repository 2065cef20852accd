"""Ingestion jobs as their owners see and steer them: list, cancel, run again."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Database, now, owned
from app.errors import Conflict, NotFound
from app.gateway import cursor as cursors
from app.jobs import CANCELLED, FAILED, QUEUED, RUNNING, Job
from app.rag.documents.service import visible
from app.rag.models import FAILED as VERSION_FAILED
from app.rag.models import PENDING, READY, Document, DocumentVersion
from app.tenants import audit
from app.tenants.principal import Principal

CANCELLED_REASON = "The ingestion was cancelled."


class JobControl:
    """Jobs about documents that the caller may see; others do not exist for him."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(
        self, principal: Principal, status: str | None, since: datetime | None, cursor: str | None, limit: int
    ) -> tuple[list[Job], str | None]:
        """Newest first, and the cursor of the next page."""
        query = self._visible_jobs(principal)
        if status is not None:
            query = query.where(Job.status == status)
        if since is not None:
            query = query.where(Job.created_at >= since)
        if cursor:
            query = query.where(Job.id < cursors.decode(cursor))
        async with self._database.session() as session:
            rows = list(await session.scalars(query.order_by(Job.id.desc()).limit(limit + 1)))
        return cursors.cut(rows, limit)

    async def cancel(self, principal: Principal, job_id: UUID) -> Job:
        """Nothing of the version is shown, now or later; an attempt that runs somewhere notices at its next step.

        Raises NotFound, and Conflict for a job that has ended.
        """
        async with self._database.session() as session:
            job = await self._get(session, principal, job_id)
            stopped = update(Job).where(Job.id == job.id, Job.status.in_((QUEUED, RUNNING)))
            changed = await session.execute(stopped.values(status=CANCELLED, finished_at=now()))
            if changed.rowcount == 0:  # type: ignore[attr-defined]
                raise Conflict(f"The job has {job.status}; only one that waits or runs can be cancelled.")
            if not await _set_version(session, job, VERSION_FAILED, CANCELLED_REASON):
                raise Conflict("The job has just succeeded: its version is current by now.")
            await _audit(session, principal, "job.cancel", job)
            await session.commit()
            await session.refresh(job)
            return job

    async def retry(self, principal: Principal, job_id: UUID) -> Job:
        """Queue a failed or cancelled job again.

        Raises NotFound, and Conflict for one that has not failed, or whose version has been replaced since.
        """
        async with self._database.session() as session:
            job = await self._get(session, principal, job_id)
            document = await session.get(Document, UUID(job.payload["document_id"]))
            if document is None or (document.current_version or 0) >= job.payload["version"]:
                raise Conflict("The document has been deleted, or has a newer version by now.")
            again = update(Job).where(Job.id == job.id, Job.status.in_((FAILED, CANCELLED)))
            values = {"status": QUEUED, "error": None, "stage": "", "done": 0, "total": 0, "finished_at": None}
            changed = await session.execute(again.values(**values))
            if changed.rowcount == 0:  # type: ignore[attr-defined]
                raise Conflict(f"The job is {job.status}; only one that failed or was cancelled can be run again.")
            await _set_version(session, job, PENDING, None)
            await _audit(session, principal, "job.retry", job)
            await session.commit()
            await session.refresh(job)
            return job

    async def _get(self, session: AsyncSession, principal: Principal, job_id: UUID) -> Job:
        found = await session.scalar(self._visible_jobs(principal).where(Job.id == job_id))
        if found is None:
            raise NotFound(f"There is no job {job_id}.")
        return found

    def _visible_jobs(self, principal: Principal) -> Select[tuple[Job]]:
        shown = visible(principal).with_only_columns(Document.id)
        versions = owned(DocumentVersion, principal.tenant_id).where(DocumentVersion.document_id.in_(shown))
        return owned(Job, principal.tenant_id).where(Job.id.in_(versions.with_only_columns(DocumentVersion.job_id)))


async def _set_version(session: AsyncSession, job: Job, status: str, error: str | None) -> bool:
    """False where the version is ready: an attempt publishes it a moment before its job ends."""
    version = update(DocumentVersion).where(DocumentVersion.job_id == job.id, DocumentVersion.status != READY)
    return bool((await session.execute(version.values(status=status, error=error))).rowcount)  # type: ignore[attr-defined]


async def _audit(session: AsyncSession, principal: Principal, action: str, job: Job) -> None:
    detail = {"document": job.payload["document_id"], "version": job.payload["version"]}
    await audit.append(session, audit.actor_of(principal), action, f"job:{job.id}", principal.tenant_id, detail)
