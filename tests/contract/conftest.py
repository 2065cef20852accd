"""One served application for all real clients."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from app.asgi import create_app
from app.config import RouteSettings, TargetSettings
from app.tenants.principal import Scope
from tests.conftest import fake_settings, listen
from tests.gateway import wires
from tests.gateway.upstream import answering, prepared, upstream


@dataclass(frozen=True)
class Served:
    """Base URL without /v1, and a key."""

    url: str
    key: str


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with upstream(answering(*wires.OPENAI_TOOLS)) as running:
        targets = (
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="slow", provider="fake", options="delay_ms=20"),
            TargetSettings(name="breaks", provider="fake", options="status=503,after=2"),
            TargetSettings(name="limited", provider="fake", options="status=429"),
            TargetSettings(name="tools", provider="openai", base_url=running.url, allow_private=True),
        )
        routes = (
            RouteSettings(model="echo", targets=("fake",)),
            *(RouteSettings(model=target.name, targets=(target.name,)) for target in targets[1:]),
        )
        settings = fake_settings(tmp_path_factory.mktemp("contract"), targets=targets, routes=routes)
        key = await prepared(settings, Scope.CHAT)
        async with listen(create_app(settings)) as url:
            yield Served(url, key)
