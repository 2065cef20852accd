"""Backups: of a served installation, put back after everything was lost; and what is refused."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import select

from app import migrate
from app.asgi import create_app
from app.config import RouteSettings, ServerSettings, Settings, StorageSettings, TargetSettings
from app.db import Database
from app.errors import Conflict, InvalidRequest, Unavailable
from app.operations import snapshots
from app.operations.backup import MANIFEST, backup, read, restore
from app.tenants import audit
from app.tenants.models import AuditEntry
from app.tenants.principal import Scope
from tests.conftest import QUOTE, fake_settings, listen
from tests.gateway.upstream import prepared
from tests.rag.test_documents_api import LEASE
from tests.servers import free_port

QUESTION = {"question": "How much is the rent of Mill House?"}


def settings_of(folder: Path, **changes: Any) -> Settings:
    quoting = TargetSettings(name="quoting", provider="fake", options=f"text=The contract states [1]: {QUOTE}")
    routes = (RouteSettings(model="quoting", targets=("quoting",)),)
    server = ServerSettings(port=free_port())
    return fake_settings(folder, targets=(quoting,), routes=routes, server=server, **changes)


async def bare(settings: Settings) -> Settings:
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    return settings


@asynccontextmanager
async def served(settings: Settings, key: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {key}"}
    async with listen(create_app(settings)) as url, httpx.AsyncClient(base_url=url, headers=headers) as http:
        yield http


async def file(http: httpx.AsyncClient, text: str) -> str:
    filed = (await http.post("/api/v1/documents", files={"f": (f"{uuid4()}.md", text.encode())})).json()["documents"]
    document: str = filed[0]["id"]
    async with asyncio.timeout(30):
        while (await http.get(f"/api/v1/documents/{document}")).json()["current_version"] is None:
            await asyncio.sleep(0.05)
    return document


async def answered(http: httpx.AsyncClient) -> dict[str, Any]:
    """What the caller reads, once the index is there."""
    async with asyncio.timeout(30):
        while (answer := (await http.post("/api/v1/answers", json=QUESTION)).json())["refused"]:
            await asyncio.sleep(0.1)
    return {"answer": answer["answer"], "citations": answer["citations"]}


async def comes_back(settings: Settings, folder: Path) -> None:
    """Backed up while it is served and documents come and go; then all is lost; then it answers as before."""
    key = await prepared(settings, *Scope)
    async with served(settings, key) as http:
        await file(http, LEASE)
        before = await answered(http)
        assert before["citations"][0]["verified"]

        over = asyncio.Event()
        gone: list[str] = []

        async def others() -> None:
            while not over.is_set():
                gone.append(await file(http, f"A note of no importance, number {len(gone)}."))
                await http.delete(f"/api/v1/documents/{gone[-1]}")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(others())
            while not gone:
                await asyncio.sleep(0.01)
            manifest = await backup(settings, folder)
            with pytest.raises(Conflict, match="stop it first"):
                await restore(settings, folder, force=True)
            over.set()
        assert manifest.missing == [] and len(gone) > 1
    shutil.rmtree(settings.directory / "files")
    shutil.rmtree(settings.directory / "index")
    await restore(settings, folder, force=True)
    async with served(settings, key) as http:
        assert await answered(http) == before
        originals = [path.read_text() for path in (settings.directory / "files").rglob("*") if path.is_file()]
        assert LEASE in originals
        async with asyncio.timeout(30):
            while not (await http.get("/api/v1/index/report")).json()["clean"]:
                await asyncio.sleep(0.1)
    await audited(settings)


async def audited(settings: Settings) -> None:
    database = Database(settings.storage.database_url)
    async with database.session() as session:
        assert {"backup.create", "backup.restore"} <= set(await session.scalars(select(AuditEntry.action)))
        await audit.verify(session)
    await database.close()


@pytest.mark.slow
async def test_a_served_installation_comes_back_from_its_backup(tmp_path: Path) -> None:
    await comes_back(settings_of(tmp_path / "var"), tmp_path / "backup")


@pytest.mark.slow
async def test_one_on_postgres_comes_back_too(tmp_path: Path, empty_postgres: str) -> None:
    storage = StorageSettings(database_url=empty_postgres, directory=str(tmp_path / "var"))
    (tmp_path / "var").mkdir()
    await comes_back(settings_of(tmp_path / "var", storage=storage), tmp_path / "backup")


async def test_data_is_replaced_by_force_alone(tmp_path: Path) -> None:
    settings = await bare(settings_of(tmp_path / "var"))
    await backup(settings, tmp_path / "backup")
    with pytest.raises(Conflict, match="--force"):
        await restore(settings, tmp_path / "backup", force=False)
    empty = settings_of(tmp_path / "elsewhere")
    await restore(empty, tmp_path / "backup", force=False)
    await audited(empty)
    with pytest.raises(Conflict, match="not empty"):
        await backup(settings, tmp_path / "backup")


async def test_a_damaged_incomplete_or_newer_backup_is_refused_before_anything_changes(tmp_path: Path) -> None:
    settings = await bare(settings_of(tmp_path / "var"))
    folder = tmp_path / "backup"
    await backup(settings, folder)
    said = (folder / MANIFEST).read_text()
    before = (tmp_path / "var" / "test.db").read_bytes()

    async def refused(match: str) -> None:
        with pytest.raises(InvalidRequest, match=match):
            await restore(settings, folder, force=True)
        assert (tmp_path / "var" / "test.db").read_bytes() == before

    (folder / MANIFEST).write_text(json.dumps(json.loads(said) | {"revision": "9999"}))
    await refused("newer")
    (folder / MANIFEST).write_text(json.dumps(json.loads(said) | {"database": "database.dump"}))
    await refused("needs database.sqlite")
    (folder / MANIFEST).write_text(said)
    (folder / "files" / "added").write_text("x")
    await refused("added")
    (folder / "files" / "added").unlink()
    with (folder / "database.sqlite").open("ab") as database:
        database.write(b"x")
    await refused("not as it was backed up")
    (folder / MANIFEST).unlink()
    await refused("no complete backup")


@pytest.mark.slow
async def test_an_original_that_is_lost_is_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "var")
    key = await prepared(settings, *Scope)
    async with served(settings, key) as http:
        await file(http, LEASE)
    [lost] = [path for path in (tmp_path / "var" / "files").rglob("*") if path.is_file()]
    lost.unlink()
    manifest = await backup(settings, tmp_path / "backup")
    assert manifest.missing == [str(lost.relative_to(tmp_path / "var" / "files"))]
    assert read(tmp_path / "backup").missing == manifest.missing


async def test_without_the_client_programs_postgres_says_what_to_install(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = StorageSettings(database_url=postgres_url, directory=str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    taking = snapshots.snapshots_of(dataclasses.replace(settings_of(tmp_path), storage=storage).storage.database_url)
    with pytest.raises(Unavailable, match="pg_restore is not on PATH"):
        await taking.put_back(tmp_path / "x")
