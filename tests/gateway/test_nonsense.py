"""Every field of a rich request, replaced by every kind of nonsense: refused or understood, and never an accident."""

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from app.config import TargetSettings
from app.errors import InvalidRequest
from app.gateway import wire, wire_anthropic, wire_completions
from app.gateway.capabilities import estimate_tokens, needs
from app.gateway.providers.http import HttpProvider
from app.gateway.providers.registry import UPSTREAMS
from app.gateway.schemas import ChatRequest

NONSENSE: list[Any] = [None, True, 0, -1, 1.5, "x", "", [], [1], ["x"], [[]], [None], {}, {"type": "x"}, {"a": [1]}]
IMAGE = "data:image/png;base64,aGk="
OPENAI: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "s"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": IMAGE}}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": "r"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    "logit_bias": {"5": 1},
    "stop": ["a"],
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 3,
    "max_tokens": 5,
    "seed": 1,
    "min_p": 0.1,
    "stop_token_ids": [1],
    "stream_options": {"include_usage": True},
}
ANTHROPIC: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "s"}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "t"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "h", "signature": "s"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "text", "text": "r"}],
                    "is_error": True,
                }
            ],
        },
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
    "thinking": {"type": "disabled"},
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stop_sequences": ["a"],
    "temperature": 1,
    "top_p": 0.5,
    "top_k": 3,
}
LEGACY: dict[str, Any] = {"model": "m", "prompt": ["a", "b"], "max_tokens": 3, "stop": "x", "logprobs": 0, "best_of": 1}
Parse = Callable[[bytes], list[ChatRequest]]
DIALECTS: dict[str, tuple[dict[str, Any], Parse]] = {
    "openai": (
        OPENAI,
        lambda body: [wire.to_request(msgspec.json.decode(body, type=wire.ChatCompletionRequest), frozenset())],
    ),
    "anthropic": (
        ANTHROPIC,
        lambda body: [
            wire_anthropic.to_request(msgspec.json.decode(body, type=wire_anthropic.MessagesRequest), frozenset())
        ],
    ),
    "legacy": (
        LEGACY,
        lambda body: wire_completions.to_requests(
            msgspec.json.decode(body, type=wire_completions.CompletionRequest), frozenset()
        ),
    ),
}


def mutations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside the value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from mutations(value[key], (*path, key))


def mutated(body: dict[str, Any], path: tuple[Any, ...], nonsense: Any) -> bytes:
    changed = copy.deepcopy(body)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = nonsense
    return json.dumps(changed).encode()


def providers() -> list[HttpProvider]:
    target = TargetSettings(name="t", base_url="https://up.example/v1", images=True)
    return [kind(target) for kind in UPSTREAMS.values()]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nonsense_is_refused_or_understood(dialect: str) -> None:
    body, parse = DIALECTS[dialect]
    served = providers()
    understood = refused = 0
    for path in mutations(body):
        for nonsense in NONSENSE:
            try:
                requests = parse(mutated(body, path, nonsense))
            except (msgspec.ValidationError, InvalidRequest):
                refused += 1
                continue
            understood += 1
            for request in requests:
                estimate_tokens(request)
                _bodies(request, served)
    assert understood > 10
    assert refused > 50


def _bodies(request: ChatRequest, served: list[HttpProvider]) -> None:
    """What each provider would send, whether or not it takes all of the request."""
    needs(request)
    for provider in served:
        if request.raw and "prompt" not in provider.takes:
            continue
        with suppress(InvalidRequest):
            json.dumps(provider.body(request))
