"""Redis, PostgreSQL and Qdrant killed, hung and restarted under a served application (docs/operations.md)."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app.db import Database
from app.gateway import limits_redis
from app.gateway.models import LedgerEntry, RequestRecord
from app.rag.index import refill
from tests.faults.cable import laid
from tests.faults.conftest import Caller, calling, changed, joining, plain
from tests.faults.stores import Store
from tests.rag.test_documents_api import LEASE

pytestmark = pytest.mark.slow
HELD = 12  # requests a minute
SOON = 10.0  # seconds: what has a deadline of one or two is over by then on any machine, what has none is not
AGES = 3600.0


def pause_over(caller: Caller) -> None:
    """The shared limits are asked again from now on."""
    store = caller.services.meter._store
    assert isinstance(store, limits_redis.SharedLimits)
    store._away_until = 0.0


async def slow_answer(caller: Caller) -> "asyncio.Task[httpx.Response]":
    """A chat that has been let in and goes on for some seconds."""
    body = {"model": "slow", "messages": [{"role": "user", "content": "a b c d e f g h i j"}]}
    asked = asyncio.create_task(caller.chat(**body))
    async with asyncio.timeout(SOON):
        while not caller.services.gateway.board.targets["slow"].running:
            await asyncio.sleep(0.01)
    return asked


async def test_without_redis_each_replica_holds_the_limits_by_itself(
    tmp_path: Path, redis: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail open, counted: nobody is refused for its sake, nobody waits longer than the deadline, once."""
    monkeypatch.setattr(limits_redis, "PAUSE_SECONDS", AGES)
    monkeypatch.setattr(limits_redis, "DEADLINE_SECONDS", 2.0)  # which Redis keeps also on a busy machine
    settings = changed(plain(tmp_path), "limits", redis_url=redis.url, requests_per_minute=HELD)
    async with calling(settings) as caller:
        assert (await caller.chat()).status_code == 200
        assert await failures(caller) == 0
        with redis.frozen():
            status, seconds = await caller.timed()
            assert (status, seconds < SOON) == (200, True)
            assert await failures(caller) == 1
            assert (await caller.chat()).status_code == 200
            assert await failures(caller) == 1, "it is not asked again at once"
        pause_over(caller)
        assert (await caller.chat()).status_code == 200
        before = await failures(caller)
        redis.kill()
        answers = [(await caller.chat()).status_code for _ in range(HELD + 3)]
        assert answers.count(200) <= HELD and answers[-1] == 429, "the limit holds in this replica"
        assert await failures(caller) > before
        redis.start()
        pause_over(caller)
        seen = (await caller.chat()).status_code
        assert seen == 200, "Redis came back empty, so the minute begins anew"


async def failures(caller: Caller) -> float:
    """How often the shared limits did not answer, as Prometheus reads it."""
    text = (await caller.http.get("/metrics")).text
    [line] = [line for line in text.splitlines() if line.startswith("precedent_limits_store_failures")]
    return float(line.split()[-1])


async def test_without_the_bell_documents_are_filed_all_the_same(tmp_path: Path, redis: Store) -> None:
    settings = changed(plain(tmp_path), "rag", jobs_redis_url=redis.url)
    async with calling(settings) as caller:
        redis.kill()
        await filed(caller, LEASE)


async def filed(caller: Caller, text: str, seconds: float = 60) -> str:
    answer = await caller.http.post("/api/v1/documents", files={"f": ("lease.md", text.encode())})
    assert answer.status_code == 202, answer.text
    document: str = answer.json()["documents"][0]["id"]
    async with asyncio.timeout(seconds):
        while (await caller.http.get(f"/api/v1/documents/{document}")).json()["current_version"] is None:
            await asyncio.sleep(0.05)
    return document


async def test_without_postgres_callers_are_refused_and_nothing_acknowledged_is_lost(
    tmp_path: Path, postgres: Store
) -> None:
    """Fail closed: who cannot be looked up is not let in. What was answered is in the ledger once it is back."""
    settings = changed(plain(tmp_path), "storage", database_url=postgres.url)
    async with calling(settings) as caller:
        document = await filed(caller, LEASE)
        assert (await caller.chat()).status_code == 200
        running = await slow_answer(caller)
        postgres.kill()
        await asyncio.sleep(1.1)  # a key is remembered for a second
        status, seconds = await caller.timed()
        assert status == 503 and seconds < SOON
        assert (await running).status_code == 200, "what was under way ends"
        assert (await caller.http.get("/health/live")).status_code == 200
        ready = await caller.http.get("/health/ready")
        assert ready.status_code == 503 and "database" in ready.json()["reasons"]
        assert caller.services.gateway.writer.pending
        postgres.start()
        async with asyncio.timeout(60):
            while (await caller.chat()).status_code != 200:
                await asyncio.sleep(0.1)
            while caller.services.gateway.writer.pending:
                await asyncio.sleep(0.05)
        assert (await caller.http.get(f"/api/v1/documents/{document}")).status_code == 200
        await agree(settings.storage.database_url, answered=3)


async def agree(url: str, answered: int) -> None:
    database = Database(url)
    async with database.session() as session:
        rows = [await session.scalar(select(func.count(model.id))) for model in (LedgerEntry, RequestRecord)]
        spent = await session.scalar(select(func.count(RequestRecord.id)).where(RequestRecord.status == "stop"))
    await database.close()
    assert rows[0] == spent == answered, rows


