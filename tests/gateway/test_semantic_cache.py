"""The semantic cache: every gate closes by itself, and the threshold learns."""

import random
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
import pytest_asyncio

from app import migrate
from app.config import CacheSettings
from app.db import Database
from app.gateway.cache.kept import CachedSource, CacheQuery, Checked
from app.gateway.cache.semantic import SemanticCache
from app.gateway.cache.threshold import Threshold, highest_rate, is_rarer, trials_for
from app.gateway.schemas import ChatRequest, RouteHints
from app.tenants import service
from app.tenants.principal import Principal
from tests.gateway.upstream import chat

SETTINGS = CacheSettings(semantic_seconds=60, semantic_audit=0.0)
RENT, TERM, NEW_TERM = CachedSource("c1", "d1", 1), CachedSource("c2", "d2", 1), CachedSource("c2b", "d2", 2)


def vector(cosine: float) -> Any:
    """Of unit length, at this cosine to vector(1)."""
    return np.array([cosine, (1 - cosine**2) ** 0.5], np.float32)


def asked(
    question: str = "What is the rent?", cosine: float = 1.0, slots: tuple[str, ...] = (), scope: str = "v1",
    evidence: tuple[CachedSource, ...] = (RENT, TERM), **changes: Any,
) -> ChatRequest:  # fmt: skip
    query = CacheQuery(question, vector(cosine), frozenset(slots), scope, evidence)
    return replace(chat(question), cache_query=query, **changes)


def fresh(text: str = 'As it says in [1]: "nine hundred [2] crowns"', *cited: CachedSource) -> Checked:
    return Checked(text, frozenset(cited or {RENT}), "local", 70, 900.0, 20)


class Cache:
    """A cache over a database of its own, and two tenants."""

    def __init__(self, database: Database, tenants: list[UUID], **settings: Any) -> None:
        self.database = database
        self.cache = SemanticCache(database, replace(SETTINGS, **settings), random.Random(0), clock=lambda: self.now)
        self.now = 0.0
        self.tenants = tenants

    def who(self, tenant: int = 0, *labels: str) -> Principal:
        return Principal(self.tenants[tenant], "firm", None, frozenset(), frozenset(labels))

    async def look(self, request: ChatRequest, tenant: int = 0, *labels: str) -> str:
        assert request.cache_query
        return (await self.cache.look(self.who(tenant, *labels), request, request.cache_query)).outcome

    async def answer(self, request: ChatRequest, checked: Checked, tenant: int = 0, *labels: str) -> str:
        """Ask, and conclude as after a fresh answer."""
        assert request.cache_query
        who = self.who(tenant, *labels)
        found = await self.cache.find(who, request, request.cache_query)
        if found.outcome != "hit":
            await self.cache.conclude(who, request, found, checked)
        return found.outcome


@pytest_asyncio.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/cache.db")
    await migrate.upgrade(database)
    async with database.session() as session:
        tenants = [(await service.create_tenant(session, name)).id for name in ("one", "two")]
        await session.commit()
    made = Cache(database, tenants)
    made.now = time.time()
    yield made
    await database.close()


async def test_each_gate_closes_alone(cache: Cache) -> None:
    await cache.answer(asked(slots=("number:1",)), fresh(), 0, "m-1")
    like = asked("How much is the rent?", 0.95, ("number:1",))
    assert await cache.look(like, 0, "m-1") == "hit"
    for tenant, labels in ((1, ("m-1",)), (0, ()), (0, ("m-1", "m-2"))):
        assert await cache.look(like, tenant, *labels) == "miss"
    for other in (
        asked("How much is the rent?", 0.95, ("number:1",), scope="v2"),
        replace(like, model="other"),
        replace(like, hints=RouteHints(privileged=True)),
        asked("How much is the rent?", 0.95, ("number:1",), evidence=(TERM,)),
        asked("How much is the rent?", 0.95, ("number:1",), evidence=(replace(RENT, version=2), TERM)),
        replace(like, cache_control="no-cache"),
    ):
        assert await cache.look(other, 0, "m-1") == "miss"
    assert await cache.look(asked("How much is the rent?", 0.95, ("number:2",)), 0, "m-1") == "draft"
    assert await cache.look(asked("How much is the rent?", 0.7, ("number:1",)), 0, "m-1") == "draft"
    assert await cache.look(asked("What is rent?", 0.3, ("number:1",)), 0, "m-1") == "miss"
    cache.now += 61
    assert await cache.look(like, 0, "m-1") == "miss"


async def test_the_very_question_hits_below_the_threshold_and_only_over_the_same_passages(cache: Cache) -> None:
    await cache.answer(asked(), fresh())
    assert await cache.look(asked("what is  THE rent", 0.5)) == "hit"
    assert await cache.look(asked("what is the rent", 0.7, evidence=(TERM, RENT))) == "draft"


