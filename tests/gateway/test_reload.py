"""Hot reload: edits of the file and through the API, requests in flight, and what cannot be loaded."""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app import services
from app.asgi import create_app
from app.config import Settings, TargetSettings
from app.gateway import reload
from app.gateway.catalog import Stored
from app.gateway.providers.fake import FakeProvider
from app.gateway.providers.local import LocalProvider
from app.tenants import audit
from app.tenants.principal import Scope
from app.tenants.sealing import new_key
from tests.conftest import Site, fake_settings, listen, open_site
from tests.gateway.test_local import tiny_model
from tests.gateway.upstream import Exchange, Wire, answering, prepared, upstream
from tests.gateway.wires import OPENAI_TEXT

CHAT = "/v1/chat/completions"
FILE = """
[storage]
database_url = "sqlite+aiosqlite:///{folder}/test.db"
directory = "{folder}"
[log]
flush_seconds = 0.01
[telemetry]
log_level = "error"
[auth]
encryption_key = "{key}"
[engine]
model = ""
[[targets]]
name = "one"
provider = "fake"
options = "text={text},delay_ms={delay}"
[[routes]]
model = "m"
targets = ["one"]
"""


def late_model(folder: Path) -> str:
    """A section of the file that adds one."""
    made = tiny_model(folder / "tiny")
    return f"[[models]]\nname = 'late'\nmodel = '{made}'\nthreads = 1\nkv_cache_bytes = 1000000\n"


class Place:
    """A server with a file of its own."""

    def __init__(self, site: Site, file: Path, text: Callable[..., str], headers: dict[str, str]) -> None:
        self.site, self.client, self.headers = site, site.client, headers
        self._file, self._text = file, text

    def write(self, more: str = "", **values: Any) -> None:
        """As editors do: a new file takes the old one's place."""
        new = self._file.with_suffix(".new")
        new.write_text(self._text(**values) + more)
        os.replace(new, self._file)

    async def load(self, more: str = "") -> None:
        """At once, as an operator does."""
        self.write(more)
        response = await self.client.post("/api/v1/config/reload", headers=self.headers)
        assert response.status_code == 200, response.text

    async def ask(self, model: str = "m", headers: dict[str, str] | None = None) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        return await self.client.post(CHAT, json=body, headers=headers or self.headers)

    async def answer(self, model: str = "m") -> str:
        response = await self.ask(model)
        return str(response.json()["choices"][0]["message"]["content"]) if response.is_success else response.text

    async def until(self, text: str) -> None:
        async with asyncio.timeout(60):
            while await self.answer() != text:
                await asyncio.sleep(0.1)

    async def put(self, path: str, **body: Any) -> httpx.Response:
        return await self.client.put(f"/api/v1/{path}", json=body, headers=self.headers)


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    key, file = new_key(), tmp_path / "precedent.toml"

    def text(*, text: str = "before", delay: int = 0) -> str:
        return FILE.format(folder=tmp_path, key=key, text=text, delay=delay)

    file.write_text(text())
    settings = Settings.load(file, {})
    secret = await prepared(settings, *Scope)
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        site = Site(app, client, app.state.services)  # type: ignore[arg-type]
        yield Place(site, file, text, {"authorization": f"Bearer {secret}"})


async def test_an_edited_file_takes_effect(place: Place) -> None:
    assert await place.answer() == "before"
    place.write(text="after")
    await place.until("after")


async def test_a_request_in_flight_ends_on_what_it_began_with(place: Place) -> None:
    place.write(text="slow but sure", delay=300)
    await place.client.post("/api/v1/config/reload", headers=place.headers)
    asking = asyncio.create_task(place.ask())
    async with asyncio.timeout(30):
        while not sum(target.running for target in place.site.services.gateway.board.targets.values()):
            await asyncio.sleep(0.01)
    place.write(text="after")
    reloaded = await place.client.post("/api/v1/config/reload", headers=place.headers)
    assert reloaded.status_code == 200
    assert await place.answer() == "after"
    assert (await asking).json()["choices"][0]["message"]["content"] == "slow but sure"


INVALID = [
    ("[[routes]]\nmodel = 'x'\ntargets = ['gone']", "gone"),
    ("[[targets]\n", "precedent.toml"),
    ("[server]\nprot = 1", "prot"),
    ("[[targets]]\nname = 'y'\nprovider = 'teapot'", "teapot"),
    ("[[targets]]\nname = 'y'\nbase_url = 'https://x.example/v1'\napi_key_env = 'NO_SUCH_VARIABLE'", "NO_SUCH"),
]


