"""Any server that speaks the OpenAI API: chat completions and legacy completions.

Sources: OpenAI API reference, https://platform.openai.com/docs/api-reference/chat-streaming and …/completions; vLLM,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (extra parameters, `cache_salt`). Allowed for:
`choices: null`, integer error codes, a stream without `[DONE]`, an error or a whole JSON body inside a 200.
"""

import hashlib
import hmac
import os
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx

from app.config import TargetSettings
from app.errors import ConfigurationError, UpstreamError
from app.gateway.capabilities import COMPLETION, OPENAI_FIELDS, RESPONSE_FORMAT, TOOL_FIELDS, TOP_K
from app.gateway.providers.http import HttpProvider, Json, sse_data
from app.gateway.providers.tee import OPENAI, Tee, usage_of
from app.gateway.schemas import ChatRequest, Delta, Message, Usage

EXTRA_FIELDS = frozenset({TOP_K, "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids"})
FINISH = {"stop": "stop", "length": "length", "content_filter": "content_filter"}
FINISH |= {"tool_calls": "tool_calls", "function_call": "tool_calls"}
# Fields of a message that are OpenAI's; `extra` may hold more.
MESSAGE_FIELDS = ("name", "tool_calls", "tool_call_id", "content")


class OpenAIProvider(HttpProvider):
    """Extra fields are sent only where the target names them, `cache_salt` only where it names a secret."""

    TAKES = TOOL_FIELDS | OPENAI_FIELDS | {RESPONSE_FORMAT, COMPLETION}
    DIALECT = OPENAI

    def __init__(self, target: TargetSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(target, transport)
        extra = frozenset(target.extra_fields)
        if unknown := extra - EXTRA_FIELDS:
            raise ConfigurationError(f"target {target.name!r}: unknown extra field {min(unknown)!r}")
        self.takes |= extra
        # OpenAI's reasoning models refuse max_tokens; other servers know nothing else.
        official = urlsplit(target.base_url).hostname == "api.openai.com"
        self.limit_field = "max_completion_tokens" if official else "max_tokens"
        self._salt_secret = b""

    async def start(self) -> None:
        if variable := self.target.cache_salt_env:
            self._salt_secret = os.environ.get(variable, "").encode()
            if not self._salt_secret:
                raise ConfigurationError(f"target {self.target.name!r}: {variable} is not set")
        await super().start()

    def path(self, request: ChatRequest) -> str:
        return "completions" if request.raw else "chat/completions"

    def body(self, request: ChatRequest) -> Json:
        body = {
            "model": self.target.model or request.model,
            **self._prompt(request),
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling(request),
            **request.upstream_only,
        }
        if self._salt_secret:
            body["cache_salt"] = cache_salt(self._salt_secret, request.tenant)
        return body

    def plain_body(self, request: ChatRequest) -> Json:
        body = self.body(request) | {"stream": False}
        body.pop("stream_options", None)
        return body

    def relay_whole(self, body: bytes) -> Delta:
        said = self.decode(body)
        choices = said.get("choices")
        if not isinstance(choices, list) or not choices:
            raise UpstreamError(f"The target {self.target.name!r} sent an answer without choices.")
        finish = FINISH.get(choices[0].get("finish_reason") or "", "stop")
        text = "".join(str((choice.get("message") or {}).get("content") or "") for choice in choices)
        return Delta(text=text, finish_reason=finish, usage=usage_of(said.get("usage")), raw=body)

    async def relay(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        tee = Tee(self.decode, include_usage=request.include_usage)
        async for chunk in chunks:
            if handed := tee.feed(chunk):
                yield Delta(raw=handed)
            if tee.failure:
                raise tee.failure
            if tee.done:
                break
        # Some servers end without [DONE], or even without the blank line after the last event.
        rest = b"" if tee.done else tee.feed(b"\n\n")
        if tee.failure:
            raise tee.failure
        if tee.finish is None:
            raise self.broken_off()
        yield Delta(finish_reason=FINISH.get(tee.finish, "stop"), usage=tee.usage, raw=rest + tee.last)

    def _prompt(self, request: ChatRequest) -> Json:
        if request.raw:
            return {"prompt": request.messages[0].text}
        return {"messages": [message_object(message) for message in request.messages]}

    def _sampling(self, request: ChatRequest) -> Json:
        sampling = request.sampling
        fields = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            TOP_K: sampling.top_k or None,
            "max_tokens" if request.raw else self.limit_field: sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed,
        }
        return {name: value for name, value in fields.items() if value is not None}

    async def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """The finish is held back until usage came or the stream ended."""
        finish: str | None = None
        stop_sequence: str | None = None
        usage: Usage | None = None
        said_something = False
        async for data in sse_data(chunks):
            if data == b"[DONE]":
                finish = finish or ("stop" if said_something else None)
                break
            chunk = self.decode(data)
            usage = usage_of(chunk.get("usage")) or usage
            for choice in chunk.get("choices") or []:
                finish = choice.get("finish_reason") or finish
                if isinstance(choice.get("stop_reason"), str):  # vLLM: the stop string that was met
                    stop_sequence = choice["stop_reason"]
                if delta := delta_of(choice):
                    said_something = True
                    yield delta
        if finish is None:
            raise self.broken_off()
        yield Delta(finish_reason=FINISH.get(finish, "stop"), usage=usage, stop_sequence=stop_sequence)


def cache_salt(secret: bytes, tenant: str) -> str:
    """One unguessable salt per tenant: prefix cache hits, and their timing, stay within the tenant."""
    return hmac.new(secret, tenant.encode(), hashlib.sha256).hexdigest()


def message_object(message: Message) -> Json:
    """A message in OpenAI's shape."""
    extra = {name: message.extra[name] for name in MESSAGE_FIELDS if name in message.extra}
    text: str | None = message.text
    if not text and "tool_calls" in extra:
        text = None
    return {"role": message.role, "content": text, **extra}


def delta_of(choice: Json) -> Delta | None:
    """The piece of text or tool call in a streamed choice, of either endpoint."""
    delta: dict[str, Any] = choice.get("delta") or {}
    text = delta.get("content") or delta.get("refusal") or choice.get("text") or ""
    calls = delta.get("tool_calls")
    if not text and not calls:
        return None
    return Delta(text=text, tool_calls=calls or None, logprobs=choice.get("logprobs"))
