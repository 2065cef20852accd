"""/v1/messages: Anthropic's dialect over fake targets and over an OpenAI upstream."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.config import RouteSettings, TargetSettings
from app.errors import UpstreamError
from app.gateway.schemas import Delta, Usage
from app.gateway.wire_anthropic_out import MessageEvents
from app.tenants.principal import Scope
from tests.conftest import Site, fake_settings, open_site
from tests.gateway import wires
from tests.gateway.upstream import Script, Upstream, answering, upstream

HELLO = {"model": "echo", "max_tokens": 50, "messages": [{"role": "user", "content": "one two three"}]}
WEATHER = {"name": "weather", "description": "d", "input_schema": {"type": "object"}}


def events(text: str) -> list[dict[str, Any]]:
    """Bodies of the events; each event is named after its body's type."""
    made = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        made.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {made[-1]['type']}"
    return made


@asynccontextmanager
async def site_before(
    script: Script, directory: Path, provider: str = "openai"
) -> AsyncIterator[tuple[Site, Upstream]]:
    """A site whose model `up` is served by an upstream that follows the script."""
    async with upstream(script) as running:
        target = TargetSettings(name="up", provider=provider, base_url=running.url, allow_private=True, images=True)
        settings = fake_settings(directory, targets=(target,), routes=(RouteSettings(model="up", targets=("up",)),))
        async with open_site(settings) as site:
            yield site, running


async def test_plain(site: Site) -> None:
    headers = {"x-api-key": await site.key()}
    response = await site.client.post("/v1/messages", json=HELLO, headers=headers)
    body = response.json()
    assert response.status_code == 200
    assert body["id"].startswith("msg_")
    assert body["content"] == [{"type": "text", "text": "one two three"}]
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", "echo")
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (3, 3)
    assert response.headers["x-precedent-served-by"] == "fake"


async def test_stop_reason_of_a_full_length(site: Site) -> None:
    response = await site.client.post("/v1/messages", json=HELLO | {"max_tokens": 2}, headers=await site.headers())
    assert response.json()["stop_reason"] == "max_tokens"


async def test_stream_events_in_their_order(site: Site) -> None:
    response = await site.client.post("/v1/messages", json=HELLO | {"stream": True}, headers=await site.headers())
    assert response.headers["content-type"].startswith("text/event-stream")
    made = events(response.text)
    assert [event["type"] for event in made] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert made[0]["message"]["content"] == []
    assert made[1] == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert "".join(event["delta"]["text"] for event in made[2:5]) == "one two three"
    assert made[6]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert made[6]["usage"]["output_tokens"] == 3


async def test_tools_travel_to_an_openai_upstream_and_back(tmp_path: Path) -> None:
    request = {
        "model": "up",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["END"],
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "x"},
                    {"type": "text", "text": "Looking."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "And now?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                ],
            },
        ],
    }
    async with site_before(answering(*wires.OPENAI_TOOLS), tmp_path) as (site, running):
        headers = await site.headers()
        plain = (await site.client.post("/v1/messages", json=request, headers=headers)).json()
        streamed = await site.client.post("/v1/messages", json=request | {"stream": True}, headers=headers)
    assert plain["stop_reason"] == "tool_use"
    assert plain["content"] == [
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": "call_b", "name": "time", "input": {}},
    ]
    # input_tokens of this dialect leave out what was cached.
    assert (plain["usage"]["input_tokens"], plain["usage"]["cache_read_input_tokens"]) == (11, 8)
    asked = running.asked
    assert asked["stop"] == ["END"]
    assert asked["tool_choice"] == "required"
    assert asked["parallel_tool_calls"] is False
    assert asked["tools"][0]["function"] == {"name": "weather", "description": "d", "parameters": {"type": "object"}}
    assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert asked["messages"][2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    assert asked["messages"][3] == {"role": "tool", "content": "rain", "tool_call_id": "t1"}
    assert asked["messages"][4]["content"][1]["image_url"]["url"] == "data:image/png;base64,aGk="
    made = events(streamed.text)
    assert [(event["type"], event.get("index")) for event in made] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert made[1]["content_block"] == {"type": "tool_use", "id": "call_a", "name": "weather", "input": {}}
    assert made[2]["delta"]["type"] == "input_json_delta"
    assert made[8]["delta"]["stop_reason"] == "tool_use"


async def test_stop_sequence_is_named_where_the_upstream_names_it(tmp_path: Path) -> None:
    script = answering(*wires.anthropic_text("stop_sequence", "END"))
    async with site_before(script, tmp_path, "anthropic") as (site, running):
        request = HELLO | {"model": "up", "stop_sequences": ["END"]}
        body = (await site.client.post("/v1/messages", json=request, headers=await site.headers())).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    assert (body["usage"]["input_tokens"], body["usage"]["cache_read_input_tokens"]) == (15, 30)
    assert running.asked["stop_sequences"] == ["END"]


def test_text_and_tools_are_blocks_of_their_own() -> None:
    made = MessageEvents("m")
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}
    body = made.delta(Delta(text="a")) + made.delta(Delta(tool_calls=[call])) + made.delta(Delta(text="b"))
    body += made.end("tool_calls", None, Usage())
    assert [(event["type"], event.get("index")) for event in body][:8] == [
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
    ]
    with pytest.raises(UpstreamError):
        made.delta(Delta(tool_calls=[{"index": 0, "function": {"arguments": "late"}}]))


