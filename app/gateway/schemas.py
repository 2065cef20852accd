"""The nouns of the gateway, in no provider's dialect.

Tools, tool calls and content parts have OpenAI's shape here; the other dialects are translated from and to it.
"""

from dataclasses import dataclass, field
from typing import Any

from app.errors import AppError
from app.gateway.cache.kept import CacheQuery


@dataclass(frozen=True)
class Segment:
    """A piece of prompt text with its access label (empty: firm-wide) and the ids of what it was taken from."""

    text: str
    label: frozenset[str] = frozenset()
    source_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """`extra` holds what only some upstreams understand.

    name, tool_calls, tool_call_id as in OpenAI's API; content (a list of parts) where images are among them, and then
    there are no segments; is_error (bool) of a tool's result, which Anthropic's API alone can say.
    """

    role: str
    segments: tuple[Segment, ...]
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Sampling:
    """None means: the target's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class RouteHints:
    """What a caller says about where its request may or should go. It can narrow what its tenant allows, never widen.

    session: requests of one session go to one target where the route looks for affinity.  regions: empty, or the only
    ones that may compute.  ttft_ms: when the first token is wanted.  batch: nobody waits for it, others go first.
    """

    session: str = ""
    regions: frozenset[str] = frozenset()
    privileged: bool = False
    ttft_ms: float | None = None
    batch: bool = False


@dataclass(frozen=True)
class ChatRequest:
    """`upstream_only` are fields beyond sampling, under OpenAI's names; a target that lacks one refuses the request.

    `raw`: one message whose text is continued as it is, without a chat template (OpenAI's legacy completions).
    `tenant`: whose request this is; the gateway fills it in.
    `endpoint` and `streamed`: how the caller asked, for the request log.
    `cache_control`: the caller's header.
    `relay`: the caller's dialect, where a target that speaks it may hand its bytes through as they are; with
    `include_usage` a stream's usage chunk too.
    `cache_query`: what the semantic cache needs to know, where the answer may come from there.
    `draft`: an answer that may well be right; a target that can verify it while it answers does.
    `quote_sources`: numbered passages; a target that can constrain its output quotes these alone.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    upstream_only: dict[str, Any] = field(default_factory=dict)
    raw: bool = False
    tenant: str = ""
    endpoint: str = "chat"
    streamed: bool = False
    quote_sources: tuple[str, ...] = ()
    hints: RouteHints = RouteHints()
    cache_control: str = ""
    relay: str = ""
    include_usage: bool = False
    cache_query: CacheQuery | None = None
    draft: str = ""


@dataclass(frozen=True)
class Usage:
    """Tokens. `cached_tokens` are those of the prompt that were not computed again; draft tokens were guessed ahead,
    and the accepted ones are among `completion_tokens`."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    accepted_draft_tokens: int = 0
    rejected_draft_tokens: int = 0


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The last one carries finish_reason, and usage and timings where the target has them.

    finish_reason: stop, length, tool_calls or content_filter; `stop_sequence` is the one that was met, where known.
    usage may come earlier with what is known by then. index: which of several choices (`n`) this belongs to.
    tool_calls are fragments with an index and logprobs an object with lists, as OpenAI streams them.
    speculation: what drafts brought, on the last one where the in-process engine tried some.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings_ms: dict[str, float] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    stop_sequence: str | None = None
    logprobs: dict[str, Any] | None = None
    index: int = 0
    raw: bytes | None = None
    speculation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Attempt:
    """One target that was tried and did not answer."""

    target: str
    error: AppError
