"""The OpenAI chat dialect inbound: request structs, response and chunk builders.

Source: OpenAI API reference, chat completions. Only the fields named here are read or passed on: what a tenant
could use to reach into an upstream (`chat_template`, `cache_salt`) is never forwarded.
"""

import time
import uuid
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from app.errors import InvalidRequest
from app.gateway.schemas import ChatRequest, Delta, Message, Sampling, Segment, Usage

Json = dict[str, Any]


class MessageIn(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Json] | None = None
    name: str | UnsetType = UNSET
    tool_calls: list[Json] | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


class StreamOptions(Struct):
    include_usage: bool = False


class UpstreamFields(Struct, omit_defaults=True):
    """What is passed to an upstream as it came; the in-process engine has none of it yet and says so."""

    tools: list[Json] | UnsetType = UNSET
    tool_choice: str | Json | UnsetType = UNSET
    response_format: Json | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET


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
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


def to_request(body: ChatCompletionRequest, label: frozenset[str]) -> ChatRequest:
    """The request in our own nouns; every message carries the caller's access label."""
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    # Neutral values ask for nothing: clients such as LangChain send them by default.
    upstream_only = {
        name: value
        for name in UpstreamFields.__struct_fields__
        if (value := getattr(body, name)) is not UNSET and value not in (None, False, 0, {}, [])
    }
    return ChatRequest(
        model=body.model,
        messages=tuple(_message(message, label) for message in body.messages),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            stop=tuple(stop),
            seed=body.seed,
        ),
        upstream_only=upstream_only,
    )


def _message(message: MessageIn, label: frozenset[str]) -> Message:
    extra: Json = {
        name: value
        for name in ("name", "tool_calls", "tool_call_id")
        if (value := getattr(message, name)) is not UNSET
    }
    if not isinstance(message.content, list):
        return Message(message.role, (Segment(message.content or "", label),), extra)
    parts = message.content
    if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
        return Message(message.role, tuple(Segment(part["text"], label) for part in parts), extra)
    # Image and other parts go to the upstream as they are.
    return Message(message.role, (), {**extra, "content": parts})


def refuse_for_engine(request: ChatRequest) -> None:
    """Raise InvalidRequest for what the in-process engine cannot do."""
    if request.upstream_only:
        name = sorted(request.upstream_only)[0]
        raise InvalidRequest(f"The model {request.model!r} does not support {name!r}.", param=name)
    for message in request.messages:
        if message.role not in ("system", "developer", "user", "assistant") or set(message.extra) - {"name"}:
            raise InvalidRequest(
                f"The model {request.model!r} takes text messages of the roles system, user and assistant only.",
                param="messages",
            )


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

    def full(self, deltas: list[Delta], finish_reason: str | None, usage: Usage) -> Json:
        message: Json = {"role": "assistant", "content": "".join(delta.text for delta in deltas)}
        if calls := merge_tool_calls(deltas):
            message["tool_calls"] = calls
            message["content"] = message["content"] or None
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._object("chat.completion", [choice]) | {"usage": usage_object(usage)}

    def first_chunk(self) -> Json:
        return self._chunk({"role": "assistant", "content": ""}, None)

    def chunk(self, delta: Delta) -> Json:
        content: Json = {}
        if delta.text:
            content["content"] = delta.text
        if delta.tool_calls:
            content["tool_calls"] = delta.tool_calls
        return self._chunk(content, delta.finish_reason)

    def usage_chunk(self, usage: Usage) -> Json:
        return self._object("chat.completion.chunk", []) | {"usage": usage_object(usage)}

    def _chunk(self, content: Json, finish_reason: str | None) -> Json:
        choice = {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish_reason}
        return self._object("chat.completion.chunk", [choice])


def usage_object(usage: Usage) -> Json:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def merge_tool_calls(deltas: list[Delta]) -> list[Json]:
    """Streamed tool-call fragments, joined by index."""
    merged: dict[int, Json] = {}
    for fragment in (call for delta in deltas for call in delta.tool_calls or []):
        index = fragment.get("index", 0)
        call = merged.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = fragment.get("function") or {}
        call["id"] = fragment.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""
    return [merged[index] for index in sorted(merged)]


def sse(data: Any) -> bytes:
    """One server-sent event in the OpenAI form: a data line and a blank line."""
    payload = data.encode() if isinstance(data, str) else msgspec.json.encode(data)
    return b"data: " + payload + b"\n\n"
