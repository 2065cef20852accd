"""People: roles by field, passwords, sessions with CSRF, and what ends at once."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import delete, update

from app import migrate
from app.db import Database, now
from app.errors import RateLimited
from app.tenants import service, users
from app.tenants.auth import COOKIE, Authenticator
from app.tenants.failures import Failures
from app.tenants.models import LoginFailure
from app.tenants.passwords import Passwords
from app.tenants.principal import Scope
from app.tenants.roles import SCOPES, Role
from app.tenants.sessions import csrf_token
from tests.conftest import Site

PASSWORD = "correct horse battery"


async def person(site: Site, tenant: str, role: str = "admin", **more: Any) -> tuple[UUID, str]:
    """(id, e-mail) of a new person with PASSWORD."""
    await site.key(tenant)
    email = f"{uuid4().hex}@firm.example"
    async with site.services.database.session() as session:
        owner = await service.get_tenant(session, tenant)
        hashed = await Passwords().hash(PASSWORD)
        new = users.NewUser(email, "Ada", role, password_hash=hashed, **more)
        return (await users.create_user(session, owner.id, new, None)).id, email


async def log_in(site: Site, email: str, password: str = PASSWORD) -> httpx.Response:
    site.client.cookies.clear()
    return await site.client.post("/api/v1/session", json={"email": email, "password": password})


async def logged_in(site: Site, tenant: str, role: str = "admin", **more: Any) -> tuple[UUID, dict[str, str]]:
    """(id, headers of a session with its CSRF token)."""
    who, email = await person(site, tenant, role, **more)
    response = await log_in(site, email)
    token = response.cookies[COOKIE]
    site.client.cookies.clear()
    return who, {"cookie": f"{COOKIE}={token}", "x-csrf-token": response.json()["csrf_token"]}


async def test_log_in_and_out(site: Site) -> None:
    _, email = await person(site, "people")
    response = await log_in(site, email.upper())
    cookie = response.headers["set-cookie"].lower()
    assert response.status_code == 200 and "httponly" in cookie and "samesite=lax" in cookie
    token = response.cookies[COOKIE]
    headers = {"cookie": f"{COOKIE}={token}"}
    site.client.cookies.clear()
    me = (await site.client.get("/api/v1/session", headers=headers)).json()
    assert (me["role"], me["csrf_token"]) == ("admin", csrf_token(token))
    out = await site.client.delete("/api/v1/session", headers={**headers, "x-csrf-token": me["csrf_token"]})
    assert out.status_code == 204
    assert (await site.client.get("/api/v1/session", headers=headers)).status_code == 401


async def test_a_wrong_name_and_a_wrong_password_look_the_same(site: Site) -> None:
    _, email = await person(site, "people")
    answers = [await log_in(site, email, "wrong password!"), await log_in(site, "no@body.example")]
    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].json() == answers[1].json()


async def test_failed_logins_are_limited_by_account(site: Site) -> None:
    _, email = await person(site, "people")
    limit = site.services.settings.auth.login_attempts
    await forgotten(site)
    for _ in range(limit):
        assert (await log_in(site, email, "wrong password!")).status_code == 401
    refused = await log_in(site, email)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
    await forgotten(site)


async def forgotten(site: Site) -> None:
    async with site.services.database.session() as session:
        await session.execute(delete(LoginFailure))
        await session.commit()


async def test_failures_are_counted_by_address_too_and_by_all_replicas_alike(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    await migrate.upgrade(database)
    one, other = Failures(database, 2), Failures(database, 2)
    await one.count("account:a", "address:1")
    attempt = await other.count("account:b", "address:1")
    await one.count("account:a", "address:2")
    with pytest.raises(RateLimited):
        await one.count("account:c", "address:1")
    await one.forgive("account:b", attempt)
    await other.count("account:b", "address:1")
    with pytest.raises(RateLimited):
        await one.count("account:b", "address:1")
    await database.close()


async def test_who_was_right_starts_anew_and_old_failures_are_forgotten(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    await migrate.upgrade(database)
    failures = Failures(database, 1)
    for _ in range(5):
        await failures.forgive("account:a", await failures.count("account:a", "address:1"))
    await failures.count("account:a", "address:1")
    async with database.session() as session:
        await session.execute(update(LoginFailure).values(created_at=now() - timedelta(minutes=6)))
        await session.commit()
    await failures.count("account:a", "address:1")
    await database.close()


async def test_a_session_needs_its_csrf_token_to_change_things(site: Site) -> None:
    _, headers = await logged_in(site, "csrf")
    key = {"name": "k", "scopes": ["chat"]}
    for given in ("", "0" * 64, csrf_token("another")):
        wrong = {**headers, "x-csrf-token": given}
        assert (await site.client.post("/api/v1/keys", json=key, headers=wrong)).status_code == 403
    assert (await site.client.get("/api/v1/keys", headers={"cookie": headers["cookie"]})).status_code == 200
    assert (await site.client.post("/api/v1/keys", json=key, headers=headers)).status_code == 201


async def test_tokens_that_begin_alike_are_not_taken_for_each_other(site: Site) -> None:
    """The whole token is hashed: a cache by its beginning would let one in as the other."""
    _, headers = await logged_in(site, "alike")
    token = headers["cookie"].partition("=")[2]
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert (await site.client.get("/api/v1/session", headers=headers)).status_code == 200
    assert (await site.client.get("/api/v1/session", headers={"cookie": f"{COOKIE}={other}"})).status_code == 401
    key = await site.key("alike")
    for wrong in (key[:-1] + "!", key + "A", key[:20]):
        answer = await site.client.get("/api/v1/me", headers={"authorization": f"Bearer {wrong}"})
        assert answer.status_code == 401


async def test_roles(site: Site) -> None:
    _, viewer = await logged_in(site, "roles", "viewer")
    _, member = await logged_in(site, "roles", "member")
    chat = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    assert (await site.client.post("/v1/chat/completions", json=chat, headers=viewer)).status_code == 403
    assert (await site.client.post("/v1/chat/completions", json=chat, headers=member)).status_code == 200
    for headers in (viewer, member):
        assert (await site.client.get("/api/v1/users", headers=headers)).status_code == 403
        assert (await site.client.get("/api/v1/keys", headers=headers)).status_code == 403
    assert all(Scope.OPERATOR not in scopes for scopes in SCOPES.values())
    assert SCOPES[Role.SERVICE] == frozenset()


async def change(site: Site, who: UUID, headers: dict[str, str], **fields: Any) -> int:
    return (await site.client.patch(f"/api/v1/users/{who}", json=fields, headers=headers)).status_code


async def test_each_field_needs_its_own_right(site: Site) -> None:
    owner_id, owner = await logged_in(site, "fields", "owner")
    admin_id, admin = await logged_in(site, "fields", "admin")
    member_id, member = await logged_in(site, "fields", "member")
    assert await change(site, member_id, member, name="Grace") == 200
    assert await change(site, member_id, member, role="admin") == 403
    assert await change(site, member_id, member, name="G", operator=True) == 403
    assert await change(site, admin_id, member, name="No") == 403
    assert await change(site, admin_id, admin, role="owner") == 403
    assert await change(site, member_id, admin, role="owner") == 403
    assert await change(site, owner_id, admin, disabled=True) == 403
    assert await change(site, member_id, admin, operator=True) == 403
    assert await change(site, member_id, admin, labels=["secret-matter"]) == 403
    assert await change(site, member_id, admin, role="robot") == 400
    assert await change(site, member_id, admin, tenant_id=str(uuid4())) == 400
    assert await change(site, member_id, admin, role="viewer") == 200
    assert await change(site, admin_id, owner, role="owner") == 200
    assert await change(site, member_id, owner, operator=True) == 403


async def test_creating_somebody_stronger_than_oneself_is_refused(site: Site) -> None:
    _, admin = await logged_in(site, "creators", "admin")
    base = {"email": "new@creators.example", "name": "New", "password": PASSWORD}
    for more in ({"role": "owner"}, {"role": "member", "operator": True}, {"role": "member", "labels": ["m-1"]}):
        assert (await site.client.post("/api/v1/users", json=base | more, headers=admin)).status_code == 403
    made = await site.client.post("/api/v1/users", json=base | {"role": "member"}, headers=admin)
    assert made.status_code == 201 and "password" not in made.text.replace("has_password", "")
    again = await site.client.post("/api/v1/users", json=base | {"role": "member"}, headers=admin)
    assert again.status_code == 409
    short = await site.client.post("/api/v1/users", json=base | {"role": "member", "password": "short"}, headers=admin)
    assert short.status_code == 400


async def test_the_last_owner_stays(site: Site) -> None:
    first, owner = await logged_in(site, "last-owner", "owner")
    second, other = await logged_in(site, "last-owner", "owner")
    assert await change(site, first, other, disabled=True) == 200
    async with site.services.database.session() as session:
        tenant = (await service.get_tenant(session, "last-owner")).id
        with pytest.raises(Exception, match="at least one owner"):
            await users.change_user(session, tenant, second, {"role": "admin"}, None)
    assert (await site.client.get("/api/v1/session", headers=owner)).status_code == 401


async def test_people_of_other_tenants_do_not_exist(site: Site) -> None:
    stranger, _ = await logged_in(site, "tenant-a", "member")
    _, admin = await logged_in(site, "tenant-b", "owner")
    assert await change(site, stranger, admin, name="x") == 404
    listed = (await site.client.get("/api/v1/users", headers=admin)).json()["users"]
    assert str(stranger) not in [user["id"] for user in listed]


async def test_passwords(site: Site) -> None:
    who, mine = await logged_in(site, "passwords", "member")
    path = f"/api/v1/users/{who}/password"
    new = {"password": "another long one", "current": "wrong password!"}
    assert (await site.client.put(path, json=new, headers=mine)).status_code == 401
    right = await site.client.put(path, json=new | {"current": PASSWORD}, headers=mine)
    assert right.status_code == 200
    assert (await site.client.get("/api/v1/session", headers=mine)).status_code == 401  # every session has ended


async def test_what_a_disabled_person_made_ends_with_them(site: Site) -> None:
    who, admin = await logged_in(site, "leaving", "admin")
    _, owner = await logged_in(site, "leaving", "owner")
    made = await site.client.post("/api/v1/keys", json={"name": "theirs", "scopes": ["chat"]}, headers=admin)
    key = {"authorization": f"Bearer {made.json()['secret']}"}
    assert (await site.client.get("/api/v1/me", headers=key)).status_code == 200
    assert await change(site, who, owner, disabled=True) == 200
    assert (await site.client.get("/api/v1/me", headers=key)).status_code == 401
    assert (await site.client.get("/api/v1/session", headers=admin)).status_code == 401


async def test_another_replica_learns_of_a_revocation_within_a_second(site: Site) -> None:
    headers = await site.headers("replicas")
    secret = headers["authorization"].removeprefix("Bearer ")
    replica = Authenticator(site.services.database, site.services.settings.auth)
    principal = await replica.authenticate(secret)
    await site.client.delete(f"/api/v1/keys/{principal.key_id}", headers=headers)
    await asyncio.sleep(site.services.settings.auth.key_cache_seconds)
    with pytest.raises(Exception, match="revoked"):
        await replica.authenticate(secret)
