"""What keys are bound to: models, networks, rotation with grace."""

import asyncio
from typing import Any

import httpx
import pytest
from litestar.connection import ASGIConnection

from app.errors import InvalidRequest
from app.tenants.address import client_address, networks_of, within
from tests.conftest import Site

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}


async def key(site: Site, headers: dict[str, str], **more: Any) -> httpx.Response:
    body = {"name": f"k{id(more)}{more}"[:90], "scopes": ["chat", "keys"], **more}
    return await site.client.post("/api/v1/keys", json=body, headers=headers)


def bearer(response: httpx.Response) -> dict[str, str]:
    assert response.status_code == 201, response.text
    return {"authorization": f"Bearer {response.json()['secret']}"}


async def test_a_list_of_models(site: Site) -> None:
    admin = await site.headers("listed")
    bound = bearer(await key(site, admin, models=["echo"]))
    assert (await site.client.post("/v1/chat/completions", json=CHAT, headers=bound)).status_code == 200
    other = await site.client.post("/v1/chat/completions", json=CHAT | {"model": "resilient"}, headers=bound)
    assert other.status_code == 404 and other.json()["error"]["code"] == "model_not_found"
    listed = (await site.client.get("/v1/models", headers=bound)).json()["data"]
    assert [model["id"] for model in listed] == ["echo"]
    assert (await site.client.get("/v1/models/resilient", headers=bound)).status_code == 404
    vectors = {"model": site.services.embeddings.name, "input": "x"}
    assert (await site.client.post("/v1/embeddings", json=vectors, headers=bound)).status_code == 404
    assert (await key(site, bound)).status_code == 403  # a key without a list would reach further
    assert (await key(site, bound, models=["resilient"])).status_code == 403
    assert (await key(site, bound, models=["echo"])).status_code == 201


async def test_networks(site: Site) -> None:
    admin = await site.headers("networks")
    elsewhere = bearer(await key(site, admin, networks=["203.0.113.0/24"]))
    assert (await site.client.get("/api/v1/me", headers=elsewhere)).status_code == 403
    forged = {**elsewhere, "x-forwarded-for": "203.0.113.5"}
    assert (await site.client.get("/api/v1/me", headers=forged)).status_code == 403  # nobody trusts this peer
    assert (await key(site, admin, networks=["somewhere"])).status_code == 400


def test_forwarded_addresses_count_from_the_trusted_end() -> None:
    def seen(peer: str, forwarded: str, *proxies: str) -> str:
        scope: Any = {"type": "http", "client": (peer, 1), "headers": [(b"x-forwarded-for", forwarded.encode())]}
        return client_address(ASGIConnection(scope), networks_of(proxies))

    assert seen("198.51.100.1", "10.0.0.1") == "198.51.100.1"
    assert seen("10.0.0.1", "1.2.3.4, 198.51.100.7", "10.0.0.0/8") == "198.51.100.7"
    assert seen("10.0.0.1", "6.6.6.6, 198.51.100.7, 10.0.0.9", "10.0.0.0/8") == "198.51.100.7"
    assert seen("10.0.0.1", "", "10.0.0.0/8") == "10.0.0.1"


def test_addresses_and_networks() -> None:
    networks = networks_of(("192.0.2.0/24", "2001:db8::/32"))
    assert within("192.0.2.7", networks) and within("::ffff:192.0.2.7", networks) and within("2001:db8::1", networks)
    assert not within("192.0.3.7", networks) and not within("testclient", networks) and not within("", networks)
    with pytest.raises(InvalidRequest):
        networks_of(("300.0.0.0/8",))


async def test_rotation_with_grace(site: Site) -> None:
    admin = await site.headers("rotation")
    made = await key(site, admin)
    path, old = f"/api/v1/keys/{made.json()['key']['id']}", bearer(made)
    rotated = await site.client.post(f"{path}/rotate", json={"grace_seconds": 1}, headers=admin)
    new = {"authorization": f"Bearer {rotated.json()['secret']}"}
    assert rotated.json()["key"]["id"] == made.json()["key"]["id"]
    for headers in (old, new):
        assert (await site.client.get("/api/v1/me", headers=headers)).status_code == 200
    async with asyncio.timeout(10):
        while (await site.client.get("/api/v1/me", headers=old)).status_code == 200:
            await asyncio.sleep(0.1)
    assert (await site.client.get("/api/v1/me", headers=new)).status_code == 200
    await site.client.delete(path, headers=admin)
    assert (await site.client.get("/api/v1/me", headers=new)).status_code == 401
    assert (await site.client.post(f"{path}/rotate", json={}, headers=admin)).status_code == 409


async def test_revocation_ends_a_grace_too(site: Site) -> None:
    admin = await site.headers("rotation")
    made = await key(site, admin, labels=[])
    path = f"/api/v1/keys/{made.json()['key']['id']}"
    await site.client.post(f"{path}/rotate", json={"grace_seconds": 3600}, headers=admin)
    assert (await site.client.get("/api/v1/me", headers=bearer(made))).status_code == 200
    await site.client.delete(path, headers=admin)
    assert (await site.client.get("/api/v1/me", headers=bearer(made))).status_code == 401


async def test_rotating_does_not_hand_over_a_stronger_key(site: Site) -> None:
    admin = await site.headers("rotation")
    strong = await key(site, admin, scopes=["chat", "documents:read"])
    weak = bearer(await key(site, admin, scopes=["keys"]))
    path = f"/api/v1/keys/{strong.json()['key']['id']}/rotate"
    assert (await site.client.post(path, json={}, headers=weak)).status_code == 403
