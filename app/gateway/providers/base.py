"""What every provider does, and how it fails.

InvalidRequest                the caller's own mistake: no target is tried again
├── ContentFiltered           the upstream's policy refused the prompt
└── ContextExceeded           the upstream counted more tokens than its model takes
RateLimited                   the upstream wants fewer requests; carries seconds to wait
UpstreamError                 this target is of no use (bad credentials, nonsense): the next one is tried
├── TransientError            may pass by itself: tried again here, then the next one
└── UpstreamTimeout           silent for too long: the next one is tried
"""

from collections.abc import AsyncGenerator
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


class Provider(Protocol):
    """One configured target at work."""

    @property
    def takes(self) -> frozenset[str]:
        """What it serves beyond text messages; see app/gateway/capabilities.py."""
        ...

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """The answer. Raises the errors above. The last delta carries a finish_reason; closing stops the upstream."""
        ...

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Exact prompt tokens; None where the provider cannot count."""
        ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def unhealthy(self) -> str | None:
        """Why this target cannot serve now; None when nothing is known against it."""
        ...
