"""An engine in another process: what arrives there, what it tells, and what happens when it goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app import migrate
from app.asgi import create_app
from app.config import EngineSettings, RouteSettings, TargetSettings
from app.db import Database
from app.errors import Conflict, UpstreamError
from app.gateway.prefixes import fingerprints, split
from app.gateway.providers import precedent
from app.gateway.providers.precedent import PrecedentProvider
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment
from app.services import Services
from app.tenants import service
from app.tenants.principal import TENANT_SCOPES
from tests.conftest import fake_settings, listen, open_site
from tests.gateway.test_local import tiny_model

POLICY = "Answer from the contracts alone and quote them. " * 3


@dataclass
class Replica:
    """An engine on a socket of its own, and two keys: of a gateway, and of a tenant."""

    url: str
    services: Services
    key: str
    tenants: str


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def replica(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    folder: Path = tmp_path_factory.mktemp("replica")
    engine = EngineSettings(
        model=str(tiny_model(folder / "model")), served_name="tiny", device="cpu", threads=1, kv_cache_bytes=2**22
    )
    settings = fake_settings(folder, engine=engine, targets=(), routes=())
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "installation")
        keys = [
            (await service.create_key(session, tenant.id, scope, scopes=frozenset({scope}), labels=frozenset())).secret
            for scope in ("engine", "chat")
        ]
    await database.close()
    app = create_app(settings)
    async with listen(app) as url:
        services: Services = app.state.services
        async with asyncio.timeout(60):
            while services.starting:
                await asyncio.sleep(0.02)
        yield Replica(url, services, *keys)


def target(url: str, **changes: Any) -> TargetSettings:
    return TargetSettings(name="far", provider="precedent", base_url=url, allow_private=True, **changes)


@pytest_asyncio.fixture
async def far(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PrecedentProvider]:
    monkeypatch.setattr(precedent, "ADVERT_SECONDS", 0.05)
    provider = PrecedentProvider(target(replica.url))
    provider.secret = replica.key
    await provider.start()
    await heard(provider)
    yield provider
    await provider.close()


async def heard(provider: PrecedentProvider) -> None:
    """Returns after one more advert."""
    provider._heard = 0.0
    async with asyncio.timeout(10):
        while provider.unhealthy():
            await asyncio.sleep(0.01)


def question(text: str, tenant: str = "a", source: str = "d1") -> ChatRequest:
    label = frozenset({f"tenant:{tenant}"})
    user = (Segment("The rent is nine hundred crowns. " * 3, label, (source, f"{source}/1")), Segment(text, label))
    messages = (Message("system", (Segment(POLICY),)), Message("user", user))
    return ChatRequest("tiny", messages, Sampling(temperature=0.0, max_tokens=6), quote_sources=("nine hundred",))


async def answer(provider: PrecedentProvider, request: ChatRequest) -> list[Any]:
    async with aclosing(provider.stream(request)) as deltas:
        return [delta async for delta in deltas]


async def test_segments_labels_and_sources_arrive_as_they_are(far: PrecedentProvider, replica: Replica) -> None:
    local = next(iter(replica.services.gateway.providers.values()))
    for tenant in ("a", "b"):
        ours, theirs = [await answer(one, question("How much?", tenant)) for one in (far, local)]  # type: ignore[arg-type]
        assert "".join(d.text for d in ours) == "".join(d.text for d in theirs)
        assert ours[-1].usage.prompt_tokens == theirs[-1].usage.prompt_tokens
        assert ours[-1].timings_ms and ours[-1].finish_reason == theirs[-1].finish_reason
    counts = local._engine.label_counts()  # type: ignore[attr-defined]
    assert {frozenset(), frozenset({"tenant:a"}), frozenset({"tenant:b"})} <= set(counts)


async def test_it_tells_which_beginnings_are_in_its_memory(far: PrecedentProvider) -> None:
    first = question("What about x?", "c")
    await heard(far)
    before = await far.forecast(first)
    await answer(far, first)
    await heard(far)
    same, another = await far.forecast(question("And y?", "c")), await far.forecast(question("And y?", "d"))
    assert before and same and another
    assert same.cached_tokens > another.cached_tokens >= len(POLICY) - 16, "another tenant shares the policy alone"
    assert before.cached_tokens < same.cached_tokens
    assert same.ttft_ms < another.ttft_ms


async def test_what_is_gone_is_told_until_it_is_heard(
    far: PrecedentProvider, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precedent, "FORGET", "nowhere")
    await far.forget({"d9"})
    assert (await answer(far, question("x", source="d9")))[-1].finish_reason
    monkeypatch.undo()
    await heard(far)
    with pytest.raises(Conflict):
        await answer(far, question("x", source="d9"))


async def test_a_dead_replica_is_known_to_be_dead(far: PrecedentProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    assert far.unhealthy() is None
    monkeypatch.setattr(precedent, "ADVERT", "nowhere")
    monkeypatch.setattr(precedent, "FRESH_SECONDS", 0.05)
    async with asyncio.timeout(30):
        while far.unhealthy() is None:
            await asyncio.sleep(0.01)
    assert far.unhealthy() == "the replica has not been heard of"


async def test_only_a_gateways_key_opens_it(replica: Replica) -> None:
    async with httpx.AsyncClient(base_url=replica.url) as client:
        for key, status in ((replica.tenants, 403), ("nonsense", 401)):
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.get("/api/v1/engine/advert", headers=headers)).status_code == status
            for path in ("generate", "forget"):
                assert (await client.post(f"/api/v1/engine/{path}", json={}, headers=headers)).status_code == status
        broken = await client.post(
            "/api/v1/engine/generate", content=b'{"model": 1}', headers={"authorization": f"Bearer {replica.key}"}
        )
        assert broken.status_code == 400 and "not a gateway's request" in broken.text


async def test_a_gateway_routes_by_it_and_falls_back_when_it_is_gone(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", replica.key)
    dead = target("http://127.0.0.1:9/", api_key_env="FAR_KEY", connect_seconds=0.5)
    settings = fake_settings(
        tmp_path,
        targets=(target(replica.url, api_key_env="FAR_KEY"), replace(dead, name="dead")),
        routes=(RouteSettings(model="tiny", targets=("dead", "far"), strategy="affinity"),),
    )
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "firm")
        key = await service.create_key(session, tenant.id, "k", scopes=TENANT_SCOPES, labels=frozenset())
    await database.close()
    app = create_app(settings)
    headers = {"authorization": f"Bearer {key.secret}"}
    async with listen(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello " * 20}], "max_tokens": 4}
        async with asyncio.timeout(10):
            while app.state.services.gateway.providers["far"].unhealthy():
                await asyncio.sleep(0.05)
        reply = await client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["x-precedent-served-by"] == "far"
        async with asyncio.timeout(10):
            while "tokens of the prompt are there" not in (said := await explained(client, body))[0]["reason"]:
                await asyncio.sleep(0.1)
        assert [verdict["target"] for verdict in said] == ["far", "dead"]
        assert "has not been heard of" in said[1]["reason"]


async def explained(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.post("/api/v1/routes/explain", json={"request": body})).json()[
        "targets"
    ]
    return found


def test_fingerprints_are_of_role_label_and_text() -> None:
    one = (Message("system", (Segment("a"),)), Message("user", (Segment("b", frozenset({"x"})), Segment(""))))
    assert len(fingerprints(one)) == 2
    others = [
        (Message("user", (Segment("a"),)), one[1]),
        (one[0], Message("user", (Segment("b", frozenset({"y"})),))),
        (one[0], Message("user", (Segment("c", frozenset({"x"})),))),
        (Message("system", (Segment("a", frozenset({"x"})),)), one[1]),
    ]
    last = {fingerprints(messages)[-1] for messages in (one, *others)}
    assert len(last) == 5
    assert split(one, {fingerprints(one)[0]: 16, "else": 99}) == (16, "b")
    assert split(one, {}) == (0, "ab")


async def test_without_an_engine_there_is_none_to_ask(tmp_path: Path) -> None:
    async with open_site(fake_settings(tmp_path)) as site:
        headers = await site.headers(scopes=("engine",))
        assert (await site.client.get("/api/v1/engine/advert", headers=headers)).status_code == 404


async def test_a_stream_that_breaks_off_is_an_error(far: PrecedentProvider) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b'data: {"text": "The"}\n\n'

    with pytest.raises(UpstreamError, match="broke off"):
        [delta async for delta in far.deltas(half(), question("x"))]
