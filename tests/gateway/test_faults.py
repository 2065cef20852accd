"""The fault matrix: how an upstream fails × plain or streamed × the caller's dialect × the upstream's dialect.

Before the first delta another target serves, or the caller gets a status; after it the caller gets one error frame.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.asgi import create_app
from app.config import RouteSettings, Settings, TargetSettings
from app.db import owned
from app.gateway.models import RequestRecord
from app.services import Services
from app.telemetry import Stages
from app.tenants import service
from app.tenants.principal import Scope
from tests.conftest import fake_settings, listen
from tests.gateway import wires
from tests.gateway.upstream import Exchange, Upstream, Wire, chat, prepared, upstream

STREAMS = {"openai": wires.OPENAI_TEXT, "anthropic": wires.anthropic_text()}
ERRORS = {"openai": wires.sse(wires.VLLM_ERROR), "anthropic": wires.sse(wires.ANTHROPIC_OVERLOADED, name=True)}
FIRST_TEXT = {"openai": 2, "anthropic": 4}  # pieces up to the first delta
PROVIDERS = ("openai", "anthropic")


@dataclass(frozen=True)
class Fault:
    status: int
    openai: str
    anthropic: str


BAD_GATEWAY = Fault(502, "upstream_error", "api_error")
BEFORE = {
    "dies": BAD_GATEWAY,
    "dies_after_headers": BAD_GATEWAY,
    "hangs": Fault(504, "upstream_timeout", "timeout_error"),
    "limited": Fault(429, "rate_limit_exceeded", "rate_limit_error"),
    "garbage": BAD_GATEWAY,
    "error_in_200": BAD_GATEWAY,
    "status_500": BAD_GATEWAY,
}
AFTER = {
    "dies_after_text": BAD_GATEWAY,
    "hangs_after_text": Fault(504, "upstream_timeout", "timeout_error"),
    "garbage_after_text": BAD_GATEWAY,
    "error_after_text": BAD_GATEWAY,
}


async def misbehave(exchange: Exchange, wire: Wire) -> None:
    """The first part of the path names the fault, the body's model the dialect."""
    fault, provider = exchange.path.split("/")[1], exchange.json["model"]
    if fault == "dies":
        return wire.die()
    if fault == "hangs":
        return await wire.until_left()
    if fault in ("limited", "status_500"):
        return await wire.fail(429 if fault == "limited" else 500, {"error": {"message": "x"}}, retry_after="30")
    await wire.head()
    if fault.endswith("_after_text"):
        await wire.send(*STREAMS[provider][: FIRST_TEXT[provider]])
    if fault.startswith("dies"):
        wire.hang_up()
    elif fault.startswith("hangs"):
        await wire.until_left()
    else:
        await wire.send(*([b"data: <html>\n\n"] if fault.startswith("garbage") else ERRORS[provider]))
        await wire.end()
    return None


def settings_before(url: str, directory: Path) -> Settings:
    targets = [TargetSettings(name="fake", provider="fake", options="text=from the other")]
    routes = []
    for provider in PROVIDERS:
        for fault in (*BEFORE, *AFTER):
            name = f"{provider}-{fault}"
            targets.append(
                TargetSettings(
                    name=name,
                    provider=provider,
                    model=provider,
                    base_url=f"{url}/{fault}",
                    allow_private=True,
                    timeout_seconds=0.3 if fault == "hangs" else 10.0,
                    idle_seconds=0.3,
                    max_retries=0,
                    breaker_failures=1000,
                )
            )
            routes.append(RouteSettings(model=f"{name}-alone", targets=(name,)))
            routes.append(RouteSettings(model=f"{name}-helped", targets=(name, "fake")))
    limited = tuple(f"{provider}-limited" for provider in PROVIDERS)
    routes.append(RouteSettings(model="both-limited", targets=limited))
    return fake_settings(directory, targets=tuple(targets), routes=tuple(routes))


@dataclass
class Caller:
    http: httpx.AsyncClient
    services: Services
    running: Upstream
    key: str

    async def ask(self, dialect: str, model: str, *, stream: bool) -> httpx.Response:
        path = "/v1/chat/completions" if dialect == "openai" else "/v1/messages"
        messages = [{"role": "user", "content": "x"}]
        body: dict[str, Any] = {"model": model, "max_tokens": 9, "messages": messages, "stream": stream}
        return await self.http.post(path, json=body)

    async def recorded(self, model: str) -> list[str]:
        """Statuses of the model's rows in the request log, which are taken out."""
        return [row.status for row in await self.rows(model)]

    async def rows(self, model: str) -> list[RequestRecord]:
        await self.services.gateway.writer.flush()
        async with self.services.database.session() as session:
            tenant = await service.get_tenant(session, "firm")
            rows = await session.scalars(owned(RequestRecord, tenant.id).where(RequestRecord.model == model))
            found = list(rows)
            for row in found:
                await session.delete(row)
            await session.commit()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def caller(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    async with upstream(misbehave) as running:
        settings = settings_before(running.url, tmp_path_factory.mktemp("faults"))
        key = await prepared(settings, Scope.CHAT)
        app = create_app(settings)
        async with (
            listen(app) as url,
            httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=20) as http,
        ):
            yield Caller(http, app.state.services, running, key)


