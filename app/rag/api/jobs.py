"""/api/v1/jobs: how far documents are on their way in."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from app.jobs import Job, JobRunner
from app.rag.api.schemas import JobList, JobView
from app.rag.documents.job_control import JobControl
from app.rag.documents.service import DocumentService
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

READS = (requires_scope(Scope.DOCUMENTS_READ),)
WRITES = (requires_scope(Scope.DOCUMENTS_WRITE),)
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobController(Controller):
    path = "/api/v1/jobs"
    tags = ("documents",)

    @get(guards=READS, summary="List jobs, newest first")
    async def list_jobs(
        self,
        principal: NamedDependency[Principal],
        job_control: NamedDependency[JobControl],
        status: FromQuery[Status | None] = None,
        since: FromQuery[datetime | None] = None,
        cursor: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100,
    ) -> JobList:
        """`since`: jobs filed at that time or later. `next` of the answer is the `cursor` of the next page."""
        rows, following = await job_control.page(principal, status, since, cursor, limit)
        return JobList([job_view(row) for row in rows], following)

    @get("/{job_id:uuid}", guards=READS, summary="How far a job is")
    async def get_job(
        self, job_id: FromPath[UUID], principal: NamedDependency[Principal], documents: NamedDependency[DocumentService]
    ) -> JobView:
        return job_view(await documents.job(principal, job_id))

    @post("/{job_id:uuid}/cancel", guards=WRITES, status_code=200, summary="Stop a job that waits or runs")
    async def cancel(
        self, job_id: FromPath[UUID], principal: NamedDependency[Principal], job_control: NamedDependency[JobControl]
    ) -> JobView:
        return job_view(await job_control.cancel(principal, job_id))

    @post("/{job_id:uuid}/retry", guards=WRITES, status_code=202, summary="Run a failed or cancelled job again")
    async def retry(
        self,
        job_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        job_control: NamedDependency[JobControl],
        jobs: NamedDependency[JobRunner],
    ) -> JobView:
        job = await job_control.retry(principal, job_id)
        jobs.wake()
        return job_view(job)


def job_view(job: Job) -> JobView:
    return JobView(
        id=job.id,
        kind=job.kind,
        status=job.status,
        stage=job.stage,
        done=job.done,
        total=job.total,
        attempts=job.attempts,
        error=job.error,
        document_id=UUID(job.payload["document_id"]),
        version=job.payload.get("version", 0),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )
