"""What callers say in headers about where their requests should go."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.errors import InvalidRequest
from app.gateway.schemas import ChatRequest, RouteHints

MAX_SESSION = 200


def hints_of(headers: Mapping[str, str]) -> RouteHints:
    """From x-precedent-session, -region (a list with commas), -privileged and -batch (true or false), and -ttft-ms.

    Raises InvalidRequest: a wish that cannot be read is not taken for none.
    """
    regions = headers.get("x-precedent-region")
    named = frozenset(part.strip() for part in (regions or "").split(",") if part.strip())
    if regions is not None and not named:
        raise InvalidRequest("x-precedent-region names no region.", param="x-precedent-region")
    return RouteHints(
        session=headers.get("x-precedent-session", "")[:MAX_SESSION],
        regions=named,
        privileged=_flag(headers, "x-precedent-privileged"),
        batch=_flag(headers, "x-precedent-batch"),
        ttft_ms=_milliseconds(headers.get("x-precedent-ttft-ms")),
    )


def _flag(headers: Mapping[str, str], name: str) -> bool:
    said = headers.get(name, "false").strip().lower()
    if said not in ("true", "false", "1", "0"):
        raise InvalidRequest(f"{name} is true or false.", param=name)
    return said in ("true", "1")


def _milliseconds(given: str | None) -> float | None:
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise InvalidRequest("x-precedent-ttft-ms is a number of milliseconds.", param="x-precedent-ttft-ms")
    return value


def with_headers(request: ChatRequest, headers: Mapping[str, str], **more: Any) -> ChatRequest:
    """The request with what its headers say, and `more` of its fields. Raises InvalidRequest."""
    return replace(request, hints=hints_of(headers), cache_control=headers.get("cache-control", ""), **more)
