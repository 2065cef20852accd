"""What people do in the console, from end to end."""

import asyncio
import re
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Page, expect

from tests.e2e.conftest import PLAIN_HOST, Visitor, visit
from tests.e2e.server import OWNER, QUOTE, Serving, add_requests, database_of
from tests.rag.conftest import make_pdf

pytestmark = pytest.mark.slow
SECRET = re.compile(r"prc_[A-Za-z0-9_-]{20,}")


async def stored(page: Page) -> str:
    """Everything that a page could have kept: its markup, its storages and its readable cookies."""
    script = """() => JSON.stringify([document.documentElement.outerHTML, {...localStorage}, {...sessionStorage},
        document.cookie, [...document.querySelectorAll("input, textarea")].map((one) => one.value)])"""
    found: str = await page.evaluate(script)
    return found


async def test_a_key_is_made_copied_and_revoked_and_its_secret_is_gone(owner: Visitor, server: Serving) -> None:
    page = owner.page
    await owner.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await owner.open("/keys", "Keys")
    await page.get_by_role("button", name="New key").click()
    await page.get_by_label("Name", exact=True).fill("made in the console")
    await page.get_by_role("button", name="Make the key").click()
    secret = await page.locator("[data-secret]").inner_text()
    assert SECRET.fullmatch(secret)
    await page.get_by_role("dialog").get_by_role("button", name="Copy").click()
    assert await page.evaluate("navigator.clipboard.readText()") == secret
    works = {"authorization": f"Bearer {secret}"}
    assert httpx.get(f"{server.url}/v1/models", headers=works).status_code == 200
    await page.get_by_role("button", name="I have copied it").click()
    await page.evaluate("navigator.clipboard.writeText('')")
    assert secret not in await stored(page)
    answers = []
    for path in ("keys", "audit"):
        answers.append(await page.evaluate(f"fetch('/api/v1/{path}').then((r) => r.text())"))
    assert not any(secret in answer for answer in answers) and secret[:12] in answers[0]
    await page.get_by_role("button", name="Revoke made in the console").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("textbox").fill("something else")
    await dialog.get_by_role("button", name="Revoke").click()
    await expect(dialog.get_by_role("alert")).to_have_text("That is not the name.")
    await dialog.get_by_role("textbox").fill("made in the console")
    await dialog.get_by_role("button", name="Revoke").click()
    await expect(page.locator("tr", has_text="made in the console").get_by_text("revoked")).to_be_visible()
    assert httpx.get(f"{server.url}/v1/models", headers=works).status_code == 401


async def test_what_the_api_refuses_stands_beside_the_field(owner: Visitor) -> None:
    owner.expected = ("status of 400", "status of 409")
    page = owner.page
    await owner.open("/users", "Users and roles")
    await page.get_by_role("button", name="New person").click()
    await page.get_by_label("E-mail address").fill("somebody@firm.example")
    await page.get_by_label("Name", exact=True).fill("Somebody")
    await page.get_by_label("Matters").fill("no good label!")
    await page.get_by_role("button", name="Add").click()
    error = page.locator("#about-labels")
    await expect(error).to_contain_text("not a valid matter name")
    await expect(page.get_by_label("Matters")).to_have_attribute("aria-invalid", "true")


def three_files() -> list[Any]:
    good = make_pdf([["MASTER LEASE", QUOTE]], title="MASTER LEASE")
    return [
        {"name": "lease.pdf", "mimeType": "application/pdf", "buffer": good},
        {"name": "corrupt.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7 not really"},
        {"name": "note.txt", "mimeType": "text/plain", "buffer": "A note about the harbor 😀 and its cranes.".encode()},
    ]


async def test_three_files_of_which_one_is_corrupt(owner: Visitor) -> None:
    page = owner.page
    await owner.open("/documents", "Documents")
    await page.get_by_label("Collection").first.fill("upload")
    await page.get_by_label("Files").set_input_files(three_files())
    await expect(page.locator("li[data-job=failed]", has_text="corrupt")).to_contain_text("not a readable PDF")
    for title in ("MASTER LEASE", "note"):
        await expect(page.locator("tr", has_text=title).first.get_by_text("ready")).to_be_visible()
    await expect(page.get_by_role("button", name="Retry").first).to_be_visible()


