"""What a caller gets from one step: tokens and the text that is safe to show."""

from dataclasses import dataclass, replace

from app.engine.detokenizer import TextStream
from app.engine.request import Alternatives, FinishReason, RequestMetrics, StepOutput


@dataclass(frozen=True, slots=True)
class EngineDelta:
    """What a step added to one request. finish_reason and metrics come with the last.

    text: whole characters only, nothing of a stop string.  logprobs, top_logprobs: per token, where asked for.
    """

    token_ids: list[int]
    text: str
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    metrics: RequestMetrics | None = None
    top_logprobs: list[Alternatives] | None = None


def delta(output: StepOutput, text: TextStream) -> EngineDelta:
    """Tokens behind a stop string, which a step with a draft may bring, are no part of the output."""
    last, stop, before = output.finish_reason is not None, output.finish_reason == "stop", text.num_tokens
    shown = text.push(output.token_ids, last=last, drop_last_token=stop)
    count = text.num_tokens - before
    return EngineDelta(
        output.token_ids[:count],
        shown,
        output.logprobs[:count] if output.logprobs is not None else None,
        "stop" if last and text.stopped else output.finish_reason,
        ended(output.metrics, text) if output.metrics is not None else None,
        output.top_logprobs[:count] if output.top_logprobs is not None else None,
    )


def ended(metrics: RequestMetrics, text: TextStream) -> RequestMetrics:
    """The engine goes on until it hears of a stop string."""
    return replace(metrics, num_output_tokens=text.num_tokens) if text.stopped else metrics
