"""kill -9 in the middle of an ingestion: after the next start there is nothing too much and nothing missing."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app import migrate
from app.db import Database
from app.jobs import SUCCEEDED, Job, Progress
from app.rag.documents.service import Upload
from app.rag.forget import Forgetting
from app.rag.models import READY, Chunk, Document, DocumentFact, DocumentVersion
from app.services import Services, open_services
from app.tenants import service
from app.tenants.principal import Scope
from tests.conftest import fake_settings

STAGES = ("parse", "chunk", "embed", "index", "before the commit", "after the commit")
OLD = "This Lease is made on 1 May 2020 between Alder Inc. and Birch LLC.\n" + "\n".join(
    f"{n}. The old clause number {n} speaks of {n} crowns." for n in range(1, 600)
)
NEW = OLD.replace("old", "new")


async def all_jobs_done(services: Services) -> None:
    async with asyncio.timeout(60):
        while True:
            async with services.database.session() as session:
                jobs = list(await session.scalars(select(Job)))
                if all(job.status == SUCCEEDED for job in jobs):
                    return
            await asyncio.sleep(0.05)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(stage: str) -> None:
    """From now on this process dies at the stage."""
    report, hold, told = Progress.report, Progress.hold, Forgetting.versions_before

    async def dying_report(self: Progress, name: str, done: int, total: int) -> None:
        await report(self, name, done, total)
        if name == stage and (name != "embed" or done > 0):
            die()

    async def dying_hold(self: Progress, session: object, **values: object) -> None:
        await hold(self, session, **values)  # type: ignore[arg-type]
        if stage == "before the commit" and not values:
            die()

    async def dying_told(self: Forgetting, document_id: object, version: int) -> None:
        if stage == "after the commit":
            die()
        await told(self, document_id, version)  # type: ignore[arg-type]

    Progress.report = dying_report  # type: ignore[method-assign]
    Progress.hold = dying_hold  # type: ignore[method-assign, assignment]
    Forgetting.versions_before = dying_told  # type: ignore[method-assign, assignment]


async def first_life(folder: Path, stage: str) -> None:
    settings = fake_settings(folder)
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "firm")
        key = await service.create_key(session, tenant.id, "k", scopes=frozenset(Scope))
        principal = await service.find_principal(session, key.secret)
    assert principal
    async with open_services(settings) as services:
        filed = await services.library.documents.add(
            principal, Upload("a.txt", "", OLD.encode()), "default", frozenset()
        )
        services.library.jobs.wake()
        await all_jobs_done(services)
        arm(stage)
        await services.library.documents.replace(principal, filed.document.id, Upload("a.txt", "", NEW.encode()))
        services.library.jobs.wake()
        await asyncio.sleep(290)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
async def test_a_killed_ingestion_is_finished_by_the_next_start(stage: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    killed = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "tests.rag.test_killed", str(tmp_path), stage], cwd=root, timeout=300
    )
    assert killed.returncode == -signal.SIGKILL
    async with open_services(fake_settings(tmp_path)) as services:
        await all_jobs_done(services)
        async with services.database.session() as session:
            document = (await session.scalars(select(Document))).one()
            versions = list(await session.scalars(select(DocumentVersion).order_by(DocumentVersion.version)))
            chunks = await session.scalar(select(func.count()).select_from(Chunk).where(Chunk.version == 2))
            facts = list(await session.scalars(select(DocumentFact.value).where(DocumentFact.version == 2)))
        assert document.current_version == 2
        assert [version.status for version in versions] == [READY, READY]
        assert chunks
        assert services.library.index.count() == chunks
        assert services.library.index.count(kind="document") == 1
        points, _ = services.library.index.scan("chunk", None, 1000)
        assert {point.payload["version"] for point in points} == {2}
        assert len(facts) == len(set(facts)) > 2


if __name__ == "__main__":
    asyncio.run(first_life(Path(sys.argv[1]), sys.argv[2]))
