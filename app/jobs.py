"""Durable jobs: the row in the database is the truth.

A job is written in the same transaction as what it is about. Workers claim queued jobs by a conditional update and
say regularly that they are alive, by the database's clock, since their own may differ by more than a lease. What a dead
process left as `running` is queued again, so a handler must be able to run twice. Every write of a handler's attempt is
fenced by its claim: an attempt that was cancelled or taken over by somebody else changes nothing any more.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import String, func, or_, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database, TenantScoped, UtcDateTime, now
from app.errors import AppError
from app.telemetry import logger, tracer

log = logger(__name__)

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"
STATUSES = (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)
ENDED = (SUCCEEDED, FAILED, CANCELLED)
LEASE_SECONDS = 60.0  # unheard of for so long, a job of a shared database is taken over
POLL_SECONDS = 2.0


class Job(TenantScoped, Base):
    """`done` of `total` in the current `stage`; `error` says why a failed job failed. `worker` is the claim of the
    attempt that runs it, `alive_at` when that was last heard of."""

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
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    worker: Mapped[str | None] = mapped_column(String(36))
    alive_at: Mapped[datetime | None]


class Superseded(Exception):
    """This attempt of the job no longer counts: it was cancelled, or another worker has taken it over."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the job is {status}")
        self.cancelled = status == CANCELLED


class Progress:
    """Handed to a job's handler to say how far it is, and to hear whether it still counts."""

    def __init__(self, database: Database, job_id: UUID, claim: str | None) -> None:
        self._database = database
        self._job_id = job_id
        self._claim = claim

    async def report(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of the stage. Raises Superseded."""
        async with self._database.session() as session:
            await self.hold(session, stage=stage, done=done, total=total)
            await session.commit()

    async def hold(self, session: AsyncSession, **values: Any) -> None:
        """Write to the job's row in the caller's transaction, which then counts only if this attempt does.

        Raises Superseded.
        """
        mine = update(Job).where(Job.id == self._job_id, Job.status == RUNNING, Job.worker == self._claim)
        written = await session.execute(mine.values(alive_at=func.now(), **values))
        if written.rowcount == 0:  # type: ignore[attr-defined]
            status = await session.scalar(select(Job.status).where(Job.id == self._job_id))
            raise Superseded(status or CANCELLED)


Handler = Callable[[Job, Progress], Awaitable[None]]


class JobRunner:
    """Runs queued jobs with a few concurrent workers until stopped.

    Where the database is `shared` with other processes, a job is another's until it has not been heard of for
    LEASE_SECONDS; where it is not, whatever is running at start was left by a dead process. `ring` tells the others
    of a new job.
    """

    def __init__(
        self,
        database: Database,
        handlers: dict[str, Handler],
        workers: int,
        *,
        shared: bool = False,
        ring: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._database = database
        self._handlers = handlers
        self._workers = workers
        self._shared = shared
        self._ring = ring
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._ringing: set[asyncio.Task[None]] = set()
        self._claims: set[str] = set()

    async def start(self) -> None:
        await self._requeue(None if self._shared else now() + timedelta(days=1))
        work = [asyncio.create_task(self._work(), name=f"job-worker-{n}") for n in range(self._workers)]
        self._tasks = [*work, asyncio.create_task(self._beat(), name="job-heartbeat")]

    async def stop(self) -> None:
        """Stop at once; what was running is queued again, or by the next process that notices."""
        for task in (*self._tasks, *self._ringing):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._ringing, return_exceptions=True)

    def wake(self) -> None:
        """Say that a job was queued, here and to the other processes."""
        self._wake.set()
        if self._ring:
            task = asyncio.ensure_future(self._ring())
            self._ringing.add(task)
            task.add_done_callback(self._ringing.discard)

    def heard(self) -> None:
        """Another process says that a job was queued."""
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
                await asyncio.wait_for(self._wake.wait(), timeout=POLL_SECONDS)

    async def _beat(self) -> None:
        """Say that what runs here is alive, and take up what runs nowhere."""
        while True:
            await asyncio.sleep(LEASE_SECONDS / 4)
            try:
                async with self._database.session() as session:
                    mine = update(Job).where(Job.status == RUNNING, Job.worker.in_(self._claims))
                    await session.execute(mine.values(alive_at=func.now()))
                    await session.commit()
                if self._shared:
                    await self._requeue(None)
            except Exception:
                log.exception("job heartbeat failed, goes on")

    async def _requeue(self, unheard_since: datetime | None) -> None:
        """Queue jobs again that nobody has been heard to run since then (default: one lease ago)."""
        async with self._database.session() as session:
            limit = unheard_since or await _clock(session) - timedelta(seconds=LEASE_SECONDS)
            left = update(Job).where(Job.status == RUNNING, or_(Job.alive_at.is_(None), Job.alive_at < limit))
            await session.execute(left.values(status=QUEUED, worker=None))
            await session.commit()

    async def _claim(self) -> Job | None:
        claim = str(uuid4())
        async with self._database.session() as session:
            queued = select(Job).where(Job.status == QUEUED).order_by(Job.created_at, Job.id).limit(1)
            job = await session.scalar(queued)
            if job is None:
                return None
            values = {"status": RUNNING, "worker": claim, "alive_at": func.now(), "started_at": now()}
            taken = await session.execute(
                update(Job).where(Job.id == job.id, Job.status == QUEUED).values(attempts=Job.attempts + 1, **values)
            )
            await session.commit()
            if taken.rowcount == 1:  # type: ignore[attr-defined]
                job.worker = claim
                return job
            return await self._claim()  # another worker was faster

    async def _run(self, job: Job) -> None:
        progress = Progress(self._database, job.id, job.worker)
        self._claims.add(job.worker or "")
        try:
            with tracer.start_as_current_span(f"job {job.kind}", attributes={"job.id": str(job.id)}):
                await self._handlers[job.kind](job, progress)
            await self._finish(progress, SUCCEEDED, None)
        except Superseded as gone:
            log.info("job attempt given up", kind=job.kind, job_id=str(job.id), reason=str(gone))
        except AppError as error:
            await self._finish(progress, FAILED, error.detail)
            log.warning("job failed", kind=job.kind, job_id=str(job.id), reason=error.detail)
        except Exception as error:
            await self._finish(progress, FAILED, f"internal error: {type(error).__name__}")
            log.exception("job failed", kind=job.kind, job_id=str(job.id))
        finally:
            self._claims.discard(job.worker or "")

    async def _finish(self, progress: Progress, status: str, error: str | None) -> None:
        async with self._database.session() as session:
            with contextlib.suppress(Superseded):  # cancelled at the last moment: that stands
                await progress.hold(session, status=status, error=error, finished_at=now())
            await session.commit()


async def _clock(session: AsyncSession) -> datetime:
    """What the database takes the time to be, which is what `alive_at` is by."""
    at: datetime = (await session.scalars(select(type_coerce(func.now(), UtcDateTime())))).one()
    return at
