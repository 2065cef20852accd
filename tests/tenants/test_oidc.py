"""Single sign-on against a provider that checks PKCE, and against providers' and strangers' bad answers."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from joserfc.jwk import RSAKey

from app.config import AuthSettings, OidcSettings, ServerSettings, Settings
from app.errors import ConfigurationError
from app.tenants import service
from app.tenants.auth import COOKIE
from app.tenants.controllers_session import TRIP_COOKIE
from app.tenants.sealing import Sealer, new_key
from app.tenants.users import NewUser, create_user
from tests.conftest import Site, fake_settings, open_site
from tests.gateway.upstream import upstream
from tests.tenants.provider import CLIENT, OpenIdProvider


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def provider() -> AsyncIterator[OpenIdProvider]:
    made = OpenIdProvider()
    async with upstream(made) as running:
        made.issuer = running.url
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def entrance(provider: OpenIdProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    settings = fake_settings(
        tmp_path_factory.mktemp("oidc"),
        server=ServerSettings(public_url="https://precedent.example"),
        auth=AuthSettings(encryption_key=new_key()),
        oidc=OidcSettings(issuer=provider.issuer, client_id=CLIENT, tenant="firm", create_users=True),
    )
    async with open_site(settings) as site:
        await site.key("firm")
        yield site


async def begin(site: Site) -> tuple[str, str]:
    """(where the browser is sent, its cookie)."""
    site.client.cookies.clear()
    response = await site.client.get("/api/v1/session/oidc", follow_redirects=False)
    cookie = response.cookies[TRIP_COOKIE]
    site.client.cookies.clear()
    return response.headers["location"], cookie


async def come_back(site: Site, cookie: str, query: dict[str, str]) -> httpx.Response:
    headers = {"cookie": f"{TRIP_COOKIE}={cookie}"}
    path = "/api/v1/session/oidc/callback"
    response = await site.client.get(path, params=query, headers=headers, follow_redirects=False)
    site.client.cookies.clear()
    return response


async def trip(site: Site, provider: OpenIdProvider, **claims: Any) -> httpx.Response:
    provider.claims = claims
    try:
        url, cookie = await begin(site)
        return await come_back(site, cookie, provider.consent(url))
    finally:
        provider.claims, provider.key = {}, None


async def test_somebody_new_comes_in_and_is_known_the_second_time(entrance: Site, provider: OpenIdProvider) -> None:
    users = []
    for name in ("Ada", "Ada Lovelace"):
        back = await trip(entrance, provider, name=name)
        assert back.status_code == 302 and back.headers["location"] == "/console"
        assert "secure" in back.headers["set-cookie"].lower()
        headers = {"cookie": f"{COOKIE}={back.cookies[COOKIE]}"}
        users.append((await entrance.client.get("/api/v1/session", headers=headers)).json())
    assert users[0]["user_id"] == users[1]["user_id"] and users[0]["role"] == "member"


async def test_a_known_address_is_linked_once(entrance: Site, provider: OpenIdProvider) -> None:
    async with entrance.services.database.session() as session:
        tenant = await service.get_tenant(session, "firm")
        await create_user(session, tenant.id, NewUser("known@sso.example", "K", "viewer"), None)
    assert (await trip(entrance, provider, sub="s-2", email="known@sso.example")).status_code == 302
    taken = await trip(entrance, provider, sub="s-3", email="known@sso.example")
    assert taken.status_code == 403


async def test_an_unverified_address_is_nobody(entrance: Site, provider: OpenIdProvider) -> None:
    assert (await trip(entrance, provider, sub="s-4", email="e@x.example", email_verified=False)).status_code == 403


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": "another-client"},
        {"nonce": "of another login"},
        {"exp": int(time.time()) - 3600},
        {"sub": None},
    ],
)
async def test_tokens_that_are_not_for_this_login_are_refused(
    entrance: Site, provider: OpenIdProvider, claims: dict[str, Any]
) -> None:
    assert (await trip(entrance, provider, **claims)).status_code == 401


async def test_a_token_signed_by_somebody_else_is_refused(entrance: Site, provider: OpenIdProvider) -> None:
    provider.key = RSAKey.generate_key(2048, {"kid": "1"})
    assert (await trip(entrance, provider)).status_code == 401


async def test_state_code_and_cookie_belong_together(entrance: Site, provider: OpenIdProvider) -> None:
    url, cookie = await begin(entrance)
    answer = provider.consent(url)
    _, others = await begin(entrance)
    assert (await come_back(entrance, others, answer)).status_code == 401
    assert (await come_back(entrance, cookie, answer | {"state": "x"})).status_code == 401
    assert (await come_back(entrance, cookie, answer | {"iss": "https://evil.example"})).status_code == 401
    assert (await come_back(entrance, "forged", answer)).status_code == 401
    assert (await come_back(entrance, cookie, {"error": "access_denied", "state": answer["state"]})).status_code == 401
    assert (await come_back(entrance, cookie, answer)).status_code == 302
    assert (await come_back(entrance, cookie, answer)).status_code == 401  # a code works once


async def test_without_a_provider_there_is_no_single_sign_on(site: Site) -> None:
    assert (await site.client.get("/api/v1/session/methods")).json() == {"password": True, "oidc": False}
    assert (await site.client.get("/api/v1/session/oidc")).status_code == 404


def test_settings_that_cannot_work_are_refused() -> None:
    for oidc in (OidcSettings(issuer="http://x"), OidcSettings(issuer="https://x")):
        with pytest.raises(ConfigurationError, match="oidc"):
            Settings(oidc=oidc).validate()


def test_secrets_are_sealed_and_keys_can_change() -> None:
    old, new = new_key(), new_key()
    sealed = Sealer(old).seal("sk-secret")
    assert "sk-secret" not in sealed
    both = Sealer(f"{new},{old}")
    assert both.open(sealed) == "sk-secret"
    assert Sealer(new).open(both.reseal(sealed)) == "sk-secret"
    with pytest.raises(ConfigurationError):
        Sealer(new).open(sealed)
    with pytest.raises(ConfigurationError):
        Sealer("not a key")
    with pytest.raises(Exception, match="ENCRYPTION_KEY"):
        Sealer("").seal("x")
