"""The console comes up: signing in leads to a page with figures."""

from playwright.async_api import expect

from tests.e2e.conftest import SCREENSHOTS, Visitor


async def test_the_owner_signs_in_and_sees_the_overview(owner: Visitor) -> None:
    await expect(owner.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
    await expect(owner.page.get_by_role("status").get_by_text("Live")).to_be_visible()
    await expect(owner.page.locator("[data-now]")).to_contain_text("ast minute")


async def test_the_api_documentation_needs_nothing_from_elsewhere(owner: Visitor) -> None:
    page = owner.page
    await page.goto(f"{owner.url}/docs")
    await expect(page.get_by_role("heading", name="Precedent")).to_be_visible()
    await page.locator("#operations-tag-openai").click()
    await page.get_by_text("/v1/chat/completions").click()
    await expect(page.get_by_role("button", name="Try it out")).to_be_visible()
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / "api-documentation.png")
