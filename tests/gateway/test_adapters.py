"""LoRA adapters as callers see them: models of their own, in one engine with the model that they change."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from transformers import LlamaForCausalLM

from app.config import EngineSettings, RouteSettings
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
    routes = (RouteSettings(model="tiny:calm", targets=("local", "fake")), RouteSettings(model="x", targets=("local",)))
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
