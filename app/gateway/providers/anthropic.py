"""The Anthropic Messages API as an upstream.

Sources: https://platform.claude.com/docs/en/api/messages, …/build-with-claude/streaming (event order, `ping` anywhere,
unknown events to be ignored, `error` after a 200) and …/api/errors. Its `input_tokens` leave out what was read from or
written to the cache; ours count the whole prompt.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from app.errors import AppError, InvalidRequest, UpstreamError
from app.gateway.capabilities import RESPONSE_FORMAT, TOOL_FIELDS, TOP_K
from app.gateway.images import data_url
from app.gateway.providers.base import ContextExceeded
from app.gateway.providers.http import HttpProvider, Json, arguments_of, kind_of, message_of, sse_data
from app.gateway.providers.tee_anthropic import ANTHROPIC, MessageTee
from app.gateway.schemas import ChatRequest, Delta, Message, Usage

API_VERSION = "2023-06-01"
DEFAULT_MAX_TOKENS = 4096  # the API has no default of its own
FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
TOOL_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


class AnthropicProvider(HttpProvider):
    """`base_url` is https://api.anthropic.com. A caller's seed, which the API does not know, is not sent."""

    TAKES = TOOL_FIELDS | {TOP_K, RESPONSE_FORMAT}
    DIALECT = ANTHROPIC

    def headers(self, key: str) -> dict[str, str]:
        return {"anthropic-version": API_VERSION} | ({"x-api-key": key} if key else {})

    def probe_path(self) -> str:
        return "v1/models"

    def path(self, request: ChatRequest) -> str:
        return "v1/messages"

    def body(self, request: ChatRequest) -> Json:
        sampling, fields = request.sampling, request.upstream_only
        body = {
            "model": self.target.model or request.model,
            "max_tokens": sampling.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": turns(request.messages),
            "stream": True,
            "system": _system(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            TOP_K: sampling.top_k or None,
            "stop_sequences": list(sampling.stop) or None,
            "tools": [_tool(tool) for tool in fields.get("tools") or []] or None,
            "tool_choice": _tool_choice(fields),
            "output_config": _output_config(fields.get(RESPONSE_FORMAT)),
        }
        return {name: value for name, value in body.items() if value is not None}

    def plain_body(self, request: ChatRequest) -> Json:
        return self.body(request) | {"stream": False}

    def relay_whole(self, body: bytes) -> Delta:
        said = self.decode(body)
        if not isinstance(said.get("content"), list):
            raise UpstreamError(f"The target {self.target.name!r} sent a message without content.")
        reader = _Reader()
        reader.read({"type": "message_delta", "delta": said, "usage": said.get("usage")})
        text = "".join(str(block.get("text") or "") for block in said["content"] if isinstance(block, dict))
        return Delta(
            text=text, finish_reason=reader.finish, usage=reader.usage, stop_sequence=reader.stop_sequence, raw=body
        )

    async def relay(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        reader = _Reader()
        tee = MessageTee(self.decode, reader.read)
        async for chunk in chunks:
            if handed := tee.feed(chunk):
                yield Delta(raw=handed, usage=reader.usage)
            if tee.failure:
                raise tee.failure
            if tee.done:
                break
        if not tee.done or reader.finish is None:
            raise self.broken_off()
        yield Delta(finish_reason=reader.finish, usage=reader.usage, stop_sequence=reader.stop_sequence, raw=tee.last)

    def refused(self, said: Json) -> AppError:
        if message_of(said).startswith("prompt is too long"):
            return ContextExceeded(f"The target {self.target.name!r}: {message_of(said)[:500]}", param="messages")
        return super().refused(said)

    def reported(self, said: Json) -> AppError:
        if kind_of(said) == "request_too_large":
            return self.refused(said)
        return super().reported(said)

    async def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        reader = _Reader()
        async for data in sse_data(chunks):
            event = self.decode(data)
            for delta in reader.read(event):
                yield delta
            if event.get("type") == "message_stop" and reader.finish:
                yield Delta(finish_reason=reader.finish, usage=reader.usage, stop_sequence=reader.stop_sequence)
                return
        raise self.broken_off()


class _Reader:
    """Follows the events of one message. Thinking blocks were not asked for and are passed over."""

    def __init__(self) -> None:
        self.finish: str | None = None
        self.stop_sequence: str | None = None
        self.usage = Usage()
        self._tools: dict[int, int] = {}  # content block → number among the tool calls
        self._without_input: set[int] = set()

    def read(self, event: Json) -> list[Delta]:
        """What the event adds to the answer. The usage known so far goes with it."""
        match event.get("type"):
            case "message_start":
                self._count((event.get("message") or {}).get("usage") or {})
            case "content_block_start":
                return self._start(event.get("index", 0), event.get("content_block") or {})
            case "content_block_delta":
                return self._delta(event.get("index", 0), event.get("delta") or {})
            case "content_block_stop" if event.get("index") in self._without_input:
                return self._fragment(event["index"], {"function": {"arguments": "{}"}})
            case "message_delta":
                said = event.get("delta") or {}
                self.finish = FINISH.get(said.get("stop_reason") or "", "stop")
                self.stop_sequence = said.get("stop_sequence")
                self._count(event.get("usage") or {})
        return []

    def _start(self, index: int, block: Json) -> list[Delta]:
        if block.get("type") == "text" and block.get("text"):
            return [Delta(text=block["text"], usage=self.usage)]
        if block.get("type") != "tool_use":
            return []
        self._tools[index] = len(self._tools)
        self._without_input.add(index)
        function = {"name": block.get("name") or "", "arguments": ""}
        return self._fragment(index, {"id": block.get("id"), "type": "function", "function": function})

    def _delta(self, index: int, delta: Json) -> list[Delta]:
        if delta.get("type") == "text_delta" and delta.get("text"):
            return [Delta(text=delta["text"], usage=self.usage)]
        if delta.get("type") == "input_json_delta" and delta.get("partial_json") and index in self._tools:
            self._without_input.discard(index)
            return self._fragment(index, {"function": {"arguments": delta["partial_json"]}})
        return []

    def _fragment(self, index: int, fragment: Json) -> list[Delta]:
        return [Delta(tool_calls=[{"index": self._tools[index], **fragment}], usage=self.usage)]

    def _count(self, usage: Json) -> None:
        """Counts are cumulative; what an event leaves out stays as it was."""
        if usage.get("input_tokens") is not None:
            cached = usage.get("cache_read_input_tokens") or 0
            written = usage.get("cache_creation_input_tokens") or 0
            prompt = usage["input_tokens"] + cached + written
            self.usage = replace(self.usage, prompt_tokens=prompt, cached_tokens=cached)
        if usage.get("output_tokens") is not None:
            self.usage = replace(self.usage, completion_tokens=usage["output_tokens"])


def turns(messages: tuple[Message, ...]) -> list[Json]:
    """User and assistant turns in order; neighbours of one role are one turn, as tool results must be."""
    made: list[Json] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if made and made[-1]["role"] == role:
            made[-1]["content"] += blocks
        elif blocks:
            made.append({"role": role, "content": blocks})
    return made


def _system(messages: tuple[Message, ...]) -> list[Json] | None:
    texts = [message.text for message in messages if message.role in ("system", "developer")]
    return [{"type": "text", "text": text} for text in texts if text] or None


def _blocks(message: Message) -> list[Json]:
    """Content blocks of one message; the API refuses empty text."""
    if message.role == "tool":
        result: Json = {"type": "tool_result", "tool_use_id": message.extra.get("tool_call_id")}
        if content := _content(message):
            result["content"] = content
        if message.extra.get("is_error"):
            result["is_error"] = True
        return [result]
    return _content(message) + [_tool_use(call) for call in message.extra.get("tool_calls") or []]


def _content(message: Message) -> list[Json]:
    parts = message.extra.get("content")
    if parts is None:
        return [{"type": "text", "text": segment.text} for segment in message.segments if segment.text]
    return [_part(part) for part in parts]


def _part(part: Json) -> Json:
    if part.get("type") != "image_url":
        return {"type": "text", "text": part.get("text", "")}
    media_type, data = data_url(part)
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}


def _tool_use(call: Json) -> Json:
    function = call["function"]
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments_of(function)}


def _tool(tool: Json) -> Json:
    function = tool.get("function") or {}
    made = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
    if function.get("description"):
        made["description"] = function["description"]
    return made


def _tool_choice(fields: Json) -> Json | None:
    choice = fields.get("tool_choice")
    serial = fields.get("parallel_tool_calls") is False
    if choice is None and not serial:
        return None
    if isinstance(choice, dict):
        made: Json = {"type": "tool", "name": (choice.get("function") or {}).get("name")}
    else:
        made = {"type": TOOL_CHOICES.get(choice or "auto", "auto")}
    return made | ({"disable_parallel_tool_use": True} if serial and made["type"] != "none" else {})


def _output_config(response_format: Json | None) -> Json | None:
    """Only a schema can be asked for: the API has no bare JSON mode."""
    if not response_format or response_format.get("type") == "text":
        return None
    schema = (response_format.get("json_schema") or {}).get("schema")
    if not schema:
        raise InvalidRequest("This model takes response_format with a json_schema only.", param=RESPONSE_FORMAT)
    return {"format": {"type": "json_schema", "schema": schema}}
