"""A chat request as the engine takes it: labelled token segments, sampling, and what the output must look like.

Loaded by LocalProvider.start(), since it imports the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from app.engine import Grammar, Request, SamplingParams, Tokenizer, TokenSegment
from app.errors import InvalidRequest
from app.gateway.capabilities import PREDICTION, RESPONSE_FORMAT, TOOLS
from app.gateway.providers.tool_calls import ToolCallParser, ToolFormat, for_template, forced, grammar, tool_format
from app.gateway.schemas import ChatRequest, Message

# Fields that the engine's sampler takes under the names they come with.
PENALTIES = frozenset({"presence_penalty", "frequency_penalty", "repetition_penalty"})
SAMPLING_FIELDS = PENALTIES | {"min_p", "min_tokens", "ignore_eos", "stop_token_ids"}
LOGIT_BIAS, LOGPROBS, TOP_LOGPROBS = "logit_bias", "logprobs", "top_logprobs"
# The engine's own choice where a caller names no limit.
DEFAULT_MAX_TOKENS = 512
# Of priority below the others: what nobody waits for starts later, but not never (waiting.py).
BATCH_LEVELS = 10
MAX_FIRM_WIDE = 256  # texts remembered as tokens


@dataclass
class Prompt:
    """segments: of template and contents.  ends: tokens up to the end of each segment of content."""

    segments: list[TokenSegment] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add_contents(self, contents: list[TokenSegment]) -> "Prompt":
        at = sum(len(segment.token_ids) for segment in self.segments)
        for segment in contents:
            at += len(segment.token_ids)
            self.ends.append(at)
        self.segments += contents
        return self


class RequestBuilder:
    """For one tokenizer. Raises InvalidRequest for what its model cannot do."""

    def __init__(
        self, tokenizer: Tokenizer, max_queue_seconds: float | None, adapters: Mapping[str, str] | None = None
    ) -> None:
        """adapters: by the model name that asks for one."""
        self._tokenizer = tokenizer
        self._adapters = adapters or {}
        self._max_queue_seconds = max_queue_seconds
        # Token ids of firm-wide segments: the policy is the same bytes in every request.
        self._firm_wide: dict[str, list[int]] = {}
        self.tools: ToolFormat | None = tool_format(tokenizer.chat_template)

    def build(self, request: ChatRequest, segments: list[TokenSegment]) -> Request:
        return Request(
            "chat",
            tuple(segments),
            _sampling(request),
            priority=-BATCH_LEVELS if request.hints.batch else 0,
            max_queue_seconds=self._max_queue_seconds,
            quote_sources=request.quote_sources,
            grammar=self._grammar(request.upstream_only),
            continues_text=request.raw,
            draft_token_ids=self._predicted(request.upstream_only.get(PREDICTION), request.draft),
            adapter=self._adapters.get(request.model),
        )

    def _predicted(self, prediction: dict[str, Any] | None, draft: str) -> tuple[int, ...]:
        """The caller's own prediction, else the cache's."""
        content = prediction["content"] if prediction else draft
        text = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
        return tuple(self._tokenizer.encode(text)) if text else ()

    def parser(self, request: ChatRequest) -> ToolCallParser | None:
        """For each choice one; None where no tools are offered."""
        tools = self._offered(request.upstream_only)
        return ToolCallParser(self.tools, tools) if tools and self.tools is not None else None

    def prompt(self, request: ChatRequest) -> Prompt:
        """The chat template's own pieces are firm-wide; every content keeps its segments and their labels.

        What a template writes of tools is the caller's text: then its pieces carry the union of the labels.
        """
        made = Prompt()
        if request.raw:
            return made.add_contents(self._contents(request.messages[0]))
        tools = self._offered(request.upstream_only)
        messages = [self._message(message) for message in request.messages]
        inlined = tools or any("tool_calls" in message for message in messages)
        labels = [s.label for message in request.messages for s in message.segments] if inlined else []
        template = TokenSegment([], frozenset().union(*labels))
        for piece in self._tokenizer.render_chat(messages, tools=tools):
            if piece.message_index is None:
                made.segments.append(replace(template, token_ids=self._tokenizer.encode_template(piece.text)))
            else:
                made.add_contents(self._contents(request.messages[piece.message_index]))
        return made

    def _contents(self, message: Message) -> list[TokenSegment]:
        return [TokenSegment(self._encode(s.text, s.label), s.label, s.source_ids) for s in message.segments if s.text]

    def _message(self, message: Message) -> dict[str, Any]:
        """`developer` is OpenAI's newer word for `system`; chat templates know the older one."""
        role = "system" if message.role == "developer" else message.role
        return for_template({"role": role, "content": message.text} | message.extra)

    def _encode(self, text: str, label: frozenset[str]) -> list[int]:
        if label:
            return self._tokenizer.encode(text)
        if text not in self._firm_wide:
            if len(self._firm_wide) >= MAX_FIRM_WIDE:
                self._firm_wide.clear()
            self._firm_wide[text] = self._tokenizer.encode(text)
        return self._firm_wide[text]

    def _offered(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        return [] if fields.get("tool_choice") == "none" else fields.get(TOOLS) or []

    def _grammar(self, fields: dict[str, Any]) -> Grammar | None:
        """A tool that must be called, or OpenAI's response_format; plain text needs none."""
        called = forced(self._offered(fields), fields.get("tool_choice"))
        if called and self.tools is not None:
            mark = self._tokenizer.encode_template(self.tools.mark) if self.tools.mark else []
            return Grammar("lark", grammar(self.tools, called, mark[0] if len(mark) == 1 else None))
        match fields.get(RESPONSE_FORMAT):
            case {"type": "json_object"}:
                return Grammar("json_object")
            case {"type": "json_schema", "json_schema": {"schema": schema}}:
                return Grammar("json_schema", schema)
        return None


def _sampling(request: ChatRequest) -> SamplingParams:
    sampling, fields = request.sampling, request.upstream_only
    try:
        return SamplingParams(
            temperature=1.0 if sampling.temperature is None else sampling.temperature,
            top_p=sampling.top_p or 1.0,
            top_k=sampling.top_k or 0,
            max_tokens=sampling.max_tokens or DEFAULT_MAX_TOKENS,
            stop=sampling.stop,
            seed=sampling.seed,
            logit_bias={int(token): bias for token, bias in (fields.get(LOGIT_BIAS) or {}).items()},
            logprobs=_num_logprobs(fields),
            **{name: fields[name] for name in SAMPLING_FIELDS & fields.keys()},
        )
    except (ValueError, TypeError) as error:
        raise InvalidRequest(f"The engine cannot sample like this: {error}") from error


def _num_logprobs(fields: dict[str, Any]) -> int | None:
    return int(fields.get(TOP_LOGPROBS) or 0) if fields.get(LOGPROBS) else None
