"""What every provider does, and how it fails.

InvalidRequest                the caller's own mistake: no target is tried again
├── ContentFiltered           the upstream's policy refused the prompt
└── ContextExceeded           the upstream counted more tokens than its model takes
RateLimited                   the upstream wants fewer requests; carries seconds to wait
UpstreamError                 this target is of no use (bad credentials, nonsense): the next one is tried
├── TransientError            may pass by itself: tried again here, then the next one
└── UpstreamTimeout           silent for too long: the next one is tried
"""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from app.errors import InvalidRequest, UpstreamError
from app.gateway.schemas import ChatRequest, Delta


class TransientError(UpstreamError):
    """A failure that may pass by itself. `retry_after`: seconds the upstream asked for."""

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class ContentFiltered(InvalidRequest):
    code = "content_filter"


class ContextExceeded(InvalidRequest):
    code = "context_length_exceeded"


@dataclass(frozen=True)
class Forecast:
    """What a target says of a prompt before it is sent. ttft_ms: what nine of ten requests stay below."""

    ttft_ms: float
    cached_tokens: int = 0


class Provider(Protocol):
    """One configured target at work."""

    @property
    def takes(self) -> frozenset[str]:
        """What it serves beyond text messages; see app/gateway/capabilities.py."""
        ...

    def relays(self, request: ChatRequest) -> bool:
        """Whether it hands its upstream's bytes through, see Delta.raw."""
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """The answer. Raises the errors above. The last delta carries a finish_reason; closing stops the upstream."""
        ...

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Exact prompt tokens; None where the provider cannot count."""
        ...

    async def forecast(self, request: ChatRequest) -> Forecast | None:
        """When its first token would come; None where the provider cannot tell."""
        ...

    def queue_ms(self) -> float | None:
        """When the first token of a short request would come; None where the provider cannot tell. Costs nothing."""
        ...

    def resident(self, model: str) -> Mapping[str, int]:
        """Beginnings of prompts whose keys and values it holds for requests of that model, with their tokens
        (prefixes.py); empty: unknown."""
        ...

    async def probe(self) -> None:
        """Ask the upstream whether it is well. Raises UpstreamError where it is not."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def unhealthy(self) -> str | None:
        """Why this target cannot serve now; None when nothing is known against it."""
        ...
