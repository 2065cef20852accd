"""LoRA adapters as callers see them: models of their own, in one engine with the model that they change."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from transformers import LlamaForCausalLM

from app.config import EngineSettings, RouteSettings, TargetSettings
from app.gateway.providers.advert import Advert
from app.gateway.providers.precedent import PrecedentProvider
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment
from app.gateway.switchboard import build
from app.tenants.principal import Scope
from tests.conftest import Site, fake_settings, open_site
from tests.engine.adapters import merged, write_adapter
from tests.gateway.test_local import tiny_model

NAMES = ("tiny", "tiny:bold", "tiny:calm")
TEXT = "The lessee shall give notice in writing, ninety days before the term ends."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, two adapters, and the base model with one of them merged into it."""
    folder = tmp_path_factory.mktemp("adapters")
    base = LlamaForCausalLM.from_pretrained(tiny_model(folder / "base"))
    for seed, name in enumerate(("bold", "calm"), start=1):
        write_adapter(folder / name, base, seed=seed)
    merged(base, folder / "bold").save_pretrained(tiny_model(folder / "merged"))
    return folder


def engine(folder: Path, model: str, **more: Any) -> EngineSettings:
    return EngineSettings(model=str(folder / model), served_name="tiny", threads=1, kv_cache_bytes=2**22, **more)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(folder: Path) -> AsyncIterator[Site]:
    given = engine(folder, "base", adapters=tuple(f"{name}={folder / name}" for name in ("bold", "calm")))
    routes = tuple(
        RouteSettings(model=model, targets=("local", "fake"), strategy="affinity") for model in ("tiny:calm", "x")
    )
    async with open_site(fake_settings(folder / "site", engine=given, routes=routes)) as made:
        yield made


