"""Where a request comes from, and whether a key may be used from there."""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from litestar.connection import ASGIConnection

from app.errors import InvalidRequest

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=10_000)
def networks_of(given: tuple[str, ...]) -> tuple[Network, ...]:
    """Raises InvalidRequest for what is no network."""
    try:
        return tuple(ipaddress.ip_network(text, strict=False) for text in given)
    except ValueError as error:
        raise InvalidRequest(f"Not a network in CIDR notation: {error}.", param="networks") from error


def within(address: str, networks: Iterable[Network]) -> bool:
    """False also for what is no address, such as a test client's name."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def client_address(connection: ASGIConnection[Any, Any, Any, Any], proxies: tuple[Network, ...]) -> str:
    """The peer's address; behind trusted proxies the last address of X-Forwarded-For that is not one of theirs.

    Only what a trusted proxy appended counts: a caller can write what it likes to the left of that.
    """
    address = connection.client.host if connection.client else ""
    hops = [hop.strip() for hop in connection.headers.get("x-forwarded-for", "").split(",") if hop.strip()]
    while hops and within(address, proxies):
        address = hops.pop()
    return address
