"""TGI, NVIDIA Triton and Ollama as upstreams."""

import json
from dataclasses import replace

import pytest

from app.errors import AppError, InvalidRequest, RateLimited, UpstreamError
from app.gateway.providers.base import TransientError
from app.gateway.providers.ollama import OllamaProvider
from app.gateway.providers.text import StopFilter
from app.gateway.providers.tgi import TgiProvider
from app.gateway.providers.triton import TritonProvider
from app.gateway.schemas import Message, Segment, Usage
from app.gateway.wire import merge_tool_calls
from tests.gateway import wires
from tests.gateway.upstream import answering, chat, exchange, failing, raw, text_of

NDJSON = "application/x-ndjson"


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_stop_string_is_cut_wherever_the_pieces_end(size: int) -> None:
    text = "one two ENX END three END"
    stop = StopFilter(("END", "never"))
    shown = "".join(stop.feed(text[start : start + size]) for start in range(0, len(text), size)) + stop.rest()
    assert (shown, stop.met) == ("one two ENX ", "END")


def test_held_back_text_is_not_lost() -> None:
    stop = StopFilter(("\n\nUser:",))
    assert stop.feed("done\n\nUs") == "done"
    assert stop.rest() == "\n\nUs"


# TGI


async def test_tgi_chat_as_a_transcript() -> None:
    request = chat("Hi", system="Be brief.", temperature=0, top_p=1, max_tokens=5, top_k=3)
    deltas, asked = await exchange(
        TgiProvider, answering(*wires.tgi_stream("Hel", "lo", "</s>", finish="eos_token")), request
    )
    assert text_of(deltas) == "Hello"
    assert (deltas[-1].finish_reason, deltas[-1].usage) == ("stop", Usage(11, 3))
    assert asked.exchanges[0].path == "/generate_stream"
    assert asked.asked == {
        "inputs": "Be brief.\n\nUser: Hi\n\nAssistant:",
        "parameters": {"max_new_tokens": 5, "do_sample": False, "top_k": 3, "stop": ["\n\nUser:"], "details": True},
    }


async def test_tgi_raw_prompts_stops_and_grammar() -> None:
    schema = {"type": "object", "properties": {}}
    fields = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    request = replace(raw("Count:", temperature=0.7, stop=("3", "b", "c", "d")), upstream_only=fields)
    stream = wires.tgi_stream(" 1", " 2", " 3", finish="stop_sequence")
    deltas, asked = await exchange(TgiProvider, answering(*wires.cut_badly(stream)), request)
    assert text_of(deltas) == " 1 2 "
    assert (deltas[-1].finish_reason, deltas[-1].stop_sequence) == ("stop", "3")
    assert asked.asked["inputs"] == "Count:"
    assert asked.asked["parameters"]["stop"] == ["3", "b", "c", "d"]
    assert asked.asked["parameters"]["grammar"] == {"type": "json", "value": schema}


async def test_tgi_length() -> None:
    deltas, _ = await exchange(TgiProvider, answering(*wires.tgi_stream("a", "b")), chat())
    assert (text_of(deltas), deltas[-1].finish_reason) == ("ab", "length")


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (422, wires.TGI_INVALID, InvalidRequest),
        (424, wires.TGI_ERROR, TransientError),
        (429, wires.TGI_OVERLOADED, RateLimited),
        (500, {"error": "x", "error_type": "incomplete_generation"}, TransientError),
    ],
)
async def test_tgi_statuses(status: int, body: object, expected: type[AppError]) -> None:
    with pytest.raises(AppError) as caught:
        await exchange(TgiProvider, failing(status, body), chat())
    assert type(caught.value) is expected
    stream = [*wires.tgi_stream("a", "b")[:1], b"data:" + json.dumps(body).encode() + b"\n\n"]
    with pytest.raises(AppError) as caught:
        await exchange(TgiProvider, answering(*stream), chat())
    assert type(caught.value) is expected


async def test_tgi_takes_no_tools() -> None:
    assert not {"tools", "images", "logit_bias"} & TgiProvider.TAKES


# NVIDIA Triton


async def test_triton_estimates_what_is_not_said() -> None:
    request = chat("Hi", temperature=0.2, max_tokens=9, stop=("STOP",))
    deltas, asked = await exchange(
        TritonProvider, answering(*wires.triton_stream("Hello", " wor", "ld S", "")), request, model="ens/versions/2"
    )
    assert text_of(deltas) == "Hello world S"
    assert (deltas[-1].finish_reason, deltas[-1].usage) == ("stop", Usage(5, 4))
    assert asked.exchanges[0].path == "/v2/models/ens/versions/2/generate_stream"
    assert asked.asked == {
        "text_input": "User: Hi\n\nAssistant:",
        "parameters": {"stream": True, "max_tokens": 9, "temperature": 0.2},
    }


