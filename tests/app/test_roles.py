"""A gateway and an engine as processes of their own: what each serves, what it loads, and one answer through both."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.asgi import create_app
from app.config import RagSettings, ServerSettings, Settings
from app.errors import ConfigurationError
from app.tenants.principal import Scope
from tests.conftest import fake_settings
from tests.gateway.upstream import prepared
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "demo" / "contracts" / "Harbor Analytics - Master Services Agreement.pdf"
TARGETS = """
[[targets]]
name = "engine"
provider = "precedent"
base_url = "{engine}"
allow_private = true
api_key_env = "ENGINE_KEY"
[[routes]]
model = "precedent-demo"
targets = ["engine"]
strategy = "affinity"
"""


def paths(**changes: Any) -> set[str]:
    return {route.path for route in create_app(Settings(source=None, **changes)).routes}


def test_each_role_serves_its_own_part() -> None:
    everything = paths()
    engine = paths(server=ServerSettings(role="engine"))
    bare = paths(rag=RagSettings(embedding_model=""))
    assert {"/v1/chat/completions", "/api/v1/engine/generate", "/health/ready"} <= engine & bare
    for path in ("/api/v1/answers", "/api/v1/documents", "/api/v1/search"):
        assert path in everything and path not in engine | bare
    assert not any(path.startswith("/console") for path in engine)
    with pytest.raises(ConfigurationError, match="role must be"):
        Settings().as_role("janitor")
    gateway = Settings().as_role("gateway")
    assert not gateway.local_models and gateway.has_documents


@asynccontextmanager
async def process(folder: Path, role: str, **environment: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "serve", "--role", role, "--port", str(port)]
    running = subprocess.Popen(command, env=os.environ | environment | {"PRECEDENT_STORAGE_DIRECTORY": str(folder)})
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(120), httpx.AsyncClient(base_url=url) as client:
            while not await _ready(client):
                assert running.poll() is None
                await asyncio.sleep(0.2)
        yield url, psutil.Process(running.pid)
    finally:
        running.terminate()
        await asyncio.to_thread(running.wait, 60)


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health/ready")).status_code == 200
    except httpx.TransportError:
        return False


def loads_torch(process: psutil.Process) -> bool:
    return any("libtorch" in one.path for one in process.memory_maps())


@pytest.mark.slow
async def test_a_gateway_answers_from_documents_with_an_engine_elsewhere(tmp_path: Path) -> None:
    settings = fake_settings(tmp_path)
    tenants = await prepared(settings, Scope.ANSWERS, Scope.DOCUMENTS_READ, Scope.DOCUMENTS_WRITE, Scope.ENGINE)
    database = {"PRECEDENT_STORAGE_DATABASE_URL": settings.storage.database_url}
    config = tmp_path / "gateway.toml"
    async with process(tmp_path / "engine", "engine", **database) as (engine, _):
        config.write_text(TARGETS.format(engine=engine))
        more = {"PRECEDENT_CONFIG": str(config), "ENGINE_KEY": tenants}
        async with process(tmp_path / "gateway", "gateway", **database, **more) as (gateway, _):
            headers = {"authorization": f"Bearer {tenants}"}
            async with httpx.AsyncClient(base_url=gateway, headers=headers, timeout=60) as client:
                files = {"files": (CONTRACT.name, CONTRACT.read_bytes())}
                [filed] = (await client.post("/api/v1/documents", files=files)).json()["documents"]
                async with asyncio.timeout(60):
                    while (await client.get(f"/api/v1/jobs/{filed['job_id']}")).json()["status"] != "succeeded":
                        await asyncio.sleep(0.1)
                body = {"question": "Which law governs the agreement, and which court decides disputes?"}
                answer = (await client.post("/api/v1/answers", json=body)).json()
    assert answer["served_by"] == "engine" and answer["speculation"]
    assert answer["citations"] and all(citation["verified"] for citation in answer["citations"])


@pytest.mark.slow
async def test_a_bare_gateway_loads_no_torch_and_stays_small(tmp_path: Path) -> None:
    settings = fake_settings(tmp_path)
    key = await prepared(settings, Scope.CHAT)
    config = tmp_path / "bare.toml"
    config.write_text('[[targets]]\nname = "t"\nprovider = "fake"\n[[routes]]\nmodel = "m"\ntargets = ["t"]\n')
    environment = {
        "PRECEDENT_STORAGE_DATABASE_URL": settings.storage.database_url,
        "PRECEDENT_CONFIG": str(config),
        "PRECEDENT_RAG_EMBEDDING_MODEL": "",
    }
    async with process(tmp_path / "bare", "gateway", **environment) as (url, running):
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}
            for _ in range(200):
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
        assert not loads_torch(running)
        assert running.memory_info().rss < 250 * 2**20
