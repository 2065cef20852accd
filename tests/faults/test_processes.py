"""SIGTERM, kill -9 and a full disk under load: nothing acknowledged is lost but what docs/gateway.md states."""

import asyncio
import glob
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select

from app.config import REPOSITORY, Settings, StorageSettings
from app.db import Database
from app.gateway.models import LedgerEntry
from app.rag.models import DocumentVersion
from app.tenants.principal import Scope
from tests.gateway.upstream import prepared
from tests.servers import free_port

pytestmark = pytest.mark.slow
FULL_BYTES = 4 * 2**20
PER_MINUTE = 20  # requests of one key
LONG_FLUSH_SECONDS = 1.0  # so long that a busy machine, which writes later than it should, does not write twice as late
CONFIG = """
[storage]
database_url = "sqlite+aiosqlite:///{folder}/test.db"
directory = "{folder}"
[telemetry]
log_level = "error"
[engine]
model = ""
[[targets]]
name = "slow"
provider = "fake"
options = "delay_ms=50"
[[routes]]
model = "slow"
targets = ["slow"]
"""


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    http: httpx.AsyncClient
    database_url: str
    begun: int = 0
    """Answers of which the first line has come."""
    ended: list[float] = field(default_factory=list)
    """When each answer had arrived as a whole."""

    async def chat(self, words: int) -> bool:
        """Streams an answer; whether it ended as streams do."""
        body = {"model": "slow", "messages": [{"role": "user", "content": "w " * words}], "stream": True}
        last = ""
        try:
            async with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                async for line in response.aiter_lines():
                    self.begun += not last
                    last = line or last
        except httpx.TransportError:
            return False
        if last == "data: [DONE]":
            self.ended.append(time.monotonic())
        return last == "data: [DONE]"

    def latest(self) -> int:
        """Answers of the last two batches: the ledger may lack one, and the other is being written."""
        return sum(moment > time.monotonic() - 2 * LONG_FLUSH_SECONDS for moment in self.ended)

    async def under_way(self, count: int) -> None:
        """Returns once so many answers have begun since the server started."""
        async with asyncio.timeout(60):
            while self.begun < count:
                await asyncio.sleep(0.01)

    async def in_ledger(self) -> int:
        database = Database(self.database_url)
        async with database.session() as session:
            count = await session.scalar(select(func.count(LedgerEntry.id)))
        await database.close()
        return count or 0


@asynccontextmanager
async def served(folder: Path, **variables: str) -> AsyncIterator[Served]:
    file, port = folder / "precedent.toml", free_port()
    file.write_text(CONFIG.format(folder=folder))
    url = f"sqlite+aiosqlite:///{folder}/test.db"
    key = await prepared(Settings(storage=StorageSettings(database_url=url, directory=str(folder))), *Scope)
    variables["PRECEDENT_CONFIG"] = str(file)
    async with serving(serve(port), variables, f"http://127.0.0.1:{port}", key, url) as running:
        yield running


def serve(port: int) -> list[str]:
    return [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]


@asynccontextmanager
async def serving(
    command: list[str], variables: dict[str, str], base_url: str, key: str, database_url: str
) -> AsyncIterator[Served]:
    """A server process, once it is ready; killed at the end."""
    process = subprocess.Popen(command, env={**os.environ, **variables}, cwd=REPOSITORY)
    headers = {"authorization": f"Bearer {key}"}
    try:
        async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=30) as http:
            await until_ready(process, http)
            yield Served(process, http, database_url)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait, 30)