async def test_a_citation_opens_its_source_at_the_quoted_words(owner: Visitor, server: Serving) -> None:
    quote_over_two_pages = [["HARBOR TERMS", "The rent is nine hundred"], ["crowns a month.", "Other words."]]
    with server.client() as client:
        files = {"files": ("harbor.pdf", make_pdf(quote_over_two_pages, title="HARBOR TERMS"))}
        filed = client.post("/api/v1/documents", files=files, data={"collection": "cited"}).json()["documents"][0]
        while client.get(f"/api/v1/jobs/{filed['job_id']}").json()["status"] in ("queued", "running"):
            await asyncio.sleep(0.1)
    page = owner.page
    await owner.open("/playground", "Playground")
    await page.get_by_label("Question").fill("How much is the rent?")
    await page.get_by_label("Collection").fill("cited")
    await page.get_by_label("quoting").check()
    async with page.expect_response("**/api/v1/answers") as asked:
        await page.get_by_role("button", name="Ask", exact=True).click()
    body = await (await asked.value).text()
    cited = re.search(r'"quote":"((?:[^"\\]|\\.)*)"', body)
    assert cited is not None
    quote = cited.group(1).encode().decode("unicode_escape")
    chip = page.get_by_role("group", name="Citations").get_by_role("link").first
    await expect(chip).to_contain_text("verified")
    await chip.click()
    await expect(page.get_by_role("heading", level=1, name="HARBOR TERMS")).to_be_visible()
    marks = page.locator("mark")
    await expect(marks).to_have_count(2)  # one on either page
    assert "".join(await marks.all_text_contents()) == quote
    await expect(marks.first).to_be_in_viewport()


async def test_a_highlight_counts_characters_as_the_api_does(owner: Visitor, server: Serving) -> None:
    """Beyond the first plane a character is two units in the browser and one in the API."""
    with server.client() as client:
        files = {"files": ("face.txt", "😀😀 before. The marked words. After.".encode())}
        filed = client.post("/api/v1/documents", files=files).json()["documents"][0]
        while client.get(f"/api/v1/jobs/{filed['job_id']}").json()["status"] in ("queued", "running"):
            await asyncio.sleep(0.1)
        text = client.get(f"/api/v1/documents/{filed['id']}/text").json()["text"]
    start = text.index("The marked words.")
    await owner.open(f"/documents/{filed['id']}?version=1&start={start}&end={start + 17}")
    await expect(owner.page.locator("mark")).to_have_text("The marked words.")


async def test_stopping_a_stream_stops_the_server(owner: Visitor, server: Serving) -> None:
    page = owner.page
    await owner.open("/playground?mode=chat", "Playground")
    await page.get_by_label("Message", exact=True).fill("Go on for long.")
    await page.get_by_label("echo").uncheck()
    await page.get_by_label("dripping").check()
    await page.get_by_role("button", name="Ask", exact=True).click()
    await expect(page.locator("[data-answer]")).to_contain_text("word word word")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".badge", has_text="stopped")).to_be_visible()
    with server.client() as client:
        for _ in range(300):
            rows = client.get("/api/v1/requests", params={"model": "dripping"}).json()["requests"]
            if rows:
                break
            await asyncio.sleep(0.1)
    assert rows[0]["status"] == "cancelled" and rows[0]["completion_tokens"] < 100


async def test_two_models_answer_side_by_side(owner: Visitor) -> None:
    page = owner.page
    await owner.open("/playground?mode=chat", "Playground")
    await page.get_by_label("Message", exact=True).fill("Both of you.")
    await page.get_by_label("resilient").check()
    await page.get_by_role("button", name="Ask", exact=True).click()
    await expect(page.locator("[data-answer]")).to_have_text(["Both of you.", "Both of you."])
    await page.get_by_role("button", name="Copy as curl").first.click()
    await expect(page.get_by_role("button", name=re.compile("Copied|Select and copy"))).to_be_visible()


