"""The Anthropic Messages dialect outbound: a whole message, and the events of a stream in their exact order.

Source: https://platform.claude.com/docs/en/build-with-claude/streaming: message_start, then for each content block
content_block_start, its deltas and content_block_stop, then message_delta with the stop reason and message_stop.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

import msgspec

from app.errors import UpstreamError
from app.gateway.schemas import Delta, Usage
from app.gateway.wire import merge_tool_calls

Json = dict[str, Any]
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def event(body: Json) -> bytes:
    """One server-sent event, named after its type."""
    name: str = body["type"]
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"


def stop_reason(finish_reason: str | None, stop_sequence: str | None) -> str:
    if finish_reason == "stop" and stop_sequence is not None:
        return "stop_sequence"
    return STOP_REASONS.get(finish_reason or "", "end_turn")


def usage_object(usage: Usage) -> Json:
    """`input_tokens` are those that no cache held."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def whole(model: str, deltas: list[Delta], finish_reason: str | None, stop_sequence: str | None, usage: Usage) -> Json:
    """The message of a plain request."""
    text = "".join(delta.text for delta in deltas)
    content: list[Json] = [{"type": "text", "text": text}] if text else []
    content += [_tool_use(call) for call in merge_tool_calls(deltas)]
    return _frame(model, usage) | {
        "content": content,
        "stop_reason": stop_reason(finish_reason, stop_sequence),
        "stop_sequence": stop_sequence,
    }


def _frame(model: str, usage: Usage) -> Json:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage_object(usage),
    }


def _tool_use(call: Json) -> Json:
    function = call["function"]
    try:
        given = msgspec.json.decode(function["arguments"] or "{}")
    except msgspec.DecodeError as error:
        raise UpstreamError("The model called a tool with arguments that are not JSON.") from error
    return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": given}


def model_page(names: list[str], created: int) -> Json:
    """All models on one page (https://platform.claude.com/docs/en/api/models/list)."""
    at = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    data = [{"type": "model", "id": name, "display_name": name, "created_at": at} for name in names]
    ends = {"first_id": names[0], "last_id": names[-1]} if names else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": False, **ends}


class MessageEvents:
    """Turns deltas into events. One content block is open at a time: text, or one tool call."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._blocks = 0
        self._open: str | int | None = None  # "text", or the number of a tool call

    def start(self, usage: Usage) -> list[Json]:
        """`usage` holds what is known of the prompt by now; message_delta repeats the counts when they are final."""
        return [{"type": "message_start", "message": _frame(self._model, usage)}]

    def delta(self, delta: Delta) -> list[Json]:
        events: list[Json] = []
        if delta.text:
            if self._open != "text":
                events += self._begin("text", {"type": "text", "text": ""})
            events.append(self._add({"type": "text_delta", "text": delta.text}))
        for fragment in delta.tool_calls or []:
            events += self._tool(fragment)
        return events

    def end(self, finish_reason: str | None, stop_sequence: str | None, usage: Usage) -> list[Json]:
        said = {"stop_reason": stop_reason(finish_reason, stop_sequence), "stop_sequence": stop_sequence}
        return [
            *self._finish(),
            {"type": "message_delta", "delta": said, "usage": usage_object(usage)},
            {"type": "message_stop"},
        ]

    def _tool(self, fragment: Json) -> list[Json]:
        function = fragment.get("function") or {}
        index = fragment.get("index", 0)
        events: list[Json] = []
        if self._open != index or isinstance(self._open, str):
            call_id = fragment.get("id")
            if not call_id:
                raise UpstreamError("The target mixed the fragments of several tool calls.")
            block = {"type": "tool_use", "id": call_id, "name": function.get("name") or "", "input": {}}
            events += self._begin(index, block)
        if arguments := function.get("arguments"):
            events.append(self._add({"type": "input_json_delta", "partial_json": arguments}))
        return events

    def _begin(self, what: str | int, block: Json) -> list[Json]:
        events = self._finish()
        self._open = what
        self._blocks += 1
        return [*events, {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}]

    def _add(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._blocks - 1, "delta": delta}

    def _finish(self) -> list[Json]:
        if self._open is None:
            return []
        self._open = None
        return [{"type": "content_block_stop", "index": self._blocks - 1}]
