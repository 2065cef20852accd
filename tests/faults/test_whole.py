"""What docker-compose.yml runs, from processes: PostgreSQL, Redis, a Qdrant server or its stand-in, two servers, one
worker. They answer the demo's questions as the embedded default does.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from app import migrate
from app.config import REPOSITORY
from app.db import Database
from app.tenants import service
from app.tenants.models import ApiKey
from app.tenants.principal import Scope
from tests.faults.test_processes import until_ready
from tests.servers import free_port, postgres_server, qdrant_server, redis_server

pytestmark = pytest.mark.slow
CONTRACTS = (
    "Wrenfield - Consulting Agreement.docx",
    "Solenne Optics - Patent and Know-How Licence.md",
    "Pellam and Ardenne - Mutual NDA.html",
)
EACH = 2  # questions of each contract
LIMIT = 5  # requests a minute of one key, over both servers


def questions() -> list[str]:
    rows = [json.loads(line) for line in (REPOSITORY / "demo" / "questions.jsonl").read_text().splitlines()]
    chosen = []
    for contract in CONTRACTS:
        chosen += [row["question"] for row in rows if row["contract"] == contract and row["answers"]][:EACH]
    return chosen


@contextmanager
def process(arguments: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "app.cli", *arguments]
    started = subprocess.Popen(command, env={**os.environ, **environment}, cwd=REPOSITORY)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@asynccontextmanager
async def servers(environment: dict[str, str], key: str, count: int) -> AsyncIterator[list[httpx.AsyncClient]]:
    """So many, started side by side."""
    async with AsyncExitStack() as stack:
        ports = [free_port() for _ in range(count)]
        started = [stack.enter_context(process(["serve", "--port", str(port)], environment)) for port in ports]
        callers = []
        for one, port in zip(started, ports, strict=True):
            url, headers = f"http://127.0.0.1:{port}", {"authorization": f"Bearer {key}"}
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=headers, timeout=60))
            await until_ready(one, http)
            callers.append(http)
        yield callers


async def keys(url: str) -> tuple[str, str]:
    """An unlimited key, and one that is limited."""
    database = Database(url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "firm")
        free = await service.create_key(session, tenant.id, "free", scopes=frozenset(Scope))
        held = await service.create_key(session, tenant.id, "held", scopes=frozenset(Scope))
        await session.execute(update(ApiKey).where(ApiKey.id == held.key.id).values(requests_per_minute=LIMIT))
        await session.commit()
    await database.close()
    return free.secret, held.secret


async def file_contracts(http: httpx.AsyncClient) -> None:
    files = [("files", (name, (REPOSITORY / "demo" / "contracts" / name).read_bytes())) for name in CONTRACTS]
    filed = (await http.post("/api/v1/documents", files=files)).json()["documents"]
    async with asyncio.timeout(180):
        for one in filed:
            while (job := (await http.get(f"/api/v1/jobs/{one['job_id']}")).json())["status"] != "succeeded":
                assert job["status"] != "failed", job
                await asyncio.sleep(0.1)


async def quotes(http: httpx.AsyncClient) -> list[list[tuple[str, int]]]:
    """For each question the quotes that were verified, with their places."""
    found = []
    for question in questions():
        answer: dict[str, Any] = (await http.post("/api/v1/answers", json={"question": question})).json()
        verified = [citation for citation in answer["citations"] if citation["verified"]]
        found.append([(citation["quote"], citation["spans"][0]["start"]) for citation in verified])
    return found


def environment_of(folder: Path, database: str, **more: str) -> dict[str, str]:
    made = {
        "STORAGE_DATABASE_URL": database,
        "STORAGE_DIRECTORY": str(folder),
        "TELEMETRY_LOG_LEVEL": "error",
        "ENGINE_THREADS": "1",
        "ENGINE_MODEL": str(REPOSITORY / "demo" / "model"),
        **more,
    }
    return {f"PRECEDENT_{name}": value for name, value in made.items()}


async def embedded(folder: Path) -> list[list[tuple[str, int]]]:
    folder.mkdir()
    url = f"sqlite+aiosqlite:///{folder}/test.db"
    key, _ = await keys(url)
    async with servers(environment_of(folder, url), key, 1) as [http]:
        await file_contracts(http)
        return await quotes(http)


async def test_two_servers_and_a_worker_answer_as_the_embedded_default_does(tmp_path: Path) -> None:
    wanted = await embedded(tmp_path / "embedded")
    assert sum(map(bool, wanted)) >= len(wanted) / 2, wanted
    with ExitStack() as stores:
        database = stores.enter_context(postgres_server())
        redis = stores.enter_context(redis_server())
        qdrant = stores.enter_context(qdrant_server())
        shared = {"LIMITS_REDIS_URL": redis, "RAG_JOBS_REDIS_URL": redis, "RAG_INDEX": "qdrant"}
        environment = environment_of(tmp_path / "shared", database, **shared, RAG_QDRANT_URL=qdrant)
        serving = {**environment, "PRECEDENT_RAG_INGEST_WORKERS": "0"}
        key, limited = await keys(database)
        with process(["worker"], environment):
            async with servers(serving, key, 2) as [one, two]:
                await file_contracts(one)
                assert await quotes(one) == wanted
                assert await quotes(two) == wanted
                await limits_hold(one, two, limited)


async def limits_hold(one: httpx.AsyncClient, two: httpx.AsyncClient, key: str) -> None:
    body = {"model": "precedent-demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    headers = {"authorization": f"Bearer {key}"}
    asked = [(one, two)[n % 2].post("/v1/chat/completions", json=body, headers=headers) for n in range(3 * LIMIT)]
    statuses = sorted(answer.status_code for answer in await asyncio.gather(*asked))
    assert statuses == [200] * LIMIT + [429] * 2 * LIMIT
