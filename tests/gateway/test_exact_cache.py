"""The exact cache: what is kept, for whom, and what callers can tell."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import update

from app.config import PriceSettings, RouteSettings, TargetSettings
from app.db import now
from app.gateway.cache.exact import CacheControl, ExactCache, cacheable, key_of
from app.gateway.models import RequestRecord
from app.gateway.schemas import Delta, Message, RouteHints, Segment
from app.tenants.principal import Principal
from tests.conftest import Site, fake_settings, open_site
from tests.gateway.test_chat import events, records
from tests.gateway.upstream import chat

CHAT = "/v1/chat/completions"
KEPT, PLAIN = RouteSettings("m", ("t",), cache_seconds=60), RouteSettings("m", ("t",))
TARGET = TargetSettings(name="t")


def caller(tenant: int = 1, *labels: str) -> Principal:
    return Principal(UUID(int=tenant), "firm", None, frozenset(), frozenset(labels))


def test_only_deterministic_requests_without_evidence_on_routes_that_want_it() -> None:
    zero = chat(temperature=0.0)
    assert cacheable(zero, KEPT)
    assert not cacheable(zero, PLAIN)
    assert not cacheable(chat(), KEPT) and not cacheable(chat(temperature=0.1), KEPT)
    assert not cacheable(chat(temperature=0.0, fields={"n": 2}), KEPT)
    assert not cacheable(replace(zero, quote_sources=("x",)), KEPT)
    passage = Message("user", (Segment("x", source_ids=("chunk",)),))
    assert not cacheable(replace(zero, messages=(passage,)), KEPT)


def test_everything_that_matters_is_in_the_key() -> None:
    base = chat("hello", system="be brief", temperature=0.0, max_tokens=5)
    variants = [
        (caller(), base),
        (caller(2), base),
        (caller(1, "m-1"), base),
        (caller(), replace(base, model="other")),
        (caller(), chat("hello!", system="be brief", temperature=0.0, max_tokens=5)),
        (caller(), chat("hello", system="be long", temperature=0.0, max_tokens=5)),
        (caller(), chat("hello", system="be brief", temperature=0.0, max_tokens=6)),
        (caller(), chat("hello", system="be brief", temperature=0.0, max_tokens=5, stop=("x",))),
        (caller(), replace(base, upstream_only={"response_format": {"type": "json_object"}})),
        (caller(), replace(base, upstream_only={"tools": []})),
        (caller(), replace(base, raw=True)),
        (caller(), replace(base, hints=RouteHints(regions=frozenset({"eu"})))),
        (caller(), replace(base, messages=tuple(reversed(base.messages)))),
    ]
    keys = {key_of(who, request, [TARGET]) for who, request in variants}
    keys.add(key_of(caller(), base, [replace(TARGET, model="newer")]))
    assert len(keys) == len(variants) + 1
    assert key_of(caller(), base, [TARGET]) == key_of(caller(), replace(base, streamed=True), [TARGET])


def test_age_room_and_order() -> None:
    clock = [0.0]
    cache = ExactCache(8 * 1_000, clock=lambda: clock[0])
    for number in range(12):
        cache.store(bytes([number]), TARGET, [Delta("x" * 500)], 60)
    assert cache.find(b"\x00", CacheControl()) is None and cache.find(b"\x0b", CacheControl())
    cache.store(b"huge", TARGET, [Delta("x" * 2_000)], 60)
    assert cache.find(b"huge", CacheControl()) is None
    clock[0] = 30.0
    assert cache.find(b"\x0b", CacheControl(max_age=20)) is None
    found = cache.find(b"\x0b", CacheControl(max_age=30))
    assert found and found[1] == 30
    assert cache.find(b"\x0b", CacheControl(read=False)) is None
    clock[0] = 60.0
    assert cache.find(b"\x0b", CacheControl()) is None


@pytest.mark.parametrize(
    ("header", "control"),
    [
        ("", CacheControl()),
        ("no-cache", CacheControl(read=False)),
        ("no-store", CacheControl(read=False, store=False)),
        ("Max-Age=5, stale", CacheControl(max_age=5)),
    ],
)
def test_cache_control(header: str, control: CacheControl) -> None:
    assert CacheControl.of(header) == control


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def larder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    settings = fake_settings(
        tmp_path_factory.mktemp("larder"),
        targets=(
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="breaks", provider="fake", options="status=503,after=2"),
        ),
        routes=(
            RouteSettings("kept", ("fake",), cache_seconds=600),
            RouteSettings("breaks", ("breaks",), cache_seconds=600),
        ),
        prices=(PriceSettings(target="fake", output=1_000_000),),
    )
    async with open_site(settings) as site:
        yield site


async def ask(site: Site, headers: dict[str, str], text: str, model: str = "kept", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, **more}
    return await site.client.post(CHAT, json=body, headers=headers)


def state(response: httpx.Response) -> str | None:
    return response.headers.get("x-precedent-cache")


async def test_a_hit_costs_nothing_and_says_so(larder: Site) -> None:
    headers = await larder.headers("saver")
    first, second = [await ask(larder, headers, "the same words") for _ in range(2)]
    assert (state(first), state(second)) == ("miss", "hit") and "age" in second.headers
    assert first.json()["choices"] == second.json()["choices"] and first.json()["usage"] == second.json()["usage"]
    assert second.headers["x-precedent-cost-usd"] == "0.000000"
    assert [(r.cache, r.cost_micros) for r in await records(larder, "saver")] == [("miss", 3), ("hit", 0)]


async def test_a_streamed_hit_looks_like_a_stream(larder: Site) -> None:
    headers = await larder.headers("streams")
    streams = [await ask(larder, headers, "one two three", stream=True) for _ in range(2)]
    assert [state(stream) for stream in streams] == ["miss", "hit"]
    first, second = [len(events(stream.text)) for stream in streams]
    assert first == second > 4 and streams[1].text.endswith("data: [DONE]\n\n")
    assert state(await ask(larder, headers, "one two three")) == "hit"


async def test_tenants_and_matters_share_nothing(larder: Site) -> None:
    text = uuid4().hex
    assert state(await ask(larder, await larder.headers("one"), text)) == "miss"
    assert state(await ask(larder, await larder.headers("two"), text)) == "miss"
    assert state(await ask(larder, await larder.headers("one", labels="m-1"), text)) == "miss"
    assert state(await ask(larder, await larder.headers("one"), text)) == "hit"


async def test_callers_can_ask_for_something_new(larder: Site) -> None:
    headers = await larder.headers("fresh")
    await ask(larder, headers, "x", stop=["never"])
    for control, expected in (("no-store", "miss"), ("no-cache", "miss"), ("", "hit")):
        assert state(await ask(larder, {**headers, "cache-control": control}, "x", stop=["never"])) == expected
    await ask(larder, {**headers, "cache-control": "no-store"}, "unkept")
    assert state(await ask(larder, headers, "unkept")) == "miss"
    assert state(await ask(larder, headers, "x", temperature=1)) is None


async def test_what_broke_off_is_not_kept(larder: Site) -> None:
    headers = await larder.headers("broken")
    for _ in range(2):
        assert state(await ask(larder, headers, "a b c d", "breaks", stream=True)) == "miss"


async def test_the_request_log_is_kept_for_so_long(larder: Site) -> None:
    headers = await larder.headers("old")
    await ask(larder, headers, "old")
    await ask(larder, headers, "new")
    old, _ = await records(larder, "old")
    async with larder.services.database.session() as session:
        long_ago = now() - timedelta(days=larder.services.settings.log.retention_days + 1)
        await session.execute(update(RequestRecord).where(RequestRecord.id == old.id).values(created_at=long_ago))
        await session.commit()
    await larder.services.gateway.writer.expire()
    assert len(await records(larder, "old")) == 1
