"""A provider of deterministic text, delays and failures: for tests, demonstrations and load without a model."""

import asyncio
from collections.abc import AsyncGenerator, Mapping

from app.config import TargetSettings
from app.errors import ConfigurationError, InvalidRequest, RateLimited
from app.gateway.capabilities import COMPLETION, OPENAI_FIELDS, RESPONSE_FORMAT, TOOL_FIELDS, TOP_K
from app.gateway.providers.base import Forecast, TransientError
from app.gateway.schemas import ChatRequest, Delta, Usage


class FakeProvider:
    """Echoes the last message's words, or `text`. Options: text, delay_ms (before each delta), status (fail with this
    HTTP status), after (deltas before the failure), queue_ms (how busy it says it is). Tools and formats are accepted
    and have no effect.
    """

    takes = TOOL_FIELDS | OPENAI_FIELDS | {COMPLETION, TOP_K, RESPONSE_FORMAT}

    def __init__(self, target: TargetSettings) -> None:
        try:
            options = dict(pair.strip().split("=", 1) for pair in target.options.split(",") if pair.strip())
            self._delay = float(options.pop("delay_ms", 0)) / 1000
            self._status = int(options.pop("status", 0))
            self._after = int(options.pop("after", 0))
            self._queue_ms = float(options.pop("queue_ms")) if "queue_ms" in options else None
        except ValueError as error:
            raise ConfigurationError(f"target {target.name!r}: bad options {target.options!r}") from error
        self._text = options.pop("text", "")
        if options:
            raise ConfigurationError(f"target {target.name!r}: unknown option {sorted(options)[0]!r}")

    def relays(self, request: ChatRequest) -> bool:
        return False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        words = (self._text or request.messages[-1].text).split()
        limit = request.sampling.max_tokens or len(words)
        prompt_tokens = sum(len(message.text.split()) for message in request.messages)
        for position, word in enumerate(words[:limit]):
            await asyncio.sleep(self._delay)
            self._maybe_fail(position)
            yield Delta(text=word if position == 0 else f" {word}")
        self._maybe_fail(limit)
        finish = "length" if limit < len(words) else "stop"
        yield Delta(finish_reason=finish, usage=Usage(prompt_tokens, min(limit, len(words))))

    def _maybe_fail(self, position: int) -> None:
        if self._status and position >= self._after:
            if self._status == 400:
                raise InvalidRequest("The fake provider was told to refuse this request.")
            if self._status == 429:
                raise RateLimited("The fake provider was told to be rate limited.", retry_after=30)
            raise TransientError(f"The fake provider was told to fail with {self._status}.")

    async def count_tokens(self, request: ChatRequest) -> int | None:
        return None

    async def forecast(self, request: ChatRequest) -> Forecast | None:
        return None

    def queue_ms(self) -> float | None:
        return self._queue_ms

    def resident(self, model: str) -> Mapping[str, int]:
        return {}

    async def probe(self) -> None:
        if self._status and not self._after:
            raise TransientError(f"The fake provider was told to fail with {self._status}.")

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to close."""

    def unhealthy(self) -> str | None:
        return None
