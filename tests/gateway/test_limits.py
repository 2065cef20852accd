"""The counters: one contract for this process' memory and for Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest
import pytest_asyncio

from app.gateway.limits import Draw, Granted, Kind, LimitStore, MemoryLimits, Refused, Unseeded
from app.gateway.limits_redis import RedisLimits, SharedLimits
from tests.servers import or_skip, redis_server


@pytest.fixture(scope="module", params=["memory", "redis"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "memory":
        yield ""
        return
    with or_skip(redis_server()) as url:
        yield url


@pytest_asyncio.fixture
async def store(address: str) -> AsyncIterator[LimitStore]:
    made: LimitStore = RedisLimits(address) if address else MemoryLimits()
    yield made
    await made.close()


def draw(kind: Kind, limit: int, amount: int = 1, window: float = 60.0) -> Draw:
    return Draw(f"{{t}}:{uuid4().hex}", kind, kind.value, limit, amount, window)


async def take(store: LimitStore, draw: Draw, lease: str = "") -> Granted | Refused | Unseeded:
    return await store.acquire(lease or uuid4().hex, [draw])


async def test_a_rate_grants_exactly_its_limit(store: LimitStore) -> None:
    rate = draw(Kind.RATE, 10)
    answers = await asyncio.gather(*(take(store, rate) for _ in range(25)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 10
    refused = [answer for answer in answers if isinstance(answer, Refused)]
    assert all(0 < answer.retry_after <= 62 for answer in refused)
    assert {answer.remaining[rate.key] for answer in answers if isinstance(answer, Granted)} == set(range(10))


async def test_a_rate_comes_back_when_it_said(store: LimitStore) -> None:
    rate = draw(Kind.RATE, 2, window=2.0)
    assert isinstance(await take(store, rate), Granted)
    assert isinstance(await take(store, rate), Granted)
    refused = await take(store, rate)
    assert isinstance(refused, Refused)
    await asyncio.sleep(refused.retry_after + 0.01)
    assert isinstance(await take(store, rate), Granted)


async def test_a_rate_is_corrected_by_what_was_really_taken(store: LimitStore) -> None:
    rate = draw(Kind.RATE, 100, amount=90)
    granted = await take(store, rate, "a")
    assert isinstance(granted, Granted)
    assert isinstance(await take(store, rate), Refused)
    await store.settle("a", [rate], granted, {rate.key: 10})
    assert isinstance(await take(store, rate), Granted)


async def test_more_than_the_limit_by_itself_is_refused_with_a_wait(store: LimitStore) -> None:
    refused = await take(store, draw(Kind.RATE, 10, amount=11))
    assert isinstance(refused, Refused) and refused.retry_after == 60


async def test_concurrency_counts_who_is_there(store: LimitStore) -> None:
    running = draw(Kind.CONCURRENCY, 2)
    first = await take(store, running, "a")
    assert isinstance(first, Granted) and isinstance(await take(store, running, "b"), Granted)
    refused = await take(store, running, "c")
    assert isinstance(refused, Refused) and refused.retry_after > 0
    await store.settle("a", [running], first, {})
    assert isinstance(await take(store, running, "c"), Granted)


async def test_a_budget_is_seeded_reserved_and_settled(store: LimitStore) -> None:
    budget = draw(Kind.BUDGET, 1000, amount=300)
    assert await take(store, budget) == Unseeded((budget,))
    await store.seed(budget, 100)
    await store.seed(budget, 5)  # a second replica that looked later changes nothing
    granted = [await take(store, budget, name) for name in "abc"]
    assert [g.remaining[budget.key] for g in granted if isinstance(g, Granted)] == [600, 300, 0]
    assert isinstance(await take(store, budget), Refused)
    assert isinstance(granted[0], Granted)
    assert await store.settle("a", [budget], granted[0], {budget.key: 50}) == {budget.key: 250}
    assert isinstance(await take(store, budget), Refused)
    await store.settle("b", [budget], granted[0], {})  # it came to nothing
    assert isinstance(await take(store, budget), Granted)


async def test_a_budget_is_never_overdrawn_by_many_at_once(store: LimitStore) -> None:
    budget = draw(Kind.BUDGET, 10, amount=1)
    await store.seed(budget, 0)
    answers = await asyncio.gather(*(take(store, budget) for _ in range(50)))
    assert sum(isinstance(answer, Granted) for answer in answers) == 10


async def test_nothing_is_taken_where_one_counter_refuses(store: LimitStore) -> None:
    rate, full = draw(Kind.RATE, 5), draw(Kind.CONCURRENCY, 0)
    refused = await store.acquire("a", [rate, full])
    assert isinstance(refused, Refused) and refused.draws == (full,)
    granted = await take(store, rate)
    assert isinstance(granted, Granted) and granted.remaining[rate.key] == 4


async def test_leases_of_the_dead_expire(address: str) -> None:
    store: LimitStore = RedisLimits(address, lease_seconds=2.0) if address else MemoryLimits(lease_seconds=2.0)
    running, budget = draw(Kind.CONCURRENCY, 1), draw(Kind.BUDGET, 10, amount=10)
    await store.seed(budget, 0)
    assert isinstance(await store.acquire("dead", [running, budget]), Granted)
    assert isinstance(await store.acquire("alive", [running, budget]), Refused)
    async with asyncio.timeout(30):
        while isinstance(await store.acquire("alive", [running, budget]), Refused):
            await asyncio.sleep(0.05)
    await store.close()


async def test_without_redis_each_replica_counts_by_itself() -> None:
    clock = [100.0]
    with or_skip(redis_server()) as url:
        store = SharedLimits(RedisLimits(url), 60, clock=lambda: clock[0])
        budget = draw(Kind.BUDGET, 10, amount=4)
        await store.seed(budget, 0)
        granted = await store.acquire("before", [budget])
        assert isinstance(granted, Granted) and store.failures == 0
    # Redis has gone: what the ledger says seeds an own counter, and limits go on being kept.
    assert await store.acquire("during", [budget]) == Unseeded((budget,))
    await store.seed(budget, 4)
    during = await store.acquire("during", [budget])
    assert isinstance(during, Granted) and store.failures == 1
    assert isinstance(await store.acquire("more", [budget]), Refused)
    assert await store.settle("during", [budget], during, {budget.key: 1}) == {budget.key: 5}
    await store.close()


async def test_what_was_spent_without_redis_is_told_when_it_is_back() -> None:
    clock = [100.0]

    class Flaky(MemoryLimits):
        down = False

        async def acquire(self, *args: object) -> Granted | Refused | Unseeded:
            if self.down:
                raise TimeoutError
            return await super().acquire(*args)  # type: ignore[arg-type]

    shared = Flaky(clock=lambda: clock[0])
    store = SharedLimits(shared, 60, clock=lambda: clock[0])
    budget = draw(Kind.BUDGET, 10, amount=1)
    await store.seed(budget, 0)
    shared.down = True
    assert isinstance(await store.acquire("a", [budget]), Unseeded)
    await store.seed(budget, 0)
    granted = await store.acquire("a", [budget])
    assert isinstance(granted, Granted)
    await store.settle("a", [budget], granted, {budget.key: 7})
    shared.down = False
    clock[0] += 60
    await store.acquire("b", [budget])
    again = await store.acquire("c", [budget])
    assert isinstance(again, Granted) and again.remaining[budget.key] == 1
