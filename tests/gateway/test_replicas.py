"""Two server processes over one Redis and one PostgreSQL: limits and budgets hold for both together."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select, update

from app import migrate
from app.db import Database
from app.gateway.models import LedgerEntry, RequestRecord
from app.tenants import service
from app.tenants.models import ApiKey, Budget
from tests.servers import free_port

pytestmark = pytest.mark.slow
CONFIG = """
[storage]
database_url = "{database}"
directory = "{directory}"
[limits]
redis_url = "{redis}"
[engine]
model = ""
[[targets]]
name = "slow"
provider = "fake"
options = "delay_ms=100"
[[routes]]
model = "slow"
targets = ["slow"]
[[prices]]
target = "slow"
output = 10000000000
"""


@asynccontextmanager
async def replica(folder: Path, database: str, redis: str, name: str) -> AsyncIterator[httpx.AsyncClient]:
    file = folder / f"{name}.toml"
    file.write_text(CONFIG.format(database=database, redis=redis, directory=folder / name))
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "PRECEDENT_CONFIG": str(file)})
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            async with asyncio.timeout(120):
                while not await _ready(client):
                    assert process.poll() is None
                    await asyncio.sleep(0.2)
            yield client
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 60)


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def _customer(database: Database, name: str, *, limit: int = 0, rpm: int | None = None) -> dict[str, str]:
    async with database.session() as session:
        tenant = await service.create_tenant(session, name)
        new = await service.create_key(session, tenant.id, "k", scopes=frozenset({"chat"}))
        await session.execute(update(ApiKey).where(ApiKey.id == new.key.id).values(requests_per_minute=rpm))
        if limit:
            session.add(Budget(tenant_id=tenant.id, window="total", limit_micros=limit))
        await session.commit()
    return {"authorization": f"Bearer {new.secret}"}


async def test_budget_and_rate_hold_for_two_processes(tmp_path: Path, empty_postgres: str, redis_url: str) -> None:
    database = Database(empty_postgres)
    await migrate.upgrade(database)
    poor = await _customer(database, "poor", limit=10 * 40_000)
    limited = await _customer(database, "limited", rpm=7)
    body = {"model": "slow", "messages": [{"role": "user", "content": "one two three four"}], "max_tokens": 4}
    async with (
        replica(tmp_path, empty_postgres, redis_url, "one") as one,
        replica(tmp_path, empty_postgres, redis_url, "two") as two,
    ):

        async def fifty(headers: dict[str, str]) -> list[int]:
            calls = [(one, two)[n % 2].post("/v1/chat/completions", json=body, headers=headers) for n in range(50)]
            return sorted(answer.status_code for answer in await asyncio.gather(*calls))

        assert await fifty(poor) == [200] * 10 + [402] * 40
        assert await fifty(limited) == [200] * 7 + [429] * 43
    # Both have ended and written everything.
    async with database.session() as session:
        spent = await session.scalar(select(func.sum(RequestRecord.cost_micros)))
        ledger = await session.scalar(select(func.sum(LedgerEntry.amount_micros)))
    await database.close()
    assert spent == ledger == 17 * 40_000
