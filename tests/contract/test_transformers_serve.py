"""Hugging Face's own server as an upstream: the adapter for OpenAI-compatible servers against a real one."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import openai
import pytest

from app.asgi import create_app
from app.config import RouteSettings, TargetSettings
from app.tenants.principal import Scope
from tests.conftest import fake_settings, listen
from tests.gateway.upstream import prepared
from tests.servers import free_port

MODEL = Path(__file__).parents[2] / "demo" / "model"


@asynccontextmanager
async def transformers_serve(cache: Path) -> AsyncIterator[str]:
    (cache / "hub").mkdir()
    port = free_port()
    environment = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(MODEL)]
    with (cache / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *command, "--device", "cpu", "--port", str(port), env=environment, stdout=log, stderr=log
        )
        try:
            async with asyncio.timeout(120), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                while not await _is_up(client):
                    assert process.returncode is None, (cache / "log").read_text()[-2000:]
                    await asyncio.sleep(0.3)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()
            await process.wait()


async def _is_up(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
async def test_chat_through_transformers_serve(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    async with transformers_serve(tmp_path / "hf") as upstream:
        target = TargetSettings(
            name="hf", provider="openai", base_url=upstream, model=str(MODEL), allow_private=True, tools=False
        )
        settings = fake_settings(tmp_path, targets=(target,), routes=(RouteSettings(model="demo", targets=("hf",)),))
        key = await prepared(settings, Scope.CHAT)
        async with listen(create_app(settings)) as url:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            asked = {"model": "demo", "messages": [{"role": "user", "content": "Which law?"}], "max_tokens": 6}
            whole = await client.chat.completions.create(**asked, temperature=0)  # type: ignore[call-overload]
            assert whole.choices[0].message.content and whole.usage.prompt_tokens > 3
            stream = await client.chat.completions.create(  # type: ignore[call-overload]
                **asked, temperature=0, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text.strip() == whole.choices[0].message.content.strip(), "it strips whole answers alone"
            assert chunks[-1].usage and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
