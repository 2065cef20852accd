"""The one door through which the gateway reaches upstreams.

Only operators name upstreams, in the configuration. What a name resolves to is checked when a connection is made, and
the connection goes to exactly the address that was checked: a name that changes its mind between check and connect
(DNS rebinding) leads nowhere. Redirects are not followed, and proxy variables of the environment are not read.

Sources: IANA special-purpose address registries (RFC 6890, RFC 8190); 6to4 RFC 3056, Teredo RFC 4380, NAT64 RFC 6052
and RFC 8215, shared address space RFC 6598.
"""

import asyncio
import ipaddress
import socket
import ssl
from urllib.parse import urlsplit

import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from opentelemetry.propagate import inject

from app.config import TargetSettings
from app.errors import ConfigurationError, UpstreamError
from app.gateway.aiohttp_transport import AiohttpTransport
from app.telemetry import logger, recording

log = logger(__name__)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_CONNECTIONS = 1_000
KEEPALIVE_SECONDS = 60.0
MAX_PATHS = 1_000  # of which parsed URLs are kept
# IPv6 ranges that carry an IPv4 address inside, or reach one through a translator.
TUNNELS = {
    "6to4": ipaddress.ip_network("2002::/16"),
    "Teredo": ipaddress.ip_network("2001::/32"),
    "NAT64": ipaddress.ip_network("64:ff9b::/96"),
    "local NAT64": ipaddress.ip_network("64:ff9b:1::/48"),
    "IPv4-compatible": ipaddress.ip_network("::/96"),
}
SHARED = ipaddress.ip_network("100.64.0.0/10")
SITE_LOCAL = ipaddress.ip_network("fec0::/10")


def forbidden(address: Address) -> str | None:
    """Why the gateway does not connect to the address unless an operator allowed it; None for public addresses."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return forbidden(address.ipv4_mapped)
        if address.is_loopback:
            return "loopback"
        for name, network in TUNNELS.items():
            if address in network:
                return name
        if address in SITE_LOCAL:
            return "site-local"
    elif address in SHARED:
        return "carrier-grade NAT"
    for kind in ("unspecified", "loopback", "link_local", "multicast", "reserved", "private"):
        if getattr(address, f"is_{kind}"):
            return kind.replace("_", "-")
    return None if address.is_global else "not globally reachable"


def never(address: Address) -> bool:
    """Addresses that no single server has: refused even where private ones are allowed."""
    return address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255"


def check_base_url(target: TargetSettings) -> str:
    """The target's base URL, ending in a slash. Raises ConfigurationError for what could never be allowed."""
    url = urlsplit(target.base_url)
    where = f"target {target.name!r}: base_url"
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigurationError(f"{where} must be an http or https URL")
    if url.username or url.password or url.query or url.fragment:
        raise ConfigurationError(f"{where} must have no credentials, query or fragment")
    if not target.allow_private:
        if url.scheme == "http":
            raise ConfigurationError(f"{where} is plain http; that needs allow_private = true")
        literal = _literal(url.hostname)
        if literal and (reason := forbidden(literal)):
            raise ConfigurationError(f"{where} is a {reason} address; that needs allow_private = true")
    return target.base_url.rstrip("/") + "/"


class Egress:
    """Requests to one target, over one pool for the life of the process. `transport` replaces the network in tests.

    Straight to the transport: what httpx.AsyncClient adds (cookies, redirects, authentication, the environment) is
    nothing that may happen here, and costs as much as the request itself.
    """

    def __init__(
        self, target: TargetSettings, headers: dict[str, str], transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._base = check_base_url(target)
        self._transport = transport or GuardedTransport(target)
        # Compression would hold back the small pieces of a stream.
        self._headers = {"accept": "*/*", "accept-encoding": "identity", **headers}
        silence = max(target.timeout_seconds, target.idle_seconds)
        connect = target.connect_seconds
        self._timeout = {"connect": connect, "read": silence, "write": silence, "pool": connect}
        self._urls: dict[str, httpx.URL] = {}

    async def post(self, path: str, body: bytes) -> httpx.Response:
        """The response once its head is there; close it. `path` is relative to the target's base_url."""
        return await self._send("POST", path, {**self._headers, "content-type": "application/json"}, body)

    async def exchange(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        """Status and whole answer, of a POST where there is a body, else of a GET."""
        headers = self._headers if body is None else {**self._headers, "content-type": "application/json"}
        response = await self._send("GET" if body is None else "POST", path, headers, body or b"")
        try:
            return response.status_code, await response.aread()
        finally:
            await response.aclose()

    async def get(self, path: str) -> int:
        """The status."""
        response = await self._send("GET", path, self._headers, b"")
        await response.aclose()
        return response.status_code

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _send(self, method: str, path: str, headers: dict[str, str], body: bytes) -> httpx.Response:
        url = self._urls.get(path)
        if url is None:
            if len(self._urls) >= MAX_PATHS:
                self._urls.clear()
            url = self._urls[path] = httpx.URL(self._base + path.lstrip("/"))
        if recording():
            headers = dict(headers)
            inject(headers)  # traceparent, by which the upstream's spans hang below ours
        extensions = {"timeout": self._timeout}
        request = httpx.Request(method, url, headers=headers, content=body, extensions=extensions)
        return await self._transport.handle_async_request(request)


class GuardedTransport(AiohttpTransport):
    """A pool whose connections go where `GuardedResolver` allows. TLS still verifies the host's name."""

    def __init__(self, target: TargetSettings) -> None:
        self._guard = GuardedResolver(target)
        super().__init__(self._guard, ssl.create_default_context(), MAX_CONNECTIONS, KEEPALIVE_SECONDS)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # aiohttp asks no resolver about an address.
        if literal := _literal(request.url.host):
            self._guard.check(request.url.host, [literal])
        return await super().handle_async_request(request)


class GuardedResolver(AbstractResolver):
    """Resolves and checks; the connection goes to one of exactly the addresses that were checked."""

    def __init__(self, target: TargetSettings) -> None:
        self._name = target.name
        self._allow_private = target.allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raises UpstreamError for addresses that are not allowed, OSError where there are none."""
        addresses = await resolve(host, port)
        self.check(host, addresses)
        return [_found(host, port, address) for address in addresses]

    async def close(self) -> None:
        """Nothing to close."""

    def check(self, host: str, addresses: list[Address]) -> None:
        """One bad address among good ones is enough: whoever answers the query chooses which is used."""
        for address in addresses:
            reason = forbidden(address)
            if reason and (not self._allow_private or never(address)):
                log.error("egress refused", target=self._name, host=host, address=str(address), reason=reason)
                raise UpstreamError(f"The target {self._name!r} leads to an address that is not allowed.")


def _found(host: str, port: int, address: Address) -> ResolveResult:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return ResolveResult(
        hostname=host, host=str(address), port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST
    )


async def resolve(host: str, port: int) -> list[Address]:
    """The host's addresses in the resolver's order. Raises OSError where it has none."""
    literal = _literal(host)
    if literal:
        return [literal]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise OSError(str(error)) from error
    addresses = (ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return list(dict.fromkeys(addresses))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
