"""What LLMEngine.generate() collects of one request."""

from app.engine.delta import EngineDelta, delta
from app.engine.detokenizer import text_stream
from app.engine.request import Alternatives, Request, RequestOutput, StepOutput
from app.engine.tokenizer import Tokenizer


class Collected:
    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        wants = request.sampling.logprobs
        self.tokens: list[int] = []
        self.logprobs: list[float] | None = None if wants is None else []
        self.top_logprobs: list[Alternatives] | None = [] if wants else None
        self.text = ""
        self.end: EngineDelta | None = None
        self._request_id = request.request_id
        self._stream = text_stream(tokenizer, request)

    def add(self, output: StepOutput) -> bool:
        """Whether a stop string is complete."""
        found = delta(output, self._stream)
        self.tokens += found.token_ids
        if self.logprobs is not None:
            self.logprobs += found.logprobs or []
        if self.top_logprobs is not None:
            self.top_logprobs += found.top_logprobs or []
        self.text += found.text
        self.end = found if found.finish_reason is not None else self.end
        return self._stream.stopped

    def output(self) -> RequestOutput:
        assert self.end is not None and self.end.finish_reason is not None and self.end.metrics is not None
        return RequestOutput(
            self._request_id, self.tokens, self.text, self.end.finish_reason, self.logprobs, self.end.metrics,
            self.top_logprobs,
        )  # fmt: skip