async def until_ready(process: subprocess.Popen[bytes], http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(180):
        while True:
            assert process.poll() is None
            try:
                if (await http.get("/health/ready")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.1)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """For two tests; the second ends it."""
    async with served(tmp_path_factory.mktemp("served")) as running:
        yield running


async def test_on_a_full_disk_nothing_is_acknowledged_and_the_rest_goes_on(server: Served) -> None:
    """A limit on the size of files stands in for the disk: writing an original fails as it would there."""
    pid, large = server.process.pid, b"The rent is nine hundred crowns. " * 200_000
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY))
    refused = await server.http.post("/api/v1/documents", files={"f": ("a.txt", large)})
    assert refused.status_code >= 500
    assert await server.chat(1), "what needs no room goes on"
    assert await versions(server.database_url) == 0
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    taken = await server.http.post("/api/v1/documents", files={"f": ("a.txt", large[:10_000])})
    assert taken.status_code == 202, taken.text


async def test_sigterm_under_load_ends_every_stream_and_loses_nothing(server: Served) -> None:
    before, begun = len(server.ended), server.begun
    answers = [asyncio.create_task(server.chat(60)) for _ in range(30)]  # of three seconds each
    await server.under_way(begun + 30)
    server.process.send_signal(signal.SIGTERM)
    assert all(await asyncio.gather(*answers)), "streams that were accepted end as streams do"
    assert not await server.chat(1), "nothing new is taken"
    assert await asyncio.to_thread(server.process.wait, 30) in (0, -signal.SIGTERM)
    assert await server.in_ledger() == before + 30


async def test_kill_9_under_load_loses_at_most_the_last_batch(tmp_path: Path) -> None:
    async with served(tmp_path, PRECEDENT_LOG_FLUSH_SECONDS=str(LONG_FLUSH_SECONDS)) as server:

        async def load() -> None:
            while await server.chat(2):
                pass

        callers = [asyncio.create_task(load()) for _ in range(8)]
        async with asyncio.timeout(120):
            while not len(server.ended) > 3 * server.latest() > 0:  # else this shows nothing
                await asyncio.sleep(0.01)
        killed_at, batch = time.monotonic(), server.latest()
        server.process.kill()
        await asyncio.gather(*callers)
        ended = [moment for moment in server.ended if moment <= killed_at]
        assert await server.in_ledger() >= len(ended) - batch


async def test_a_clock_that_jumps_ends_no_stream_and_keeps_limits(tmp_path: Path) -> None:
    """Deadlines, limits and circuits go by the clock that cannot be set; only dates are of the other."""
    file = tmp_path / "clock"
    file.write_text("+0")
    libraries = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    assert libraries, "install Debian's package faketime"
    faked = {"LD_PRELOAD": libraries[0], "FAKETIME_TIMESTAMP_FILE": str(file), "FAKETIME_NO_CACHE": "1"}
    limit = {"PRECEDENT_LIMITS_REQUESTS_PER_MINUTE": str(PER_MINUTE)}
    async with served(tmp_path, **faked, DONT_FAKE_MONOTONIC="1", **limit) as server:
        asked = 0
        for jump, seconds in (("+2h", 7200), ("-2h", -7200)):
            begun = server.begun
            under_way = asyncio.create_task(server.chat(20))
            await server.under_way(begun + 1)
            file.write_text(jump)
            assert await server.chat(1) and await under_way, jump
            asked += 3  # the next one included
            assert abs(await shown_time(server) - time.time() - seconds) < 60, "or nothing has jumped"
        assert await asyncio.to_thread(server.process.poll) is None
        answered = [await server.chat(1) for _ in range(PER_MINUTE)]
        assert answered == [True] * (PER_MINUTE - asked) + [False] * asked, (
            "a jump gives no new minute and takes none away"
        )
        async with asyncio.timeout(30):
            while await server.in_ledger() < len(server.ended) + 2:  # which are no streams
                await asyncio.sleep(0.1)


async def shown_time(server: Served) -> float:
    """What the server takes the time to be, in seconds since 1970."""
    made: int = (await server.http.post("/v1/completions", json={"model": "slow", "prompt": "x"})).json()["created"]
    return made


async def versions(url: str) -> int:
    database = Database(url)
    async with database.session() as session:
        count = await session.scalar(select(func.count(DocumentVersion.id)))
    await database.close()
    return count or 0
