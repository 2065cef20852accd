"""Every page in both themes and at both widths: nothing serious for axe, nothing wider than the window, a picture."""

from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, expect

from tests.e2e.conftest import SCREENSHOTS, Visitor, visit
from tests.e2e.server import OWNER, QUOTE, Serving, add_requests
from tests.rag.conftest import make_pdf

pytestmark = pytest.mark.slow
LEASE = [
    ["LEASE AGREEMENT", "between Tidewell Harbor Ltd. and Northgate Storage LLC.", QUOTE],
    ["The tenant gives notice ninety days before the end.", "This agreement is governed by the laws of England."],
]
PAGES = {
    "overview": ("", "Overview"),
    "requests": ("/requests", "Requests"),
    "requests-none": ("/requests?model=nothing", "Requests"),
    "request": ("/requests/{request}", "Request"),
    "playground": ("/playground", "Playground"),
    "keys": ("/keys", "Keys"),
    "usage": ("/usage?by=model", "Usage"),
    "routing": ("/routing", "Models and routes"),
    "cache": ("/cache", "Semantic cache"),
    "documents": ("/documents", "Documents"),
    "document": ("/documents/{document}?version=1&start=75&end=116", "LEASE AGREEMENT"),
    "retrieval": ("/retrieval?q=rent", "Retrieval test"),
    "engine": ("/engine", "Engine"),
    "tenants": ("/tenants", "Tenants and budgets"),
    "users": ("/users", "Users and roles"),
    "audit": ("/audit", "Audit"),
    "health": ("/health", "Health and settings"),
}
AXE: dict[str, Any] = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(server: Serving) -> dict[str, str]:
    """Something on every page; the ids that pages need."""
    requests = await add_requests(server.directory, server.tenants["firm"], 400)
    with server.client() as client:
        files = {"files": ("lease.pdf", make_pdf(LEASE, title="LEASE AGREEMENT"))}
        filed = client.post("/api/v1/documents", files=files).json()["documents"][0]
        client.post("/api/v1/documents", files={"files": ("broken.pdf", b"%PDF-1.7 nothing")})
        client.post("/api/v1/budgets", json={"window": "month", "limit_micros": 10_000_000})
        client.post("/api/v1/matters", json={"label": "harbor", "name": "Tidewell Harbor"})
        client.post(
            "/v1/chat/completions",
            json={"model": "precedent-demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32},
        )
        while client.get(f"/api/v1/jobs/{filed['job_id']}").json()["status"] in ("queued", "running"):
            pass
    return {"request": str(requests[0]), "document": filed["id"]}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["light", "dark"])
async def looker(request: pytest.FixtureRequest, browser: Browser, server: Serving) -> Any:
    visitor = await visit(browser, server, OWNER, color_scheme=request.param)
    visitor.wrong.clear()
    yield request.param, visitor
    await visitor.context.close()
    assert visitor.complaints() == []


async def ask(visitor: Visitor) -> None:
    """The playground with an answer in it."""
    await visitor.page.get_by_label("Question").fill("How much is the rent?")
    await visitor.page.get_by_label("quoting").check()
    await visitor.page.get_by_role("button", name="Ask", exact=True).click()
    await expect(visitor.page.locator(".badge", has_text="done")).to_be_visible()


async def settled(visitor: Visitor) -> None:
    await expect(visitor.page.locator("[aria-busy=true]")).to_have_count(0)
    await visitor.page.wait_for_timeout(250)  # charts draw a frame later


@pytest.mark.parametrize("name", PAGES)
async def test_a_page_is_accessible_and_fits(name: str, looker: tuple[str, Visitor], filled: dict[str, str]) -> None:
    theme, visitor = looker
    path, title = PAGES[name]
    await visitor.page.set_viewport_size({"width": 1440, "height": 900})
    await visitor.open(path.format(**filled), title)
    if name == "playground":
        await ask(visitor)
    await settled(visitor)
    assert await visitor.page.evaluate("document.documentElement.dataset.theme") == theme
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await picture(visitor, SCREENSHOTS / f"{name}-{theme}.png")
    assert await serious(visitor) == []
    await visitor.page.set_viewport_size({"width": 390, "height": 844})
    await settled(visitor)
    await picture(visitor, SCREENSHOTS / f"{name}-{theme}-390.png")
    wide = await visitor.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0


async def serious(visitor: Visitor) -> list[tuple[str, list[str]]]:
    """What axe finds serious or critical, with the elements."""
    found = await Axe().run(visitor.page, options=AXE)
    violations = [f for f in found.response["violations"] if f["impact"] in ("serious", "critical")]
    return [(violation["id"], [node["html"][:200] for node in violation["nodes"]]) for violation in violations]


async def test_dialogs_are_accessible(looker: tuple[str, Visitor], filled: dict[str, str]) -> None:
    theme, visitor = looker
    page = visitor.page
    await page.set_viewport_size({"width": 1440, "height": 900})
    openings = {
        "key": ("/keys", page.get_by_role("button", name="New key")),
        "entry": ("/audit", page.locator("tbody button").first),
        "matter": ("/tenants", page.get_by_role("button", name="Tidewell Harbor", exact=True)),
        "deletion": ("/documents", page.get_by_role("button", name="Delete LEASE AGREEMENT")),
        "palette": ("/usage", page.get_by_role("button", name="Go to page")),
    }
    for name, (path, opener) in openings.items():
        await visitor.open(path)
        await opener.click()
        await expect(page.get_by_role("dialog")).to_be_visible()
        await settled(visitor)
        await picture(visitor, SCREENSHOTS / f"dialog-{name}-{theme}.png")
        assert await serious(visitor) == []
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_the_way_in_is_accessible(theme: Any, browser: Browser, server: Serving) -> None:
    visitor = await visit(browser, server, color_scheme=theme)
    await visitor.open("")
    await expect(visitor.page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    await picture(visitor, SCREENSHOTS / f"login-{theme}.png")
    assert await serious(visitor) == []
    await visitor.context.close()


async def picture(visitor: Visitor, path: Path) -> None:
    await visitor.page.screenshot(path=path, full_page=True)


async def test_what_is_looked_for_would_be_seen(owner: Visitor) -> None:
    """The negative control: a request to elsewhere, an error in the console, and text that is too faint."""
    await owner.page.evaluate("fetch('http://127.0.0.1:9/elsewhere').catch(() => null)")
    await owner.page.evaluate("console.error('provoked')")
    assert any("127.0.0.1:9" in one for one in owner.wrong) and "console: provoked" in owner.wrong
    owner.wrong.clear()
    faint = """() => {
        const text = document.querySelector("main").appendChild(document.createElement("p"));
        Object.assign(text.style, {color: "#aaa", background: "#fff"});
        text.textContent = "too faint to read";
    }"""
    await owner.page.evaluate(faint)
    assert [name for name, _ in await serious(owner)] == ["color-contrast"]
