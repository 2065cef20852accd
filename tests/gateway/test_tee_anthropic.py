"""Anthropic streams handed through as bytes to callers who speak Anthropic's dialect."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from app.errors import UpstreamError
from app.gateway.providers.anthropic import AnthropicProvider
from app.gateway.providers.tee import text_of
from app.gateway.providers.tee_anthropic import MessageTee
from app.gateway.schemas import Usage
from tests.gateway import wires
from tests.gateway.upstream import answering, chat, exchange


def decode(data: bytes) -> dict[str, Any]:
    said = msgspec.json.decode(data)
    if said.get("error"):
        raise UpstreamError("nonsense")
    return said  # type: ignore[no-any-return]


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + msgspec.json.encode({"type": kind, **more}) + b"\n\n"


START = event("message_start", message={"usage": {"input_tokens": 3, "output_tokens": 1}})
PING = event("ping")
OPEN = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
CLOSE = event("content_block_stop", index=0)
END = event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2})
STOP = event("message_stop")


def said(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


@pytest.mark.parametrize("size", [1, 3, 20, 10_000])
def test_bytes_pass_as_they_are_however_the_network_cuts_them(size: int) -> None:
    whole = START + PING + OPEN + said("a") + PING + said('he said "type":"error" \n') + CLOSE + END + STOP
    read: list[dict[str, Any]] = []
    tee = MessageTee(decode, read.append)
    handed = b"".join(tee.feed(whole[i : i + size]) for i in range(0, len(whole), size))
    assert handed + tee.last == whole and tee.done and tee.failure is None
    assert tee.last == END + STOP
    assert text_of(handed) == 'ahe said "type":"error" \n'
    assert [one["type"] for one in read] == [
        "message_start", "ping", "content_block_start", "content_block_delta", "ping", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip


def test_nothing_is_handed_on_before_something_is_said() -> None:
    tee = MessageTee(decode, lambda _: None)
    assert tee.feed(START + PING + OPEN) == b""
    assert tee.feed(said("a")) == START + PING + OPEN + said("a")
    tool = event("content_block_start", index=0, content_block={"type": "tool_use", "id": "t", "name": "f"})
    tee = MessageTee(decode, lambda _: None)
    assert tee.feed(START + tool) == START + tool


def test_what_is_good_comes_before_what_is_not() -> None:
    tee = MessageTee(decode, lambda _: None)
    error = event("error", error={"type": "overloaded_error", "message": "x"})
    assert tee.feed(START + OPEN + said("a") + error + said("b")) == START + OPEN + said("a")
    assert tee.failure is not None


async def test_a_stream_is_relayed_with_usage_and_finish_read_off() -> None:
    stream = wires.anthropic_text("stop_sequence", "END")
    request = replace(chat(), relay="anthropic", streamed=True)
    deltas, _ = await exchange(AnthropicProvider, answering(*stream), request)
    assert b"".join(delta.raw or b"" for delta in deltas) == b"".join(stream)
    last = deltas[-1]
    assert (last.finish_reason, last.stop_sequence, last.usage) == ("stop", "END", Usage(45, 15, 30))


async def test_a_whole_message_is_relayed() -> None:
    body = msgspec.json.encode({
        "type": "message", "content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t"}],
        "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 2},
    })  # fmt: skip
    request = replace(chat(), relay="anthropic")
    deltas, asked = await exchange(AnthropicProvider, answering(body, content_type="application/json"), request)
    [only] = deltas
    assert (only.raw, only.text, only.finish_reason, only.usage) == (body, "Hi", "tool_calls", Usage(3, 2))
    assert asked.exchanges[0].json["stream"] is False


async def test_a_stream_that_breaks_off_is_an_error() -> None:
    request = replace(chat(), relay="anthropic", streamed=True)
    with pytest.raises(UpstreamError, match="broke off"):
        await exchange(AnthropicProvider, answering(START + OPEN + said("a") + CLOSE), request)