async def test_citations_are_renumbered_and_quotes_are_not(cache: Cache) -> None:
    request = asked(evidence=(RENT, TERM))
    await cache.answer(request, fresh())
    other = asked(evidence=(NEW_TERM, TERM, RENT))
    assert other.cache_query
    found = await cache.cache.look(cache.who(), other, other.cache_query)
    assert found.text == 'As it says in [3]: "nine hundred [2] crowns"'


async def test_a_wrong_guess_raises_the_threshold_and_drops_the_entry_for_other_replicas_too(cache: Cache) -> None:
    await cache.answer(asked(), fresh())
    assert await cache.look(asked("rent?", 0.95)) == "hit"
    assert await cache.answer(asked("the rent?", 0.7), fresh("else [2]", TERM)) == "draft"
    assert await cache.look(asked("rent?", 0.95)) == "draft", "the bound no longer holds at 0.95 ..."
    assert await cache.look(asked("rent?", 0.95, evidence=(RENT,))) == "miss", "... and the first entry is gone"
    replica = SemanticCache(cache.database, SETTINGS, clock=lambda: cache.now)
    request = asked("rent?", 0.95)
    assert request.cache_query
    assert (await replica.look(cache.who(), request, request.cache_query)).outcome == "draft"


async def test_hits_are_verified_by_sample_and_counted(cache: Cache) -> None:
    audited = Cache(cache.database, cache.tenants, semantic_audit=1.0)
    audited.now = cache.now
    await audited.answer(asked(), fresh())
    assert await audited.answer(asked("rent?", 0.95), fresh()) == "draft"
    assert vars(audited.cache.counts(cache.tenants[0])) == {"hits": 0, "drafts": 1, "misses": 1}
    await cache.answer(asked("rent?", 0.95), fresh())
    rows = await cache.cache.visible(cache.who())
    assert sum(row.hits for row in rows) == 1


async def test_what_is_forgotten_or_purged_is_gone(cache: Cache) -> None:
    await cache.answer(asked(), fresh())
    await cache.answer(asked(), fresh(), 0, "m-1")
    assert await cache.cache.purge(cache.who(), uuid4()) == 0
    assert len(await cache.cache.visible(cache.who())) == 1, "what needs a matter is not shown without it"
    assert await cache.cache.purge(cache.who()) == 1
    assert await cache.look(asked()) == "miss"
    assert await cache.look(asked(), 0, "m-1") == "hit"
    await cache.cache.forget({"d1/2", "d3"})
    assert await cache.look(asked(), 0, "m-1") == "hit"
    await cache.cache.forget({"d2/1"})
    assert await cache.look(asked(), 0, "m-1") == "miss"
    assert await cache.cache.visible(cache.who(0, "m-1")) == []


async def test_nothing_is_kept_when_off_or_not_wanted(cache: Cache) -> None:
    await cache.answer(replace(asked(), cache_control="no-store"), fresh())
    assert await cache.cache.visible(cache.who()) == []
    off = Cache(cache.database, cache.tenants, semantic_seconds=0)
    await off.answer(asked(), fresh())
    assert await cache.cache.visible(cache.who()) == []


async def test_the_oldest_go_when_a_partition_is_full(cache: Cache) -> None:
    small = Cache(cache.database, cache.tenants, semantic_entries=2)
    small.now = cache.now
    for number in range(4):
        await small.answer(asked(f"Question {number}?", slots=(f"number:{number}",)), fresh())
    kept = [row.question for row in await small.cache.visible(cache.who())]
    assert kept == ["Question 3?", "Question 2?"]


def test_the_bound_is_clopper_and_pearsons() -> None:
    assert trials_for(0.01) == 299
    assert is_rarer(0, 299, 0.01) and not is_rarer(0, 298, 0.01) and not is_rarer(1, 299, 0.01)
    assert highest_rate(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300), abs=1e-6)
    assert highest_rate(3, 100) == pytest.approx(0.0757, abs=1e-3)
    assert highest_rate(5, 5) == 1.0


def test_the_threshold_rises_after_a_mistake_and_sinks_with_evidence() -> None:
    threshold = Threshold(0.9, 0.05)
    assert threshold.value == 0.9
    threshold.learn(0.95, False)
    assert threshold.value > 0.95
    for _ in range(40):
        threshold.learn(0.8, True)
    assert threshold.value == 0.8, "1 of 100"
    sure = Threshold(0.9, 0.05, [(0.6 + i / 1000, i > 50) for i in range(200)])
    assert 0.6 < sure.value <= 0.66
