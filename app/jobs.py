"""Durable jobs: the row in the database is the truth.

A job is written in the same transaction as what it is about. This process runs the queued ones; those a dead
process left behind as `running` are queued again at start, so a handler must be able to run twice.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import String, select, update
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database, TenantScoped, now
from app.errors import AppError
from app.telemetry import logger, tracer

log = logger(__name__)

QUEUED, RUNNING, SUCCEEDED, FAILED = "queued", "running", "succeeded", "failed"


class Job(TenantScoped, Base):
    """`done` of `total` in the current `stage`; `error` says why a failed job failed."""

    __tablename__ = "jobs"

    kind: Mapped[str] = mapped_column(String(40))
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(10), default=QUEUED, index=True)
    stage: Mapped[str] = mapped_column(String(20), default="")
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Progress:
    """Handed to a job's handler to say how far it is."""

    def __init__(self, database: Database, job_id: UUID) -> None:
        self._database = database
        self._job_id = job_id

    async def report(self, stage: str, done: int, total: int) -> None:
        await self._update(stage=stage, done=done, total=total)

    async def _update(self, **values: Any) -> None:
        async with self._database.session() as session:
            await session.execute(update(Job).where(Job.id == self._job_id).values(**values))
            await session.commit()


Handler = Callable[[Job, Progress], Awaitable[None]]


class JobRunner:
    """Runs queued jobs with a few concurrent workers until stopped."""

    def __init__(self, database: Database, handlers: dict[str, Handler], workers: int) -> None:
        self._database = database
        self._handlers = handlers
        self._workers = workers
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        async with self._database.session() as session:
            await session.execute(update(Job).where(Job.status == RUNNING).values(status=QUEUED))
            await session.commit()
        self._tasks = [asyncio.create_task(self._work(), name=f"job-worker-{n}") for n in range(self._workers)]

    async def stop(self) -> None:
        """Stop at once; what was running is queued again at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Say that a job was queued."""
        self._wake.set()

    async def _work(self) -> None:
        while True:
            try:
                job = await self._claim()
                if job:
                    await self._run(job)
                    continue
            except Exception:
                log.exception("job worker failed, goes on")
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                # Another process may have queued a job, or the database was away: look again now and then.
                await asyncio.wait_for(self._wake.wait(), timeout=2.0)

    async def _claim(self) -> Job | None:
        async with self._database.session() as session:
            queued = select(Job).where(Job.status == QUEUED).order_by(Job.created_at, Job.id).limit(1)
            job = await session.scalar(queued)
            if job is None:
                return None
            taken = await session.execute(
                update(Job).where(Job.id == job.id, Job.status == QUEUED).values(status=RUNNING, started_at=now())
            )
            await session.commit()
            # Another worker was faster: come back through the loop.
            return job if taken.rowcount == 1 else await self._claim()  # type: ignore[attr-defined]

    async def _run(self, job: Job) -> None:
        progress = Progress(self._database, job.id)
        try:
            with tracer.start_as_current_span(f"job {job.kind}", attributes={"job.id": str(job.id)}):
                await self._handlers[job.kind](job, progress)
        except AppError as error:
            await progress._update(status=FAILED, error=error.detail, finished_at=now())
            log.warning("job failed", kind=job.kind, job_id=str(job.id), reason=error.detail)
        except Exception as error:
            await progress._update(status=FAILED, error=f"internal error: {type(error).__name__}", finished_at=now())
            log.exception("job failed", kind=job.kind, job_id=str(job.id))
        else:
            await progress._update(status=SUCCEEDED, finished_at=now())