async def said(site: Site, headers: dict[str, str], model: str, text: str = TEXT) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were in the cache."""
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
    body |= {"max_tokens": 12, "ignore_eos": True}
    response = await site.client.post("/v1/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["message"]["content"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


async def test_each_adapter_is_a_model_with_answers_and_blocks_of_its_own(site: Site, folder: Path) -> None:
    headers = await site.headers()
    listed = (await site.client.get("/v1/models", headers=headers)).json()["data"]
    assert {*NAMES} <= {model["id"] for model in listed}
    first = await asyncio.gather(*(said(site, headers, name) for name in NAMES))
    assert len({text for text, _ in first}) == 3 and [cached for _, cached in first] == [0, 0, 0]
    again = [await said(site, headers, name) for name in (*NAMES, "x")]
    assert [text for text, _ in again] == [*(text for text, _ in first), first[0][0]]
    assert min(cached for _, cached in again) >= 64
    async with open_site(
        fake_settings(folder / "alone", engine=engine(folder, "merged"), targets=(), routes=())
    ) as one:
        assert (await said(one, await one.headers(), "tiny"))[0] == first[1][0], "as with merged weights"


async def test_an_unknown_adapter_is_an_unknown_model(site: Site) -> None:
    body = {"model": "tiny:other", "messages": [{"role": "user", "content": "x"}]}
    response = await site.client.post("/v1/chat/completions", json=body, headers=await site.headers())
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"


async def test_routing_sees_the_blocks_of_the_adapter_alone(site: Site) -> None:
    headers = await site.headers()
    messages = [{"role": "user", "content": "What was agreed of subletting? " * 8}]

    async def there(model: str) -> bool:
        body = {"request": {"model": model, "messages": messages}}
        told = (await site.client.post("/api/v1/routes/explain", json=body, headers=headers)).json()["targets"][0]
        return bool(told["target"] == "local" and "tokens of the prompt are there" in told["reason"])

    assert [await there(model) for model in ("tiny:calm", "x")] == [False, False]
    await said(site, headers, "tiny:calm", messages[0]["content"])
    assert [await there(model) for model in ("tiny:calm", "x")] == [True, False], "not of the adapter's for the base"
    await said(site, headers, "tiny:bold", messages[0]["content"])
    await said(site, headers, "tiny", messages[0]["content"])
    assert [await there(model) for model in ("tiny:calm", "x")] == [True, True]


async def test_other_gateways_are_told_whose_blocks_they_are(site: Site) -> None:
    """Whatever a gateway calls the model: its target names the adapter, or its route does, or neither."""
    headers = await site.headers(scopes={Scope.ENGINE})
    asked = ChatRequest("", (Message("user", (Segment("Who repairs the roof? " * 8),)),), Sampling(max_tokens=2))
    calm = ("tiny:calm", "tiny:calm", ""), ("tiny:calm", "any", "tiny:calm")
    ways = (*calm, ("x", "any", ""), ("x", "law:calm", ""), ("tiny:bold", "tiny:bold", ""))

    async def seen() -> list[bool]:
        advert = msgspec.convert((await site.client.get("/api/v1/engine/advert", headers=headers)).json(), Advert)
        found = []
        for here, route, target in ways:
            named = TargetSettings(name="far", provider="precedent", base_url="https://far.example", model=target)
            provider = PrecedentProvider(named)
            provider._advert = advert
            forecast = await provider.forecast(replace(asked, model=route))
            assert forecast is not None
            ours = site.services.gateway.resident(here)
            assert provider.resident(route) == ours, "what a gateway orders passages by"
            found.append(forecast.cached_tokens > 0)
        return found

    async def ask(model: str) -> None:
        body = msgspec.json.encode(replace(asked, model=model))
        assert (await site.client.post("/api/v1/engine/generate", content=body, headers=headers)).status_code == 200

    assert await seen() == [False] * 5  # from now on it is kept track of
    await ask("tiny:calm")
    assert await seen() == [True, True, False, False, False]
    await ask("law:calm")
    assert await seen() == [True, True, True, True, False]


async def test_an_adapter_that_is_not_there_is_not_the_base_model(site: Site) -> None:
    """A gateway elsewhere may name the only model as it likes, but not get another one than it asks for."""
    headers = await site.headers(scopes={Scope.ENGINE})
    asked = ChatRequest("any", (Message("user", (Segment("x"),)),), Sampling(max_tokens=2))
    for model, status in (("any", 200), ("tiny:calm", 200), ("tiny:gone", 404)):
        body = msgspec.json.encode(replace(asked, model=model))
        assert (await site.client.post("/api/v1/engine/generate", content=body, headers=headers)).status_code == status
        told = await site.client.get("/api/v1/engine/advert", params={"model": model}, headers=headers)
        assert told.status_code == status


def test_an_adapter_that_a_reload_brings_is_unknown_until_the_restart(folder: Path) -> None:
    """Also where a route has its name: the model goes on as it was started, and would answer without."""
    before = fake_settings(
        folder / "reload", engine=engine(folder, "base", adapters=("bold=b",)), targets=(), routes=()
    )
    routes = (RouteSettings(model="tiny:calm", targets=("local",)),)
    after = replace(before, engine=replace(before.engine, adapters=("bold=b", "calm=c", "new=n")), routes=routes)
    board = build(before, {})
    again = build(after, {}, board)
    assert again.targets["local"] is board.targets["local"]
    assert again.router.routes.keys() == {"tiny", "tiny:bold"}
    assert build(after, {}).router.routes.keys() == {"tiny", "tiny:bold", "tiny:calm", "tiny:new"}


async def test_a_key_for_one_adapter_opens_no_other(site: Site) -> None:
    """Nor the base model, nor the other way round."""
    admin = await site.headers("listed")
    for own in NAMES:
        wanted = {"name": own, "scopes": ["chat"], "models": [own]}
        made = await site.client.post("/api/v1/keys", json=wanted, headers=admin)
        headers = {"authorization": f"Bearer {made.json()['secret']}"}
        listed = (await site.client.get("/v1/models", headers=headers)).json()["data"]
        assert [model["id"] for model in listed] == [own]
        for name in NAMES:
            body = {"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
            reply = await site.client.post("/v1/chat/completions", json=body, headers=headers)
            assert reply.status_code == (200 if name == own else 404), reply.text
