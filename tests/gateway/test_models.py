"""Several models and an embedding model on one device, under one budget, as callers and operators see them."""

import asyncio
import dataclasses
import json
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from click.testing import CliRunner
from sqlalchemy import select

from app import services
from app.asgi import create_app
from app.cli import main
from app.config import EngineSettings, ModelSettings, RouteSettings, Settings, TargetSettings
from app.engine.footprint import footprint
from app.gateway.controllers_replica import local_engine, local_engines
from app.gateway.providers import local as providers_local
from app.gateway.providers.base import TransientError
from app.gateway.providers.local import LocalProvider
from app.gateway.providers.local_config import Devices, engine_config
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment
from app.rag.index.embedding import Embedder
from app.tenants.models import AuditEntry
from app.tenants.principal import TENANT_SCOPES, Scope
from tests.conftest import Site, fake_settings, listen
from tests.gateway.test_local import tiny_model
from tests.gateway.upstream import prepared

TEXTS = ["The rent is due.", "Who pays for repairs?", "Notice must be in writing.", "a b c"]
OPERATOR = TENANT_SCOPES | {Scope.OPERATOR.value}


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Two models of one size with different weights; without a budget."""
    folder = tmp_path_factory.mktemp("models")
    engine = EngineSettings(
        model=str(tiny_model(folder / "one")), served_name="one", threads=1, kv_cache_bytes=2**21, max_queue_seconds=20
    )
    second = ModelSettings(name="two", model=str(tiny_model(folder / "two", seed=1)))
    return dataclasses.replace(
        fake_settings(folder, engine=engine),
        models=(second,),
        routes=(
            RouteSettings(model="echo", targets=("fake",)),
            RouteSettings(model="two-or-echo", targets=("two", "fake")),
            RouteSettings(model="fastest", targets=("two", "local"), strategy="latency"),
        ),
    )


@pytest.fixture(scope="module")
def size(firm: Settings) -> int:
    config = engine_config(firm.engine)
    return footprint(config, Path(config.model))


@pytest.fixture(scope="module")
def embedder_bytes() -> int:
    return Embedder().num_bytes


@asynccontextmanager
async def serving(firm: Settings, folder: Path, budget: int, **engine: Any) -> AsyncIterator[Site]:
    settings = dataclasses.replace(
        firm,
        storage=fake_settings(folder).storage,
        engine=dataclasses.replace(firm.engine, memory_budget_bytes=budget, **engine),
    )
    await prepared(settings)
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        site = Site(app, client, app.state.services)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            while site.services.starting:
                await asyncio.sleep(0.01)
        yield site


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow(
    firm: Settings, size: int, embedder_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Site]:
    """Room for the embedding model and one of the two."""
    async with serving(firm, tmp_path_factory.mktemp("narrow"), embedder_bytes + size + size // 2) as site:
        yield site


async def chat(site: Site, model: str, text: str, headers: dict[str, str], **body: Any) -> httpx.Response:
    message = {"role": "user", "content": text}
    asked = {"model": model, "messages": [message], "temperature": 0, "max_tokens": 12, "ignore_eos": True} | body
    return await site.client.post("/v1/chat/completions", json=asked, headers=headers)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def there(site: Site) -> int:
    """Bytes of the engines' tensors that are there in fact."""
    engines = [provider.model.engine for provider in local_engines(site.services.gateway)]
    loaded = [engine._worker.engine for engine in engines if engine._worker is not None]
    return sum(engine.runner.num_bytes() for engine in loaded if engine is not None)


