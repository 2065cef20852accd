"""An OpenID provider for tests, on a real socket: discovery, keys, and a token endpoint that checks what it is sent.

As OpenID Connect Core 1.0 and RFC 7636 have it: a code works once, for its client, redirect and verifier alone.
"""

import base64
import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.gateway.upstream import Exchange, Wire

CLIENT = "precedent"


@dataclass
class OpenIdProvider:
    """`claims` go into the next ID token over the right ones; `key` signs it."""

    issuer: str = ""
    published: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1"}))
    key: RSAKey | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    codes: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def consent(self, url: str) -> dict[str, str]:
        """The person agrees: what the provider sends back through the browser."""
        query = parse_qs(urlsplit(url).query)
        assert query["response_type"] == ["code"] and query["client_id"] == [CLIENT]
        assert query["code_challenge_method"] == ["S256"] and "openid" in query["scope"][0]
        code = secrets.token_urlsafe()
        self.codes[code] = query
        return {"code": code, "state": query["state"][0], "iss": self.issuer}

    async def __call__(self, exchange: Exchange, wire: Wire) -> None:
        match exchange.path:
            case "/.well-known/openid-configuration":
                answer = {
                    "issuer": self.issuer,
                    "authorization_endpoint": f"{self.issuer}/authorize",
                    "token_endpoint": f"{self.issuer}/token",
                    "jwks_uri": f"{self.issuer}/keys",
                }
                await wire.answer(json.dumps(answer).encode(), content_type="application/json")
            case "/keys":
                keys = {"keys": [self.published.as_dict(private=False)]}
                await wire.answer(json.dumps(keys).encode(), content_type="application/json")
            case "/token":
                await self._token(parse_qs(exchange.body.decode()), wire)

    async def _token(self, form: dict[str, list[str]], wire: Wire) -> None:
        asked = self.codes.pop(form["code"][0], None)
        digest = hashlib.sha256(form["code_verifier"][0].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        right = asked and asked["code_challenge"] == [challenge] and asked["redirect_uri"] == form["redirect_uri"]
        if not asked or not right or form["client_id"] != [CLIENT]:
            return await wire.fail(400, {"error": "invalid_grant"})
        at = int(time.time())
        claims = {
            "iss": self.issuer, "aud": CLIENT, "sub": "s-1", "iat": at, "exp": at + 300, "nonce": asked["nonce"][0],
            "email": "ada@sso.example", "email_verified": True, "name": "Ada",
        } | self.claims  # fmt: skip
        key = self.key or self.published
        token = jwt.encode({"alg": self.algorithm, "kid": "1"}, claims, key, algorithms=[self.algorithm])
        await wire.answer(json.dumps({"id_token": token}).encode(), content_type="application/json")