def frames(response: httpx.Response) -> list[Any]:
    data = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [entry if entry == "[DONE]" else json.loads(entry) for entry in data]


def code_in(body: dict[str, Any], dialect: str) -> str:
    return str(body["error"]["code" if dialect == "openai" else "type"])


def text_in(dialect: str, made: list[Any]) -> str:
    if dialect == "openai":
        return "".join(f["choices"][0]["delta"].get("content", "") for f in made if "choices" in f)
    return "".join(f["delta"]["text"] for f in made if f["type"] == "content_block_delta")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", BEFORE)
async def test_before_the_first_delta(caller: Caller, fault: str, stream: bool, dialect: str, provider: str) -> None:
    expected = BEFORE[fault]
    model = f"{provider}-{fault}"
    response = await caller.ask(dialect, f"{model}-alone", stream=stream)
    assert response.status_code == expected.status
    assert code_in(response.json(), dialect) == getattr(expected, dialect)
    assert ("retry-after" in response.headers) == (expected.status == 429)
    assert await caller.recorded(f"{model}-alone") == [expected.openai]

    helped = await caller.ask(dialect, f"{model}-helped", stream=stream)
    assert (helped.status_code, helped.headers["x-precedent-served-by"]) == (200, "fake")
    assert ("from" in helped.text) and ('"error"' not in helped.text)
    assert await caller.recorded(f"{model}-helped") == ["stop"]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_when_every_target_is_limited_the_caller_hears_when_to_come_back(caller: Caller, dialect: str) -> None:
    response = await caller.ask(dialect, "both-limited", stream=False)
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert code_in(response.json(), dialect) == getattr(BEFORE["limited"], dialect)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("fault", AFTER)
async def test_after_the_first_delta(caller: Caller, fault: str, stream: bool, dialect: str, provider: str) -> None:
    """No other target takes over: the caller would read a text of two authors."""
    expected = AFTER[fault]
    model = f"{provider}-{fault}-helped"
    response = await caller.ask(dialect, model, stream=stream)
    if stream:
        *made, last = frames(response)
        assert response.status_code == 200
        assert text_in(dialect, made) == "Hello"
        assert not any("error" in frame for frame in made)
        error = last
    else:
        assert response.status_code == expected.status
        error = response.json()
    assert code_in(error, dialect) == getattr(expected, dialect)
    assert "from the other" not in response.text
    assert await caller.recorded(model) == [expected.openai]


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_caller_that_leaves_closes_the_upstream_and_is_recorded_once(
    caller: Caller, dialect: str, provider: str
) -> None:
    model = f"{provider}-hangs_after_text-alone"
    caller.running.left.clear()
    body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "xxxx"}], "stream": True}
    path = "/v1/chat/completions" if dialect == "openai" else "/v1/messages"
    async with caller.http.stream("POST", path, json=body) as response:
        async for line in response.aiter_lines():
            if "Hello" in line:
                break
    assert await caller.running.seen_leaving()
    async with asyncio.timeout(30):
        while not (rows := await caller.rows(model)):
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    # Tokens are those the upstream named before, or else estimated from what was sent and delivered.
    named = provider == "anthropic"
    assert [(row.status, row.prompt_tokens, row.completion_tokens) for row in rows] == [
        ("cancelled", 45 if named else 5, 2)
    ]
    assert await caller.recorded(model) == []


async def test_leaving_between_two_deltas_closes_the_upstream(caller: Caller) -> None:
    """Nobody waits for the upstream at that moment, so nothing but the closing itself can stop it."""
    principal = await caller.services.authenticator.authenticate(caller.key)
    caller.running.left.clear()
    model = "openai-hangs_after_text-alone"
    request = replace(chat(), model=model)
    stream = await caller.services.gateway.open(principal, request, Stages())
    async with stream:
        async for _ in stream:
            break
    assert await caller.running.seen_leaving()
    assert await caller.recorded(model) == ["cancelled"]


async def test_a_caller_that_leaves_at_once_leaves_nothing_behind(caller: Caller) -> None:
    """Also a stream whose first byte nobody waits for is closed and recorded."""
    model = "openai-hangs_after_text-alone"
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "stream": True}
    for _ in range(5):
        caller.running.left.clear()
        async with caller.http.stream("POST", "/v1/chat/completions", json=body):
            pass
        assert await caller.running.seen_leaving()
    async with asyncio.timeout(30):
        recorded: list[str] = []
        while len(recorded) < 5:
            recorded += await caller.recorded(model)
            await asyncio.sleep(0.02)
    assert recorded == ["cancelled"] * 5
