"""Streams handed through as bytes: what callers get, and what is read off in passing."""

from typing import Any

import msgspec
import pytest

from app.errors import UpstreamError
from app.gateway.providers.tee import Tee, text_of, usage_of


def decode(data: bytes) -> dict[str, Any]:
    try:
        said = msgspec.json.decode(data)
    except msgspec.DecodeError:
        said = None
    if not isinstance(said, dict) or said.get("error"):
        raise UpstreamError("nonsense")
    return said


def event(content: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    delta = {} if content is None else {"content": content}
    body = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


def fed(*pieces: bytes, include_usage: bool = False) -> tuple[bytes, Tee]:
    tee = Tee(decode, include_usage=include_usage)
    return b"".join(tee.feed(piece) for piece in pieces), tee


def test_pieces_pass_as_they_are_and_the_end_is_held_back() -> None:
    handed, tee = fed(ROLE, event("a"), event("b"), event(None, "stop"), USAGE, DONE)
    assert handed == ROLE + event("a") + event("b")
    usage = usage_of({"prompt_tokens": 3, "completion_tokens": 2})
    assert (tee.finish, tee.usage, tee.done, tee.last) == ("stop", usage, True, event(None, "stop"))
    assert text_of(handed) == "ab"


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_however_the_network_cuts_it(size: int) -> None:
    whole = b": ping\r\n\r\n" + (ROLE + event("é") + event("b", usage=None)).replace(b"\n", b"\r\n") + USAGE + DONE
    handed, tee = fed(*(whole[i : i + size] for i in range(0, len(whole), size)))
    assert handed == ROLE + event("é") + event("b")
    assert tee.done and tee.usage and tee.finish == "stop"


def test_nothing_is_handed_on_before_something_is_said() -> None:
    handed, tee = fed(ROLE)
    assert handed == b""
    assert tee.feed(event("a")) == ROLE + event("a")


def test_usage_goes_to_who_asked_for_it() -> None:
    pieces = (event("a", usage=None), event(None, "stop", usage=None), USAGE, DONE)
    handed, tee = fed(*pieces, include_usage=True)
    assert handed == event("a", usage=None) and tee.last == event(None, "stop", usage=None) + USAGE
    handed, tee = fed(*pieces)
    assert b"usage" not in handed + tee.last and tee.usage


def test_tool_calls_annotations_and_text_that_looks_like_more() -> None:
    call = b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]}}]}\n\n'
    tricky = event('he said "error": "usage":{ and [DONE]')
    annotation = b'data: {"choices":[],"prompt_filter_results":[]}\n\n'
    handed, tee = fed(annotation, call, tricky, b'data: {"choices":null}\n\n')
    assert handed == call + tricky and not tee.done


@pytest.mark.parametrize("bad", [b"data: <html>\n\n", b'data: {"error":{"message":"x"}}\n\n', b"data: []\n\n"])
def test_what_is_good_comes_before_what_is_not(bad: bytes) -> None:
    handed, tee = fed(event("a") + bad + event("b"))
    assert handed == event("a") and tee.failure is not None
    handed, tee = fed(bad + event("b"))
    assert handed == b"" and tee.failure is not None
