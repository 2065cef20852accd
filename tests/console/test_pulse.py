"""Samples reach who watches, of their own tenant alone, and only what they may see."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from app.asgi import create_app
from app.config import RouteSettings, TargetSettings
from app.gateway.events import KEPT, EventBus, Watcher
from tests.conftest import Site, fake_settings, listen
from tests.gateway.upstream import prepared
from tests.tenants.test_people import logged_in


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def office(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """Behind a real socket: streams do not end."""
    settings = fake_settings(
        tmp_path_factory.mktemp("pulse"),
        targets=(
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="down", provider="fake", options="status=503"),
        ),
        routes=(RouteSettings(model="echo", targets=("fake",)), RouteSettings(model="dead", targets=("down",))),
    )
    await prepared(settings)
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield Site(app, client, app.state.services)  # type: ignore[arg-type]


async def frames(stream: AsyncIterator[str], seconds: float = 3.5) -> dict[str, list[Any]]:
    """Data by topic of what comes within a few seconds; ids under their own name."""
    found: dict[str, list[Any]] = {"ids": []}
    topic = ""
    try:
        async with asyncio.timeout(seconds):
            async for line in stream:
                if line.startswith("event: "):
                    topic = line.removeprefix("event: ")
                elif line.startswith("id: "):
                    found["ids"].append(line)
                elif line.startswith("data: "):
                    found.setdefault(topic, []).append(json.loads(line.removeprefix("data: ")))
    except TimeoutError:
        pass
    return found


@pytest.mark.slow
async def test_figures_of_the_last_minute_are_the_tenants_own(office: Site) -> None:
    mine, other = await office.headers("pulse"), await office.headers("pulse-other")
    body = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}]}
    async with office.client.stream("GET", "/api/v1/events?topics=metrics,beat", headers=mine) as opened:
        await office.client.post("/v1/chat/completions", json=body, headers=mine)
        await office.client.post("/v1/chat/completions", json={**body, "model": "dead"}, headers=mine)
        await office.client.post("/v1/chat/completions", json=body, headers=other)
        seen = await frames(opened.aiter_lines())
    last = seen["metrics"][-1]
    assert (last["requests"], last["errors"]) == (2, 1)
    assert last["tokens_per_s"] == round(3 / 60, 2)
    assert len(seen["beat"]) >= 2 and seen["ids"] == []


@pytest.mark.slow
async def test_jobs_are_told_to_who_may_read_documents(office: Site) -> None:
    _, member = await logged_in(office, "pulse-jobs", "member")
    async with office.client.stream("GET", "/api/v1/events", headers=member) as opened:
        lines = opened.aiter_lines()
        headers = await office.headers("pulse-jobs")
        filing = [office.file(f"{n}.txt", f"Words of file {n}.", headers) for n in range(12)]
        seen, _ = await asyncio.gather(frames(lines, 5), asyncio.gather(*filing))
    assert "metrics" not in seen and "request" not in seen
    assert [told for told in seen.get("job", []) if set(told) == {"active"}]
    refused = await office.client.get("/api/v1/events?topics=metrics", headers=member)
    assert refused.status_code == 403


def test_a_sample_without_room_is_left_out_and_an_event_is_a_loss() -> None:
    from uuid import UUID

    bus, mine = EventBus(), UUID(int=1)
    watcher = Watcher(mine, {"engine", "request"}, operator=False)
    with bus.watching(watcher):
        assert bus.watched("engine") == {mine} and bus.watched("metrics") == set()
        for number in range(KEPT + 5):
            bus.sample("engine", number, mine)
        assert not watcher.lost and bus.missed(watcher, bus.id_of()) == []
        bus.publish("request", {}, mine)
    assert watcher.lost