async def test_an_invalid_file_changes_nothing_and_says_why(place: Place) -> None:
    for more, says in INVALID:
        place.write(more, text="after")
        refused = await place.client.post("/api/v1/config/reload", headers=place.headers)
        assert refused.status_code == 409 and says in refused.json()["detail"]
        assert await place.answer() == "before"
        state = (await place.client.get("/api/v1/config", headers=place.headers)).json()
        assert says in state["error"]
    place.write(text="mended")
    await place.until("mended")
    assert (await place.client.get("/api/v1/config", headers=place.headers)).json()["error"] is None


async def test_targets_routes_and_prices_through_the_api(place: Place) -> None:
    assert (await place.put("targets/two", provider="fake", options="text=two")).status_code == 200
    assert (await place.put("routes/org/m2", targets=["two", "one"])).status_code == 200
    assert (await place.put("prices/two", output=1_000_000)).status_code == 200
    assert await place.answer("org/m2") == "two"
    answered = await place.ask("org/m2")
    assert answered.headers["x-precedent-cost-usd"] == "0.000001", (answered.text, answered.headers)
    listed = (await place.client.get("/api/v1/targets", headers=place.headers)).json()
    assert {entry["name"]: entry["source"] for entry in listed["entries"]} == {"one": "file", "two": "api"}
    assert {health["name"] for health in listed["health"]} == {"one", "two"}
    used = await place.client.delete("/api/v1/targets/two", headers=place.headers)
    assert used.status_code == 409 and "org/m2" in used.json()["detail"]
    for path in ("routes/org/m2", "prices/two", "targets/two"):
        assert (await place.client.delete(f"/api/v1/{path}", headers=place.headers)).status_code == 204, path
    assert (await place.ask("org/m2")).status_code == 404
    assert (await place.client.delete("/api/v1/targets/one", headers=place.headers)).status_code == 404
    async with place.site.services.database.session() as session:
        assert (await audit.verify(session)).entries >= 8


async def test_the_apis_entry_takes_the_place_of_the_files_until_it_is_deleted(place: Place) -> None:
    await place.put("targets/one", provider="fake", options="text=api")
    assert await place.answer() == "api"
    await place.client.delete("/api/v1/targets/one", headers=place.headers)
    assert await place.answer() == "before"


NONSENSE: list[tuple[str, dict[str, Any], int]] = [
    ("targets/x", {"provider": "teapot"}, 409),
    ("targets/x", {"provider": "fake", "colour": "red"}, 400),
    ("targets/x", {"provider": "fake", "quality": 9}, 409),
    ("targets/x", {"base_url": "https://e.example/v1", "api_key_env": "PATH"}, 400),
    ("targets/x", {"base_url": "http://169.254.169.254/"}, 409),
    ("targets/x", {"base_url": "https://e.example/v1", "credential": "none"}, 409),
    ("routes/x", {"targets": ["nowhere"]}, 409),
    ("routes/x", {"targets": ["one"], "strategy": "luck"}, 409),
    ("prices/x", {"input": -1}, 409),
    ("prices/x", {"input": 1.5}, 400),
]


async def test_what_makes_no_sense_is_not_stored(place: Place) -> None:
    for path, body, status in NONSENSE:
        refused = await place.put(path, **body)
        assert refused.status_code == status, refused.text
    assert await place.answer() == "before"


async def test_only_an_operator_configures(place: Place) -> None:
    key = {"name": "tenant", "scopes": [scope for scope in Scope if scope != Scope.OPERATOR]}
    made = await place.client.post("/api/v1/keys", json=key, headers=place.headers)
    tenant = {"authorization": f"Bearer {made.json()['secret']}"}
    for path in ("targets", "routes", "prices", "credentials", "config"):
        assert (await place.client.get(f"/api/v1/{path}", headers=tenant)).status_code == 403
    body = {"provider": "openai", "base_url": "https://evil.example/v1"}
    assert (await place.client.put("/api/v1/targets/one", json=body, headers=tenant)).status_code == 403


