"""What happens is shown as it happens; a server that goes away is said, and nothing is lost or shown twice."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.async_api import expect

from tests.e2e.conftest import Visitor
from tests.e2e.server import Serving

pytestmark = pytest.mark.slow


def ask(server: Serving, model: str = "echo", **more: Any) -> None:
    with server.client() as client:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello there"}], **more}
        client.post("/v1/chat/completions", json=body).raise_for_status()


async def test_requests_appear_by_themselves_and_filters_stay(owner: Visitor, server: Serving) -> None:
    await owner.open("/requests?model=resilient&range=1h", "Requests")
    page, rows = owner.page, owner.page.locator("tbody tr")
    await expect(page.get_by_role("status").get_by_text("Live")).to_be_visible()
    await expect(page.locator("[aria-busy=true]")).to_have_count(0)
    before = await rows.count()
    await asyncio.to_thread(ask, server, "resilient")
    await asyncio.to_thread(ask, server, "echo")
    await expect(rows).to_have_count(before + 1)
    await expect(rows.first).to_contain_text("1 fallback")
    assert "model=resilient" in page.url and "range=1h" in page.url


async def test_a_restarted_server_is_said_and_found_again(owner: Visitor, server: Serving) -> None:
    owner.expected = (
        "ERR_CONNECTION_REFUSED",
        "ERR_INCOMPLETE_CHUNKED_ENCODING",
        "ERR_CONNECTION_RESET",
        "Failed to load",
    )
    page = owner.page
    await owner.open("/requests?model=echo&range=1h", "Requests")
    await expect(page.get_by_role("status").get_by_text("Live")).to_be_visible()
    await asyncio.to_thread(ask, server)
    await expect(page.locator("tbody tr").first).to_be_visible()
    server.stop()
    await expect(page.get_by_role("status")).to_contain_text("Reconnecting – data as of", timeout=5_000)
    # Another process does not know what was missed: the page fetches everything anew.
    async with page.expect_response("**/api/v1/requests?**", timeout=60_000):
        await asyncio.to_thread(server.start)
    await expect(page.get_by_role("status").get_by_text("Live")).to_be_visible(timeout=20_000)
    await expect(page.locator("[aria-busy=true]")).to_have_count(0)
    before = {await row.get_attribute("data-row") for row in await page.locator("tbody tr").all()}
    await asyncio.to_thread(ask, server)
    await expect(page.locator("tbody tr")).to_have_count(len(before) + 1)
    names = [await row.get_attribute("data-row") for row in await page.locator("tbody tr").all()]
    assert len(names) == len(set(names)) and before < set(names)
    assert "model=echo" in page.url


async def test_what_happened_while_the_stream_was_away_is_shown_once(owner: Visitor, server: Serving) -> None:
    page, rows = owner.page, owner.page.locator("tbody tr")
    await owner.open("/requests?model=echo&range=1h", "Requests")
    await expect(page.get_by_role("status").get_by_text("Live")).to_be_visible()
    await expect(page.locator("[aria-busy=true]")).to_have_count(0)
    before = await rows.count() + 1
    await asyncio.to_thread(ask, server)
    await expect(rows).to_have_count(before)
    await page.get_by_role("button", name="Pause live updates").click()
    await expect(page.get_by_role("status")).to_contain_text("Paused at")
    for _ in range(3):
        await asyncio.to_thread(ask, server)
    assert await rows.count() == before
    await page.get_by_role("button", name="Resume live updates").click()
    await expect(rows).to_have_count(before + 3)


@contextmanager
def load(server: Serving, callers: int) -> Iterator[None]:
    """So many callers that ask the engine again and again."""
    over = threading.Event()

    def call(number: int) -> None:
        while not over.is_set():
            ask(server, "precedent-demo", max_tokens=200, temperature=1.0, seed=number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


async def test_the_engine_page_under_load_shows_the_engines_own_counters(owner: Visitor, server: Serving) -> None:
    page = owner.page
    await owner.open("/engine", "Engine")
    await expect(page.get_by_text("No traffic").first).to_be_visible()
    with load(server, 6):
        await expect(page.get_by_text("No traffic")).to_have_count(0)
        await page.wait_for_timeout(2_000)
        within = 0
        for _ in range(10):
            shown = json.loads(await page.locator("[data-kv]").get_attribute("data-kv") or "{}")
            assert shown["free"] + shown["active"] + shown["pinned"] + shown["cached"] == shown["total"]
            with server.client() as client:
                stats = client.get("/api/v1/engine/state").json()["stats"]
            used = shown["active"] + shown["pinned"]
            within += abs(used - stats["used_blocks"]) <= 0.01 * shown["total"]
            counted = json.loads(await page.locator("canvas.blocks").get_attribute("data-counted") or "{}")
            assert sum(counted.values()) == stats["total_blocks"]
            await page.wait_for_timeout(300)
        assert within == 10
        speed = await page.locator(".tile", has_text="Tokens a second").locator(".value").inner_text()
        assert float(speed) > 0
    await expect(page.get_by_text("No traffic").first).to_be_visible()
