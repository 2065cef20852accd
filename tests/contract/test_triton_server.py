"""The adapter for NVIDIA Triton against the real server, where an interpreter with nvidia-pytriton is named:

    PYTRITON_PYTHON=/path/to/python python -m pytest tests/contract/test_triton_server.py

It needs an environment of its own (numpy below 2, 370 MB), so CI does without; the wire is tested in
tests/gateway/test_providers_text.py.
"""

import asyncio
import os
import signal
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from app.config import TargetSettings
from app.errors import UpstreamError
from app.gateway.providers.base import TransientError
from app.gateway.providers.triton import TritonProvider
from tests.gateway.upstream import chat, text_of
from tests.servers import free_port

PYTHON = os.environ.get("PYTRITON_PYTHON", "")
SERVER = Path(__file__).parent / "triton" / "server.py"


@asynccontextmanager
async def provider(port: int, model: str) -> AsyncIterator[TritonProvider]:
    url = f"http://127.0.0.1:{port}/"
    made = TritonProvider(TargetSettings(name="t", provider="triton", base_url=url, model=model, allow_private=True))
    await made.start()
    yield made
    await made.close()


async def ready(made: TritonProvider) -> bool:
    try:
        await made.probe()
    except TransientError:
        return False
    return True


if PYTHON:

    async def test_the_real_server_streams_stops_and_says_what_is_not_there() -> None:
        port = free_port()
        libraries = {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or ""}
        process = await asyncio.create_subprocess_exec(
            PYTHON, str(SERVER), str(port), env=os.environ | libraries, start_new_session=True
        )
        try:
            async with asyncio.timeout(60), provider(port, "words") as words, provider(port, "none") as none:
                while not await ready(words):
                    assert process.returncode is None
                    await asyncio.sleep(0.3)
                deltas = [delta async for delta in words.stream(chat("What is due?"))]
                assert text_of(deltas) == "The rent is due" and len(deltas) == 5
                stopped = [delta async for delta in words.stream(chat("What is due?", stop=("is",)))]
                assert text_of(stopped) == "The rent " and stopped[-1].stop_sequence == "is"
                assert not await ready(none)
                try:
                    [delta async for delta in none.stream(chat("x"))]
                except UpstreamError as error:
                    assert "404" in error.detail
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            await process.wait()
