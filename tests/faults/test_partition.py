"""Two replicas as processes on two machines, one of which loses the network to database and limits."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.config import Settings, StorageSettings
from app.tenants.principal import Scope
from tests.faults.cable import laid
from tests.faults.machine import Machine, machine
from tests.faults.stores import Store
from tests.faults.test_processes import CONFIG, Served, serve, serving
from tests.gateway.upstream import prepared
from tests.servers import free_port, or_skip

pytestmark = pytest.mark.slow
SOON = 10.0  # seconds: what has a deadline of one or two is over by then on any machine, what has none is not


@pytest.fixture
def far() -> Iterator[Machine]:
    with or_skip(machine()) as made:
        yield made


@asynccontextmanager
async def replica(
    folder: Path, database: str, redis: str, key: str, on: Machine | None = None
) -> AsyncIterator[Served]:
    """A server process, here or on another machine."""
    folder.mkdir()
    file, port, address = folder / "precedent.toml", free_port(), on.address if on else "127.0.0.1"
    file.write_text(CONFIG.format(folder=folder))
    variables = {"CONFIG": str(file), "STORAGE_DATABASE_URL": database, "STORAGE_DATABASE_SECONDS": "1"}
    variables |= {"LIMITS_REDIS_URL": redis, "SERVER_HOST": address}
    environment = {f"PRECEDENT_{name}": value for name, value in variables.items()}
    command = on.running(serve(port)) if on else serve(port)
    async with serving(command, environment, f"http://{address}:{port}", key, database) as running:
        yield running


async def refused(replica: Served) -> bool:
    """Whether it says so, and soon."""
    began = time.monotonic()
    body = {"model": "slow", "messages": [{"role": "user", "content": "one"}]}
    response = await replica.http.post("/v1/chat/completions", json=body)
    return response.status_code == 503 and time.monotonic() - began < SOON


async def test_a_machine_that_loses_its_network_refuses_and_the_other_goes_on(
    tmp_path: Path, postgres: Store, redis: Store, far: Machine
) -> None:
    """What was under way there ends, and what both have answered is in the ledger once the network is back."""
    settings = Settings(storage=StorageSettings(database_url=postgres.url, directory=str(tmp_path)))
    key = await prepared(settings, *Scope)
    async with (
        laid(postgres.url, far.servers) as database,
        laid(redis.url, far.servers) as limits,
        replica(tmp_path / "one", postgres.url, redis.url, key) as one,
        replica(tmp_path / "two", database.url, limits.url, key, on=far) as two,
    ):
        assert await one.chat(1) and await two.chat(1)
        under_way = asyncio.create_task(two.chat(60))  # of three seconds
        await two.under_way(2)
        with far.cut_off():
            await asyncio.sleep(1.1)  # a key is remembered for a second
            assert await refused(two)
            assert (await two.http.get("/health/ready")).status_code == 503
            assert (await two.http.get("/health/live")).status_code == 200
            assert await one.chat(1)
            assert await under_way
            assert await one.in_ledger() < 4, "what it answered is still to be written"
        async with asyncio.timeout(60):
            while await refused(two):
                await asyncio.sleep(0.2)
        assert await two.chat(1)
        answered = len(one.ended) + len(two.ended) + 1  # the first that was not refused any more
        async with asyncio.timeout(60):
            while await one.in_ledger() != answered:
                await asyncio.sleep(0.1)
