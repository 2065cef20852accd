"""The official `openai` client against a real socket, unmodified."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from app import migrate
from app.asgi import create_app
from app.config import RouteSettings, TargetSettings
from app.db import Database
from app.tenants import service
from app.tenants.principal import Scope
from tests.conftest import fake_settings, listen


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def base(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[str, str]]:
    """(base URL, key) of a served application."""
    directory: Path = tmp_path_factory.mktemp("contract")
    settings = fake_settings(
        directory,
        targets=(
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="slow", provider="fake", options="delay_ms=20"),
        ),
        routes=(RouteSettings(model="echo", targets=("fake",)), RouteSettings(model="slow", targets=("slow",))),
    )
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "client")
        key = await service.create_key(session, tenant.id, "k", scopes=frozenset({Scope.CHAT}))
    await database.close()
    async with listen(create_app(settings)) as url:
        yield f"{url}/v1", key.secret


@pytest.fixture
def client(base: tuple[str, str]) -> openai.AsyncOpenAI:
    url, key = base
    return openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)


async def test_chat(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "quick brown fox"}], max_tokens=2
    )
    assert completion.choices[0].message.content == "quick brown"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2


async def test_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="echo",
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "quick brown fox"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "quick brown fox"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_the_sync_client_works_as_well(base: tuple[str, str]) -> None:
    def call() -> str | None:
        client = openai.OpenAI(base_url=base[0], api_key=base[1], max_retries=0)
        done = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
        return done.choices[0].message.content

    assert await asyncio.to_thread(call) == "hi"


async def test_list_models(client: openai.AsyncOpenAI) -> None:
    assert {"echo", "slow"} == {model.id async for model in client.models.list()}
    assert (await client.models.retrieve("echo")).id == "echo"


async def test_a_wrong_key_is_a_typed_error(base: tuple[str, str]) -> None:
    client = openai.AsyncOpenAI(base_url=base[0], api_key="prc_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_an_unknown_model_is_a_typed_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


async def test_a_bad_request_is_a_typed_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="echo", messages=[], temperature=1)


async def test_leaving_a_stream_early_is_fine(client: openai.AsyncOpenAI) -> None:
    text = " ".join(f"w{n}" for n in range(200))
    stream = await client.chat.completions.create(
        model="slow", messages=[{"role": "user", "content": text}], stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    again = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "still here"}])
    assert again.choices[0].message.content == "still here"
