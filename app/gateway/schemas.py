"""The nouns of the gateway, in no provider's dialect."""

from dataclasses import dataclass, field
from typing import Any

from app.errors import AppError


@dataclass(frozen=True)
class Segment:
    """A piece of prompt text with its access label (empty: firm-wide) and the ids of what it was taken from."""

    text: str
    label: frozenset[str] = frozenset()
    source_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Message:
    """`extra` holds what only some upstreams understand: tool calls, names, image parts."""

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
class ChatRequest:
    """`upstream_only` are fields that the in-process engine does not take; it refuses a request that has any."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    upstream_only: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Tokens. `cached_tokens` are those of the prompt that were not computed again."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The last one carries finish_reason, and usage and timings where the target has them."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings_ms: dict[str, float] | None = None
    tool_calls: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Attempt:
    """One target that was tried and did not answer."""

    target: str
    error: AppError
