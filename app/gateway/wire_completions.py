"""OpenAI's legacy completions and its embeddings: request structs, response and chunk builders.

Sources: https://platform.openai.com/docs/api-reference/completions and …/embeddings.
"""

import base64
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta, Struct

from app.errors import InvalidRequest
from app.gateway.schemas import ChatRequest, Delta, Message, Sampling, Segment, Usage
from app.gateway.wire import Json, StreamOptions, UpstreamFields, merge_logprobs, stops, upstream_only, usage_object

DEFAULT_MAX_TOKENS = 16  # the API's own
MAX_PROMPTS = 64
MAX_EMBEDDING_INPUTS = 2_048


class CompletionRequest(UpstreamFields, kw_only=True):
    model: str
    prompt: str | list[Any]
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    stop: str | Annotated[list[str], Meta(max_length=4)] | None = None
    seed: int | None = None
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: int | None = None  # type: ignore[assignment]  # a number of alternatives here, a switch in chat
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None


def to_requests(body: CompletionRequest, label: frozenset[str]) -> list[ChatRequest]:
    """One raw request for each prompt. Raises InvalidRequest."""
    for name in ("echo", "suffix", "logprobs"):
        if getattr(body, name):
            raise InvalidRequest(f"{name!r} is not supported by this endpoint.", param=name)
    fields = upstream_only(body)
    sampling = Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        stop=stops(body.stop),
        seed=body.seed,
    )
    prompts = texts(body.prompt, "prompt", MAX_PROMPTS)
    if body.stream and len(prompts) > 1:
        raise InvalidRequest("A stream takes one prompt.", param="prompt")
    messages = [Message("user", (Segment(prompt, label),)) for prompt in prompts]
    return [
        ChatRequest(body.model, (m,), sampling, fields, raw=True, endpoint="completions", streamed=bool(body.stream))
        for m in messages
    ]


def texts(given: str | list[Any], param: str, most: int) -> list[str]:
    """The texts of a field that takes one or a list. Raises InvalidRequest for token arrays, empty texts, too many."""
    listed = [given] if isinstance(given, str) else given
    if any(not isinstance(text, str) for text in listed):
        raise InvalidRequest(f"Token arrays are not supported: send {param!r} as text.", param=param)
    if not 1 <= len(listed) <= most:
        raise InvalidRequest(f"{param!r} takes 1 to {most} texts.", param=param)
    if not all(listed):
        raise InvalidRequest(f"{param!r} must not be empty.", param=param)
    return listed


class TextCompletion:
    """Builds the response objects of one legacy completion."""

    def __init__(self, model: str) -> None:
        self._frame: Json = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def full(self, answers: Sequence[tuple[list[Delta], str | None, Usage]]) -> Json:
        """`answers`: deltas, finish_reason and usage by prompt."""
        choices = [
            _choice(index, "".join(delta.text for delta in deltas), finish, merge_logprobs(deltas))
            for index, (deltas, finish, _) in enumerate(answers)
        ]
        usages = [usage for _, _, usage in answers]
        total = Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
        )
        return self._frame | {"choices": choices, "usage": usage_object(total)}

    def chunk(self, delta: Delta) -> Json:
        return self._frame | {"choices": [_choice(0, delta.text, delta.finish_reason, delta.logprobs)]}

    def usage_chunk(self, usage: Usage) -> Json:
        return self._frame | {"choices": [], "usage": usage_object(usage)}


def _choice(index: int, text: str, finish_reason: str | None, logprobs: Json | None) -> Json:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}


class EmbeddingRequest(Struct):
    model: str
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


def embedding_list(model: str, vectors: npt.NDArray[np.float32], tokens: int, *, packed: bool) -> Json:
    """`packed`: each vector as base64 of little-endian float32, the form official clients ask for by default."""
    rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist() for row in vectors]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}
