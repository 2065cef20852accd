"""What a caller gets from one step: tokens and the text that is safe to show."""

from dataclasses import dataclass

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
    last, stop = output.finish_reason is not None, output.finish_reason == "stop"
    shown = text.push(output.token_ids, last=last, drop_last_token=stop)
    reason: FinishReason | None = "stop" if last and text.stopped else output.finish_reason
    return EngineDelta(output.token_ids, shown, output.logprobs, reason, output.metrics, output.top_logprobs)
