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
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from app.config import TargetSettings
from app.errors import ConfigurationError, UpstreamError
from app.telemetry import logger

log = logger(__name__)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_CONNECTIONS = 1_000
KEEPALIVE = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=100, keepalive_expiry=60.0)
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


def egress_client(
    target: TargetSettings, headers: dict[str, str], transport: httpx.AsyncBaseTransport | None = None
) -> httpx.AsyncClient:
    """The pooled client of one target, kept for the life of the process. `transport` replaces the network in tests."""
    silence = max(target.timeout_seconds, target.idle_seconds)
    return httpx.AsyncClient(
        base_url=check_base_url(target),
        # Compression would hold back the small pieces of a stream.
        headers={"accept-encoding": "identity", **headers},
        timeout=httpx.Timeout(silence, connect=target.connect_seconds, pool=target.connect_seconds),
        transport=transport or GuardedTransport(target),
        follow_redirects=False,
        trust_env=False,
    )


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's own transport over a connection pool whose connections go through `GuardedNetwork`."""

    def __init__(self, target: TargetSettings) -> None:
        context = ssl.create_default_context()
        super().__init__(verify=context, limits=KEEPALIVE, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=KEEPALIVE.max_keepalive_connections,
            keepalive_expiry=KEEPALIVE.keepalive_expiry,
            network_backend=GuardedNetwork(target),
        )


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Resolves, checks, and connects to the address that was checked. TLS still verifies the host's name."""

    def __init__(self, target: TargetSettings) -> None:
        self._name = target.name
        self._allow_private = target.allow_private
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await resolve(host, port)
                self._check(host, addresses)
                return await self._connect(addresses, port, timeout, local_address, socket_options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error

    async def connect_unix_socket(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError("upstreams are reached over TCP only")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _check(self, host: str, addresses: list[Address]) -> None:
        """One bad address among good ones is enough: whoever answers the query chooses which is used."""
        for address in addresses:
            reason = forbidden(address)
            if reason and (not self._allow_private or never(address)):
                log.error("egress refused", target=self._name, host=host, address=str(address), reason=reason)
                raise UpstreamError(f"The target {self._name!r} leads to an address that is not allowed.")

    async def _connect(self, addresses: list[Address], port: int, *options: Any) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(str(address), port, *options)
            except httpcore.ConnectError as error:
                failure = error
        raise failure


async def resolve(host: str, port: int) -> list[Address]:
    """The host's addresses in the resolver's order. Raises httpcore.ConnectError where it has none."""
    literal = _literal(host)
    if literal:
        return [literal]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    addresses = (ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return list(dict.fromkeys(addresses))


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
