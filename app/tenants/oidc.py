"""Single sign-on: OpenID Connect, authorization code with PKCE.

Sources: OpenID Connect Core 1.0 (ID token validation, 3.1.3.7), RFC 7636 (PKCE), RFC 9207 (issuer in the response).
What must survive the round trip through the provider (state, nonce, verifier) travels in an encrypted cookie.
"""

import base64
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import OidcSettings
from app.db import Database, take_turn
from app.errors import Forbidden, NotFound, Unauthenticated, UpstreamError
from app.telemetry import logger
from app.tenants.models import Tenant, User
from app.tenants.sealing import Sealer
from app.tenants.service import get_tenant
from app.tenants.users import NewUser, create_user

log = logger(__name__)
CALLBACK = "/api/v1/session/oidc/callback"
# Signatures that a provider can make and we cannot; never `none` and never HMAC with a public key.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ROUND_TRIP_SECONDS = 600
TIMEOUT_SECONDS = 10.0
LEEWAY_SECONDS = 60


@dataclass(frozen=True)
class Departure:
    """Where the browser is sent, and what it must bring back."""

    url: str
    cookie: str


class SingleSignOn:
    """Logins through one provider. `transport` replaces the network in tests."""

    def __init__(self, settings: OidcSettings, public_url: str, sealer: Sealer, database: Database) -> None:
        self._settings = settings
        self._redirect = public_url.rstrip("/") + CALLBACK
        self._sealer = sealer
        self._database = database
        self._metadata: dict[str, Any] = {}

    @property
    def configured(self) -> bool:
        return bool(self._settings.issuer)

    async def depart(self) -> Departure:
        """Raises NotFound where no provider is configured."""
        metadata = await self._discover()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self._redirect,
            "scope": "openid email profile",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        cookie = self._sealer.seal(json.dumps({"state": state, "nonce": nonce, "verifier": verifier}))
        return Departure(f"{metadata['authorization_endpoint']}?{urlencode(query)}", cookie)

    async def arrive(self, cookie: str, state: str, code: str, issuer: str | None) -> User:
        """The person who came back. Raises Unauthenticated, and Forbidden for somebody unknown."""
        metadata = await self._discover()
        left = json.loads(self._sealer.open(cookie, ROUND_TRIP_SECONDS))
        if not secrets.compare_digest(left["state"].encode(), state.encode()):
            raise Unauthenticated("This login was not begun in this browser.")
        if issuer is not None and issuer != self._settings.issuer:
            raise Unauthenticated("The answer comes from another provider.")
        claims = await self._redeem(metadata, code, left["verifier"], left["nonce"])
        async with self._database.session() as session:
            return await self._user(session, claims)

    async def _discover(self) -> dict[str, Any]:
        if not self.configured:
            raise NotFound("Single sign-on is not configured.")
        if not self._metadata:
            found = await self._get(f"{self._settings.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self._settings.issuer:
                raise UpstreamError("The OpenID provider calls itself by another name than [oidc] issuer.")
            self._metadata = found
        return self._metadata

    async def _redeem(self, metadata: dict[str, Any], code: str, verifier: str, nonce: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect,
            "client_id": self._settings.client_id,
            "code_verifier": verifier,
        }
        if self._settings.client_secret_env:
            form["client_secret"] = os.environ.get(self._settings.client_secret_env, "")
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            try:
                response = await client.post(metadata["token_endpoint"], data=form)
            except httpx.HTTPError as error:
                raise UpstreamError("The OpenID provider does not answer.") from error
        if response.status_code != 200:
            log.warning("single sign-on refused", status=response.status_code)
            raise Unauthenticated("The OpenID provider did not accept the login.")
        return await self._claims(metadata, str(_object(response).get("id_token", "")), nonce)

    async def _claims(self, metadata: dict[str, Any], token: str, nonce: str) -> dict[str, Any]:
        """The ID token's claims: signed by the provider, for us, for this login, and not expired."""
        rules = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": self._settings.issuer},
            aud={"essential": True, "value": self._settings.client_id},
            exp={"essential": True},
            sub={"essential": True},
            nonce={"essential": True, "value": nonce},
        )
        try:
            keys = KeySet.import_key_set(await self._get(metadata["jwks_uri"]))  # type: ignore[arg-type]
            claims = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
            rules.validate(claims)
        except (JoseError, ValueError) as error:
            log.warning("single sign-on refused", reason=type(error).__name__)
            raise Unauthenticated("The OpenID provider's answer is not valid.") from error
        return dict(claims)

    async def _user(self, session: AsyncSession, claims: dict[str, Any]) -> User:
        """By subject; the first time by verified address, or as somebody new where that is allowed."""
        subject = f"{self._settings.issuer}#{claims['sub']}"
        user = await session.scalar(select(User).where(User.subject == subject))
        if user is None:
            user = await self._first_time(session, claims, subject)
        if user.disabled_at:
            raise Forbidden("This account is disabled.")
        return user

    async def _first_time(self, session: AsyncSession, claims: dict[str, Any], subject: str) -> User:
        email = str(claims.get("email", "")).lower()
        if not email or claims.get("email_verified") is not True:
            raise Forbidden("The OpenID provider has not verified an e-mail address.")
        tenant = await get_tenant(session, self._settings.tenant)
        await take_turn(session, Tenant, tenant.id)  # two windows of one browser both come for the first time
        known = await session.scalar(select(User).where(or_(User.subject == subject, User.email == email)))
        if known is not None:
            if known.subject == subject:
                return known
            if known.subject or known.tenant_id != tenant.id:
                raise Forbidden("This account belongs to somebody else's login.")
            known.subject = subject
            await session.commit()
            return known
        if not self._settings.create_users:
            raise Forbidden("Nobody here is known by this e-mail address.")
        name = str(claims.get("name") or email)[:100]
        new = NewUser(email, name, self._settings.default_role, subject=subject, extra={"how": "oidc"})
        return await create_user(session, tenant.id, new, None)

    async def _get(self, url: str) -> dict[str, Any]:
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client:
                response = await client.get(url)
                response.raise_for_status()
        except httpx.HTTPError as error:
            raise UpstreamError("The OpenID provider does not answer.") from error
        return _object(response)


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        found = response.json()
    except ValueError as error:
        raise UpstreamError("The OpenID provider answers nonsense.") from error
    if not isinstance(found, dict):
        raise UpstreamError("The OpenID provider answers nonsense.")
    return found
