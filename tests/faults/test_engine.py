"""The engine's thread fails: a fallback serves until it has restarted itself."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from app.config import LOCAL, EngineSettings, RouteSettings
from app.gateway.providers.local import LocalProvider
from tests.engine.test_async_engine import explode
from tests.faults.conftest import calling, plain
from tests.gateway.test_local import tiny_model

pytestmark = pytest.mark.slow


async def test_while_the_engine_restarts_a_fallback_serves(tmp_path: Path) -> None:
    engine = EngineSettings(
        model=str(tiny_model(tmp_path / "model")), served_name="tiny", device="cpu", threads=1, kv_cache_bytes=2**22
    )
    settings = plain(tmp_path, engine=engine)
    routes = (*settings.routes, RouteSettings(model="both", targets=(LOCAL, "fake")))
    async with calling(dataclasses.replace(settings, routes=routes)) as caller:
        async with asyncio.timeout(60):
            while caller.services.starting:
                await asyncio.sleep(0.05)

        async def served_by() -> str:
            answer = await caller.chat(model="both", max_tokens=3)
            assert answer.status_code == 200, answer.text
            return answer.headers["x-precedent-served-by"]

        assert await served_by() == LOCAL
        provider = caller.services.gateway.providers[LOCAL]
        assert isinstance(provider, LocalProvider) and provider._engine
        may_restart, restart = asyncio.Event(), provider._engine._restart

        async def restart_later() -> bool:
            await may_restart.wait()
            return await restart()

        provider._engine._restart = restart_later  # type: ignore[method-assign]
        provider._engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        assert await served_by() == "fake", "the request that broke it is answered, too"
        assert (await caller.http.get("/health/ready")).status_code == 503
        assert await served_by() == "fake"
        may_restart.set()
        async with asyncio.timeout(30):
            while provider.unhealthy():
                await asyncio.sleep(0.05)
        assert (await caller.http.get("/health/ready")).status_code == 200
        async with asyncio.timeout(30):
            while await served_by() != LOCAL:
                await asyncio.sleep(0.2)