async def test_which_way_a_request_would_go(owner: Visitor) -> None:
    page = owner.page
    await owner.open("/routing", "Models and routes")
    await page.get_by_label("Model", exact=True).select_option("resilient")
    await page.get_by_label("Message").fill("Which way?")
    await page.get_by_role("button", name="Which way would it go?").click()
    table = page.get_by_role("region", name="Targets in the order in which they are tried")
    await expect(table.locator("tbody tr").first).to_contain_text("down")
    await expect(table.locator("tbody tr").nth(1)).to_contain_text("fake")
    await page.get_by_label("Only these regions").fill("eu")
    await page.get_by_role("button", name="Which way would it go?").click()
    await expect(table.locator("tbody tr", has_text="left out")).to_contain_text("down")


async def test_days_in_any_zone_sum_to_the_range_and_the_ledger(owner: Visitor, server: Serving) -> None:
    await add_requests(server.directory, server.tenants["firm"], 3000)
    page = owner.page
    await owner.open("/usage?range=7d&tz=%2B05:30", "Usage")
    micros = page.locator("[data-micros]")
    await expect(micros.nth(2)).to_be_visible()  # 3,000 minutes are parts of three or four days
    days = [int(await one.get_attribute("data-micros") or 0) for one in await micros.all()]
    total = int(await page.locator("[data-total]").get_attribute("data-total") or 0)
    ledger = await in_ledger(server)
    assert sum(days) == total == ledger
    await page.get_by_label("Time zone").select_option("America/Los_Angeles")
    await expect(page.get_by_text("America/Los_Angeles. The ledger")).to_be_visible()
    there = [int(await one.get_attribute("data-micros") or 0) for one in await micros.all()]
    assert sum(there) == total and there != days
    async with page.expect_download() as saved:
        await page.get_by_role("button", name="Download CSV").click()
    lines = (await (await saved.value).path()).read_text().strip().splitlines()
    assert sum(int(line.rsplit(",", 1)[1]) for line in lines[1:]) == total


async def in_ledger(server: Serving) -> int:
    from sqlalchemy import text

    database = database_of(server.directory)
    async with database.session() as session:
        query = text("SELECT sum(amount_micros) FROM ledger WHERE tenant_id = :tenant")
        found = await session.scalar(query, {"tenant": server.tenants["firm"].hex})
    await database.close()
    return int(found or 0)


async def test_the_whole_is_usable_by_keyboard(owner: Visitor, server: Serving) -> None:
    await add_requests(server.directory, server.tenants["firm"], 5)
    page = owner.page
    await owner.open("/requests?model=echo", "Requests")
    await expect(page.locator("tbody tr").first).to_be_visible()
    for _ in range(3):
        await page.keyboard.press("j")
    await page.keyboard.press("k")
    second = await page.locator("tbody tr").nth(1).get_attribute("data-row")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1, name="Request", exact=True)).to_be_visible()
    assert str(second) in page.url
    await page.keyboard.press("Control+k")
    await expect(page.get_by_label("Go to page").last).to_be_focused()
    await page.keyboard.type("aud")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1, name="Audit")).to_be_visible()
    await page.keyboard.press("Control+k")
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_the_theme_follows_the_system_until_one_is_chosen(owner: Visitor) -> None:
    page, root = owner.page, owner.page.locator("html")
    await page.emulate_media(color_scheme="dark")
    await expect(root).to_have_attribute("data-theme", "dark")
    await page.get_by_label("Theme").select_option("light")
    await expect(root).to_have_attribute("data-theme", "light")
    await page.reload()
    await expect(page.get_by_label("Theme")).to_have_value("light")
    await expect(root).to_have_attribute("data-theme", "light")


