"""The fixtures themselves: event order and ugly cases as the providers' documentation has them."""

import json
from typing import Any

from tests.gateway import wires


def bodies(pieces: list[bytes]) -> list[Any]:
    """Data of each event; [DONE] stays text."""
    made = []
    for event in b"".join(pieces).decode().strip().split("\n\n"):
        data = event.split("data:", 1)[1].strip()
        made.append(data if data == "[DONE]" else json.loads(data))
    return made


def test_openai_streams_end_with_finish_usage_done() -> None:
    role, *chunks, finish, usage, done = bodies(wires.OPENAI_TEXT)
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(chunk["usage"] is None for chunk in (role, *chunks, finish))
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 21
    assert done == "[DONE]"
    assert "\u2028".encode() in b"".join(wires.OPENAI_TEXT)  # legal in JSON, a line break to careless readers


def test_openai_tool_calls_come_in_fragments_by_index() -> None:
    calls = [
        call
        for chunk in bodies(wires.OPENAI_TOOLS)[:-1]
        for choice in chunk["choices"]
        for call in choice["delta"].get("tool_calls", [])
    ]
    assert [call["index"] for call in calls] == [0, 0, 0, 1]
    assert ["id" in call for call in calls] == [True, False, False, True]
    assert "".join(call["function"]["arguments"] for call in calls[:3]) == '{"city":"Oslo"}'


def test_vllm_is_ugly() -> None:
    assert bodies(wires.VLLM_TEXT)[-2]["choices"] is None
    assert bodies(wires.VLLM_TEXT)[-3]["choices"][0]["stop_reason"] == "END"
    assert isinstance(wires.VLLM_ERROR["error"]["code"], int)


def test_azure_begins_with_an_empty_annotation_chunk() -> None:
    first = bodies(wires.AZURE_TEXT)[0]
    assert first["choices"] == []
    assert "prompt_filter_results" in first
    assert wires.AZURE_FILTERED["error"]["code"] == "content_filter"


def test_anthropic_event_order() -> None:
    assert [body["type"] for body in bodies(wires.anthropic_text())] == [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "some_future_event",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    for piece in wires.anthropic_text():
        name, data = piece.decode().strip().split("\n")
        assert name == f"event: {json.loads(data[6:])['type']}"


def test_anthropic_tools_come_after_thinking_and_may_have_no_input() -> None:
    kinds = [(b["type"], b.get("index")) for b in bodies(wires.ANTHROPIC_TOOLS)]
    assert kinds[-5:-2] == [("content_block_stop", 1), ("content_block_start", 2), ("content_block_stop", 2)]
    deltas = [b["delta"]["type"] for b in bodies(wires.ANTHROPIC_TOOLS) if b["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "signature_delta", *["input_json_delta"] * 3]


def test_tgi_has_no_done_and_no_space() -> None:
    pieces = wires.tgi_stream("a", "</s>", finish="eos_token")
    assert all(piece.startswith(b"data:{") for piece in pieces)
    *_, last = bodies(pieces)
    assert last["token"]["special"]
    assert last["generated_text"] is not None
    assert last["details"]["generated_tokens"] == 2


def test_triton_says_neither_usage_nor_finish() -> None:
    assert all(set(b) == {"model_name", "model_version", "text_output"} for b in bodies(wires.triton_stream("a", "b")))


def test_ollama_ends_with_done_and_arguments_are_objects() -> None:
    lines = [json.loads(line) for line in wires.OLLAMA_TEXT]
    assert [line["done"] for line in lines] == [False, False, True]
    assert lines[-1]["message"]["content"] == ""
    call = json.loads(wires.OLLAMA_TOOLS[0])["message"]["tool_calls"][0]
    assert isinstance(call["function"]["arguments"], dict)
    assert "id" not in call
    assert "prompt_eval_count" not in json.loads(wires.OLLAMA_TOOLS[1])
