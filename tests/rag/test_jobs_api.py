"""Ingestion jobs over HTTP: listed, cancelled, run again; an attempt that no longer counts changes nothing."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import select

from app import migrate
from app.db import Database
from app.errors import Conflict
from app.jobs import CANCELLED, QUEUED, RUNNING, Job, JobRunner, Progress, Superseded
from app.rag.documents.service import INGEST, Upload
from app.rag.models import PENDING, Document, DocumentVersion
from app.services import Services, open_services
from app.tenants import service
from app.tenants.principal import Principal, Scope
from tests.conftest import Site, fake_settings

TEXT = "\n".join(f"{n}. Clause number {n} says that the sum of {n} crowns is due." for n in range(1, 200))


async def test_jobs_are_listed_by_page_and_status(site: Site) -> None:
    headers, others = await site.headers("job-list"), await site.headers("job-list-other")
    walled = await site.headers("job-list", labels="wall")
    ids = [(await site.file(f"{n}.txt", f"Text number {n}.", headers))["id"] for n in range(3)]
    hidden = (await site.file("w.txt", "Behind a wall.", walled, labels="wall"))["id"]
    failed = (await site.file("bad.pdf", b"%PDF-1.7 broken", headers))["id"]

    async def listed(who: dict[str, str], **query: Any) -> dict[str, Any]:
        response = await site.client.get("/api/v1/jobs", params=query, headers=who)
        assert response.status_code == 200, response.text
        return response.json()  # type: ignore[no-any-return]

    first = await listed(headers, limit=2)
    assert [job["id"] for job in first["jobs"]] == [failed, ids[2]]
    second = await listed(headers, limit=2, cursor=first["next"])
    assert [job["id"] for job in second["jobs"]] == [ids[1], ids[0]]
    assert second["next"] is None
    assert [job["id"] for job in (await listed(headers, status="failed"))["jobs"]] == [failed]
    assert hidden in [job["id"] for job in (await listed(walled))["jobs"]]
    assert (await listed(others))["jobs"] == []
    assert (await site.client.get("/api/v1/jobs?status=lost", headers=headers)).status_code == 400
    assert (await site.client.get("/api/v1/jobs?cursor=!", headers=headers)).status_code == 400
    for action in ("cancel", "retry"):
        assert (await site.client.post(f"/api/v1/jobs/{hidden}/{action}", headers=headers)).status_code == 404
        assert (await site.client.post(f"/api/v1/jobs/{ids[0]}/{action}", headers=others)).status_code == 404
        assert (await site.client.post(f"/api/v1/jobs/{ids[0]}/{action}", headers=headers)).status_code == 409


async def test_a_failed_job_can_be_run_again(site: Site) -> None:
    headers = await site.headers("job-retry")
    failed = await site.file("bad.pdf", b"%PDF-1.7 broken", headers)
    assert failed["status"] == "failed"
    again = await site.client.post(f"/api/v1/jobs/{failed['id']}/retry", headers=headers)
    assert again.status_code == 202
    job = await site.job(failed["id"], headers)
    assert (job["status"], job["attempts"]) == ("failed", 2)


@pytest_asyncio.fixture(loop_scope="session")
async def services(tmp_path: Path) -> AsyncIterator[tuple[Services, Principal]]:
    settings = fake_settings(tmp_path)
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "firm")
        key = await service.create_key(session, tenant.id, "k", scopes=frozenset(Scope))
        principal = await service.find_principal(session, key.secret)
    await database.close()
    assert principal
    async with open_services(settings) as opened:
        yield opened, principal


async def until(services: Services, job_id: UUID, *statuses: str) -> Job:
    async with asyncio.timeout(30):
        while True:
            async with services.database.session() as session:
                job = await session.get(Job, job_id)
                assert job
                if job.status in statuses:
                    return job
            await asyncio.sleep(0.02)


async def settled(services: Services) -> None:
    """Returns once no attempt runs any more."""
    async with asyncio.timeout(30):
        while services.library.jobs._claims:
            await asyncio.sleep(0.02)


async def test_a_cancelled_job_leaves_nothing_and_can_be_run_again(services: tuple[Services, Principal]) -> None:
    site, principal = services
    embed, reached, go = site.library.search._retriever._embedder.embed, threading.Event(), threading.Event()

    def waits(texts: Any) -> Any:
        reached.set()
        assert go.wait(20)
        return embed(texts)

    site.library.search._retriever._embedder.embed = waits  # type: ignore[method-assign]
    filed = await site.library.documents.add(principal, Upload("a.txt", "", TEXT.encode()), "default", frozenset())
    assert filed.job
    site.library.jobs.wake()
    await asyncio.to_thread(reached.wait, 20)
    cancelled = await site.library.job_control.cancel(principal, filed.job.id)
    assert cancelled.status == CANCELLED
    with pytest.raises(Conflict):
        await site.library.job_control.cancel(principal, filed.job.id)
    go.set()
    await settled(site)
    assert site.library.index.count(kind=None) == 0
    info = await site.library.documents.get(principal, filed.document.id)
    assert (info.document.current_version, info.versions[0].status) == (None, "failed")

    await site.library.job_control.retry(principal, filed.job.id)
    site.library.jobs.wake()
    job = await until(site, filed.job.id, "succeeded", "failed")
    assert (job.status, job.attempts) == ("succeeded", 2)
    assert site.library.index.count(kind="document") == 1


async def test_a_newer_version_is_not_overtaken_by_an_older_one(services: tuple[Services, Principal]) -> None:
    site, principal = services
    filed = await site.library.documents.add(principal, Upload("a.txt", "", b"Version one."), "default", frozenset())
    assert filed.job
    site.library.jobs.wake()
    await until(site, filed.job.id, "succeeded")
    await site.library.jobs.stop()
    jobs = []
    for number in (2, 3):
        upload = Upload("a.txt", "", f"Version {number}.".encode())
        newer = await site.library.documents.replace(principal, filed.document.id, upload)
        assert newer.job
        jobs.append(newer.job.id)
    async with site.database.session() as session:
        rows = {job_id: await session.get(Job, job_id) for job_id in jobs}
        for job_id in reversed(jobs):  # the newer one first
            job = rows[job_id]
            assert job
            job.status, job.worker = RUNNING, "me"
            await session.commit()
            await site.library.jobs._handlers[INGEST](job, Progress(site.database, job_id, "me"))
        document = await session.get(Document, filed.document.id, populate_existing=True)
    assert document
    assert document.current_version == 3
    assert site.library.index.count(kind="document") == 1


async def test_an_attempt_that_was_taken_over_changes_nothing(services: tuple[Services, Principal]) -> None:
    site, principal = services
    await site.library.jobs.stop()
    filed = await site.library.documents.add(principal, Upload("a.txt", "", b"Some text."), "default", frozenset())
    assert filed.job
    async with site.database.session() as session:
        job = await session.get(Job, filed.job.id)
        assert job
        job.status, job.worker = RUNNING, "somebody else"
        await session.commit()
        with pytest.raises(Superseded):
            await site.library.jobs._handlers[INGEST](job, Progress(site.database, job.id, "me"))
        version = await session.scalar(select(DocumentVersion).where(DocumentVersion.job_id == job.id))
    assert version
    assert version.status == PENDING
    assert site.library.index.count(kind=None) == 0


async def test_a_job_of_a_shared_database_is_taken_over_only_when_nobody_is_heard(
    services: tuple[Services, Principal], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, principal = services
    await site.library.jobs.stop()
    filed = await site.library.documents.add(principal, Upload("a.txt", "", b"Some text."), "default", frozenset())
    assert filed.job
    other = JobRunner(site.database, {}, 0, shared=True)
    claimer = JobRunner(site.database, {}, 0, shared=True)
    claimed = await claimer._claim()
    assert claimed
    await other._requeue(None)
    assert (await until(site, filed.job.id, QUEUED, RUNNING)).status == RUNNING
    monkeypatch.setattr("app.jobs.LEASE_SECONDS", -1.0)
    await other._requeue(None)
    assert (await until(site, filed.job.id, QUEUED, RUNNING)).status == QUEUED
    with pytest.raises(Superseded):
        await Progress(site.database, claimed.id, claimed.worker).report("embed", 1, 2)


async def test_a_mistake_of_ours_fails_the_version_too(
    services: tuple[Services, Principal], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, principal = services

    def breaks(*_: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr("app.rag.documents.ingestion.parse", breaks)
    filed = await site.library.documents.add(principal, Upload("a.txt", "", b"Some text."), "default", frozenset())
    assert filed.job
    site.library.jobs.wake()
    job = await until(site, filed.job.id, "failed")
    [version] = (await site.library.documents.get(principal, filed.document.id)).versions
    assert version.status == "failed"
    assert "secret" not in f"{version.error} {job.error}"
