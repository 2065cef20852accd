"""From a bearer token or a session's cookie to a Principal, for every route that does not say it is public."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Guard
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import AuthSettings
from app.db import Database
from app.errors import Forbidden, Unauthenticated
from app.telemetry import tracer
from app.tenants.address import client_address, networks_of, within
from app.tenants.principal import Principal, Scope
from app.tenants.service import find_principal, hash_key, principal_within
from app.tenants.sessions import csrf_matches, find_session

PUBLIC = {"public": True}  # the `opt` of a handler that needs no key
COOKIE = "precedent_session"
CSRF_HEADER = "x-csrf-token"
TENANT_HEADER = "x-precedent-tenant"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MAX_CACHED = 10_000
Connection = ASGIConnection[Any, Any, Any, Any]
Find = Callable[[AsyncSession, str], Awaitable[Principal | None]]


class Authenticator:
    """Looks keys and sessions up and remembers them for at most a second, under the hash of the whole secret."""

    def __init__(self, database: Database, settings: AuthSettings) -> None:
        self._database = database
        self._ttl = settings.key_cache_seconds
        self._cache: OrderedDict[str, tuple[float, Principal]] = OrderedDict()
        self._asking: dict[str, asyncio.Future[Principal | None]] = {}
        self._generation = 0
        self.proxies = networks_of(settings.trusted_proxies)

    async def authenticate(self, secret: str, address: str = "") -> Principal:
        """Raises Unauthenticated for an unknown, revoked or expired key, Forbidden for one used from elsewhere."""
        principal = await self._find("key", secret, find_principal)
        if principal is None:
            raise Unauthenticated("The API key is unknown, revoked or expired.")
        if principal.networks and not within(address, networks_of(principal.networks)):
            raise Forbidden("This key may not be used from this address.")
        return principal

    async def session(self, token: str) -> Principal:
        """Raises Unauthenticated."""
        principal = await self._find("session", token, find_session)
        if principal is None:
            raise Unauthenticated("The session has ended; log in again.")
        return principal

    async def within(self, principal: Principal, tenant_id: str) -> Principal:
        """An operator at work in a tenant that they name: to administer it, not to read its documents or ask.

        Raises Forbidden for everybody else, and NotFound.
        """
        if tenant_id == str(principal.tenant_id):
            return principal
        principal.require(Scope.OPERATOR)
        async with self._database.session() as session:
            return await principal_within(session, principal, tenant_id)

    @property
    def generation(self) -> int:
        """Grows whenever rights have changed here."""
        return self._generation

    def forget(self) -> None:
        """Rights have changed here: nothing remembered is used any more. Other replicas follow within the second."""
        self._cache.clear()
        self._asking.clear()
        self._generation += 1

    async def _find(self, kind: str, secret: str, find: Find) -> Principal | None:
        name = f"{kind}:{hash_key(secret)}"
        hit = self._cache.get(name)
        if hit and hit[0] > time.monotonic():
            return hit[1]
        # Many requests of one caller ask once.
        asking = self._asking.get(name)
        if asking is None:
            asking = asyncio.ensure_future(self._look_up(name, secret, find))
            self._asking[name] = asking
            asking.add_done_callback(partial(self._asked, name))
        return await asyncio.shield(asking)

    def _asked(self, name: str, future: "asyncio.Future[Principal | None]") -> None:
        if self._asking.get(name) is future:
            del self._asking[name]

    async def _look_up(self, name: str, secret: str, find: Find) -> Principal | None:
        generation = self._generation
        async with self._database.session() as session:
            principal = await find(session, secret)
        self._cache.pop(name, None)
        if generation != self._generation:
            return principal  # rights changed meanwhile: not to be remembered
        if principal is None:
            return None
        self._cache[name] = (time.monotonic() + self._ttl, principal)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return principal


async def requires_key(connection: Connection, handler: BaseRouteHandler) -> None:
    """The application's guard: default deny. Leaves the Principal in the connection's state."""
    if handler.opt.get("public"):
        return
    with tracer.start_as_current_span("auth"):
        authenticator: Authenticator = connection.app.state.authenticator
        principal = await _who(connection, authenticator)
        # Event sources send no headers of their own.
        chosen = connection.headers.get(TENANT_HEADER) or connection.query_params.get("x-precedent-tenant")
        connection.state.principal = await authenticator.within(principal, chosen) if chosen else principal


def requires_scope(scope: Scope) -> Guard:
    """A guard that lets pass who has the scope."""

    def requires(connection: Connection, _handler: BaseRouteHandler) -> None:
        principal: Principal = connection.state.principal
        principal.require(scope)

    return requires


async def _who(connection: Connection, authenticator: Authenticator) -> Principal:
    """A key wins over a cookie: a browser sends cookies by itself, but nobody sends a key without meaning it."""
    secret = _key(connection)
    if secret is not None:
        return await authenticator.authenticate(secret, client_address(connection, authenticator.proxies))
    token = connection.cookies.get(COOKIE)
    if not token:
        raise Unauthenticated("No API key was given. Send it as 'Authorization: Bearer prc_…'.")
    principal = await authenticator.session(token)
    given = connection.headers.get(CSRF_HEADER, "")
    if connection.scope["method"] not in SAFE_METHODS and not csrf_matches(token, given):  # type: ignore[typeddict-item]
        raise Forbidden(f"A session sends {CSRF_HEADER} with requests that change something.")
    return principal


def _key(connection: Connection) -> str | None:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return connection.headers.get("x-api-key") or None


def provide_principal(request: Request[Any, Any, Any]) -> Principal:
    """Dependency: who calls."""
    principal: Principal = request.state.principal
    return principal
