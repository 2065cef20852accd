"""A real browser on a real server. Nothing may leave the origin, and nothing may go wrong in the console."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request, async_playwright, expect

from app.config import REPOSITORY
from app.console.controllers import STATIC
from app.tenants.oidc import CALLBACK
from tests.e2e.server import PASSWORD, Serving, prepared
from tests.gateway.upstream import Exchange, Wire, upstream
from tests.tenants.provider import OpenIdProvider

CHROMIUM = "/usr/bin/chromium"
PLAIN_HOST = "console.test"  # not this machine for a browser: no secure context, and so no clipboard API
SCREENSHOTS = REPOSITORY / "var" / "screenshots"
expect.set_options(timeout=15_000)


class Consenting(OpenIdProvider):
    """With a page of its own, on which everybody agrees at once. `back`: where they are sent."""

    back = ""

    async def __call__(self, exchange: Exchange, wire: Wire) -> None:
        if not exchange.path.startswith("/authorize"):
            return await super().__call__(exchange, wire)
        query = urlencode(self.consent(exchange.path))
        await wire.fail(302, {}, location=f"{self.back}{CALLBACK}?{query}")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def provider() -> AsyncIterator[Consenting]:
    made = Consenting()
    async with upstream(made) as running:
        made.issuer = running.url
        yield made


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory, provider: Consenting) -> AsyncIterator[Serving]:
    if not Path(CHROMIUM).exists():
        pytest.skip("Chromium is not installed")
    if not (STATIC / "index.html").exists():
        pytest.skip("the console was not built")
    running = await prepared(tmp_path_factory.mktemp("console"), provider.issuer)
    provider.back = running.url
    await asyncio.to_thread(running.start)
    try:
        yield running
    finally:
        running.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(server: Serving) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1"]
        browser = await playwright.chromium.launch(headless=True, executable_path=CHROMIUM, args=arguments)
        yield browser
        await browser.close()


@dataclass
class Visitor:
    """A person's browser, and what went wrong in it. `expected`: texts of console errors that a test provokes."""

    context: BrowserContext
    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def watch(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.wrong.append(f"uncaught: {error}"))
        self.page.on("request", self._requested)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.wrong.append(f"console: {message.text}")

    def _requested(self, request: Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.wrong.append(f"left the origin: {request.url}")

    def complaints(self) -> list[str]:
        return [one for one in self.wrong if not any(text in one for text in self.expected)]

    async def open(self, path: str, title: str | None = None) -> None:
        """A page by its address, once its heading is there."""
        await self.page.goto(f"{self.url}/console{path}")
        if title:
            await expect(self.page.get_by_role("heading", level=1, name=title)).to_be_visible()

    async def log_in(self, email: str) -> None:
        await self.page.goto(f"{self.url}/console")
        await self.page.get_by_label("E-mail address").fill(email)
        await self.page.get_by_label("Password").fill(PASSWORD)
        await self.page.get_by_role("button", name="Sign in", exact=True).click()
        await expect(self.page.get_by_role("navigation")).to_be_attached()


async def visit(browser: Browser, server: Serving, email: str | None = None, **options: Any) -> Visitor:
    """A browser of one's own, with no cookies but one's own."""
    context = await browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "timezone_id": "UTC", **options})
    visitor = Visitor(context, await context.new_page(), server.url)
    visitor.watch()
    if email:
        await visitor.log_in(email)
    return visitor


@pytest_asyncio.fixture(loop_scope="session")
async def owner(browser: Browser, server: Serving) -> AsyncIterator[Visitor]:
    """Logged in as the firm's owner. At the end nothing may have gone wrong."""
    visitor = await visit(browser, server, "owner@firm.example")
    visitor.wrong.clear()  # the browser reports the 401 that tells that nobody is logged in yet
    yield visitor
    await visitor.context.close()
    assert visitor.complaints() == []
