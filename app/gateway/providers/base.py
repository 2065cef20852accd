"""What every provider does."""

from collections.abc import AsyncGenerator
from typing import Protocol

from app.gateway.schemas import ChatRequest, Delta


class Provider(Protocol):
    """One configured target at work.

    `stream` raises UpstreamError (another target may be tried), or InvalidRequest (it may not: the request itself is
    wrong). The last delta carries a finish_reason. Closing the generator stops the work upstream.
    """

    def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def unhealthy(self) -> str | None:
        """Why this target cannot serve now; None when nothing is known against it."""
        ...
