"""Ollama, its native `/api/chat` and `/api/generate`, streamed as lines of JSON.

Source: https://github.com/ollama/ollama/blob/main/docs/api.md. The last line has `done: true` and the counts, which may
be absent (a prompt found in the cache), as may `done_reason`. A tool call's `arguments` are an object without an id.
Ollama cuts a prompt beyond `num_ctx` without a word: set the target's `max_context`, which is sent as `num_ctx`.
"""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec

from app.gateway.capabilities import COMPLETION, RESPONSE_FORMAT, TOOLS, TOP_K, estimate_tokens
from app.gateway.images import data_url
from app.gateway.providers.http import HttpProvider, Json, arguments_of, lines
from app.gateway.schemas import ChatRequest, Delta, Message, Usage


class OllamaProvider(HttpProvider):
    JSON_LINES = True
    TAKES = frozenset({COMPLETION, TOP_K, TOOLS, RESPONSE_FORMAT, "min_p"})

    def probe_path(self) -> str:
        return "api/version"

    def path(self, request: ChatRequest) -> str:
        return "api/generate" if request.raw else "api/chat"

    def body(self, request: ChatRequest) -> Json:
        fields = request.upstream_only
        body: Json = {
            "model": self.target.model or request.model,
            "stream": True,
            "options": self._options(request),
            "tools": fields.get(TOOLS),
            "format": _format(fields.get(RESPONSE_FORMAT)),
        }
        if request.raw:
            body |= {"prompt": request.messages[0].text, "raw": True}
        else:
            body["messages"] = _messages(request.messages)
        return {name: value for name, value in body.items() if value is not None}

    def _options(self, request: ChatRequest) -> Json:
        sampling = request.sampling
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            TOP_K: sampling.top_k or None,
            "min_p": request.upstream_only.get("min_p"),
            "num_predict": sampling.max_tokens,
            "stop": list(sampling.stop) or None,
            "seed": sampling.seed,
            "num_ctx": self.target.max_context or None,
        }
        return {name: value for name, value in options.items() if value is not None}

    async def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        calls = 0
        async for line in lines(chunks):
            if not line:
                continue
            said = self.decode(line)
            message = said.get("message") or {}
            text = message.get("content") or said.get("response") or ""
            fragments = [_fragment(call, calls + n) for n, call in enumerate(message.get("tool_calls") or [])]
            calls += len(fragments)
            if text or fragments:
                yield Delta(text=text, tool_calls=fragments or None)
            if said.get("done"):
                yield _last(said, request, calls)
                return
        raise self.broken_off()


def _last(said: Json, request: ChatRequest, calls: int) -> Delta:
    finish = "length" if said.get("done_reason") == "length" else "tool_calls" if calls else "stop"
    prompt = said.get("prompt_eval_count")
    usage = Usage(estimate_tokens(request) if prompt is None else prompt, said.get("eval_count") or 0)
    return Delta(finish_reason=finish, usage=usage)


def _fragment(call: Json, index: int) -> Json:
    """A whole tool call as OpenAI would stream it, with an id made here."""
    function = call.get("function") or {}
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments or {}).decode()
    made = {"name": function.get("name") or "", "arguments": text}
    return {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": made}


def _messages(messages: tuple[Message, ...]) -> list[Json]:
    """Ollama names the tool of a result instead of the call's id."""
    names: dict[str, str] = {}
    made = []
    for message in messages:
        calls = message.extra.get("tool_calls") or []
        names |= {call.get("id", ""): call["function"]["name"] for call in calls}
        made.append(_message(message, calls, names))
    return made


def _message(message: Message, calls: list[Json], names: dict[str, str]) -> Json:
    parts = message.extra.get("content")
    body: Json = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if parts:
        body["content"] = "".join(part.get("text", "") for part in parts)
        body["images"] = [data_url(part)[1] for part in parts if part.get("type") == "image_url"]
    if calls:
        body["tool_calls"] = [{"function": _called(call["function"])} for call in calls]
    if tool := names.get(message.extra.get("tool_call_id", "")):
        body["tool_name"] = tool
    return body


def _called(function: Json) -> Json:
    return {"name": function["name"], "arguments": arguments_of(function)}


def _format(response_format: Json | None) -> Any:
    """Ollama's format: a JSON schema, or "json" for any object."""
    if not response_format or response_format.get("type") == "text":
        return None
    return (response_format.get("json_schema") or {}).get("schema") or "json"
