"""The OpenAI chat dialect inbound: request structs, response and chunk builders.

Source: OpenAI API reference, chat completions. Only the fields named here are read or passed on: what a tenant
could use to reach into an upstream (`chat_template`, `cache_salt`) is never forwarded.
"""

import time
import uuid
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from app.errors import InvalidRequest
from app.gateway.images import data_url
from app.gateway.schemas import ChatRequest, Delta, Message, Sampling, Segment, Usage

Json = dict[str, Any]


class FunctionCall(Struct):
    name: str
    arguments: str


class ToolCall(Struct, omit_defaults=False):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionDefinition(Struct, omit_defaults=True):
    name: str
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class Tool(Struct):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Struct):
    name: str


class ToolChoice(Struct):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(Struct, omit_defaults=True):
    name: str
    schema: Json
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class MessageIn(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Json] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(Struct):
    include_usage: bool = False


class Prediction(Struct):
    """A text that the answer may well repeat (OpenAI's predicted outputs): verified, never trusted."""

    type: Literal["content"]
    content: str | list[Json]


class UpstreamFields(Struct, omit_defaults=True):
    """What is passed to an upstream as it came, where it takes it (Provider.takes); else it is refused.

    From `min_p` on these are vLLM's, for targets whose `extra_fields` name them.
    """

    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None


class ChatCompletionRequest(UpstreamFields, kw_only=True):
    model: str
    messages: Annotated[list[MessageIn], Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


def to_request(body: ChatCompletionRequest, label: frozenset[str]) -> ChatRequest:
    """The request in our own nouns; every message carries the caller's access label."""
    return ChatRequest(
        model=body.model,
        messages=tuple(_message(message, label) for message in body.messages),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            stop=stops(body.stop),
            seed=body.seed,
        ),
        upstream_only=upstream_only(body),
        streamed=bool(body.stream),
    )


def stops(stop: str | list[str] | None) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def upstream_only(body: UpstreamFields) -> Json:
    """The fields that ask for something. Neutral values do not: clients such as LangChain send them by default."""
    given = {name: msgspec.to_builtins(getattr(body, name)) for name in UpstreamFields.__struct_fields__}
    asked = {name: value for name, value in given.items() if not _neutral(name, value)}
    if "tools" not in asked:
        asked = {name: value for name, value in asked.items() if name not in ("tool_choice", "parallel_tool_calls")}
    return asked


def _neutral(name: str, value: Any) -> bool:
    if name == "parallel_tool_calls":
        return value is not False
    if name == "response_format":
        return not value or value == {"type": "text"}
    if name in ("repetition_penalty", "n"):
        return value in (None, 1)
    return value in (None, False, 0, {}, [])


def _message(message: MessageIn, label: frozenset[str]) -> Message:
    given = {name: getattr(message, name) for name in ("name", "tool_calls", "tool_call_id")}
    extra: Json = {name: msgspec.to_builtins(value) for name, value in given.items() if value}
    if not isinstance(message.content, list):
        return Message(message.role, (Segment(message.content or "", label),), extra)
    parts = [_part(part) for part in message.content]
    if all(part["type"] == "text" for part in parts):
        return Message(message.role, tuple(Segment(part["text"], label) for part in parts), extra)
    return Message(message.role, (), {**extra, "content": parts})


def _part(part: Json) -> Json:
    """The part with the fields we know. Raises InvalidRequest for what no target takes."""
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        media_type, data = data_url(part)
        return {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}}
    raise InvalidRequest(f"Content parts of type {kind!r} are not supported.", param="messages")


class Completion:
    """Builds the response objects of one completion."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._model = model
        self._created = int(time.time())

    def _object(self, kind: str, choices: list[Json]) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def full(self, deltas: list[Delta], usage: Usage) -> Json:
        count = 1 + max((delta.index for delta in deltas), default=0)
        choices = [_choice(index, [delta for delta in deltas if delta.index == index]) for index in range(count)]
        return self._object("chat.completion", choices) | {"usage": usage_object(usage)}

    def first_chunk(self, index: int) -> Json:
        """What every choice begins with."""
        return self._chunk(Delta(index=index), {"role": "assistant", "content": ""})

    def chunk(self, delta: Delta) -> Json:
        content: Json = {}
        if delta.text:
            content["content"] = delta.text
        if delta.tool_calls:
            content["tool_calls"] = delta.tool_calls
        return self._chunk(delta, content)

    def usage_chunk(self, usage: Usage) -> Json:
        return self._object("chat.completion.chunk", []) | {"usage": usage_object(usage)}

    def _chunk(self, delta: Delta, content: Json) -> Json:
        choice = {"index": delta.index, "delta": content, "logprobs": delta.logprobs,
                  "finish_reason": delta.finish_reason}  # fmt: skip
        return self._object("chat.completion.chunk", [choice])


def _choice(index: int, deltas: list[Delta]) -> Json:
    message: Json = {"role": "assistant", "content": "".join(delta.text for delta in deltas)}
    if calls := merge_tool_calls(deltas):
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    finish_reason = next((delta.finish_reason for delta in reversed(deltas) if delta.finish_reason), None)
    return {"index": index, "message": message, "logprobs": merge_logprobs(deltas), "finish_reason": finish_reason}


def usage_object(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_draft_tokens,
            "rejected_prediction_tokens": usage.rejected_draft_tokens,
        },
    }


def merge_tool_calls(deltas: list[Delta]) -> list[Json]:
    """Streamed tool-call fragments, joined by index."""
    merged: dict[int, Json] = {}
    for fragment in (call for delta in deltas for call in delta.tool_calls or []):
        index = fragment.get("index", 0)
        call = merged.setdefault(index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        function = fragment.get("function") or {}
        call["id"] = fragment.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
    return [merged[index] for index in sorted(merged)]


def merge_logprobs(deltas: list[Delta]) -> Json | None:
    """The lists of all pieces, one after the other; None where there are none."""
    merged: Json = {}
    for logprobs in (delta.logprobs for delta in deltas if delta.logprobs):
        for name, values in logprobs.items():
            if isinstance(values, list):
                merged[name] = merged.get(name, []) + values
    return merged or None


def sse(data: Any) -> bytes:
    """One server-sent event in the OpenAI form: a data line and a blank line."""
    payload = data.encode() if isinstance(data, str) else msgspec.json.encode(data)
    return b"data: " + payload + b"\n\n"