async def mixed(site: Site) -> tuple[dict[tuple[str, str], str], list[list[float]]]:
    """Chats with both models and embeddings, all at once; beside them somebody who looks at the memory."""
    headers = await site.headers()
    [arbiter] = site.services.gateway.board.devices.all()
    embedder = arbiter.fixed["all-MiniLM-L6-v2"]

    async def watch() -> None:
        while True:
            assert embedder + there(site) <= arbiter.budget and arbiter.used <= arbiter.budget
            await asyncio.sleep(0.002)

    async def embed(text: str) -> list[float]:
        body = {"model": "all-MiniLM-L6-v2", "input": text}
        response = await site.client.post("/v1/embeddings", json=body, headers=headers)
        assert response.status_code == 200, response.text
        vector: list[float] = response.json()["data"][0]["embedding"]
        return vector

    watching = asyncio.create_task(watch())
    jobs = [(model, text) for text in TEXTS for model in ("one", "two")] * 2
    answers = asyncio.gather(*(chat(site, model, text, headers) for model, text in jobs))
    vectors = asyncio.gather(*map(embed, TEXTS))
    found = dict(zip(jobs, map(said, await answers), strict=True)), await vectors
    assert not watching.done(), watching.exception()
    watching.cancel()
    return found


async def models(site: Site, headers: dict[str, str]) -> dict[str, Any]:
    response = await site.client.get("/api/v1/engine/models", headers=headers)
    assert response.status_code == 200, response.text
    return {one["name"]: one for one in response.json()["models"]}


async def test_mixed_traffic_is_answered_as_by_each_model_alone(
    narrow: Site, firm: Settings, size: int, embedder_bytes: int, tmp_path: Path
) -> None:
    alone: dict[tuple[str, str], str] = {}
    for name, model in (("one", firm.engine), ("two", firm.models[0].over(firm.engine))):
        only = dataclasses.replace(firm, engine=model, models=(), routes=())
        async with serving(only, tmp_path / name, 0) as site:
            headers = await site.headers()
            alone |= {(name, text): said(await chat(site, name, text, headers)) for text in TEXTS}
    assert len(set(alone.values())) > len(TEXTS), "the models differ"
    swapped, vectors = await mixed(narrow)
    assert swapped == alone and (await mixed(narrow))[0] == alone
    assert sum(provider.model.wakes for provider in local_engines(narrow.services.gateway)) >= 3
    async with serving(firm, tmp_path / "wide", embedder_bytes + 2 * size) as wide:
        together, same_vectors = await mixed(wide)
        assert together == alone and np.allclose(same_vectors, vectors, atol=1e-2)
        assert [provider.model.wakes for provider in local_engines(wide.services.gateway)] == [1, 1]
        assert there(wide) == 2 * size


