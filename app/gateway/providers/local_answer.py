"""What the engine says, as deltas: text, tool calls, log probabilities, and how it ended.

Loaded by LocalProvider.start(), since it imports the engine.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any

from app.engine import EngineDelta, EngineError, RequestMetrics, SpeculationCounts, Tokenizer
from app.errors import RateLimited, source_gone
from app.gateway.providers.base import TransientError
from app.gateway.providers.tool_calls import ToolCallParser
from app.gateway.schemas import Delta, Usage

Json = dict[str, Any]
RETRY_SECONDS = 5.0  # when a caller who could not be served in time may come back


class Answer:
    """One of the choices of a request."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: int, index: int, calls: ToolCallParser | None) -> None:
        self._tokenizer = tokenizer
        self._known = Usage(prompt_tokens)  # for streams that do not reach their end
        self._index = index
        self._calls = calls

    def delta(self, delta: EngineDelta) -> Delta:
        """Raises what the caller must know where the engine ended it before its end."""
        text, calls = self._calls.push(delta.text) if self._calls else (delta.text, [])
        logprobs = self._logprobs(delta) if delta.logprobs is not None else None
        if delta.finish_reason is None or delta.metrics is None:
            return Delta(text, usage=self._known, tool_calls=calls or None, logprobs=logprobs, index=self._index)
        if self._calls:
            rest, late = self._calls.close()
            text, calls = text + rest, calls + late
        metrics = delta.metrics
        return Delta(
            text=text,
            finish_reason=self._finish_reason(delta.finish_reason),
            usage=_usage(metrics),
            timings_ms={"queue": metrics.queue_ms, "prefill": metrics.prefill_ms, "decode": metrics.decode_ms},
            tool_calls=calls or None,
            logprobs=logprobs,
            index=self._index,
            speculation=_speculation(metrics.speculation),
        )

    def _finish_reason(self, reason: str) -> str:
        if reason == "deadline":
            raise RateLimited("The in-process engine is too busy to start this in time.", retry_after=RETRY_SECONDS)
        if reason == "forgotten":
            raise source_gone()
        if reason == "abort":
            raise TransientError("The in-process engine stopped.")
        return "tool_calls" if reason == "stop" and self._calls is not None and self._calls.called else reason

    def _logprobs(self, delta: EngineDelta) -> Json:
        """In OpenAI's shape. End tokens are no text and have no entry."""
        tops = delta.top_logprobs or [[]] * len(delta.token_ids)
        found = [
            (self._named(token, value), [self._named(*other) for other in top])
            for token, value, top in zip(delta.token_ids, delta.logprobs or [], tops, strict=True)
            if self._tokenizer.bytes_of(token) is not None
        ]
        return {"content": [chosen | {"top_logprobs": top} for chosen, top in found]}

    def _named(self, token: int, logprob: float) -> Json:
        data = self._tokenizer.bytes_of(token) or b""
        return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def _usage(metrics: RequestMetrics) -> Usage:
    drafts = metrics.speculation
    accepted, tried = (drafts.accepted, drafts.drafted) if drafts is not None else (0, 0)
    tokens = metrics.num_prompt_tokens, metrics.num_output_tokens, metrics.num_cached_tokens
    return Usage(*tokens, accepted, tried - accepted)


def _speculation(counts: SpeculationCounts | None) -> Json | None:
    if counts is None:
        return None
    shares = {"acceptance": counts.acceptance, "mean_accepted": counts.mean_accepted}
    return {name: round(share, 4) for name, share in shares.items()} | asdict(counts)


async def one(deltas: AsyncGenerator[EngineDelta, None], answer: Answer) -> AsyncGenerator[Delta, None]:
    """Closed here and not by the garbage collector: closing is what aborts the request in the engine."""
    try:
        async with aclosing(deltas):
            async for delta in deltas:
                yield answer.delta(delta)
    except EngineError as error:
        raise TransientError(str(error)) from error


async def several(streams: list[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """Choices as they come. The usage of the last is that of all."""
    usage = Usage()
    async with aclosing(read_ahead(*streams)) as deltas:
        async for delta in deltas:
            if delta.finish_reason is not None and delta.usage is not None:
                usage = _sum(usage, delta.usage)
            yield _with_usage(delta, usage)


async def read_ahead(*streams: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
    """Deltas of all of them as they come, read at once however slowly they are taken. The first failure is the
    caller's."""
    queue: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()
    tasks = [asyncio.create_task(_feed(stream, queue)) for stream in streams]
    left = len(streams)
    try:
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(stream: AsyncGenerator[Delta, None], queue: "asyncio.Queue[Delta | BaseException | None]") -> None:
    try:
        async with aclosing(stream):
            async for delta in stream:
                queue.put_nowait(delta)
        queue.put_nowait(None)
    except Exception as error:
        queue.put_nowait(error)


def _sum(one: Usage, other: Usage) -> Usage:
    """The prompt is there once, and computed once."""
    return Usage(
        other.prompt_tokens,
        one.completion_tokens + other.completion_tokens,
        min(one.cached_tokens, other.cached_tokens) if one.prompt_tokens else other.cached_tokens,
        one.accepted_draft_tokens + other.accepted_draft_tokens,
        one.rejected_draft_tokens + other.rejected_draft_tokens,
    )


def _with_usage(delta: Delta, usage: Usage) -> Delta:
    return delta if delta.finish_reason is None else replace(delta, usage=usage)
