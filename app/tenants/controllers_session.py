"""/api/v1/session: logging in and out in a browser."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, Request, Response, delete, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody
from litestar.response import Redirect
from msgspec import Meta, Struct

from app.config import Settings
from app.errors import ConfigurationError, Unauthenticated
from app.tenants.address import client_address
from app.tenants.auth import COOKIE, PUBLIC, Authenticator
from app.tenants.oidc import ROUND_TRIP_SECONDS, SingleSignOn
from app.tenants.principal import Principal
from app.tenants.sessions import Login, Logins, csrf_token

TRIP_COOKIE = "precedent_oidc"
CONSOLE = "/console"
Text = Annotated[str, Meta(min_length=1, max_length=256)]


class LoginRequest(Struct, forbid_unknown_fields=True):
    email: Text
    password: Text


class LinkRequest(Struct, forbid_unknown_fields=True):
    token: Text


class SessionView(Struct):
    """`csrf_token` goes into the header x-csrf-token of every request that changes something."""

    user_id: UUID
    tenant_id: UUID
    email: str
    name: str
    role: str
    csrf_token: str


class CurrentSession(Struct):
    """Who is logged in. `csrf_token` as in SessionView; null for a caller with a key."""

    user_id: UUID | None
    tenant_id: UUID
    tenant: str
    role: str
    scopes: list[str]
    labels: list[str]
    csrf_token: str | None


class SignOnView(Struct):
    """How people can log in here."""

    password: bool
    oidc: bool


class SessionController(Controller):
    path = "/api/v1/session"
    tags = ("session",)

    @get("/methods", opt=PUBLIC, summary="How people can log in")
    async def methods(self, sign_on: NamedDependency[SingleSignOn]) -> SignOnView:
        return SignOnView(password=True, oidc=sign_on.configured)

    @get(summary="Who is logged in")
    async def current(self, request: Request[Any, Any, Any], principal: NamedDependency[Principal]) -> CurrentSession:
        token = request.cookies.get(COOKIE) if principal.key_id is None else None
        return CurrentSession(
            principal.user_id,
            principal.tenant_id,
            principal.tenant,
            principal.role,
            sorted(principal.scopes),
            sorted(principal.labels),
            csrf_token(token) if token else None,
        )

    @post(status_code=200, opt=PUBLIC, summary="Log in with a password")
    async def log_in(
        self,
        data: JSONBody[LoginRequest],
        request: Request[Any, Any, Any],
        logins: NamedDependency[Logins],
        authenticator: NamedDependency[Authenticator],
        settings: NamedDependency[Settings],
    ) -> Response[SessionView]:
        """Sets the session's cookie. JSON alone is taken, which no form of another site can send."""
        login = await logins.with_password(data.email, data.password, client_address(request, authenticator.proxies))
        return _begun(login, settings)

    @post("/link", status_code=200, opt=PUBLIC, summary="Log in with the token of a one-time link")
    async def log_in_by_link(
        self,
        data: JSONBody[LinkRequest],
        request: Request[Any, Any, Any],
        logins: NamedDependency[Logins],
        authenticator: NamedDependency[Authenticator],
        settings: NamedDependency[Settings],
    ) -> Response[SessionView]:
        """The token travels behind the # of the link's address, which browsers send to nobody."""
        return _begun(await logins.with_link(data.token, client_address(request, authenticator.proxies)), settings)

    @delete(status_code=204, summary="Log out")
    async def log_out(
        self,
        request: Request[Any, Any, Any],
        logins: NamedDependency[Logins],
        authenticator: NamedDependency[Authenticator],
    ) -> Response[None]:
        if token := request.cookies.get(COOKIE):
            await logins.end(token)
            authenticator.forget()
        return Response(None, status_code=204, cookies=[Cookie(COOKIE, value="", max_age=0, httponly=True)])

    @get("/oidc", opt=PUBLIC, status_code=302, summary="Log in through the OpenID provider")
    async def depart(self, sign_on: NamedDependency[SingleSignOn], settings: NamedDependency[Settings]) -> Redirect:
        departure = await sign_on.depart()
        trip = _cookie(TRIP_COOKIE, departure.cookie, ROUND_TRIP_SECONDS, settings)
        return Redirect(departure.url, status_code=302, cookies=[trip])

    @get("/oidc/callback", opt=PUBLIC, status_code=302, summary="Back from the OpenID provider")
    async def arrive(
        self,
        request: Request[Any, Any, Any],
        logins: NamedDependency[Logins],
        sign_on: NamedDependency[SingleSignOn],
        settings: NamedDependency[Settings],
        code: FromQuery[str | None] = None,
        iss: FromQuery[str | None] = None,
    ) -> Redirect:
        left, state = request.cookies.get(TRIP_COOKIE), request.query_params.get("state")
        if not (left and state and code):
            raise Unauthenticated("This login was not begun in this browser, or the provider refused it.")
        try:
            user = await sign_on.arrive(left, state, code, iss)
        except ConfigurationError as error:
            raise Unauthenticated("This login took too long; begin again.") from error
        login = await logins.begin(user, "oidc")
        gone = Cookie(TRIP_COOKIE, value="", max_age=0, httponly=True)
        return Redirect(CONSOLE, status_code=302, cookies=[_session_cookie(login, settings), gone])


def _begun(login: Login, settings: Settings) -> Response[SessionView]:
    user = login.user
    view = SessionView(user.id, user.tenant_id, user.email, user.name, user.role, csrf_token(login.token))
    return Response(view, cookies=[_session_cookie(login, settings)])


def _session_cookie(login: Login, settings: Settings) -> Cookie:
    return _cookie(COOKIE, login.token, int(settings.auth.session_hours * 3600), settings)


def _cookie(name: str, value: str, seconds: int, settings: Settings) -> Cookie:
    """Scripts cannot read it, other sites' requests do not carry it."""
    secure = settings.server.public_url.startswith("https://")
    return Cookie(name, value=value, max_age=seconds, httponly=True, samesite="lax", secure=secure)
