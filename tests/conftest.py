"""Fixtures shared by all rooms, and the rule that nothing is skipped where `--no-skips` is given."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import uvicorn
from litestar import Litestar
from litestar.testing import AsyncTestClient

from app import migrate
from app.asgi import create_app
from app.config import (
    EngineSettings,
    LogSettings,
    RouteSettings,
    Settings,
    StorageSettings,
    TargetSettings,
    TelemetrySettings,
)
from app.db import Database
from app.errors import NotFound
from app.rag.answers.prompts import REFUSAL
from app.services import Services
from app.tenants import service
from app.tenants.principal import TENANT_SCOPES
from tests.servers import free_port, or_skip, postgres_server, redis_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="fail when a test outside tests/gpu is skipped")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for report in _unexpected_skips(terminalreporter, config):
        terminalreporter.write_line(f"skipped, which is not allowed here: {report.nodeid}", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if _unexpected_skips(reporter, session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _unexpected_skips(reporter: Any, config: pytest.Config) -> list[Any]:
    if not config.getoption("--no-skips"):
        return []
    return [report for report in reporter.stats.get("skipped", []) if not report.nodeid.startswith("tests/gpu/")]


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with or_skip(postgres_server()) as url:
        yield url


@pytest.fixture
def empty_postgres() -> Iterator[str]:
    """A server for one test, which may migrate it."""
    with or_skip(postgres_server()) as url:
        yield url


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    with or_skip(redis_server()) as url:
        yield url


# What the fake model `quoting` quotes; a document that says so makes its answer verifiable.
QUOTE = '"The rent is nine hundred crowns a month."'


@dataclass(frozen=True)
class Site:
    """A running application with a way to make tenants and keys."""

    app: Litestar
    client: AsyncTestClient[Litestar]
    services: Services

    async def key(self, tenant: str = "firm", *, labels: str = "", scopes: Iterable[str] = TENANT_SCOPES) -> str:
        """The secret of a new key; the tenant is made where it is missing."""
        async with self.services.database.session() as session:
            try:
                owner = await service.get_tenant(session, tenant)
            except NotFound:
                owner = await service.create_tenant(session, tenant)
            held = frozenset(label for label in labels.split(",") if label)
            new = await service.create_key(session, owner.id, uuid4().hex, scopes=frozenset(scopes), labels=held)
            return new.secret

    async def headers(
        self, tenant: str = "firm", *, labels: str = "", scopes: Iterable[str] = TENANT_SCOPES
    ) -> dict[str, str]:
        return {"authorization": f"Bearer {await self.key(tenant, labels=labels, scopes=scopes)}"}

    async def logged(self) -> None:
        """Returns once every request that has ended is in the request log. The application has a loop of its own."""
        async with asyncio.timeout(20):
            while self.services.gateway.writer.pending:
                await asyncio.sleep(0.01)

    async def file(self, name: str, data: bytes | str, headers: dict[str, str], **form: str) -> dict[str, Any]:
        """File one document and wait for its job; returns the job."""
        content = data.encode() if isinstance(data, str) else data
        response = await self.client.post(
            "/api/v1/documents", files={"files": (name, content)}, data=form, headers=headers
        )
        assert response.status_code == 202, response.text
        [filed] = response.json()["documents"]
        return await self.job(filed["job_id"], headers)

    async def job(self, job_id: str, headers: dict[str, str]) -> dict[str, Any]:
        """The job once it has ended."""
        async with asyncio.timeout(60):
            while True:
                job: dict[str, Any] = (await self.client.get(f"/api/v1/jobs/{job_id}", headers=headers)).json()
                if job["status"] in ("succeeded", "failed"):
                    return job
                await asyncio.sleep(0.05)


def fake_settings(directory: Path, **changes: Any) -> Settings:
    """Settings without the in-process engine: one fake target behind the model `echo`."""
    settings = Settings(
        storage=StorageSettings(database_url=f"sqlite+aiosqlite:///{directory}/test.db", directory=str(directory)),
        engine=EngineSettings(model=""),
        log=LogSettings(flush_seconds=0.01),
        telemetry=TelemetrySettings(log_level="error"),
        targets=(TargetSettings(name="fake", provider="fake"),),
        routes=(RouteSettings(model="echo", targets=("fake",)),),
    )
    return dataclasses.replace(settings, **changes)


@asynccontextmanager
async def open_site(settings: Settings) -> AsyncIterator[Site]:
    """A migrated, started application."""
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    app = create_app(settings)
    async with AsyncTestClient(app, raise_server_exceptions=False) as client:
        services: Services = app.state.services
        async with asyncio.timeout(120):
            while services.starting:
                await asyncio.sleep(0.02)
        yield Site(app, client, services)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """One application with fake targets for all tests that need no other."""
    settings = fake_settings(
        tmp_path_factory.mktemp("site"),
        targets=(
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="down", provider="fake", options="status=503"),
            TargetSettings(name="strict", provider="fake", options="status=400"),
            TargetSettings(name="breaks", provider="fake", options="status=503,after=2"),
            TargetSettings(name="slow", provider="fake", options="delay_ms=60000", timeout_seconds=0.2),
            TargetSettings(name="quoting", provider="fake", options=f"text=The contract states [1]: {QUOTE}"),
            TargetSettings(name="inventing", provider="fake", options='text=It says [1]: "The moon is rented."'),
            TargetSettings(name="refusing", provider="fake", options=f"text={REFUSAL}"),
        ),
        routes=(
            RouteSettings(model="echo", targets=("fake",)),
            RouteSettings(model="resilient", targets=("down", "slow", "fake")),
            RouteSettings(model="strict", targets=("strict", "fake")),
            RouteSettings(model="dead", targets=("down", "slow")),
            RouteSettings(model="breaks", targets=("breaks", "fake")),
            RouteSettings(model="quoting", targets=("quoting",)),
            RouteSettings(model="inventing", targets=("inventing",)),
            RouteSettings(model="refusing", targets=("refusing",)),
        ),
    )
    async with open_site(settings) as running:
        yield running


@asynccontextmanager
async def listen(app: Litestar) -> AsyncIterator[str]:
    """The application behind a real socket, for real clients; yields its base URL. Its lifespan is run here."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, lifespan="on"))
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(120):
        while not server.started:
            if task.done():
                task.result()
            await asyncio.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task
