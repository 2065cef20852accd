"""What LLMEngine.generate() collects of one request."""

from app.engine.detokenizer import text_stream
from app.engine.request import Alternatives, FinishReason, Request, RequestOutput, StepOutput
from app.engine.tokenizer import Tokenizer


class Collected:
    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        wants = request.sampling.logprobs
        self.tokens: list[int] = []
        self.logprobs: list[float] | None = None if wants is None else []
        self.top_logprobs: list[Alternatives] | None = [] if wants else None
        self.text = ""
        self.end: StepOutput | None = None
        self._request_id = request.request_id
        self._stream = text_stream(tokenizer, request)

    def add(self, output: StepOutput) -> bool:
        """Whether a stop string is complete."""
        self.tokens += output.token_ids
        if self.logprobs is not None:
            self.logprobs += output.logprobs or []
        if self.top_logprobs is not None:
            self.top_logprobs += output.top_logprobs or []
        last, stop = output.finish_reason is not None, output.finish_reason == "stop"
        self.text += self._stream.push(output.token_ids, last=last, drop_last_token=stop)
        self.end = output if last else self.end
        return self._stream.stopped

    def output(self) -> RequestOutput:
        assert self.end is not None and self.end.finish_reason is not None and self.end.metrics is not None
        reason: FinishReason = "stop" if self._stream.stopped else self.end.finish_reason
        return RequestOutput(
            self._request_id, self.tokens, self.text, reason, self.logprobs, self.end.metrics, self.top_logprobs
        )
