"""OpenAI, vLLM and Azure as upstreams."""

import asyncio
from dataclasses import replace

import pytest

from app.config import TargetSettings
from app.errors import AppError, ConfigurationError, InvalidRequest, RateLimited, UpstreamError
from app.gateway.providers.azure import AzureProvider
from app.gateway.providers.base import ContentFiltered, ContextExceeded, TransientError
from app.gateway.providers.openai import OpenAIProvider
from app.gateway.schemas import Message, Segment, Usage
from app.gateway.wire import merge_tool_calls
from tests.gateway import wires
from tests.gateway.upstream import (
    Exchange,
    Wire,
    answering,
    ask,
    chat,
    exchange,
    failing,
    provider_at,
    raw,
    text_of,
    upstream,
)

USAGE = Usage(19, 2, 8)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


async def test_text_usage_and_finish() -> None:
    deltas, asked = await exchange(OpenAIProvider, answering(*wires.OPENAI_TEXT), chat("Hi", system="Be brief."), "/v1")
    assert text_of(deltas) == "Hello you\u2028 — done"
    assert (deltas[-1].finish_reason, deltas[-1].usage) == ("stop", USAGE)
    assert asked.exchanges[0].path == "/v1/chat/completions"
    assert asked.asked == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    "stream", [wires.OPENAI_TEXT, wires.OPENAI_TOOLS, wires.VLLM_TEXT, wires.AZURE_TEXT], ids=range(4)
)
async def test_chunks_may_be_cut_anywhere(stream: list[bytes]) -> None:
    whole, _ = await exchange(OpenAIProvider, answering(*stream), chat())
    pieces, _ = await exchange(OpenAIProvider, answering(*wires.cut_badly(stream)), chat())
    assert pieces == whole


async def test_crlf_and_comments_are_fine() -> None:
    stream = b": keep-alive\r\n\r\n" + b"".join(wires.OPENAI_TEXT).replace(b"\n", b"\r\n")
    deltas, _ = await exchange(OpenAIProvider, answering(stream), chat())
    assert text_of(deltas).startswith("Hello")


async def test_tools_and_formats_are_passed_on_and_calls_come_back() -> None:
    fields = {"tools": TOOLS, "tool_choice": "auto", "response_format": {"type": "json_object"}}
    deltas, asked = await exchange(OpenAIProvider, answering(*wires.OPENAI_TOOLS), chat(fields=fields))
    assert {name: asked.asked[name] for name in fields} == fields
    assert deltas[-1].finish_reason == "tool_calls"
    assert [(c["id"], c["function"]["arguments"]) for c in merge_tool_calls(deltas)] == [
        ("call_a", '{"city":"Oslo"}'),
        ("call_b", "{}"),
    ]


async def test_earlier_tool_calls_and_results_are_passed_on() -> None:
    call = {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = (
        Message("assistant", (Segment(""),), {"tool_calls": [call]}),
        Message("tool", (Segment("rain"),), {"tool_call_id": "call_a", "is_error": True}),
    )
    request = replace(chat(), messages=messages)
    _, asked = await exchange(OpenAIProvider, answering(*wires.OPENAI_TEXT), request)
    assert asked.asked["messages"] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_a"},
    ]


async def test_legacy_completions() -> None:
    deltas, asked = await exchange(OpenAIProvider, answering(*wires.OPENAI_LEGACY), raw("Say", max_tokens=2), "/v1")
    assert text_of(deltas) == "This is"
    assert deltas[-1].finish_reason == "length"
    assert asked.exchanges[0].path == "/v1/completions"
    assert (asked.asked["prompt"], asked.asked["max_tokens"]) == ("Say", 2)


async def test_vllm_extras_go_only_where_the_target_names_them() -> None:
    plain = OpenAIProvider(TargetSettings(name="t", base_url="https://example.com/v1"))
    assert not {"top_k", "min_p"} & plain.takes
    request = chat(top_k=5, fields={"min_p": 0.1})
    deltas, asked = await exchange(
        OpenAIProvider, answering(*wires.VLLM_TEXT), request, extra_fields=("top_k", "min_p")
    )
    assert (asked.asked["top_k"], asked.asked["min_p"]) == (5, 0.1)
    assert (deltas[-1].finish_reason, deltas[-1].stop_sequence, deltas[-1].usage) == ("stop", "END", USAGE)
    with pytest.raises(ConfigurationError, match="chat_template"):
        OpenAIProvider(TargetSettings(name="t", base_url="https://example.com", extra_fields=("chat_template",)))


async def test_cache_salt_is_one_secret_per_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALT", "s3cret")
    salts = []
    for tenant in ("a", "b", "a"):
        request = replace(chat(), tenant=tenant)
        _, asked = await exchange(OpenAIProvider, answering(*wires.VLLM_TEXT), request, cache_salt_env="SALT")
        salts.append(asked.asked["cache_salt"])
    assert salts[0] == salts[2] != salts[1]
    assert len(salts[0]) == 64
    _, asked = await exchange(OpenAIProvider, answering(*wires.VLLM_TEXT), chat())
    assert "cache_salt" not in asked.asked


def test_openai_itself_gets_its_newer_limit_field() -> None:
    official = OpenAIProvider(TargetSettings(name="t", base_url="https://api.openai.com/v1"))
    assert official.body(chat(max_tokens=3))["max_completion_tokens"] == 3
    other = OpenAIProvider(TargetSettings(name="t", base_url="https://example.com/v1"))
    assert other.body(chat(max_tokens=3))["max_tokens"] == 3


