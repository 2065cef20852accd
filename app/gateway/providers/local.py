"""The in-process engine as a provider: the one door between gateway and engine."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from app.config import EngineSettings
from app.errors import InvalidRequest, UpstreamError
from app.gateway.capabilities import COMPLETION, RESPONSE_FORMAT, TOP_K
from app.gateway.schemas import ChatRequest, Delta, Message, Usage

if TYPE_CHECKING:
    from app.engine import AsyncEngine, EngineDelta, EngineStats, Grammar, Request, Tokenizer, TokenSegment

# Fields that the engine's sampler takes under the names they come with.
_PENALTIES = frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty"})
SAMPLING_FIELDS = _PENALTIES | {"min_p", "min_tokens", "ignore_eos", "stop_token_ids"}
LOGIT_BIAS = "logit_bias"
# The engine's own choice where a caller names no limit.
DEFAULT_MAX_TOKENS = 512
# Requests in flight may finish for so long when the process stops.
DRAIN_SECONDS = 5.0
# Tokenizing more characters than this takes long enough to be worth a thread.
INLINE_CHARACTERS = 20_000


class LocalProvider:
    """Turns labelled text segments into labelled token segments, and tokens back into deltas.

    torch is imported by `start()`, not before: a gateway without a local model never pays for it.
    """

    takes = frozenset({COMPLETION, TOP_K, RESPONSE_FORMAT, LOGIT_BIAS, *SAMPLING_FIELDS})

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._engine: AsyncEngine | None = None
        # Token ids of firm-wide segments: the policy is the same bytes in every request.
        self._firm_wide: dict[str, list[int]] = {}

    async def start(self) -> None:
        """Load the model in the engine's thread. Raises whatever loading raises."""
        from app.engine import AsyncEngine, EngineConfig

        s = self._settings
        config = EngineConfig(
            model=s.model_source,
            device=s.device,
            dtype=s.dtype,
            max_num_seqs=s.max_num_seqs,
            max_num_batched_tokens=s.max_num_batched_tokens,
            max_model_len=s.max_model_len or None,
            kv_cache_bytes=s.kv_cache_bytes,
            threads=s.threads or None,
        )
        self._engine = AsyncEngine(config)
        await self._engine.start()

    async def pin(self, messages: tuple[Message, ...]) -> None:
        """Compute what is firm-wide at the start of a chat with these messages, and keep it for good."""
        if self._engine is None:
            raise UpstreamError("The in-process engine is not started.")
        segments = self._tokenize(ChatRequest(model="", messages=messages))
        await self._engine.pin(list(takewhile(lambda segment: not segment.label, segments)))

    async def close(self) -> None:
        if self._engine:
            await self._engine.stop(drain_seconds=DRAIN_SECONDS)

    def unhealthy(self) -> str | None:
        if self._engine is None:
            return "the model is not loaded"
        return None if self._engine.healthy else self._engine.reason

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        from app.engine import EngineError

        if self._engine is None:
            raise UpstreamError("The in-process engine is not started.")
        segments = await self._tokens(request)
        work = self._request(request, segments)
        known = Usage(_count(segments))
        try:
            # Closed here and not by the garbage collector: closing is what aborts the request in the engine.
            async with aclosing(self._engine.generate(work)) as deltas:
                async for delta in deltas:
                    yield _delta(delta, known)
        except EngineError as error:
            raise UpstreamError(str(error)) from error

    def stats(self) -> "EngineStats":
        """The engine's own counters. Raises UpstreamError before start()."""
        if self._engine is None:
            raise UpstreamError("The in-process engine is not started.")
        return self._engine.stats()

    async def count_tokens(self, request: ChatRequest) -> int | None:
        """Exact: the chat template's own tokens are counted too."""
        return _count(await self._tokens(request))

    async def _tokens(self, request: ChatRequest) -> "list[TokenSegment]":
        """Long prompts are tokenized in a thread: the event loop serves others meanwhile."""
        if sum(len(message.text) for message in request.messages) > INLINE_CHARACTERS:
            return await asyncio.to_thread(self._tokenize, request)
        return self._tokenize(request)

    def _request(self, request: ChatRequest, segments: "list[TokenSegment]") -> "Request":
        from app.engine import Request, SamplingParams

        sampling, fields = request.sampling, request.upstream_only
        try:
            params = SamplingParams(
                temperature=1.0 if sampling.temperature is None else sampling.temperature,
                top_p=sampling.top_p or 1.0,
                top_k=sampling.top_k or 0,
                max_tokens=sampling.max_tokens or DEFAULT_MAX_TOKENS,
                stop=sampling.stop,
                seed=sampling.seed,
                logit_bias={int(token): bias for token, bias in (fields.get(LOGIT_BIAS) or {}).items()},
                **{name: fields[name] for name in SAMPLING_FIELDS & fields.keys()},
            )
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"The engine cannot sample like this: {error}") from error
        grammar = _grammar(fields.get(RESPONSE_FORMAT))
        return Request("chat", tuple(segments), params, quote_sources=request.quote_sources, grammar=grammar)

    def _tokenize(self, request: ChatRequest) -> "list[TokenSegment]":
        """The chat template's own pieces are firm-wide; every content keeps its segments and their labels."""
        from app.engine import TokenSegment

        tokenizer = self._tokenizer()
        if request.raw:
            texts = request.messages[0].segments
            return [TokenSegment(self._encode(text.text, text.label), text.label) for text in texts]
        messages = [{"role": _role(m.role), "content": m.text} for m in request.messages]
        segments: list[TokenSegment] = []
        for piece in tokenizer.render_chat(messages):
            if piece.message_index is None:
                segments.append(TokenSegment(tokenizer.encode_template(piece.text)))
                continue
            for segment in request.messages[piece.message_index].segments:
                if segment.text:
                    segments.append(TokenSegment(self._encode(segment.text, segment.label), segment.label))
        return segments

    def _encode(self, text: str, label: frozenset[str]) -> list[int]:
        if label:
            return self._tokenizer().encode(text)
        if text not in self._firm_wide:
            self._firm_wide[text] = self._tokenizer().encode(text)
        return self._firm_wide[text]

    def _tokenizer(self) -> "Tokenizer":
        tokenizer = self._engine.tokenizer if self._engine else None
        if tokenizer is None:
            raise UpstreamError("The in-process model has no tokenizer.")
        return tokenizer


def _grammar(response_format: dict[str, Any] | None) -> "Grammar | None":
    """OpenAI's response_format as a grammar; plain text needs none."""
    from app.engine import Grammar

    match response_format:
        case {"type": "json_object"}:
            return Grammar("json_object")
        case {"type": "json_schema", "json_schema": {"schema": schema}}:
            return Grammar("json_schema", schema)
    return None


def _role(role: str) -> str:
    """`developer` is OpenAI's newer word for `system`; chat templates know the older one."""
    return "system" if role == "developer" else role


def _count(segments: "list[TokenSegment]") -> int:
    return sum(len(segment.token_ids) for segment in segments)


def _delta(delta: "EngineDelta", known: Usage) -> Delta:
    """`known`: the usage that holds from the start, for streams that do not reach their end."""
    if delta.finish_reason is None or delta.metrics is None:
        return Delta(text=delta.text, usage=known)
    metrics = delta.metrics
    return Delta(
        text=delta.text,
        finish_reason=delta.finish_reason,
        usage=Usage(metrics.num_prompt_tokens, metrics.num_output_tokens, metrics.num_cached_tokens),
        timings_ms={"queue": metrics.queue_ms, "prefill": metrics.prefill_ms, "decode": metrics.decode_ms},
    )
