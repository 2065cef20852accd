"""Who gets in, and who sees what."""

import re

import pytest
from playwright.async_api import Browser, expect

from app.db import owned
from app.tenants.models import User
from app.tenants.sessions import make_link
from tests.e2e.conftest import Visitor, visit
from tests.e2e.server import STRANGER, VIEWER, Serving, add_requests, database_of
from tests.e2e.test_flows import stored
from tests.tenants.provider import OpenIdProvider

pytestmark = pytest.mark.slow


async def test_another_tenant_sees_nothing_by_page_or_address(browser: Browser, server: Serving) -> None:
    [request] = await add_requests(server.directory, server.tenants["firm"], 1)
    with server.client() as client:
        document = client.post("/api/v1/documents", files={"files": ("own.txt", b"The firm's own words.")}).json()
    visitor = await visit(browser, server, STRANGER)
    visitor.expected = ("status of 404", "status of 403", "status of 401")
    await visitor.open("/documents", "Documents")
    await expect(visitor.page.get_by_text("No documents yet")).to_be_visible()
    await visitor.open("/requests?range=90d", "Requests")
    await expect(visitor.page.get_by_text("No requests in this range")).to_be_visible()
    for path in (f"/requests/{request}", f"/documents/{document['documents'][0]['id']}"):
        await visitor.open(path)
        await expect(visitor.page.get_by_role("heading", name="Not found").first).to_be_visible()
    # Not an operator: naming the tenant changes nothing in the console, and is refused by the API.
    await visitor.open(f"/requests?tenant={server.tenants['firm']}&range=90d", "Requests")
    await expect(visitor.page.get_by_text("No requests in this range")).to_be_visible()
    script = "(tenant) => fetch('/api/v1/requests', {headers: {'x-precedent-tenant': tenant}}).then((r) => r.status)"
    assert await visitor.page.evaluate(script, str(server.tenants["firm"])) == 403
    assert visitor.complaints() == []
    await visitor.context.close()


async def test_a_viewer_is_shown_no_more_than_their_role_opens(browser: Browser, server: Serving) -> None:
    visitor = await visit(browser, server, VIEWER)
    visitor.expected = ("status of 401",)
    links = await visitor.page.get_by_role("navigation").get_by_role("link").all_text_contents()
    assert "Documents" in links and "Usage" in links
    assert not {"Keys", "Users and roles", "Audit", "Playground"} & set(links)
    await visitor.open("/keys")
    await expect(visitor.page.get_by_text("Your role does not open this page")).to_be_visible()
    await visitor.open("/documents", "Documents")
    await expect(visitor.page.get_by_role("button", name="Choose files")).to_have_count(0)
    assert visitor.complaints() == []
    await visitor.context.close()


async def test_an_operator_looks_at_another_tenant_and_not_into_its_documents(owner: Visitor, server: Serving) -> None:
    page = owner.page
    await owner.open("/users", "Users and roles")
    await page.get_by_label("Tenant", exact=True).select_option("other")
    await expect(page.get_by_text("Sam Stranger")).to_be_visible()
    await expect(page).to_have_url(re.compile(f"tenant={server.tenants['other']}"))
    await page.reload()
    await expect(page.get_by_text("Sam Stranger")).to_be_visible()
    await expect(page.get_by_role("navigation").get_by_role("link", name="Documents")).to_have_count(0)


async def test_a_link_signs_in_once_and_leaves_no_trace_in_the_address(browser: Browser, server: Serving) -> None:
    database = database_of(server.directory)
    async with database.session() as session:
        user = await session.scalar(owned(User, server.tenants["other"]))
        assert user is not None
        token = await make_link(session, user)
    await database.close()
    visitor = await visit(browser, server)
    visitor.expected = ("status of 401",)
    await visitor.open(f"/sign-in#{token}", "Overview")
    assert token not in visitor.page.url and token not in await stored(visitor.page)
    await visitor.page.get_by_role("button", name="Sign out").click()
    await expect(visitor.page.get_by_role("button", name="Sign in", exact=True)).to_be_visible()
    await visitor.open(f"/sign-in#{token}")
    await expect(visitor.page.get_by_text("used already or has expired")).to_be_visible()
    assert visitor.complaints() == []
    await visitor.context.close()


async def test_a_member_comes_in_through_the_organisation(
    browser: Browser, server: Serving, provider: OpenIdProvider
) -> None:
    visitor = await visit(browser, server)
    visitor.expected = ("status of 401", provider.issuer)
    await visitor.open("")
    await visitor.page.get_by_role("link", name="Sign in with your organisation").click()
    # Members have no overview: the first page that they may see is theirs.
    await expect(visitor.page.get_by_role("heading", level=1, name="Playground")).to_be_visible()
    await expect(visitor.page.get_by_role("status").get_by_text("Live")).to_be_visible()
    assert visitor.complaints() == []
    await visitor.context.close()
