"""What upstreams send, as their documentation shows it, ugly cases included. test_wires.py checks these fixtures."""

import json
from typing import Any

Pieces = list[bytes]


def sse(*bodies: Any, name: bool = False) -> Pieces:
    """Server-sent events, one piece each; with `name` each is named after its type."""
    made = []
    for body in bodies:
        data = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
        head = f"event: {body['type']}\n" if name else ""
        made.append(f"{head}data: {data}\n\n".encode())
    return made


def ndjson(*bodies: Any) -> Pieces:
    return [json.dumps(body).encode() + b"\n" for body in bodies]


def cut_badly(pieces: Pieces) -> Pieces:
    """The same bytes in pieces that end within lines and within characters."""
    whole = b"".join(pieces)
    return [whole[start : start + 7] for start in range(0, len(whole), 7)]


# OpenAI: https://platform.openai.com/docs/api-reference/chat-streaming/streaming
def openai_chunk(delta: Any = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": choices}
    return frame | more


OPENAI_USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 2,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 8},
}
OPENAI_TEXT = sse(
    openai_chunk({"role": "assistant", "content": ""}, usage=None),
    openai_chunk({"content": "Hello"}, usage=None),
    openai_chunk({"content": " you\u2028 — done"}, usage=None),
    openai_chunk({}, "stop", usage=None),
    openai_chunk(usage=OPENAI_USAGE),
    "[DONE]",
)
OPENAI_TOOLS = sse(
    openai_chunk(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}}
            ],
        }
    ),
    openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
    openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]}),
    openai_chunk(
        {
            "tool_calls": [
                {"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}}
            ]
        }
    ),
    openai_chunk({}, "tool_calls"),
    openai_chunk(usage=OPENAI_USAGE),
    "[DONE]",
)
# https://platform.openai.com/docs/api-reference/completions/object
OPENAI_LEGACY = sse(
    {"id": "cmpl-1", "object": "text_completion", "choices": [{"text": "This", "index": 0, "finish_reason": None}]},
    {"id": "cmpl-1", "object": "text_completion", "choices": [{"text": " is", "index": 0, "finish_reason": "length"}]},
    {"id": "cmpl-1", "object": "text_completion", "choices": [], "usage": OPENAI_USAGE},
    "[DONE]",
)
# vLLM, https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html: `choices: null` was seen in usage chunks,
# error codes are integers, and the stop string met is in the choice's stop_reason.
VLLM_TEXT = sse(
    openai_chunk({"role": "assistant"}),
    openai_chunk({"content": "Hi"}),
    {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "stop", "stop_reason": "END"}],
    },
    {"object": "chat.completion.chunk", "choices": None, "usage": OPENAI_USAGE},
    "[DONE]",
)
VLLM_ERROR = {"error": {"message": "boom", "type": "InternalServerError", "param": None, "code": 500}}

# Azure: https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter-streaming: the first chunk has no
# choices and reports on the prompt; later ones report on the text.
AZURE_TEXT = sse(
    openai_chunk(prompt_filter_results=[{"prompt_index": 0, "content_filter_results": {}}]),
    openai_chunk({"role": "assistant", "content": ""}),
    openai_chunk({"content": "Hello"}),
    openai_chunk({}, "stop"),
    openai_chunk(usage=OPENAI_USAGE),
    "[DONE]",
)
# https://learn.microsoft.com/azure/ai-services/openai/concepts/content-filter
AZURE_FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering the content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {}},
    }
}

# Anthropic: https://platform.claude.com/docs/en/build-with-claude/streaming
ANTHROPIC_START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 30,
            "cache_creation_input_tokens": 5,
            "output_tokens": 1,
        },
    },
}


def anthropic_text(stop_reason: str = "end_turn", stop_sequence: str | None = None) -> Pieces:
    return sse(
        ANTHROPIC_START,
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "some_future_event", "surprise": True},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": {"output_tokens": 15},
        },
        {"type": "message_stop"},
        name=True,
    )


ANTHROPIC_TOOLS = sse(
    ANTHROPIC_START,
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hmm."}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city": '}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"Oslo"}'}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {}},
    },
    {"type": "content_block_stop", "index": 2},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 89},
    },
    {"type": "message_stop"},
    name=True,
)
# https://platform.claude.com/docs/en/api/errors: an error event may come after a 200.
ANTHROPIC_OVERLOADED = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}


# TGI: https://huggingface.github.io/text-generation-inference/ (StreamResponse, StreamDetails, ErrorResponse). No space
# after `data:`, no [DONE]; stop strings are part of the text.
def tgi_event(text: str, *, special: bool = False, last: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "index": 1,
        "token": {"id": 7, "text": text, "logprob": -0.1, "special": special},
        "generated_text": "whole text" if last else None,
        "details": last,
    }


def tgi_stream(*texts: str, finish: str = "length") -> Pieces:
    details = {"finish_reason": finish, "generated_tokens": len(texts), "seed": None, "input_length": 11}
    events = [tgi_event(text) for text in texts[:-1]]
    events.append(tgi_event(texts[-1], special=finish == "eos_token", last=details))
    return [f"data:{json.dumps(event)}\n\n".encode() for event in events]


TGI_ERROR = {"error": "Request failed during generation: CUDA out of memory", "error_type": "generation"}
TGI_INVALID = {"error": "Input validation error: `inputs` must have less than 1024 tokens", "error_type": "validation"}
TGI_OVERLOADED = {"error": "Model is overloaded", "error_type": "overloaded"}


# NVIDIA Triton:
# https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_generate.html
def triton_stream(*texts: str) -> Pieces:
    return sse(*({"model_name": "m", "model_version": "1", "text_output": text} for text in texts))


TRITON_ERROR = {"error": "error in generation"}

# Ollama: https://github.com/ollama/ollama/blob/main/docs/api.md#generate-a-chat-completion
OLLAMA_FRAME = {"model": "llama3.2", "created_at": "2023-08-04T08:52:19.385406455-07:00"}


def ollama_line(content: str, **message: Any) -> dict[str, Any]:
    return {**OLLAMA_FRAME, "message": {"role": "assistant", "content": content, **message}, "done": False}


def ollama_last(**more: Any) -> dict[str, Any]:
    return {**OLLAMA_FRAME, "message": {"role": "assistant", "content": ""}, "done": True, **more}


OLLAMA_TEXT = ndjson(
    ollama_line("The"),
    ollama_line(" sky"),
    ollama_last(
        done_reason="stop", total_duration=4883583458, prompt_eval_count=26, eval_count=2, eval_duration=4799921000
    ),
)
OLLAMA_CALL = {"function": {"name": "get_weather", "arguments": {"city": "Tokyo"}}}
OLLAMA_TOOLS = ndjson(ollama_line("", tool_calls=[OLLAMA_CALL]), ollama_last(done_reason="stop", eval_count=9))
OLLAMA_ERROR = {"error": "an error was encountered while running the model"}
