"""The Anthropic Messages dialect inbound: request structs, and their translation into our own nouns.

Source: https://platform.claude.com/docs/en/api/messages. Thinking, server-side tools, documents and citations are
refused where a request asks for them; hints such as `cache_control`, `metadata` and `service_tier` are not needed here.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from app.errors import InvalidRequest
from app.gateway.images import data_url
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment

Json = dict[str, Any]
TOOL_CHOICES = {"any": "required", "none": "none"}


class TextBlock(Struct, tag="text"):
    text: str


class Base64Source(Struct, tag="base64"):
    """The only source of images: no caller makes an upstream fetch an address."""

    media_type: str
    data: str


class ImageBlock(Struct, tag="image"):
    source: Base64Source


class ToolUseBlock(Struct, tag="tool_use"):
    id: str
    name: str
    input: Json


class ToolResultBlock(Struct, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock | ImageBlock] | None = None
    is_error: bool | None = None


class ThinkingBlock(Struct, tag="thinking"):
    """Of an earlier answer: only the model that made it can use it, so it is left out."""


class RedactedThinkingBlock(Struct, tag="redacted_thinking"):
    """As ThinkingBlock."""


Block = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class MessageParam(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolParam(Struct):
    """A tool that runs at the caller; server-side tools have another type."""

    name: str
    input_schema: Json
    type: Literal["custom"] | None = None
    description: str | None = None


class ToolChoiceParam(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingParam(Struct):
    type: str


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: Json


class OutputConfig(Struct):
    format: OutputFormat | None = None


class CountTokensRequest(Struct, kw_only=True):
    model: str
    messages: Annotated[list[MessageParam], Meta(min_length=1)]
    system: str | list[TextBlock] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: ToolChoiceParam | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None


def to_request(body: CountTokensRequest, label: frozenset[str]) -> ChatRequest:
    """The request in our own nouns; every message carries the caller's access label. Raises InvalidRequest."""
    if body.thinking and body.thinking.type not in ("disabled", "adaptive"):
        raise InvalidRequest("Extended thinking is not supported.", param="thinking")
    messages = [Message("system", _texts(body.system, label))] if body.system else []
    for message in body.messages:
        messages += _messages(message, label)
    return ChatRequest(
        model=body.model,
        messages=tuple(messages),
        sampling=_sampling(body) if isinstance(body, MessagesRequest) else Sampling(),
        upstream_only=_upstream_only(body),
        endpoint="messages",
        streamed=isinstance(body, MessagesRequest) and bool(body.stream),
    )


def _sampling(body: MessagesRequest) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p or None,
        top_k=body.top_k,
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
    )


def _upstream_only(body: CountTokensRequest) -> Json:
    fields: Json = {}
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
        fields |= _tool_choice(body.tool_choice) if body.tool_choice else {}
    if body.output_config and body.output_config.format:
        schema = {"name": "output", "schema": body.output_config.format.schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


def _tool(tool: ToolParam) -> Json:
    function: Json = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoiceParam) -> Json:
    fields: Json = {}
    if choice.type == "tool":
        if not choice.name:
            raise InvalidRequest("A tool_choice of type 'tool' names the tool.", param="tool_choice")
        fields = {"tool_choice": {"type": "function", "function": {"name": choice.name}}}
    elif choice.type in TOOL_CHOICES:
        fields = {"tool_choice": TOOL_CHOICES[choice.type]}
    return fields | ({"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {})


def _messages(message: MessageParam, label: frozenset[str]) -> list[Message]:
    """One turn as one message, or as several where a user's turn brings tool results: those come first."""
    if isinstance(message.content, str):
        return [Message(message.role, (Segment(message.content, label),))]
    results = [_tool_result(block, label) for block in message.content if isinstance(block, ToolResultBlock)]
    calls = [_tool_call(block) for block in message.content if isinstance(block, ToolUseBlock)]
    content = [block for block in message.content if isinstance(block, TextBlock | ImageBlock)]
    if (results and message.role != "user") or (calls and message.role != "assistant"):
        raise InvalidRequest("Tool calls are the assistant's, tool results the user's.", param="messages")
    extra: Json = {"tool_calls": calls} if calls else {}
    rest = [_content_message(message.role, content, label, extra)] if content or calls else []
    return results + rest


def _content_message(role: str, blocks: list[TextBlock | ImageBlock], label: frozenset[str], extra: Json) -> Message:
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    if len(texts) == len(blocks):
        return Message(role, _texts(texts, label), extra)
    return Message(role, (), {**extra, "content": [_part(block) for block in blocks]})


def _texts(content: str | list[TextBlock] | None, label: frozenset[str]) -> tuple[Segment, ...]:
    if isinstance(content, list):
        return tuple(Segment(block.text, label) for block in content)
    return (Segment(content or "", label),)


def _part(block: TextBlock | ImageBlock) -> Json:
    """The block in OpenAI's shape."""
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    url = f"data:{block.source.media_type};base64,{block.source.data}"
    part = {"type": "image_url", "image_url": {"url": url}}
    data_url(part)
    return part


def _tool_result(block: ToolResultBlock, label: frozenset[str]) -> Message:
    extra: Json = {"tool_call_id": block.tool_use_id} | ({"is_error": True} if block.is_error else {})
    if isinstance(block.content, list):
        return _content_message("tool", block.content, label, extra)
    return Message("tool", _texts(block.content, label), extra)


def _tool_call(block: ToolUseBlock) -> Json:
    function = {"name": block.name, "arguments": msgspec.json.encode(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}