async def test_a_narrow_window_has_its_navigation_in_a_menu(owner: Visitor) -> None:
    page = owner.page
    await page.set_viewport_size({"width": 390, "height": 844})
    await owner.open("", "Overview")
    await expect(page.get_by_role("navigation")).to_be_hidden()
    await page.get_by_role("button", name="Menu").click()
    await page.get_by_role("navigation").get_by_role("link", name="Engine").click()
    await expect(page.get_by_role("heading", level=1, name="Engine")).to_be_visible()
    await expect(page.get_by_role("navigation")).to_be_hidden()


async def test_copying_works_on_plain_http(browser: Browser, server: Serving) -> None:
    visitor = await visit(browser, server)
    visitor.url = f"http://{PLAIN_HOST}:{server.port}"
    visitor.expected = ("status of 401",)
    await visitor.log_in(OWNER)
    assert await visitor.page.evaluate("isSecureContext || 'clipboard' in navigator") is False
    await visitor.open("/playground?mode=chat", "Playground")
    message = visitor.page.get_by_label("Message", exact=True)
    await message.fill("Copy this.")
    await visitor.page.get_by_role("button", name="Ask", exact=True).click()
    await visitor.page.get_by_role("button", name="Copy as curl").click()
    await expect(visitor.page.get_by_role("button", name="Copied")).to_be_visible()
    await message.fill("")
    await message.press("Control+v")
    await expect(message).to_have_value(re.compile(r"^curl -N .*Copy this\.", re.DOTALL))
    await visitor.context.close()


async def test_a_request_shows_where_its_time_and_money_went(owner: Visitor, server: Serving) -> None:
    with server.client() as client:
        body = {"model": "resilient", "messages": [{"role": "user", "content": "one two three " * 50}]}
        answered = client.post("/v1/chat/completions", json=body)
        request = answered.headers["x-precedent-request-id"]
        while client.get(f"/api/v1/requests/{request}").status_code == 404:
            await asyncio.sleep(0.05)
        detail = client.get(f"/api/v1/requests/{request}").json()
    page = owner.page
    await owner.open(f"/requests/{request}", "Request")
    rows = page.locator(".waterfall [role=rowheader]")
    await rows.nth(len(detail["spans"]) - 1).wait_for()
    steps = await rows.all_text_contents()
    assert sorted(steps) == sorted(span["name"] for span in detail["spans"]) and {"route", "limits"} <= set(steps)
    shown = await page.locator("[data-sum]").inner_text()
    assert shown == f"${detail['cost_micros'] / 1e6:.6f}" and detail["cost_micros"] > 0
    why = page.get_by_role("region", name="Targets in the order in which they are tried")
    await expect(why.locator("tbody tr")).to_have_count(2)


async def test_a_request_shows_what_its_answer_was_made_of(owner: Visitor, server: Serving) -> None:
    with server.client() as client:
        files = {"files": ("mill.md", b"# MILL LEASE\n\nThe miller pays a rent of forty crowns a year.")}
        filed = client.post("/api/v1/documents", files=files, data={"collection": "mill"}).json()["documents"][0]
        while client.get(f"/api/v1/jobs/{filed['job_id']}").json()["status"] in ("queued", "running"):
            await asyncio.sleep(0.1)
        body = {"question": "How much is the rent?", "collection": "mill", "model": "quoting"}
        answer = client.post("/api/v1/answers", json=body).json()
        while client.get(f"/api/v1/requests/{answer['id']}").status_code == 404:
            await asyncio.sleep(0.05)
    page = owner.page
    await owner.open(f"/requests/{answer['id']}", "Request")
    given = page.get_by_role("region", name="Passages that the model was given")
    await expect(given.locator("tbody tr")).to_have_count(len(answer["evidence"]))
    await expect(given.get_by_text("Quoted", exact=True).last).to_be_visible()
    await given.get_by_role("link", name="MILL LEASE").first.click()
    await expect(page.locator("mark").first).to_contain_text("forty crowns a year")
