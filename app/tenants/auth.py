"""From a bearer token to a Principal, for every route that does not say it is public."""

import time
from collections import OrderedDict
from typing import Any

from litestar import Request
from litestar.connection import ASGIConnection
from litestar.handlers.base import BaseRouteHandler
from litestar.types import Guard

from app.db import Database
from app.errors import Unauthenticated
from app.telemetry import tracer
from app.tenants.principal import Principal, Scope
from app.tenants.service import find_principal, hash_key

PUBLIC = {"public": True}  # the `opt` of a handler that needs no key
MAX_CACHED_KEYS = 10_000


class Authenticator:
    """Looks keys up and remembers them for at most a second, under the hash of the whole key."""

    def __init__(self, database: Database, cache_seconds: float) -> None:
        self._database = database
        self._ttl = cache_seconds
        self._cache: OrderedDict[str, tuple[float, Principal]] = OrderedDict()

    async def authenticate(self, secret: str) -> Principal:
        """Raises Unauthenticated for an unknown, revoked or expired key."""
        digest = hash_key(secret)
        hit = self._cache.get(digest)
        if hit and hit[0] > time.monotonic():
            return hit[1]
        async with self._database.session() as session:
            principal = await find_principal(session, secret)
        if principal is None:
            self._cache.pop(digest, None)
            raise Unauthenticated("The API key is unknown, revoked or expired.")
        self._cache[digest] = (time.monotonic() + self._ttl, principal)
        self._cache.move_to_end(digest)
        if len(self._cache) > MAX_CACHED_KEYS:
            self._cache.popitem(last=False)
        return principal


async def requires_key(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """The application's guard: default deny. Leaves the Principal in the connection's state."""
    if handler.opt.get("public"):
        return
    with tracer.start_as_current_span("auth"):
        authenticator: Authenticator = connection.app.state.authenticator
        connection.state.principal = await authenticator.authenticate(_bearer(connection))


def requires_scope(scope: Scope) -> Guard:
    """A guard that lets pass keys with the scope."""

    def requires(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        principal: Principal = connection.state.principal
        principal.require(scope)

    return requires


def _bearer(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    if key := connection.headers.get("x-api-key"):
        return key
    raise Unauthenticated("No API key was given. Send it as 'Authorization: Bearer prc_…'.")


def provide_principal(request: Request[Any, Any, Any]) -> Principal:
    """Dependency: who calls."""
    principal: Principal = request.state.principal
    return principal