async def test_a_stored_credential_is_sent_and_never_shown(place: Place) -> None:
    seen: list[str] = []

    async def script(exchange: Exchange, wire: Wire) -> None:
        seen.append(exchange.headers.get("authorization", ""))
        await answering(*OPENAI_TEXT)(exchange, wire)

    async with upstream(script) as running:
        for secret in ("sk-canary-1", "sk-canary-2"):
            assert (await place.put("credentials/main", secret=secret)).status_code == 204
            target = {"base_url": running.url, "allow_private": True, "credential": "main"}
            assert (await place.put("targets/up", **target)).status_code == 200
            assert (await place.put("routes/up", targets=["up"])).status_code == 200
            assert (await place.ask("up")).status_code == 200
    assert seen == ["Bearer sk-canary-1", "Bearer sk-canary-2"]
    used = await place.client.delete("/api/v1/credentials/main", headers=place.headers)
    assert used.status_code == 409
    shown = [
        (await place.client.get(f"/api/v1/{path}", headers=place.headers)).text
        for path in ("credentials", "targets", "config")
    ]
    assert "main" in shown[0] and "canary" not in "".join(shown)
    stored = b"".join(path.read_bytes() for path in place._file.parent.glob("test.db*"))
    assert b"sk-canary" not in stored


async def test_another_replicas_edit_is_seen(place: Place, tmp_path: Path) -> None:
    settings = place.site.services.settings
    storage = dataclasses.replace(settings.storage, directory=str(tmp_path / "replica"))
    other = create_app(dataclasses.replace(settings, storage=storage))
    async with listen(other) as url, httpx.AsyncClient(base_url=url, headers=place.headers) as replica:
        body = {"provider": "fake", "options": "text=edited"}
        assert (await replica.put("/api/v1/targets/one", json=body)).status_code == 200
        await place.until("edited")


async def test_a_model_is_added_and_taken_away_without_a_restart(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "GRACE_SECONDS", 0.01)
    await place.load(late_model(tmp_path))
    assert (await place.ask("late")).status_code == 200
    assert 'precedent_engine_awake{precedent_target="late"} 1.0' in (await place.client.get("/metrics")).text
    [device] = place.site.services.gateway.board.devices.all()
    assert device.used > 1_000_000
    await place.load()
    assert (await place.ask("late")).status_code == 404
    figures = (await place.client.get("/metrics")).text
    assert "precedent_engine" not in figures and 'precedent_target="late"' in figures, "its requests remain counted"
    async with asyncio.timeout(10):
        while device.held.keys() - device.fixed.keys():
            await asyncio.sleep(0.02)


async def test_a_model_on_its_way_out_is_told_what_is_forgotten(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may still be answering from the document."""
    monkeypatch.setattr(reload, "GRACE_SECONDS", 1.0)
    await place.load(late_model(tmp_path))
    gateway = place.site.services.gateway
    late = gateway.providers["late"]
    await place.load()
    assert late not in gateway.providers.values() and gateway.leaving == [late]
    await services._forget(gateway, ["a document"])
    assert isinstance(late, LocalProvider) and "a document" in late._gone
    async with asyncio.timeout(10):
        while gateway.leaving:
            await asyncio.sleep(0.02)


async def test_at_the_end_nothing_is_added_and_targets_are_closed_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = fake_settings(tmp_path, targets=tuple(TargetSettings(name=f"t{i}", provider="fake") for i in range(2)))
    both, may_be_added, closed = asyncio.Barrier(2), [], []
    async with open_site(dataclasses.replace(settings, routes=())) as site:
        watch = site.services.reloader._task

        async def close(provider: FakeProvider) -> None:
            may_be_added.append(watch is None or not watch.done())
            async with asyncio.timeout(30):
                await both.wait()
            closed.append(provider)

        monkeypatch.setattr(FakeProvider, "close", close)
    assert may_be_added == [False, False] and len(closed) == 2


async def test_a_target_that_is_being_started_when_the_process_stops_is_closed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, closed = asyncio.Event(), []

    async def start(provider: FakeProvider) -> None:
        begun.set()
        await asyncio.sleep(60)

    async def close(provider: FakeProvider) -> None:
        closed.append(provider)

    monkeypatch.setattr(FakeProvider, "start", start)
    monkeypatch.setattr(FakeProvider, "close", close)
    place.write(text="after")
    async with asyncio.timeout(10):
        await begun.wait()
    await place.site.services.reloader.stop()
    assert len(closed) == 1 and closed[0] not in place.site.services.gateway.providers.values()


async def test_a_new_target_is_closed_where_its_change_cannot_be_written(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def close(provider: FakeProvider) -> None:
        closed.append(provider)

    async def fail(_session: Any) -> None:
        raise OSError("the disk is full")

    def add(stored: Stored) -> Stored:
        entry = ("targets", "new", {"name": "new", "provider": "fake"})
        return dataclasses.replace(stored, entries=(*stored.entries, entry))

    monkeypatch.setattr(FakeProvider, "close", close)
    before = dict(place.site.services.gateway.providers)
    with pytest.raises(OSError, match="disk is full"):
        await place.site.services.reloader.edit(add, fail)
    assert len(closed) == 1 and place.site.services.gateway.providers == before
