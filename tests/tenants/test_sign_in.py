"""One-time links, and operators at work in another tenant."""

import asyncio
from datetime import timedelta

import pytest

from app.db import now, owned
from app.errors import Unauthenticated
from app.tenants import service, users
from app.tenants.auth import COOKIE
from app.tenants.models import AuditEntry, SignInLink, User
from app.tenants.sessions import make_link
from tests.conftest import Site
from tests.tenants.test_people import logged_in, person


async def link(site: Site, tenant: str, *, older: timedelta = timedelta()) -> str:
    who, _ = await person(site, tenant, "owner")
    async with site.services.database.session() as session:
        user = await session.get_one(User, who)
        token = await make_link(session, user)
        if older:
            kept = await session.scalar(owned(SignInLink, user.tenant_id).where(SignInLink.user_id == who))
            assert kept is not None
            kept.expires_at -= older
            await session.commit()
    return token


async def test_a_link_lets_in_once(site: Site) -> None:
    token = await link(site, "links")
    first, second = await asyncio.gather(
        *(site.client.post("/api/v1/session/link", json={"token": token}) for _ in range(2))
    )
    assert sorted((first.status_code, second.status_code)) == [200, 401]
    right = first if first.status_code == 200 else second
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=lax" in cookie
    headers = {"cookie": f"{COOKIE}={right.cookies[COOKIE]}"}
    site.client.cookies.clear()
    assert (await site.client.get("/api/v1/session", headers=headers)).json()["tenant"] == "links"
    # The token of the link is no session, and is not kept as it is.
    assert (await site.client.get("/api/v1/session", headers={"cookie": f"{COOKIE}={token}"})).status_code == 401
    async with site.services.database.session() as session:
        tenant = await service.get_tenant(session, "links")
        noted = await session.scalars(owned(AuditEntry, tenant.id))
        assert {"login.link", "login"} <= {entry.action for entry in noted}


async def test_an_expired_or_invented_link_lets_nobody_in(site: Site) -> None:
    late = await link(site, "links-late", older=timedelta(hours=1))
    for token in (late, "x" * 43):
        answer = await site.client.post("/api/v1/session/link", json={"token": token})
        assert answer.status_code == 401 and "used already or has expired" in answer.json()["detail"]


async def test_a_new_link_ends_the_one_before_and_disabling_ends_all(site: Site) -> None:
    who, _ = await person(site, "links-again", "owner")
    await person(site, "links-again", "owner")
    async with site.services.database.session() as session:
        user = await session.get_one(User, who)
        before = await make_link(session, user)
        after = await make_link(session, user)
        await users.change_user(session, user.tenant_id, who, {"disabled": True}, None)
        assert user.disabled_at is not None and user.disabled_at <= now()
    for token in (before, after):
        with pytest.raises(Unauthenticated):
            await site.services.logins.with_link(token, "192.0.2.1")


async def test_an_operator_administers_a_tenant_without_its_content(site: Site) -> None:
    _, theirs = await logged_in(site, "administered", "admin")
    documents = await site.headers("administered")
    filed = await site.file("secret.txt", "Nobody else reads this.", documents)
    _, operator = await logged_in(site, "running", "owner", operator=True)
    tenant_id = (await site.client.get("/api/v1/session", headers=theirs)).json()["tenant_id"]
    there = {**operator, "x-precedent-tenant": tenant_id}
    assert (await site.client.get("/api/v1/session", headers=there)).json()["tenant"] == "administered"
    people = (await site.client.get("/api/v1/users", headers=there)).json()["users"]
    assert {user["role"] for user in people} == {"admin"}
    for path in (f"documents/{filed['document_id']}", "documents", "matters"):
        assert (await site.client.get(f"/api/v1/{path}", headers=there)).status_code == 403
    asked = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    assert (await site.client.post("/v1/chat/completions", json=asked, headers=there)).status_code == 403
    key = {"name": "reader", "scopes": ["documents:read"]}
    assert (await site.client.post("/api/v1/keys", json=key, headers=there)).status_code == 403


async def test_naming_another_tenant_is_the_operators_alone(site: Site) -> None:
    _, mine = await logged_in(site, "naming", "owner")
    _, theirs = await logged_in(site, "named", "owner")
    other = (await site.client.get("/api/v1/session", headers=theirs)).json()["tenant_id"]
    own = (await site.client.get("/api/v1/session", headers=mine)).json()["tenant_id"]
    for value, status in ((other, 403), (own, 200), ("nonsense", 403)):
        headers = {**mine, "x-precedent-tenant": value}
        assert (await site.client.get("/api/v1/keys", headers=headers)).status_code == status
    query = await site.client.get(f"/api/v1/keys?x-precedent-tenant={other}", headers=mine)
    assert query.status_code == 403
    _, operator = await logged_in(site, "naming-operator", "owner", operator=True)
    unknown = {**operator, "x-precedent-tenant": "00000000-0000-0000-0000-000000000000"}
    assert (await site.client.get("/api/v1/keys", headers=unknown)).status_code == 404
