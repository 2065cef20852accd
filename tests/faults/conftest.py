"""A served application whose servers can be broken under it."""

import dataclasses
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.asgi import create_app
from app.config import RouteSettings, Settings, TargetSettings
from app.services import Services
from app.tenants.principal import Scope
from tests.conftest import QUOTE, fake_settings, listen
from tests.faults.stores import Store, postgres_store, qdrant_store, redis_store, running
from tests.gateway.upstream import prepared


@dataclass
class Caller:
    http: httpx.AsyncClient
    services: Services

    async def chat(self, **changes: Any) -> httpx.Response:
        body = {"model": "echo", "messages": [{"role": "user", "content": "one two"}], **changes}
        return await self.http.post("/v1/chat/completions", json=body)

    async def timed(self, **changes: Any) -> tuple[int, float]:
        """Status and seconds of a chat."""
        began = time.monotonic()
        response = await self.chat(**changes)
        return response.status_code, time.monotonic() - began


def plain(folder: Path, **changes: Any) -> Settings:
    return fake_settings(
        folder,
        targets=(
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="slow", provider="fake", options="delay_ms=300"),
            TargetSettings(name="quoting", provider="fake", options=f"text=The contract states [1]: {QUOTE}"),
        ),
        routes=(
            RouteSettings(model="echo", targets=("fake",)),
            RouteSettings(model="slow", targets=("slow",)),
            RouteSettings(model="quoting", targets=("quoting",)),
        ),
        **changes,
    )


@asynccontextmanager
async def calling(settings: Settings) -> AsyncIterator[Caller]:
    key = await prepared(settings, *Scope)
    app = create_app(settings)
    headers = {"authorization": f"Bearer {key}"}
    async with listen(app) as url, httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        yield Caller(http, app.state.services)


@asynccontextmanager
async def joining(settings: Settings, first: Caller) -> AsyncIterator[Caller]:
    """Another replica, with the first one's key."""
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, headers=first.http.headers, timeout=60) as http:
        yield Caller(http, app.state.services)


def changed(settings: Settings, section: str, **values: Any) -> Settings:
    return dataclasses.replace(settings, **{section: dataclasses.replace(getattr(settings, section), **values)})


@pytest.fixture
def redis() -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="precedent-redis-") as folder, running(redis_store(Path(folder))) as store:
        yield store


@pytest.fixture
def postgres() -> Iterator[Store]:
    with tempfile.TemporaryDirectory(prefix="precedent-pg-") as folder, running(postgres_store(Path(folder))) as store:
        yield store


@pytest.fixture
def qdrant() -> Iterator[Store]:
    with running(qdrant_store()) as store:
        yield store