async def test_a_postgres_that_hangs_holds_nobody_longer_than_is_set(tmp_path: Path, postgres: Store) -> None:
    """Fail closed, soon: who cannot be looked up in time is told so. What was answered is in the ledger afterwards."""
    settings = changed(plain(tmp_path), "storage", database_url=postgres.url, database_seconds=1.0)
    async with calling(settings) as caller:
        assert (await caller.chat()).status_code == 200
        running = await slow_answer(caller)
        await asyncio.sleep(1.1)  # a key is remembered for a second
        with postgres.frozen():
            waited = [await caller.timed() for _ in range(2)]
            assert [status for status, _ in waited] == [503, 503]
            assert max(seconds for _, seconds in waited) < SOON
            assert (await caller.http.get("/health/live")).status_code == 200
            assert (await running).status_code == 200, "what was under way ends"
        async with asyncio.timeout(60):
            while (await caller.chat()).status_code != 200:
                await asyncio.sleep(0.1)
            while caller.services.gateway.writer.pending:
                await asyncio.sleep(0.05)
        await agree(settings.storage.database_url, answered=3)


async def test_without_qdrant_nothing_is_searched_and_chats_go_on(tmp_path: Path, qdrant: Store) -> None:
    """Fail closed: an answer without its passages would be a wrong refusal."""
    rag = {"index": "qdrant", "qdrant_url": qdrant.url, "qdrant_timeout_seconds": 3.0}
    async with calling(changed(plain(tmp_path), "rag", **rag)) as caller:
        await filed(caller, LEASE)
        question = {"question": "How much is the rent of Mill House?", "model": "quoting"}

        async def ask() -> int:
            began = time.monotonic()
            answer = await caller.http.post("/api/v1/answers", json=question)
            assert time.monotonic() - began < 2 * SOON
            return answer.status_code

        assert await ask() == 200
        with qdrant.frozen():
            assert await ask() == 503
            assert (await caller.chat()).status_code == 200
        assert await ask() == 200
        qdrant.kill()
        assert await ask() == 503
        assert (await caller.chat()).status_code == 200


async def test_a_qdrant_that_came_back_empty_is_filled_again_by_itself(
    tmp_path: Path, qdrant: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fail closed until all of it is there: half an index would give wrong refusals."""
    monkeypatch.setattr(refill, "LOOK_SECONDS", 0.5)
    rag = {"index": "qdrant", "qdrant_url": qdrant.url, "qdrant_timeout_seconds": 3.0}
    async with calling(changed(plain(tmp_path), "rag", **rag)) as caller:
        for number in range(3):
            await filed(caller, f"{LEASE}\nThis is lease {number}.")
        question = {"question": "How much is the rent of Mill House?", "model": "quoting"}

        async def ask() -> tuple[int, int]:
            answer = await caller.http.post("/api/v1/answers", json=question)
            return answer.status_code, len(answer.json().get("evidence", []))

        before = await ask()
        assert before[0] == 200 and before[1] >= 3
        qdrant.kill()
        assert (await ask())[0] == 503
        qdrant.start()
        seen: list[tuple[int, int]] = []
        async with asyncio.timeout(120):
            while not seen or seen[-1][0] != 200:
                seen.append(await ask())
                await asyncio.sleep(0.05)
        assert {status for status, _ in seen[:-1]} <= {503}, "never an answer from a part of it"
        assert seen[-1] == before


async def test_a_replica_that_is_cut_off_refuses_and_the_other_goes_on(
    tmp_path: Path, postgres: Store, redis: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two replicas, one without its database and its limits: it says so soon, and is itself again afterwards."""
    monkeypatch.setattr(limits_redis, "DEADLINE_SECONDS", 2.0)  # which Redis keeps also on a busy machine
    whole = changed(plain(tmp_path / "one"), "limits", redis_url=redis.url, requests_per_minute=HELD)
    whole = changed(whole, "storage", database_url=postgres.url, database_seconds=1.0)
    async with laid(postgres.url) as to_database, laid(redis.url) as to_limits, calling(whole) as one:
        other = changed(plain(tmp_path / "two"), "limits", redis_url=to_limits.url, requests_per_minute=HELD)
        other = changed(other, "storage", database_url=to_database.url, database_seconds=1.0)
        async with joining(other, one) as two:
            assert [(await each.chat()).status_code for each in (one, two)] == [200, 200]
            await asyncio.sleep(1.1)  # a key is remembered for a second
            with to_database.cut(), to_limits.cut():
                status, seconds = await two.timed()
                assert status == 503 and seconds < SOON
                assert (await two.http.get("/health/ready")).status_code == 503
                assert (await two.http.get("/health/live")).status_code == 200
                assert (await one.chat()).status_code == 200
            async with asyncio.timeout(60):
                while (await two.chat()).status_code == 503:
                    await asyncio.sleep(0.2)
            pause_over(two)
            statuses = [(await each.chat()).status_code for _ in range(HELD) for each in (one, two)]
            assert statuses.count(200) < HELD and statuses[-1] == 429, "limits are of both together again"
            for each in (one, two):
                while each.services.gateway.writer.pending:
                    await asyncio.sleep(0.05)
        answered = 3 + 1 + statuses.count(200)
        await agree(postgres.url, answered=answered)
