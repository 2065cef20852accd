"""The plumbing of providers that reach their upstream over HTTP: client, failures, lines and events."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

import httpx
import msgspec

from app.config import TargetSettings
from app.errors import AppError, ConfigurationError, InvalidRequest, RateLimited, UpstreamError, UpstreamTimeout
from app.gateway.capabilities import IMAGES, TOOL_FIELDS
from app.gateway.egress import Egress, check_base_url
from app.gateway.providers.base import ContentFiltered, ContextExceeded, Forecast, TransientError
from app.gateway.schemas import ChatRequest, Delta

Json = dict[str, Any]
# The caller's own mistake: another target would refuse it as well.
REFUSALS = (400, 413, 422)
TRANSIENT = (408, 409, 424, 500, 502, 503, 504, 529)
DEFAULT_RETRY_AFTER = 1.0
DRAIN_SECONDS = 0.2
MAX_LINE_BYTES = 16 * 2**20
MAX_ERROR_BYTES = 64 * 2**10


class HttpProvider:
    """One pooled client for one upstream. A subclass says where a request goes, its body, how to read the answer."""

    TAKES: ClassVar[frozenset[str]] = frozenset()
    DIALECT: ClassVar[str] = ""
    """The callers' dialect that the upstream speaks too, so that its bytes can be handed through."""
    READY_IS_200: ClassVar[bool] = False
    """Whether what is probed says 200 when it is well and nothing else; elsewhere any answer will do."""
    JSON_LINES: ClassVar[bool] = False
    """Whether streams are lines of JSON. Elsewhere a JSON body in place of a stream is an error, even under 200."""

    def __init__(self, target: TargetSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        check_base_url(target)
        self.target = target
        self.takes = self.TAKES | ({IMAGES} if target.images else frozenset())
        if not target.tools:
            self.takes -= TOOL_FIELDS
        self._transport = transport
        self._client: Egress | None = None
        self.secret = ""
        """The upstream's key where it is stored and not in the environment."""

    def headers(self, key: str) -> dict[str, str]:
        """Headers of every request; `key` is empty where the target needs none."""
        return {"authorization": f"Bearer {key}"} if key else {}

    def probe_path(self) -> str:
        """What is asked whether the upstream is well, relative to base_url."""
        return "models"

    def path(self, request: ChatRequest) -> str:
        """Relative to base_url."""
        raise NotImplementedError

    def body(self, request: ChatRequest) -> Json:
        raise NotImplementedError

    def plain_body(self, request: ChatRequest) -> Json:
        """The body of a request whose whole answer is handed through; only where there is a DIALECT."""
        raise NotImplementedError

    def relay_whole(self, body: bytes) -> Delta:
        """A whole answer, checked and with its usage read off."""
        raise NotImplementedError

    def relay(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """A stream's bytes, checked and with usage and finish read off in passing."""
        raise NotImplementedError

    def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """What a successful response's bytes say. Must end with a finish_reason or raise."""
        raise NotImplementedError

    async def start(self) -> None:
        """Raises ConfigurationError where the key's variable is not set."""
        variable = self.target.api_key_env
        key = os.environ.get(variable, "") if variable else self.secret
        if variable and not key:
            raise ConfigurationError(f"target {self.target.name!r}: {variable} is not set")
        self._client = Egress(self.target, self.headers(key), self._transport)

    async def close(self) -> None:
        if self._client:
            await self._client.aclose()

    def unhealthy(self) -> str | None:
        return None if self._client else "not started"

    async def count_tokens(self, request: ChatRequest) -> int | None:
        return None

    async def forecast(self, request: ChatRequest) -> Forecast | None:
        return None

    def queue_ms(self) -> float | None:
        return None

    def resident(self, model: str) -> Mapping[str, int]:
        return {}

    async def probe(self) -> None:
        """Any answer to a GET that is no server error says that the upstream is there."""
        if self._client is None:
            raise UpstreamError(f"The target {self.target.name!r} is not started.")
        try:
            status = await self._client.get(self.probe_path())
        except httpx.HTTPError as error:
            raise TransientError(f"The target {self.target.name!r} failed: {type(error).__name__}.") from error
        if status >= 500 or (self.READY_IS_200 and status != 200):
            raise TransientError(f"The target {self.target.name!r} answered {status}.")

    def relays(self, request: ChatRequest) -> bool:
        return bool(self.DIALECT) and request.relay == self.DIALECT

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        if self._client is None:
            raise UpstreamError(f"The target {self.target.name!r} is not started.")
        relay = self.relays(request)
        body = msgspec.json.encode(self.plain_body(request) if relay and not request.streamed else self.body(request))
        try:
            async with aclosing(await self._client.post(self.path(request), body)) as response:
                if response.status_code != 200:
                    raise self.failure(response.status_code, response.headers, await _beginning(response.aiter_bytes()))
                chunks = response.aiter_bytes()
                if not self.JSON_LINES and response.headers.get("content-type", "").startswith("application/json"):
                    if not relay or request.streamed:
                        raise self.reported(_decoded(await _beginning(chunks)))
                    yield self.relay_whole(await _whole(chunks))
                    return
                reader = self.relay if relay and request.streamed else self.deltas
                async for delta in reader(chunks, request):
                    yield delta
                await _drain(chunks)
        except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise TransientError(f"The target {self.target.name!r} could not be connected in time.") from error
        except httpx.TimeoutException as error:
            raise UpstreamTimeout(f"The target {self.target.name!r} did not answer in time.") from error
        except httpx.HTTPError as error:
            raise TransientError(f"The target {self.target.name!r} failed: {type(error).__name__}.") from error

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> AppError:
        """The error of a response other than 200."""
        said = _decoded(body)
        if status in REFUSALS:
            return self.refused(said)
        if status == 429 and code_of(said) != "insufficient_quota":
            wait = retry_after(headers)
            return self._limited(DEFAULT_RETRY_AFTER if wait is None else wait)
        if status in TRANSIENT:
            return TransientError(
                f"The target {self.target.name!r} answered {status}.", retry_after=retry_after(headers)
            )
        if 300 <= status < 400:
            return UpstreamError(f"The target {self.target.name!r} redirects, which is not followed.")
        return UpstreamError(f"The target {self.target.name!r} answered {status}.")

    def refused(self, said: Json) -> AppError:
        """The upstream found fault with the request; its own words, shortened, speak of the caller's request."""
        detail = f"The target {self.target.name!r} refused the request: {message_of(said)[:500]}"
        match code_of(said):
            case "content_filter":
                return ContentFiltered(detail)
            case "context_length_exceeded":
                return ContextExceeded(detail, param="messages")
        return InvalidRequest(detail)

    def reported(self, said: Json) -> AppError:
        """The error of an upstream that says so inside a 200."""
        code, kind = code_of(said), kind_of(said)
        if code in ("content_filter", "context_length_exceeded", "400") or kind == "invalid_request_error":
            return self.refused(said)
        if code in ("429", "rate_limit_exceeded") or kind == "rate_limit_error":
            return self._limited(DEFAULT_RETRY_AFTER)
        return TransientError(f"The target {self.target.name!r} reported an error in its answer.")

    def decode(self, data: bytes) -> Json:
        """One JSON object of the stream. Raises UpstreamError for anything else and for a reported error."""
        said = _decoded(data)
        if not said:
            raise UpstreamError(f"The target {self.target.name!r} sent something that is not a JSON object.")
        if said.get("error"):
            raise self.reported(said)
        return said

    def broken_off(self) -> TransientError:
        return TransientError(f"The target {self.target.name!r} broke off its answer.")

    def _limited(self, wait: float) -> RateLimited:
        return RateLimited(f"The target {self.target.name!r} is rate limited.", retry_after=wait)


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines ended by LF or CRLF and by nothing else: JSON may contain U+2028 and its kin as they are."""
    pending = b""
    async for chunk in chunks:
        *whole, pending = (pending + chunk).split(b"\n") if pending else chunk.split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
        if len(pending) > MAX_LINE_BYTES:
            raise UpstreamError("An upstream sent a line without end.")
    if pending:
        yield pending.rstrip(b"\r")


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event (HTML standard, "Server-sent events"); comments and names are skipped."""
    data: list[bytes] = []
    async for line in lines(chunks):
        if line.startswith(b"data:"):
            data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif not line and data:
            yield b"\n".join(data)
            data = []
    if data:
        yield b"\n".join(data)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: retry-after-ms, x-ms-retry-after-ms (Azure), or retry-after in seconds or as a date."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (wait := _number(headers.get(name))) is not None:
            return wait / 1000
    given = headers.get("retry-after")
    if (wait := _number(given)) is not None or not given:
        return wait
    try:
        return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def message_of(said: Json) -> str:
    error = said.get("error")
    if isinstance(error, dict):
        return str(error.get("message", ""))
    return str(error or said.get("message") or "no reason given")


def code_of(said: Json) -> str:
    """The error's code as text: vLLM sends integers, some servers none."""
    error = said.get("error")
    return str(error.get("code")) if isinstance(error, dict) else str(said.get("code"))


def kind_of(said: Json) -> str:
    error = said.get("error")
    return str(error.get("type") or "") if isinstance(error, dict) else str(said.get("error_type") or "")


def arguments_of(function: Json) -> Json:
    """The arguments of an earlier tool call, which came with the request, as an object. Raises InvalidRequest."""
    try:
        given = msgspec.json.decode(function["arguments"] or "{}")
    except msgspec.DecodeError:
        given = None
    if not isinstance(given, dict):
        raise InvalidRequest("A tool call's arguments are not a JSON object.", param="messages")
    return given


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _decoded(body: bytes) -> Json:
    """The JSON object in `body`; empty where there is none."""
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}


async def _beginning(chunks: AsyncIterator[bytes]) -> bytes:
    """The beginning of a body: an error is short, whatever an upstream sends."""
    body = b""
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_ERROR_BYTES:
            break
    return body


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    """Raises UpstreamError for a body without end."""
    pieces, size = [], 0
    async for chunk in chunks:
        pieces.append(chunk)
        size += len(chunk)
        if size > MAX_LINE_BYTES:
            raise UpstreamError("An upstream sent an answer without end.")
    return b"".join(pieces)


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read the little that follows the last event, so that the connection can serve the next request."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in chunks:
                pass
