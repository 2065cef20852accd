"""Which target gets a request: eligibility that fails closed, strategies, decisions with their reasons."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from app.config import EngineSettings, PriceSettings, RouteSettings, Settings, TargetSettings
from app.errors import ConfigurationError, InvalidRequest
from app.gateway.complexity import complexity, features
from app.gateway.health import Prober
from app.gateway.hints import hints_of
from app.gateway.providers.fake import FakeProvider
from app.gateway.resilience import GuardedTarget
from app.gateway.routing import Router
from app.gateway.strategies import Candidate, Wish, rank
from app.tenants.models import Tenant
from tests.conftest import Site, fake_settings, open_site
from tests.gateway.test_chat import records
from tests.gateway.upstream import chat

CHAT = "/v1/chat/completions"


def candidate(name: str, position: int, quality: int = 3, **known: Any) -> Candidate:
    return Candidate(TargetSettings(name=name, quality=quality), position, **known)


def ranked(strategy: str, candidates: list[Candidate], wish: Wish = Wish()) -> list[str]:  # noqa: B008
    return [c.name for c, _ in rank(strategy, candidates, wish, random.Random(1))]


def test_order_latency_cost_and_load() -> None:
    a = candidate("a", 0, ttft_ms=300.0, cost_micros=5, running=4)
    b = candidate("b", 1, ttft_ms=100.0, cost_micros=9, running=1)
    c = candidate("c", 2, cost_micros=5, running=2, weight=4)
    assert ranked("order", [a, b, c]) == ["a", "b", "c"]
    assert ranked("latency", [a, b, c]) == ["c", "b", "a"]  # nobody has measured c
    assert ranked("cost", [a, b, c]) == ["a", "c", "b"]
    assert ranked("load", [a, b, c]) == ["c", "b", "a"]


def test_whom_something_is_known_against_comes_last_except_by_order() -> None:
    ill, well = candidate("ill", 0, trouble="circuit open"), candidate("well", 1, cost_micros=9)
    assert ranked("cost", [ill, well]) == ["well", "ill"]
    assert ranked("order", [ill, well]) == ["ill", "well"]


def test_weights_are_shares_and_zero_is_for_fallback() -> None:
    rng = random.Random(7)
    three = [candidate("a", 0, weight=3), candidate("b", 1, weight=1), candidate("c", 2, weight=0)]
    drawn = [[c.name for c, _ in rank("weight", three, Wish(), rng)] for _ in range(4000)]
    first = Counter(names[0] for names in drawn)
    assert 2850 < first["a"] < 3150 and first["c"] == 0
    assert all(names[-1] == "c" for names in drawn)


def test_affinity_is_stable_and_moves_little_when_a_target_goes() -> None:
    three = [candidate(name, n) for n, name in enumerate("abc")]
    homes = {f"s{n}": ranked("affinity", three, Wish(f"s{n}"))[0] for n in range(300)}
    assert min(Counter(homes.values()).values()) > 60
    without = {s: ranked("affinity", three[:2], Wish(s))[0] for s in homes}
    assert all(without[s] == home for s, home in homes.items() if home != "c")
    there = candidate("there", 3, cached_tokens=512)
    assert ranked("affinity", [*three, there], Wish("s1"))[0] == "there"


def test_hybrid_takes_the_cheapest_that_is_good_enough_and_in_time() -> None:
    small = candidate("small", 0, quality=2, cost_micros=1, ttft_ms=50.0)
    large = candidate("large", 1, quality=5, cost_micros=9, ttft_ms=900.0)
    quick = candidate("quick", 2, quality=5, cost_micros=20, ttft_ms=90.0)
    all_three = [small, large, quick]
    easy, hard = complexity(features(chat("List the parties."), 10)), complexity(features(chat(HARD), 10))
    assert (easy.level, hard.level) == (1, 5)
    assert ranked("hybrid", all_three, Wish("", easy)) == ["small", "large", "quick"]
    assert ranked("hybrid", all_three, Wish("", hard)) == ["large", "quick", "small"]
    assert ranked("hybrid", all_three, Wish("", hard, ttft_ms=200)) == ["quick", "large", "small"]


HARD = (
    "Analyse and compare both clauses, assess the risk, unless clause 4 applies, except as provided that. Draft a fix."
)


def test_complexity_says_which_rules_applied() -> None:
    found = complexity(features(chat(HARD), 10))
    assert found.because[0] == "asks for analysis, drafting or judgement (+2)"


def test_hints() -> None:
    hints = hints_of({"x-precedent-region": "eu, ch", "x-precedent-privileged": "true", "x-precedent-ttft-ms": "250"})
    assert (hints.regions, hints.privileged, hints.ttft_ms) == (frozenset({"eu", "ch"}), True, 250)
    for name, value in (("region", ","), ("privileged", "maybe"), ("ttft-ms", "soon"), ("ttft-ms", "nan")):
        with pytest.raises(InvalidRequest, match=name):
            hints_of({f"x-precedent-{name}": value})


def test_routes_that_make_no_sense_are_refused() -> None:
    target = TargetSettings(name="a", provider="fake")
    for route, says in (
        (RouteSettings("m", ("a",), strategy="luck"), "luck"),
        (RouteSettings("m", ("a",), weights=(1, 2)), "weights"),
        (RouteSettings("m", ("a",), weights=(0,)), "weights"),
    ):
        with pytest.raises(ConfigurationError, match=says):
            Settings(targets=(target,), routes=(route,)).validate()
    with pytest.raises(ConfigurationError, match="unknown target"):
        Router(Settings(engine=EngineSettings(model=""), routes=(RouteSettings("m", ("gone",)),)))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def crossroads(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    settings = fake_settings(
        tmp_path_factory.mktemp("crossroads"),
        targets=(
            TargetSettings(name="world", provider="fake", quality=5),
            TargetSettings(name="eu", provider="fake", region="eu", quality=2),
            TargetSettings(name="safe", provider="fake", region="eu", privileged=True, quality=4),
            TargetSettings(name="eu-down", provider="fake", region="eu", options="status=503", max_retries=0),
        ),
        routes=(
            RouteSettings("any", ("world", "eu", "safe")),
            RouteSettings("falls", ("eu-down", "world")),
            RouteSettings("smart", ("world", "eu", "safe"), strategy="hybrid"),
            RouteSettings("abroad", ("world",)),
        ),
        prices=(
            PriceSettings("world", output=30_000_000),
            PriceSettings("eu", output=1_000_000),
            PriceSettings("safe", output=5_000_000),
        ),
    )
    async with open_site(settings) as site:
        yield site


async def bound(site: Site, tenant: str, **values: Any) -> dict[str, str]:
    headers = await site.headers(tenant)
    async with site.services.database.session() as session:
        await session.execute(update(Tenant).where(Tenant.name == tenant).values(**values))
        await session.commit()
    return headers


def body(model: str, text: str = "hello") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 100}


async def served_by(site: Site, model: str, headers: dict[str, str], text: str = "hello") -> str:
    response = await site.client.post(CHAT, json=body(model, text), headers=headers)
    return response.headers["x-precedent-served-by"] if response.status_code == 200 else str(response.status_code)


async def test_a_tenants_regions_are_kept(crossroads: Site) -> None:
    headers = await bound(crossroads, "european", regions=["eu"])
    assert await served_by(crossroads, "any", headers) == "eu"
    assert await served_by(crossroads, "abroad", headers) == "403"
    assert await served_by(crossroads, "any", {**headers, "x-precedent-region": "us"}) == "403"


async def test_fallback_never_leaves_the_region(crossroads: Site) -> None:
    headers = await bound(crossroads, "staying", regions=["eu"])
    response = await crossroads.client.post(CHAT, json=body("falls"), headers=headers)
    assert response.status_code == 502
    assert await served_by(crossroads, "falls", await crossroads.headers("roaming")) == "world"


async def test_privileged_material_goes_to_cleared_targets_alone(crossroads: Site) -> None:
    headers = await bound(crossroads, "counsel", privileged=True)
    assert await served_by(crossroads, "any", headers) == "safe"
    assert await served_by(crossroads, "any", {**headers, "x-precedent-privileged": "false"}) == "safe"
    plain = await crossroads.headers("plain-firm")
    assert await served_by(crossroads, "any", plain) == "world"
    assert await served_by(crossroads, "any", {**plain, "x-precedent-privileged": "true"}) == "safe"


async def test_hybrid_end_to_end_and_the_decision_is_recorded(crossroads: Site) -> None:
    headers = await crossroads.headers("thinker")
    assert await served_by(crossroads, "smart", headers, "List the parties.") == "eu"
    assert await served_by(crossroads, "smart", headers, HARD) == "world"
    easy, hard = await records(crossroads, "thinker")
    assert easy.routing["strategy"] == "hybrid" and easy.routing["complexity"]["level"] == 1
    assert hard.routing["complexity"]["level"] == 5
    assert [t["target"] for t in hard.routing["targets"]] == ["world", "safe", "eu"]
    assert {span["name"] for span in easy.spans} >= {"route", "limits"}


async def test_a_refusal_and_a_failed_attempt_are_recorded_too(crossroads: Site) -> None:
    headers = await bound(crossroads, "refused", regions=["mars"])
    assert await served_by(crossroads, "any", headers) == "403"
    [record] = await records(crossroads, "refused")
    assert record.status == "forbidden" and all(t["rank"] is None for t in record.routing["targets"])
    await served_by(crossroads, "falls", await crossroads.headers("attempting"))
    [record] = await records(crossroads, "attempting")
    assert record.routing["attempts"][0]["target"] == "eu-down"


async def test_explain(crossroads: Site) -> None:
    headers = await crossroads.headers("curious")
    request = {"request": body("smart", HARD), "regions": ["eu"]}
    said = (await crossroads.client.post("/api/v1/routes/explain", json=request, headers=headers)).json()
    assert [(t["target"], t["rank"]) for t in said["targets"]] == [("safe", 1), ("eu", 2), ("world", None)]
    assert "no known region" in said["targets"][2]["reason"]
    assert said["complexity"]["level"] == 5 and said["expected_cost_micros"] == 500
    assert await records(crossroads, "curious") == []
    unknown = {"request": body("nothing")}
    assert (await crossroads.client.post("/api/v1/routes/explain", json=unknown, headers=headers)).status_code == 404
    odd = request | {"target": "world"}
    assert (await crossroads.client.post("/api/v1/routes/explain", json=odd, headers=headers)).status_code == 400


async def test_probes_open_and_close_the_circuit() -> None:
    target = TargetSettings(name="t", provider="fake", options="status=503", breaker_failures=2, probe_seconds=0.001)
    ill = GuardedTarget(target, FakeProvider(target))
    for _ in range(2):
        await ill.probe()
    assert ill.trouble() == "circuit open"
    well = GuardedTarget(target, FakeProvider(TargetSettings(name="t", provider="fake")))
    well.breaker = ill.breaker
    gateway = SimpleNamespace(board=SimpleNamespace(targets={"t": well}))
    prober = Prober(gateway)  # type: ignore[arg-type]  # it reads the board alone
    await prober.start()
    async with asyncio.timeout(30):
        while well.trouble():
            await asyncio.sleep(0.01)
    await prober.stop()
