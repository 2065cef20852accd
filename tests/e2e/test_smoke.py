"""The console comes up: signing in leads to a page with figures."""

from playwright.async_api import expect

from tests.e2e.conftest import Visitor


async def test_the_owner_signs_in_and_sees_the_overview(owner: Visitor) -> None:
    await expect(owner.page.get_by_role("heading", level=1, name="Overview")).to_be_visible()
    await expect(owner.page.get_by_role("status").get_by_text("Live")).to_be_visible()
    await expect(owner.page.locator("[data-now]")).to_contain_text("ast minute")
