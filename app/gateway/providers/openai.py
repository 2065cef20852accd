"""Any server that speaks the OpenAI chat completions API, over httpx.

Source: OpenAI API reference, "Create chat completion" and "Streaming"; differences seen in vLLM are allowed for
(`choices: null`, integer error codes).
"""

import json
import os
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from app.config import TargetSettings
from app.errors import AppError, ConfigurationError, InvalidRequest, UpstreamError, UpstreamTimeout
from app.gateway.schemas import ChatRequest, Delta, Message, Usage

# The caller's own mistake: another target would refuse it as well.
REFUSALS = (400, 413, 422)


class OpenAIProvider:
    """One pooled client for one upstream, kept for the life of the process."""

    def __init__(self, target: TargetSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        if not target.base_url:
            raise ConfigurationError(f"target {target.name!r} needs a base_url")
        self._target = target
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        headers = {}
        if self._target.api_key_env:
            key = os.environ.get(self._target.api_key_env)
            if not key:
                raise ConfigurationError(
                    f"target {self._target.name!r}: {self._target.api_key_env} is not set"
                )
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx.AsyncClient(
            base_url=self._target.base_url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(
                self._target.timeout_seconds, connect=min(5.0, self._target.timeout_seconds)
            ),
            transport=self._transport,
        )

    async def close(self) -> None:
        if self._client:
            await self._client.aclose()

    def unhealthy(self) -> str | None:
        return None if self._client else "not started"

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        if self._client is None:
            raise UpstreamError(f"The target {self._target.name!r} is not started.")
        try:
            async with self._client.stream("POST", "chat/completions", json=self._body(request)) as response:
                if response.status_code != 200:
                    raise self._failure(response.status_code, await response.aread())
                async for delta in self._deltas(response):
                    yield delta
        except httpx.TimeoutException as error:
            raise UpstreamTimeout(f"The target {self._target.name!r} did not answer in time.") from error
        except httpx.HTTPError as error:
            raise UpstreamError(
                f"The target {self._target.name!r} failed: {type(error).__name__}."
            ) from error

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        sampling = request.sampling
        optional = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed,
        }
        return {
            "model": self._target.model or request.model,
            "messages": [_message(message) for message in request.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in optional.items() if value is not None},
            **request.upstream_only,
        }

    async def _deltas(self, response: httpx.Response) -> AsyncGenerator[Delta, None]:
        """Server-sent events to deltas. The finish is held back until usage came or the stream ended."""
        finish: str | None = None
        usage: Usage | None = None
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                break
            chunk = self._decode(data)
            usage = _usage(chunk.get("usage")) or usage
            for choice in chunk.get("choices") or []:
                finish = choice.get("finish_reason") or finish
                delta = choice.get("delta") or {}
                if delta.get("content") or delta.get("tool_calls"):
                    yield Delta(text=delta.get("content") or "", tool_calls=delta.get("tool_calls"))
        if finish is None:
            raise UpstreamError(f"The target {self._target.name!r} broke off its answer.")
        yield Delta(finish_reason=finish, usage=usage)

    def _decode(self, data: str) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise UpstreamError(
                f"The target {self._target.name!r} sent something that is not JSON."
            ) from error
        if not isinstance(chunk, dict) or chunk.get("error"):
            raise UpstreamError(f"The target {self._target.name!r} reported an error in its stream.")
        return chunk

    def _failure(self, status: int, body: bytes) -> AppError:
        if status in REFUSALS:
            return InvalidRequest(f"The target {self._target.name!r} refused the request: {_reason(body)}")
        return UpstreamError(f"The target {self._target.name!r} answered {status}.")


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.text, **message.extra}


def _usage(usage: dict[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        details.get("cached_tokens") or 0,
    )


def _reason(body: bytes) -> str:
    """The upstream's own words, shortened: they speak of the caller's request."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
