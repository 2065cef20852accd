"""Durable jobs: the row is the truth."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import pytest_asyncio

from app import migrate
from app.db import Database
from app.errors import UnreadableDocument
from app.jobs import FAILED, QUEUED, RUNNING, SUCCEEDED, Handler, Job, JobRunner, Progress
from app.tenants import service


@pytest_asyncio.fixture(loop_scope="session")
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/jobs.db")
    await migrate.upgrade(database)
    yield database
    await database.close()


async def add(database: Database, kind: str = "work", status: str = QUEUED) -> UUID:
    async with database.session() as session:
        tenant = await service.create_tenant(session, uuid4().hex)
        job = Job(tenant_id=tenant.id, kind=kind, payload={}, status=status)
        session.add(job)
        await session.commit()
        return job.id


async def ended(database: Database, job_id: UUID) -> Job:
    async with asyncio.timeout(10):
        while True:
            async with database.session() as session:
                job = await session.get(Job, job_id)
                assert job is not None
                if job.status in (SUCCEEDED, FAILED):
                    return job
            await asyncio.sleep(0.02)


async def run(database: Database, handler: Handler, job_id: UUID) -> Job:
    runner = JobRunner(database, {"work": handler}, workers=2)
    await runner.start()
    try:
        return await ended(database, job_id)
    finally:
        await runner.stop()


async def works(job: Job, progress: Progress) -> None:
    await progress.report("embed", 3, 5)


async def test_a_job_runs_and_says_how_far_it_is(database: Database) -> None:
    job = await run(database, works, await add(database))
    assert (job.status, job.stage, job.done, job.total) == (SUCCEEDED, "embed", 3, 5)
    assert job.started_at
    assert job.finished_at
    assert job.finished_at >= job.started_at


async def test_a_job_left_running_by_a_dead_process_runs_again(database: Database) -> None:
    job = await run(database, works, await add(database, status=RUNNING))
    assert job.status == SUCCEEDED


async def test_a_failure_says_why(database: Database) -> None:
    async def fails(job: Job, progress: Progress) -> None:
        raise UnreadableDocument("The PDF is encrypted.")

    job = await run(database, fails, await add(database))
    assert (job.status, job.error) == (FAILED, "The PDF is encrypted.")


async def test_an_unexpected_failure_shows_nothing_of_the_inside(database: Database) -> None:
    async def breaks(job: Job, progress: Progress) -> None:
        raise RuntimeError("/secret/path")

    job = await run(database, breaks, await add(database))
    assert (job.status, job.error) == (FAILED, "internal error: RuntimeError")


async def test_a_stopped_runner_leaves_the_job_to_the_next(database: Database) -> None:
    begun = asyncio.Event()

    async def hangs(job: Job, progress: Progress) -> None:
        begun.set()
        await asyncio.sleep(3600)

    job_id = await add(database)
    runner = JobRunner(database, {"work": hangs}, workers=1)
    await runner.start()
    await begun.wait()
    await runner.stop()
    assert (await run(database, works, job_id)).status == SUCCEEDED


@pytest.mark.parametrize("count", [8])
async def test_every_job_runs_once(database: Database, count: int) -> None:
    seen: list[UUID] = []

    async def notes(job: Job, progress: Progress) -> None:
        seen.append(job.id)
        await asyncio.sleep(0.01)

    ids = [await add(database) for _ in range(count)]
    runner = JobRunner(database, {"work": notes}, workers=4)
    await runner.start()
    for job_id in ids:
        await ended(database, job_id)
    await runner.stop()
    assert sorted(seen) == sorted(ids)
