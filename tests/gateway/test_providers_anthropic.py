"""The Anthropic Messages API as an upstream."""

from dataclasses import replace

import pytest

from app.errors import AppError, InvalidRequest, RateLimited, UpstreamError
from app.gateway.providers.anthropic import AnthropicProvider
from app.gateway.providers.base import ContextExceeded, TransientError
from app.gateway.schemas import Message, Segment, Usage
from app.gateway.wire import merge_tool_calls
from tests.gateway import wires
from tests.gateway.upstream import answering, chat, exchange, failing, text_of

PIXEL = "data:image/png;base64,aGVsbG8="


async def test_text_usage_and_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "k3y")
    request = chat("Hi", system="Be brief.", temperature=0.5, top_k=4, stop=("END",), seed=1)
    deltas, asked = await exchange(AnthropicProvider, answering(*wires.anthropic_text()), request, api_key_env="KEY")
    assert text_of(deltas) == "Hello there"
    # input_tokens leave out what the cache held or took in; ours count the whole prompt.
    assert (deltas[-1].finish_reason, deltas[-1].usage) == ("stop", Usage(45, 15, 30))
    assert deltas[0].usage == Usage(45, 1, 30)
    [sent] = asked.exchanges
    assert sent.path == "/v1/messages"
    assert (sent.headers["x-api-key"], sent.headers["anthropic-version"]) == ("k3y", "2023-06-01")
    assert sent.json == {
        "model": "m",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "stream": True,
        "system": [{"type": "text", "text": "Be brief."}],
        "temperature": 0.5,
        "top_k": 4,
        "stop_sequences": ["END"],
    }


@pytest.mark.parametrize(
    ("stop_reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_stop_reasons(stop_reason: str, finish: str) -> None:
    stream = wires.anthropic_text(stop_reason, "END" if stop_reason == "stop_sequence" else None)
    deltas, _ = await exchange(AnthropicProvider, answering(*wires.cut_badly(stream)), chat())
    assert deltas[-1].finish_reason == finish
    assert deltas[-1].stop_sequence == ("END" if stop_reason == "stop_sequence" else None)


async def test_tool_calls_become_openais() -> None:
    deltas, _ = await exchange(AnthropicProvider, answering(*wires.ANTHROPIC_TOOLS), chat())
    assert text_of(deltas) == ""
    assert deltas[-1].finish_reason == "tool_calls"
    assert [(c["id"], c["function"]) for c in merge_tool_calls(deltas)] == [
        ("toolu_1", {"name": "weather", "arguments": '{"city": "Oslo"}'}),
        ("toolu_2", {"name": "now", "arguments": "{}"}),
    ]


async def test_tools_history_and_images_become_anthropics() -> None:
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "weather", "arguments": '{"n": 1}'}} for n in (1, 2)
    ]
    picture = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    messages = (
        Message("developer", (Segment("Rules."),)),
        Message("user", (Segment("Weather?"),)),
        Message("assistant", (Segment("Looking."),), {"tool_calls": calls}),
        Message("tool", (Segment("rain"),), {"tool_call_id": "c1"}),
        Message("tool", (Segment("no such city"),), {"tool_call_id": "c2", "is_error": True}),
        Message("user", (), {"content": picture}),
    )
    function = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    fields = {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    }
    request = replace(chat(fields=fields), messages=messages)
    _, asked = await exchange(AnthropicProvider, answering(*wires.anthropic_text()), request)
    body = asked.asked
    assert body["system"] == [{"type": "text", "text": "Rules."}]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "Looking."},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"n": 1}},
        {"type": "tool_use", "id": "c2", "name": "weather", "input": {"n": 1}},
    ]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
        {
            "type": "tool_result",
            "tool_use_id": "c2",
            "content": [{"type": "text", "text": "no such city"}],
            "is_error": True,
        },
        {"type": "text", "text": "See"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGVsbG8="}},
    ]
    assert body["tools"] == [{"name": "weather", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": {"type": "object"}}}


async def test_bare_json_mode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="json_schema"):
        await exchange(AnthropicProvider, failing(500, {}), chat(fields={"response_format": {"type": "json_object"}}))


def said(kind: str, message: str = "x") -> dict[str, object]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, said("invalid_request_error"), InvalidRequest),
        (400, said("invalid_request_error", "prompt is too long: 300000 tokens > 200000 maximum"), ContextExceeded),
        (401, said("authentication_error"), UpstreamError),
        (413, said("request_too_large"), InvalidRequest),
        (429, said("rate_limit_error"), RateLimited),
        (500, said("api_error"), TransientError),
        (529, said("overloaded_error"), TransientError),
        (200, wires.ANTHROPIC_OVERLOADED, TransientError),
    ],
)
async def test_statuses(status: int, body: object, expected: type[AppError]) -> None:
    with pytest.raises(AppError) as caught:
        await exchange(AnthropicProvider, failing(status, body), chat())
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (wires.sse(wires.ANTHROPIC_START, wires.ANTHROPIC_OVERLOADED, name=True), TransientError),
        (wires.sse(wires.ANTHROPIC_START, said("rate_limit_error"), name=True), RateLimited),
        (wires.anthropic_text()[:-1], TransientError),
        (wires.anthropic_text()[:3], TransientError),
        ([b"event: message_start\ndata: nonsense\n\n"], UpstreamError),
    ],
)
async def test_errors_inside_a_200(stream: list[bytes], expected: type[AppError]) -> None:
    with pytest.raises(AppError) as caught:
        await exchange(AnthropicProvider, answering(*stream), chat())
    assert type(caught.value) is expected
