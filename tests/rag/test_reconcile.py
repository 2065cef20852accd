"""Index and database agree: what a process that died left behind is found, reported and put right."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import numpy as np
import pytest
import pytest_asyncio
from sqlalchemy import delete

from app import migrate
from app.db import Database
from app.errors import Unavailable
from app.jobs import Job
from app.rag.index import refill
from app.rag.index.base import IndexPoint, VectorIndex
from app.rag.index.points import chunk_id
from app.rag.index.reconcile import Report
from app.rag.models import Document
from app.services import Services, open_services
from app.tenants.principal import Principal
from tests.conftest import fake_settings
from tests.rag.test_forget import LEASE, file, principal


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def firm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    made = fake_settings(tmp_path_factory.mktemp("reconcile"))
    database = Database(made.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    async with open_services(made) as services:
        yield services


def index_of(firm: Services) -> VectorIndex:
    return firm.library.reconciler._index


async def report(firm: Services, who: Principal, *, repair: bool = False) -> Report:
    [found] = await firm.library.reconciler.run(repair=repair, tenant_id=who.tenant_id)
    return found


async def until_clean(firm: Services, who: Principal) -> None:
    firm.library.jobs.wake()
    async with asyncio.timeout(30):
        while not (await report(firm, who)).clean:
            await asyncio.sleep(0.05)


async def spoil(firm: Services, who: Principal, document: UUID, how: str) -> None:
    """Leave the index as a process that died would."""
    index, tenant = index_of(firm), str(who.tenant_id)

    def point(document_id: str, version: int, ordinal: int, labels: tuple[str, ...] = ()) -> IndexPoint:
        vector = np.full(firm.library.reconciler._probe.shape, 0.05, dtype=np.float32)
        name = chunk_id(document_id, version, ordinal)
        return IndexPoint(name, tenant, document_id, version, "default", labels, 0, 5, ordinal, vector, "lease")

    if how == "missing":
        index.delete_document(tenant, str(document), 1)
    elif how == "stale":
        index.upsert([point(str(document), 7, 0)])
    elif how == "mislabelled":
        index.upsert([point(str(document), 1, 0, ("forgotten",))])
    elif how == "orphan":  # deleted in the database alone
        async with firm.database.session() as session:
            await session.execute(delete(Document).where(Document.id == document))
            await session.commit()


@pytest.mark.parametrize("how", ["missing", "stale", "mislabelled", "orphan"])
async def test_what_a_dead_process_left_is_found_and_put_right(firm: Services, how: str) -> None:
    who = await principal(firm, how)
    document = await file(firm, who, "lease.txt", LEASE * 9)
    await file(firm, who, "other.txt", LEASE * 8)
    clean = await report(firm, who)
    assert clean.clean and clean.documents == 2 and clean.points == clean.chunks + clean.documents
    await spoil(firm, who, document, how)
    spoilt = await report(firm, who)
    counted = {"missing": spoilt.missing, "stale": spoilt.stale, "orphan": spoilt.orphans}
    counted["mislabelled"] = spoilt.mislabelled
    assert counted[how] > 0 and not spoilt.clean
    repaired = await report(firm, who, repair=True)
    assert repaired.repaired == 1
    await until_clean(firm, who)
    assert (await report(firm, who)).documents == (1 if how == "orphan" else 2)


async def test_a_process_that_dies_right_after_a_deletion_finishes_it_at_its_next_start(
    firm: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = await principal(firm, "dies")
    document = await file(firm, who, "lease.txt", LEASE * 3)

    async def dies(job: Job) -> None:
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(firm.library.documents.erasure, "now", dies)
        with pytest.raises(SystemError):
            await firm.library.documents.delete(who, document)
    files = firm.settings.directory / "files" / str(who.tenant_id)
    firm.library.jobs.wake()
    async with asyncio.timeout(30):
        while index_of(firm).count(str(who.tenant_id), kind=None) or list(files.iterdir()):
            await asyncio.sleep(0.02)
    assert (await report(firm, who)).clean


@pytest.mark.slow
async def test_documents_filed_during_a_repair_are_left_alone(firm: Services) -> None:
    who = await principal(firm, "beside")
    stop = asyncio.Event()

    async def repairs() -> int:
        times = 0
        while not stop.is_set():
            await report(firm, who, repair=True)
            times += 1
        return times

    repairing = asyncio.create_task(repairs())
    for number in range(5):
        await file(firm, who, f"lease-{number}.txt", LEASE * (number + 1))
    stop.set()
    assert await repairing > 1
    await until_clean(firm, who)
    assert (await report(firm, who)).documents == 5


@pytest.mark.slow
async def test_the_index_is_put_right_in_the_background_of_a_start(tmp_path: Path) -> None:
    made = fake_settings(tmp_path)
    database = Database(made.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    async with open_services(made) as services:
        who = await principal(services, "start")
        gone = await file(services, who, "gone.txt", LEASE * 3)
        kept = await file(services, who, "kept.txt", LEASE * 2)
        await spoil(services, who, gone, "orphan")
        await spoil(services, who, kept, "missing")
        assert not (await report(services, who)).clean
    async with open_services(made) as services:
        await until_clean(services, who)
        assert (await report(services, who)).documents == 1


async def test_an_index_that_goes_again_while_it_is_filled_is_not_searched_before_all_is_there(
    firm: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refill, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(refill, "STEP_SECONDS", 0.01)
    library, index, who = firm.library, index_of(firm), await principal(firm, "refill")
    await spoil(firm, who, await file(firm, who, "lease.txt", LEASE), "missing")
    gone, runs, upsert = [True], [0], index.upsert
    again, goes_on = asyncio.Event(), asyncio.Event()

    async def run(*, repair: bool) -> list[Report]:
        runs[0] += 1
        if runs[0] == 1:
            raise Unavailable("The index does not answer.")
        again.set()
        await goes_on.wait()
        return await library.reconciler.run(repair=repair)

    def refused(_: object) -> None:
        monkeypatch.setattr(index, "upsert", upsert)
        raise Unavailable("The index does not answer.")

    monkeypatch.setattr(index, "upsert", refused)
    renewed = SimpleNamespace(is_gone=lambda: gone and gone.pop(), renew=lambda: None)
    filling = refill.Refill(firm.database, renewed, SimpleNamespace(run=run), library.search, library.jobs)  # type: ignore[arg-type]
    task = asyncio.create_task(filling.run())
    try:
        async with asyncio.timeout(20):
            await again.wait()
            assert library.search.closed
            goes_on.set()
            while library.search.closed:
                await asyncio.sleep(0.01)
        assert (await report(firm, who)).clean, "also what failed at first is there"
    finally:
        task.cancel()
