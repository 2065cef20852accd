"""The REST API of who administers: requests, usage, series, budgets, tenants, audit, engine, events."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.asgi import create_app
from app.config import PriceSettings
from app.gateway.events import KEPT, EventBus, Watcher
from app.tenants.principal import TENANT_SCOPES, Scope
from tests.conftest import Site, fake_settings, listen
from tests.gateway.upstream import prepared

CHAT = "/v1/chat/completions"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    prices = (PriceSettings(target="fake", input=1_000_000, output=2_000_000),)
    settings = fake_settings(tmp_path_factory.mktemp("office"), prices=prices)
    await prepared(settings)
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield Site(app, client, app.state.services)  # type: ignore[arg-type]


async def ask(site: Site, headers: dict[str, str], text: str = "a b c", model: str = "echo") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return await site.client.post(CHAT, json=body, headers=headers)


async def fetch(site: Site, path: str, headers: dict[str, str], **params: Any) -> Any:
    await site.logged()
    response = await site.client.get(f"/api/v1/{path}", params=params, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def test_requests_come_by_pages_newest_first(office: Site) -> None:
    headers = await office.headers("pages")
    for number in range(5):
        await ask(office, headers, f"number {number}")
    seen: list[str] = []
    cursor = None
    while True:
        page = await fetch(office, "requests", headers, limit=2, **({"cursor": cursor} if cursor else {}))
        seen += [request["id"] for request in page["requests"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(set(seen)) == 5 and seen == sorted(seen, reverse=True)
    bad = await office.client.get("/api/v1/requests", params={"cursor": "!!"}, headers=headers)
    assert bad.status_code == 400 and bad.json()["param"] == "cursor"


async def test_requests_are_filtered(office: Site) -> None:
    headers = await office.headers("filters")
    await ask(office, headers)
    await ask(office, headers, model="nothing")  # unknown models are not in the log: nobody was asked
    refused = await office.client.post(
        CHAT, json={"model": "echo", "messages": [{"role": "user", "content": "x"}], "min_p": 0.5}, headers=headers
    )
    assert refused.status_code == 400
    assert len((await fetch(office, "requests", headers, status="failed"))["requests"]) == 1
    assert len((await fetch(office, "requests", headers, error="MIN_P"))["requests"]) == 1
    assert len((await fetch(office, "requests", headers, error="%"))["requests"]) == 0
    assert len((await fetch(office, "requests", headers, target="fake", status="stop"))["requests"]) == 1
    assert (await fetch(office, "requests", headers, since="2090-01-01T00:00:00Z"))["requests"] == []
    no_zone = await office.client.get("/api/v1/requests", params={"since": "2026-01-01T00:00:00"}, headers=headers)
    assert no_zone.status_code == 400


async def test_one_request_with_spans_routing_and_cost_lines(office: Site) -> None:
    headers = await office.headers("detail")
    answered = await ask(office, headers)
    request_id = answered.headers["x-precedent-request-id"]
    detail = await fetch(office, f"requests/{request_id}", headers)
    assert detail["cost_lines"] == {"input": 3, "cached_input": 0, "output": 6, "computing": 0}
    assert detail["cost_micros"] == 9 and detail["routing"]["targets"][0]["target"] == "fake"
    assert {"route", "limits"} <= {span["name"] for span in detail["spans"]}
    assert "a b c" not in json.dumps(detail)
    stranger = await office.client.get(f"/api/v1/requests/{request_id}", headers=await office.headers("stranger"))
    assert stranger.status_code == 404


async def test_usage_sums_to_the_ledger_and_the_requests(office: Site) -> None:
    headers = await office.headers("usage")
    for words in range(1, 6):
        await ask(office, headers, "x " * words)
    usage = await fetch(office, "usage", headers, group="model")
    requests = (await fetch(office, "requests", headers))["requests"]
    assert usage["total_micros"] == sum(request["cost_micros"] for request in requests) == 45
    assert sum(bucket["requests"] for bucket in usage["buckets"]) == 5
    assert all(bucket["hour"].endswith(":00:00Z") and bucket["group"] == "echo" for bucket in usage["buckets"])
    assert sum(bucket["prompt_tokens"] for bucket in usage["buckets"]) == 15
    for wrong in ({"group": "moon"}, {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}):
        assert (await office.client.get("/api/v1/usage", params=wrong, headers=headers)).status_code == 400


async def test_usage_of_every_tenant_is_the_operators_alone(office: Site) -> None:
    one, other = await office.headers("usage-one"), await office.headers("usage-other")
    await ask(office, one)
    await ask(office, other)
    running = await office.headers("running", scopes=frozenset(Scope))
    usage = await fetch(office, "usage", running, group="tenant")
    names = {tenant["id"]: tenant["name"] for tenant in (await fetch(office, "tenants", running))["tenants"]}
    seen = {names[bucket["group"]]: bucket["amount_micros"] for bucket in usage["buckets"]}
    assert seen["usage-one"] == seen["usage-other"] == 9
    assert usage["total_micros"] == sum(bucket["amount_micros"] for bucket in usage["buckets"])
    refused = await office.client.get("/api/v1/usage", params={"group": "tenant"}, headers=one)
    assert refused.status_code == 403


async def test_series(office: Site) -> None:
    headers = await office.headers("series")
    await ask(office, headers)
    series = await fetch(office, "metrics/series", headers, step_seconds=3600)
    assert len(series["points"]) in (24, 25) and sum(point["requests"] for point in series["points"]) == 1
    assert series["points"][0]["first_delta_p50_ms"] is None
    assert series["total"]["requests"] == 1 and series["total"]["first_delta_p50_ms"] > 0
    assert max(point["first_delta_p95_ms"] or 0 for point in series["points"]) > 0
    long = {"start": "2026-01-01T00:00:00Z", "end": "2026-12-01T00:00:00Z", "step_seconds": 60}
    assert (await office.client.get("/api/v1/metrics/series", params=long, headers=headers)).status_code == 400


async def test_budgets_are_made_shown_raised_and_deleted(office: Site) -> None:
    headers = await office.headers("budgets")
    await ask(office, headers)
    made = await office.client.post("/api/v1/budgets", json={"window": "day", "limit_micros": 10}, headers=headers)
    assert made.status_code == 201 and made.json()["spent_micros"] == 9 and made.json()["resets_at"]
    assert (await ask(office, headers)).status_code == 402
    path = f"/api/v1/budgets/{made.json()['id']}"
    assert (await office.client.patch(path, json={"limit_micros": 10**9}, headers=headers)).status_code == 200
    assert (await ask(office, headers)).status_code == 200
    assert (await fetch(office, "budgets", headers))["budgets"][0]["spent_micros"] == 18
    assert (await office.client.delete(path, headers=await office.headers("other"))).status_code == 404
    assert (await office.client.delete(path, headers=headers)).status_code == 204
    keys = await fetch(office, "keys", headers)
    mine = {"window": "total", "limit_micros": 0, "key_id": keys["keys"][0]["id"]}
    foreign = await office.client.post("/api/v1/budgets", json=mine, headers=await office.headers("other"))
    assert foreign.status_code == 404
    assert (await office.client.post("/api/v1/budgets", json=mine, headers=headers)).status_code == 201
    assert (await ask(office, headers)).status_code == 402
    reader = await office.headers("budgets", scopes=[Scope.USAGE])
    assert (await office.client.post("/api/v1/budgets", json=mine, headers=reader)).status_code == 403


async def test_tenants_are_for_operators(office: Site) -> None:
    operator = await office.headers("house", scopes=tuple(Scope))
    made = await office.client.post("/api/v1/tenants", json={"name": "new firm"}, headers=operator)
    assert made.status_code == 201
    path = f"/api/v1/tenants/{made.json()['id']}"
    change = {"regions": ["eu"], "requests_per_minute": 5}
    changed = (await office.client.patch(path, json=change, headers=operator)).json()
    assert (changed["regions"], changed["requests_per_minute"], changed["privileged"]) == (["eu"], 5, False)
    key = (await office.client.post(f"{path}/keys", json={"name": "first"}, headers=operator)).json()
    theirs = {"authorization": f"Bearer {key['secret']}"}
    assert (await fetch(office, "tenant", theirs))["name"] == "new firm"
    assert frozenset((await fetch(office, "me", theirs))["scopes"]) == TENANT_SCOPES
    assert (await office.client.get("/api/v1/tenants", headers=theirs)).status_code == 403
    assert (await office.client.patch(path, json={"regions": []}, headers=theirs)).status_code == 403
    assert (await ask(office, theirs)).status_code == 403  # no target in the eu


async def test_the_audit_log_is_the_tenants_own(office: Site) -> None:
    headers = await office.headers("audited")
    for name in ("a", "b", "c"):
        await office.client.post("/api/v1/keys", json={"name": name, "scopes": ["chat"]}, headers=headers)
    first = await fetch(office, "audit", headers, action="key.create", limit=2)
    assert [entry["detail"]["name"] for entry in first["entries"]] == ["c", "b"]
    rest = await fetch(office, "audit", headers, action="key.create", before=first["next_before"])
    assert rest["entries"][0]["detail"]["name"] == "a" and rest["next_before"] is None
    assert all("secret" not in json.dumps(entry) for entry in first["entries"])


async def test_without_an_engine_there_is_no_engine_state(office: Site) -> None:
    headers = await office.headers("engineless")
    for path in ("state", "blocks"):
        assert (await office.client.get(f"/api/v1/engine/{path}", headers=headers)).status_code == 404


async def lines(stream: AsyncIterator[str], until: str) -> list[str]:
    found = []
    async with asyncio.timeout(10):
        async for line in stream:
            found.append(line)
            if until in line:
                break
    return found


async def test_events_arrive_and_are_replayed(office: Site) -> None:
    headers, other = await office.headers("watching"), await office.headers("elsewhere")
    async with office.client.stream("GET", "/api/v1/events?topics=request", headers=headers) as opened:
        stream = opened.aiter_lines()
        await lines(stream, "hello")
        await ask(office, other, "not theirs")
        await ask(office, headers, "one")
        first = await lines(stream, "data:")
    data = json.loads(first[-1].removeprefix("data: "))
    assert data["status"] == "stop" and data["key_id"] and "routing" not in data
    seen = next(line for line in first if line.startswith("id:")).removeprefix("id: ")
    missed = await ask(office, headers, "two")
    again = {**headers, "last-event-id": seen}
    async with office.client.stream("GET", "/api/v1/events", headers=again) as opened:
        replayed = await lines(opened.aiter_lines(), "data:")
    assert json.loads(replayed[-1].removeprefix("data: "))["id"] == missed.headers["x-precedent-request-id"]
    lost = {**headers, "last-event-id": "other-7"}
    async with office.client.stream("GET", "/api/v1/events", headers=lost) as opened:
        assert "event: reset" in await lines(opened.aiter_lines(), "data:")
    assert (await office.client.get("/api/v1/events?topics=moon", headers=headers)).status_code == 400


async def test_a_slow_watcher_is_told_and_one_too_late_too() -> None:
    from uuid import UUID

    bus, mine = EventBus(), UUID(int=1)
    watcher = Watcher(mine, {"request"}, operator=False)
    last = bus.id_of()
    with bus.watching(watcher):
        for number in range(KEPT + 1):
            bus.publish("request", number, mine)
    assert watcher.lost and bus.missed(watcher, last) is None
    assert bus.missed(watcher, bus.id_of()) == []
    bus.publish("config", 1)
    bus.publish("request", 1, UUID(int=2))
    assert bus.missed(watcher, bus.id_of()[:8] + f"-{KEPT + 1}") == []
