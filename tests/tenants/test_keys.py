"""Who may: default deny on every route, keys, scopes, labels, revocation."""

import asyncio
import re
from typing import Any

import pytest
from litestar import Litestar
from litestar.handlers import HTTPRouteHandler

from app.tenants.principal import Scope
from app.tenants.service import KEY_PREFIX
from tests.conftest import Site

# /metrics asks for its own token, see tests/app/test_metrics.py.
PUBLIC = {"/health/live", "/health/ready", "/metrics"}

# Where people without a session get one.
LOGIN = {
    ("POST", "/api/v1/session"),
    ("POST", "/api/v1/session/link"),
    ("GET", "/api/v1/session/methods"),
    ("GET", "/api/v1/session/oidc"),
    ("GET", "/api/v1/session/oidc/callback"),
}


def routes(app: Litestar) -> list[tuple[str, str]]:
    found = []
    for route in app.routes:
        for handler in getattr(route, "route_handlers", []):
            if isinstance(handler, HTTPRouteHandler):
                found += [(method, route.path) for method in handler.http_methods if method != "OPTIONS"]
    return found


async def test_every_route_denies_without_a_key(site: Site) -> None:
    checked = 0
    for method, path in routes(site.app):
        if (method, path) in LOGIN or path in PUBLIC or path.startswith(("/docs", "/console")):
            continue
        concrete = re.sub(r"{\w+:uuid}", "00000000-0000-0000-0000-000000000000", path)
        concrete = re.sub(r"{\w+:int}", "1", concrete)
        concrete = re.sub(r"/?{\w+:(path|str)}", "/x", concrete)
        assert "{" not in concrete, f"teach this test the parameter of {path}"
        response = await site.client.request(method, concrete)
        assert response.status_code == 401, f"{method} {path} answered {response.status_code}"
        assert response.headers["www-authenticate"] == "Bearer"
        checked += 1
    assert checked >= 12


@pytest.mark.parametrize("token", ["", "prc_wrong", "' OR 1=1 --", "x" * 10_000])
async def test_wrong_keys_are_401(site: Site, token: str) -> None:
    response = await site.client.get("/api/v1/me", headers={"authorization": f"Bearer {token}"})
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/problem+json"


async def test_me(site: Site) -> None:
    headers = await site.headers("me-tenant", labels="apollo", scopes=[Scope.CHAT])
    me = (await site.client.get("/api/v1/me", headers=headers)).json()
    assert me["tenant"] == "me-tenant"
    assert (me["scopes"], me["labels"]) == (["chat"], ["apollo"])


async def make_key(site: Site, headers: dict[str, str], **fields: Any) -> Any:
    body = {"name": "k", "scopes": [], **fields}
    return await site.client.post("/api/v1/keys", json=body, headers=headers)


async def test_a_key_lives_from_making_to_revoking(site: Site) -> None:
    headers = await site.headers("lifecycle")
    made = (await make_key(site, headers, scopes=["chat"])).json()
    assert made["secret"].startswith(KEY_PREFIX)
    assert len(made["secret"]) == len(KEY_PREFIX) + 43  # 256 bits in base64
    mine = {"authorization": f"Bearer {made['secret']}"}
    assert (await site.client.get("/api/v1/me", headers=mine)).status_code == 200
    listed = (await site.client.get("/api/v1/keys", headers=headers)).json()["keys"]
    assert made["secret"] not in str(listed)
    assert made["key"]["prefix"] in [key["prefix"] for key in listed]
    revoked = await site.client.delete(f"/api/v1/keys/{made['key']['id']}", headers=headers)
    assert revoked.json()["revoked_at"]
    await asyncio.sleep(1.05)
    assert (await site.client.get("/api/v1/me", headers=mine)).status_code == 401


async def test_an_expired_key_is_401(site: Site) -> None:
    made = await make_key(site, await site.headers("expiry"), expires_at="2020-01-01T00:00:00Z")
    mine = {"authorization": f"Bearer {made.json()['secret']}"}
    assert (await site.client.get("/api/v1/me", headers=mine)).status_code == 401


async def test_a_key_gives_no_more_than_it_has(site: Site) -> None:
    headers = await site.headers("chain", scopes=[Scope.KEYS], labels="a")
    assert (await make_key(site, headers, scopes=["chat"])).status_code == 403
    assert (await make_key(site, headers, labels=["b"])).status_code == 403
    assert (await make_key(site, headers, scopes=["keys"], labels=["a"])).status_code == 201


async def test_bad_key_requests(site: Site) -> None:
    headers = await site.headers("bad-keys", labels="x")
    assert (await make_key(site, headers, scopes=["everything"])).status_code == 400
    assert (await make_key(site, headers, labels=["../x"])).status_code == 400
    assert (await make_key(site, headers, role="admin")).status_code == 400
    assert (await make_key(site, headers, name="")).status_code == 400
    assert (await make_key(site, headers, name="twice")).status_code == 201
    assert (await make_key(site, headers, name="twice")).status_code == 409


async def test_another_tenants_key_is_404(site: Site) -> None:
    theirs = (await make_key(site, await site.headers("theirs"), name="t")).json()["key"]["id"]
    response = await site.client.delete(f"/api/v1/keys/{theirs}", headers=await site.headers("ours"))
    assert response.status_code == 404


async def test_unknown_addresses_speak_the_dialect_of_their_api(site: Site) -> None:
    assert (await site.client.get("/v1/nothing")).json()["error"]["code"] == "not_found"
    assert (await site.client.get("/api/v1/nothing")).json()["code"] == "not_found"
    assert (await site.client.put("/v1/models", headers=await site.headers())).status_code == 405