async def test_a_model_that_sleeps_is_well_and_shown(narrow: Site, size: int) -> None:
    headers = await narrow.headers(scopes=OPERATOR)
    said(await chat(narrow, "one", "x", headers))
    ready = await narrow.client.get("/health/ready")
    assert (ready.status_code, ready.json()["reasons"]) == (200, {})
    found = await models(narrow, headers)
    assert (found["local"]["state"], found["two"]["state"]) == ("awake", "asleep")
    assert (found["local"]["held_bytes"], found["two"]["held_bytes"], found["two"]["bytes"]) == (size, 0, size)
    assert found["two"]["routes"] == ["two-or-echo", "fastest", "two"]
    start = found["local"]["start_seconds"]
    assert list(start) == ["verify", "weights", "kv_pool", "tokenizer", "warm_up", "pins"]
    listed = (await narrow.client.get("/v1/models", headers=headers)).json()["data"]
    assert {"one", "two"} <= {one["id"] for one in listed}
    state = (await narrow.client.get("/api/v1/engine/state?model=two", headers=headers)).json()
    assert state["unhealthy"] is None and state["load"]["total_blocks"] == 0
    counted = {"model": "two", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    tokens = await narrow.client.post("/v1/messages/count_tokens", json=counted, headers=headers)
    assert tokens.headers["x-precedent-token-count"] == "exact", "its tokenizer is awake"
    figures = (await narrow.client.get("/metrics")).text
    assert 'precedent_engine_awake{precedent_target="local"} 1.0' in figures
    assert 'precedent_engine_awake{precedent_target="two"} 0.0' in figures
    line = next(line for line in figures.splitlines() if line.startswith("precedent_engine_memory_bytes{"))
    assert '"local"' in line and float(line.split()[1]) == size


async def test_operators_send_models_to_sleep_and_wake_them(narrow: Site) -> None:
    headers, tenants = await narrow.headers(scopes=OPERATOR), await narrow.headers("other")

    async def post(path: str, headers: dict[str, str] = headers) -> httpx.Response:
        return await narrow.client.post(f"/api/v1/engine/models/{path}", headers=headers)

    assert (await post("two/wake")).json()["state"] == "awake"
    assert {name: one["state"] for name, one in (await models(narrow, headers)).items()} == {
        "local": "asleep",
        "two": "awake",
    }
    assert (await post("two/sleep")).json()["held_bytes"] == 0 and there(narrow) == 0
    assert (await post("none/sleep")).status_code == 404
    assert (await post("two/wake", tenants)).status_code == 403
    async with narrow.services.database.session() as session:
        query = select(AuditEntry).where(AuditEntry.action.startswith("model.")).order_by(AuditEntry.seq)
        done = [(entry.action, entry.object, entry.actor[:4]) for entry in await session.scalars(query)]
    assert done == [("model.wake", "model:two", "key:"), ("model.sleep", "model:two", "key:")]
    said(await chat(narrow, "one", "x", headers))


async def test_the_command_line_shows_the_same(narrow: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = await narrow.headers(scopes=OPERATOR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRECEDENT_URL", str(narrow.client.base_url))
    monkeypatch.setenv("PRECEDENT_KEY", headers["authorization"].removeprefix("Bearer "))
    asked = ["model", "list", "--live"]
    listed = await asyncio.to_thread(CliRunner().invoke, main, [*asked, "--json"])
    serving = {one["name"]: one["state"] for one in json.loads(listed.output)["serving"]["models"]}
    assert serving == {name: one["state"] for name, one in (await models(narrow, headers)).items()}
    shown = (await asyncio.to_thread(CliRunner().invoke, main, asked)).output
    assert "two" in shown and "asleep" in shown


async def test_routing_knows_that_waking_takes_time(narrow: Site) -> None:
    headers = await narrow.headers()
    said(await chat(narrow, "one", "x", headers))
    answered = await chat(narrow, "fastest", "x", headers)
    assert answered.headers["x-precedent-served-by"] == "local"
    assert not (await models(narrow, headers))["two"]["in_use"]
    said(await chat(narrow, "two", "x", headers))
    assert (await chat(narrow, "fastest", "x", headers)).headers["x-precedent-served-by"] == "two"


async def test_the_wait_for_a_wake_is_a_stage_of_the_request(narrow: Site) -> None:
    headers = await narrow.headers("stages")
    said(await chat(narrow, "one", "x", headers))
    said(await chat(narrow, "two", "x", headers))
    await narrow.logged()
    page = (await narrow.client.get("/api/v1/requests?limit=1", headers=headers)).json()["requests"]
    shown = (await narrow.client.get(f"/api/v1/requests/{page[0]['id']}", headers=headers)).json()
    assert [span["duration_ms"] > 1 for span in shown["spans"] if span["name"] == "wake"] == [True]


async def test_folders_and_last_use_are_for_operators(narrow: Site) -> None:
    operator = await narrow.headers("seers", scopes=OPERATOR)
    said(await chat(narrow, "one", "x", operator))
    seen = []
    for headers in (operator, await narrow.headers("seers")):
        models = (await narrow.client.get("/api/v1/engine/models", headers=headers)).json()["models"]
        seen.append([bool(model["model"] or model["last_used"]) for model in models])
    assert seen == [[True, True], [False, False]]


async def test_an_unknown_model_is_none_of_several(narrow: Site) -> None:
    headers = await narrow.headers("several")
    for name, status in (("two", 200), ("typo", 404)):
        answer = await narrow.client.get(f"/api/v1/engine/state?model={name}", headers=headers)
        assert answer.status_code == status


async def test_a_model_that_is_never_idle_keeps_others_out_but_nobody_hangs(
    firm: Settings, size: int, embedder_bytes: int, tmp_path: Path
) -> None:
    async with serving(firm, tmp_path, embedder_bytes + size, max_queue_seconds=0.4) as site:
        headers = await site.headers(scopes=OPERATOR)
        runner = local_engine(site.services.gateway).model.engine.engine.runner
        inner, gate = runner.run, threading.Event()

        def held(schedule: Any) -> Any:
            gate.wait(60)
            return inner(schedule)

        runner.run = held  # type: ignore[method-assign]
        endless = asyncio.create_task(chat(site, "one", "x", headers, max_tokens=300))
        while not (await models(site, headers))["local"]["in_use"]:
            await asyncio.sleep(0.01)
        refused = await asyncio.gather(*(chat(site, "two", "x", headers) for _ in range(3)))
        assert [one.status_code for one in refused] == [429] * 3
        assert all(int(one.headers["retry-after"]) >= 1 for one in refused)
        elsewhere = await chat(site, "two-or-echo", "x", headers, ignore_eos=None)
        assert elsewhere.headers["x-precedent-served-by"] == "fake"
        busy = await site.client.post("/api/v1/engine/models/local/sleep", headers=headers)
        assert busy.status_code == 409 and "in flight: 1" in busy.text
        gate.set()
        assert len(said(await endless)) > 100, "who was there first is not disturbed"


async def test_where_a_wake_fails_the_fallback_serves(
    firm: Settings, size: int, embedder_bytes: int, tmp_path: Path
) -> None:
    gone = tiny_model(tmp_path / "model", seed=1)
    changed = dataclasses.replace(firm, models=(ModelSettings(name="two", model=str(gone)),))
    async with serving(changed, tmp_path, embedder_bytes + size) as site:
        headers = await site.headers()
        (gone / "model.safetensors").rename(gone / "away")
        failed = await chat(site, "two", "x", headers)
        assert failed.status_code == 502 and "cannot serve" in json.dumps(failed.json())
        served = await chat(site, "two-or-echo", "x", headers, ignore_eos=None)
        assert served.headers["x-precedent-served-by"] == "fake"
        operator = await site.headers(scopes=OPERATOR)
        assert "safetensors" in (await models(site, operator))["two"]["trouble"] and there(site) == 0
        assert (await models(site, headers))["two"]["trouble"] == "not well"
        assert (await site.client.get("/health/ready")).status_code == 503
        said(await chat(site, "one", "x", headers))
        (gone / "away").rename(gone / "model.safetensors")
        woken = await site.client.post("/api/v1/engine/models/two/wake", headers=operator)
        assert woken.json()["state"] == "awake" and woken.json()["trouble"] is None


async def test_a_model_that_could_not_start_serves_once_an_operator_has_woken_it(
    firm: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "LEGAL_PROMPT", "Quote what you say. " * 8)  # the tiny model reads no longer one
    late = tiny_model(tmp_path / "model", seed=1)
    (late / "model.safetensors").rename(tmp_path / "away")
    changed = dataclasses.replace(firm, models=(ModelSettings(name="two", model=str(late)),))
    async with serving(changed, tmp_path, 0) as site:
        ready = await site.client.get("/health/ready")
        assert ready.status_code == 503 and "safetensors" in ready.json()["reasons"]["two"]
        (tmp_path / "away").rename(late / "model.safetensors")
        operator = await site.headers(scopes=OPERATOR)
        woken = await site.client.post("/api/v1/engine/models/two/wake", headers=operator)
        assert woken.status_code == 200, woken.text
        said(await chat(site, "two", "x", operator))
        assert (await site.client.get("/health/ready")).json()["reasons"] == {}
        one, two = local_engines(site.services.gateway)
        assert one.load().pinned_blocks == two.load().pinned_blocks == 10, "the policy is kept as where it started"
        assert 'precedent_engine_awake{precedent_target="two"} 1.0' in (await site.client.get("/metrics")).text


async def test_a_model_whose_folder_came_late_is_counted_before_it_wakes(
    firm: Settings, size: int, tmp_path: Path
) -> None:
    """Its start knew nothing of it; the wake makes it the room that it needs."""
    late = tiny_model(tmp_path / "model", seed=1)
    late.rename(tmp_path / "away")
    devices = Devices(size)
    one = LocalProvider(firm.engine, "one", devices)
    two = LocalProvider(dataclasses.replace(firm.engine, model=str(late)), "two", devices)
    async with AsyncExitStack() as stack:
        for provider in (one, two):
            stack.push_async_callback(provider.close)
        await one.start()
        with pytest.raises(ValueError, match="neither an existing folder"):
            await two.start()
        (tmp_path / "away").rename(late)
        held: list[dict[str, int]] = []
        load = two.model.engine.start

        async def noted() -> None:
            held.append(devices.of("cpu").held)
            await load()

        two.model.engine.start = noted  # type: ignore[method-assign]
        await two.wake()
        assert held == [{"two": size}], "loaded once, when the other one had gone"


async def test_a_model_that_can_never_fit_is_told_at_start(
    firm: Settings, size: int, embedder_bytes: int, tmp_path: Path
) -> None:
    async with serving(firm, tmp_path, embedder_bytes + size - 1) as site:
        reasons = (await site.client.get("/health/ready")).json()["reasons"]
        assert reasons.keys() == {"local", "two"}
        assert f"needs {size:,} bytes of the {embedder_bytes + size - 1:,}" in reasons["local"]


async def test_the_log_says_where_the_time_of_a_start_went(
    firm: Settings, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[dict[str, Any]] = []
    said = SimpleNamespace(info=lambda event, **facts: lines.append({"event": event, **facts}))
    monkeypatch.setattr(providers_local, "log", said)
    provider = LocalProvider(firm.engine, "local")
    await provider.start()
    await provider.model.sleep()
    await provider.close()
    [awake] = [line for line in lines if line["event"] == "model awake"]
    stages = ("find", "verify", "config", "tokenizer", "weights", "kv_pool", "warm_up", "pins")
    assert awake["total_s"] == pytest.approx(sum(awake[f"{stage}_s"] for stage in stages), abs=0.01)
    assert awake["bytes"] == size
    assert [line["event"] for line in lines[-2:]] == ["model leaving", "model asleep"] and lines[-1]["used"] == 0


async def test_a_caller_who_reads_slowly_keeps_no_model_awake(firm: Settings, size: int) -> None:
    devices, two = Devices(size), firm.models[0].over(firm.engine)
    question = ChatRequest("x", (Message("user", (Segment("x"),)),), sampling=Sampling(max_tokens=6))
    async with AsyncExitStack() as stack:
        providers = [LocalProvider(one, name, devices) for one, name in ((firm.engine, "local"), (two, "two"))]
        for provider in providers:
            await provider.start()
            stack.push_async_callback(provider.close)
        slow = providers[0].stream(question)
        begun = [await anext(slow)]
        assert [delta async for delta in providers[1].stream(question)][-1].usage
        assert (providers[0].model.state, providers[1].model.state) == ("asleep", "awake")
        whole = begun + [delta async for delta in slow]
        assert whole[-1].usage is not None and whole[-1].usage.completion_tokens == 6


async def test_an_engine_that_fails_under_a_request_is_a_matter_for_fallbacks(firm: Settings) -> None:
    """Also where what is in its cache is told to others."""
    provider = LocalProvider(firm.engine, "local")
    await provider.start()
    assert provider.resident("") == {}
    await provider.model.engine.stop()
    with pytest.raises(TransientError, match="not ready"):
        await anext(provider.stream(ChatRequest("one", (Message("user", (Segment("x"),)),))))
    await provider.close()


async def test_a_target_may_name_its_model(firm: Settings, tmp_path: Path) -> None:
    targets = (*firm.targets, TargetSettings(name="eu-two", provider="local", model="two", region="eu"))
    async with serving(dataclasses.replace(firm, targets=targets), tmp_path, 0) as site:
        served = {provider.name: provider.settings.model for provider in local_engines(site.services.gateway)}
        assert served["eu-two"] == served["two"] != served["local"]