CONTEXT = {"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": {"message": "bad tools", "type": "invalid_request_error"}}, InvalidRequest),
        (400, CONTEXT, ContextExceeded),
        (400, wires.AZURE_FILTERED, ContentFiltered),
        (401, {"error": {"message": "bad key"}}, UpstreamError),
        (404, {"error": {"message": "no model"}}, UpstreamError),
        (307, {}, UpstreamError),
        (429, {"error": {"code": "insufficient_quota", "message": "pay"}}, UpstreamError),
        (429, {"error": {"code": "rate_limit_exceeded", "message": "slow"}}, RateLimited),
        (500, wires.VLLM_ERROR, TransientError),
        (503, {"detail": "starting"}, TransientError),
    ],
)
async def test_statuses(status: int, body: object, expected: type[AppError]) -> None:
    with pytest.raises(AppError) as caught:
        await exchange(OpenAIProvider, failing(status, body), chat())
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "soon"}, 1),
        ({}, 1),
    ],
)
async def test_a_limit_says_when_to_come_back(headers: dict[str, str], seconds: float) -> None:
    with pytest.raises(RateLimited) as caught:
        await exchange(OpenAIProvider, failing(429, {}, **headers), chat())
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (wires.sse(wires.VLLM_ERROR), TransientError),
        (wires.sse(wires.AZURE_FILTERED), ContentFiltered),
        (wires.sse({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), RateLimited),
        ([b"data: <html>busy</html>\n\n"], UpstreamError),
        ([b"data: [1, 2]\n\n"], UpstreamError),
        ([b"<html>busy</html>"], TransientError),
        ([], TransientError),
        (wires.OPENAI_TEXT[:3], TransientError),
    ],
)
async def test_nonsense_and_errors_inside_a_200(stream: list[bytes], expected: type[AppError]) -> None:
    with pytest.raises(AppError) as caught:
        await exchange(OpenAIProvider, answering(*stream), chat())
    assert type(caught.value) is expected


async def test_a_json_body_in_place_of_a_stream_is_an_error() -> None:
    with pytest.raises(ContentFiltered):
        await exchange(OpenAIProvider, failing(200, wires.AZURE_FILTERED), chat())


async def test_azure_by_deployment_and_by_v1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", "k3y")
    settings = {"api_key_env": "AZURE_KEY", "model": "gpt-4o eu"}
    deltas, asked = await exchange(
        AzureProvider, answering(*wires.AZURE_TEXT), chat(max_tokens=9), **settings, api_version="2024-10-21"
    )
    assert text_of(deltas) == "Hello"
    [sent] = asked.exchanges
    assert sent.path == "/openai/deployments/gpt-4o%20eu/chat/completions?api-version=2024-10-21"
    assert sent.headers["api-key"] == "k3y"
    assert "authorization" not in sent.headers
    assert sent.json["max_completion_tokens"] == 9
    _, asked = await exchange(AzureProvider, answering(*wires.AZURE_TEXT), chat(), **settings)
    assert asked.exchanges[0].path == "/openai/v1/chat/completions"
    assert asked.asked["model"] == "gpt-4o eu"


async def test_a_missing_key_is_said_at_start() -> None:
    target = TargetSettings(name="t", base_url="https://example.com", api_key_env="NO_SUCH_VARIABLE")
    with pytest.raises(ConfigurationError, match="NO_SUCH_VARIABLE"):
        await OpenAIProvider(target).start()


async def test_one_connection_serves_many_requests() -> None:
    async with (
        upstream(answering(*wires.OPENAI_TEXT)) as running,
        provider_at(OpenAIProvider, running.url) as provider,
    ):
        for _ in range(3):
            await ask(provider, chat())
        running.script = failing(500, {})
        with pytest.raises(UpstreamError):
            await ask(provider, chat())
    assert (running.connections, len(running.exchanges)) == (1, 4)


async def test_an_upstream_that_stays_on_the_line_does_not_delay_the_end() -> None:
    async def lingering(_: Exchange, wire: Wire) -> None:
        await wire.head()
        await wire.send(*wires.OPENAI_TEXT)
        await wire.until_left()

    async with asyncio.timeout(30):  # half of what the target may be silent
        deltas, _ = await exchange(OpenAIProvider, lingering, chat())
    assert deltas[-1].finish_reason == "stop"


async def test_handed_through_without_done_and_without_the_last_blank_line() -> None:
    first = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
    last = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}}'
    request = replace(chat(), relay="openai", streamed=True)
    deltas, running = await exchange(OpenAIProvider, answering(first, last), request)
    assert b"".join(delta.raw or b"" for delta in deltas) == first + last + b"\n\n"
    assert deltas[-1].finish_reason == "stop" and running.asked["stream"] is True


async def test_a_whole_answer_is_asked_for_whole_and_handed_through() -> None:
    whole = b'{"id":"x","choices":[{"message":{"content":"Hi"},"finish_reason":"length"}],"usage":{"prompt_tokens":2}}'
    request = replace(chat(), relay="openai")
    deltas, running = await exchange(OpenAIProvider, answering(whole, content_type="application/json"), request)
    assert [(delta.raw, delta.finish_reason) for delta in deltas] == [(whole, "length")]
    assert running.asked["stream"] is False and "stream_options" not in running.asked


@pytest.mark.parametrize("body", [b'{"error":{"message":"x","code":"429"}}', b"{}", b'{"choices":[]}', b"<html>"])
async def test_a_whole_answer_that_is_none_fails_before_anything_is_handed_through(body: bytes) -> None:
    with pytest.raises((UpstreamError, RateLimited)):
        request = replace(chat(), relay="openai")
        await exchange(OpenAIProvider, answering(body, content_type="application/json"), request)