async def test_triton_stops_here() -> None:
    request = raw("x", stop=("STOP",))
    deltas, _ = await exchange(TritonProvider, answering(*wires.triton_stream("a S", "TOP b", "c")), request)
    assert (text_of(deltas), deltas[-1].finish_reason, deltas[-1].stop_sequence) == ("a ", "stop", "STOP")


async def test_triton_length_and_a_model_that_does_not_stream() -> None:
    deltas, _ = await exchange(TritonProvider, answering(*wires.triton_stream("a", "b")), chat(max_tokens=2))
    assert deltas[-1].finish_reason == "length"
    deltas, _ = await exchange(TritonProvider, answering(*wires.triton_stream("whole answer")), raw("x"))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("whole answer", "stop")


@pytest.mark.parametrize("before", [0, 1])
async def test_triton_errors_under_200(before: int) -> None:
    stream = [*wires.triton_stream("a")[:before], *wires.sse(wires.TRITON_ERROR)]
    with pytest.raises(TransientError):
        await exchange(TritonProvider, answering(*stream), chat())


async def test_triton_refusals_and_silence() -> None:
    with pytest.raises(InvalidRequest, match="inference request"):
        await exchange(TritonProvider, failing(400, {"error": "failed to parse the inference request"}), chat())
    with pytest.raises(TransientError):
        await exchange(TritonProvider, answering(), chat())
    with pytest.raises(UpstreamError):
        await exchange(TritonProvider, failing(404, {"error": "unknown model"}), chat())


# Ollama


async def test_ollama_chat() -> None:
    request = chat("Hi", system="Be brief.", temperature=0, max_tokens=5, stop=("x",), seed=3)
    deltas, asked = await exchange(
        OllamaProvider, answering(*wires.cut_badly(wires.OLLAMA_TEXT), content_type=NDJSON), request, max_context=8192
    )
    assert text_of(deltas) == "The sky"
    assert (deltas[-1].finish_reason, deltas[-1].usage) == ("stop", Usage(26, 2))
    assert asked.exchanges[0].path == "/api/chat"
    assert asked.asked == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "stream": True,
        "options": {"temperature": 0, "num_predict": 5, "stop": ["x"], "seed": 3, "num_ctx": 8192},
    }


async def test_ollama_tools_both_ways() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
    messages = (
        Message("user", (), {"content": [{"type": "text", "text": "See"}, image]}),
        Message("assistant", (Segment(""),), {"tool_calls": [call]}),
        Message("tool", (Segment("rain"),), {"tool_call_id": "c1"}),
    )
    tools = [{"type": "function", "function": {"name": "get_weather"}}]
    request = replace(chat(fields={"tools": tools, "response_format": {"type": "json_object"}}), messages=messages)
    deltas, asked = await exchange(OllamaProvider, answering(*wires.OLLAMA_TOOLS, content_type=NDJSON), request)
    [made] = merge_tool_calls(deltas)
    assert made["id"].startswith("call_")
    assert made["function"] == {"name": "get_weather", "arguments": '{"city":"Tokyo"}'}
    assert deltas[-1].finish_reason == "tool_calls"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.prompt_tokens > 0  # the count is absent where the prompt was in the cache
    assert (asked.asked["tools"], asked.asked["format"]) == (tools, "json")
    assert asked.asked["messages"] == [
        {"role": "user", "content": "See", "images": ["aGk="]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": "rain", "tool_name": "get_weather"},
    ]


async def test_ollama_raw_and_length() -> None:
    stream = wires.ndjson({"response": "a", "done": False}, {"response": "", "done": True, "done_reason": "length"})
    deltas, asked = await exchange(OllamaProvider, answering(*stream, content_type=NDJSON), raw("Once"))
    assert (text_of(deltas), deltas[-1].finish_reason) == ("a", "length")
    assert asked.exchanges[0].path == "/api/generate"
    assert (asked.asked["prompt"], asked.asked["raw"]) == ("Once", True)


@pytest.mark.parametrize("before", [0, 1])
async def test_ollama_failures(before: int) -> None:
    stream = [*wires.OLLAMA_TEXT[:before], *wires.ndjson(wires.OLLAMA_ERROR)]
    with pytest.raises(TransientError, match="reported"):
        await exchange(OllamaProvider, answering(*stream, content_type=NDJSON), chat())
    with pytest.raises(TransientError, match="broke off"):
        await exchange(OllamaProvider, answering(*wires.OLLAMA_TEXT[:before], content_type=NDJSON), chat())
    with pytest.raises(UpstreamError):
        await exchange(OllamaProvider, failing(404, {"error": "model 'x' not found"}), chat())