async def test_count_tokens_is_an_estimate_without_a_tokenizer(site: Site) -> None:
    request = {"model": "echo", "system": "x" * 40, "messages": [{"role": "user", "content": "y" * 41}]}
    response = await site.client.post("/v1/messages/count_tokens", json=request, headers=await site.headers())
    assert response.json() == {"input_tokens": 10 + 11 + 2 * 4}
    assert response.headers["x-precedent-token-count"] == "estimate"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{not json", "JSON"),
        (b"{}", "model"),
        (json.dumps({k: v for k, v in HELLO.items() if k != "max_tokens"}).encode(), "max_tokens"),
        (json.dumps(HELLO | {"messages": []}).encode(), "messages"),
        (json.dumps(HELLO | {"temperature": 1.5}).encode(), "temperature"),
        (json.dumps(HELLO | {"thinking": {"type": "enabled", "budget_tokens": 1024}}).encode(), "thinking"),
        (json.dumps(HELLO | {"tools": [WEATHER | {"type": "web_search_20250305"}]}).encode(), "web_search"),
        (json.dumps(HELLO | {"messages": [{"role": "user", "content": [{"type": "document"}]}]}).encode(), "document"),
        (
            json.dumps(
                HELLO
                | {
                    "messages": [
                        {
                            "role": "user",
                            "content": [{"type": "image", "source": {"type": "url", "url": "http://10.0.0.1/"}}],
                        }
                    ]
                }
            ).encode(),
            "url",
        ),
    ],
)
async def test_bad_bodies_are_400_in_anthropics_shape(site: Site, body: bytes, says: str) -> None:
    headers = {**await site.headers(), "content-type": "application/json"}
    response = await site.client.post("/v1/messages", content=body, headers=headers)
    assert response.status_code == 400
    error = response.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert says in error["error"]["message"]


async def test_guards_and_the_framework_answer_in_anthropics_shape(site: Site) -> None:
    client = site.client

    async def refused(path: str, headers: dict[str, str], method: str = "POST", **more: Any) -> tuple[int, str]:
        response = await client.request(method, path, headers=headers, **more)
        body = response.json()
        assert set(body) == {"type", "error"}, body
        return response.status_code, body["error"]["type"]

    good = await site.headers()
    narrow = await site.headers(scopes=[Scope.ANSWERS])
    large = b'{"model": "' + b"x" * (65 * 2**20) + b'"}'
    assert await refused("/v1/messages", {}, json=HELLO) == (401, "authentication_error")
    assert await refused("/v1/messages", {"x-api-key": "prc_no"}, json=HELLO) == (401, "authentication_error")
    assert await refused("/v1/messages", narrow, json=HELLO) == (403, "permission_error")
    assert await refused("/v1/messages/count_tokens", narrow, json=HELLO) == (403, "permission_error")
    assert await refused("/v1/messages", good, json=HELLO | {"model": "none"}) == (404, "not_found_error")
    assert await refused("/v1/messages/batches", good, json={}) == (404, "not_found_error")
    assert await refused("/v1/messages", good, content=large) == (413, "request_too_large")
    assert (await refused("/v1/messages", good, method="GET"))[0] == 405
    assert await refused("/v1/messages", good, json=HELLO | {"model": "dead"}) == (502, "api_error")


async def test_images_are_refused_where_no_target_takes_them(site: Site) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
    request = HELLO | {"messages": [{"role": "user", "content": [image]}]}
    response = await site.client.post("/v1/messages", json=request, headers=await site.headers())
    assert response.status_code == 400
    assert "does not support images" in response.json()["error"]["message"]
