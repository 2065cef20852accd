"""The exact cache: the same request, of the same tenant, with the same rights, gets the same answer again.

Only deterministic requests (temperature 0, one choice) without evidence, on routes that ask for it. What is kept is a
complete answer; a hit is replayed piece by piece, so that a stream looks like a stream. In this process' memory alone.
"""

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from app.config import RouteSettings, TargetSettings
from app.gateway.schemas import ChatRequest, Delta
from app.tenants.principal import Principal

COMPLETE = ("stop", "length", "tool_calls")
DELTA_BYTES = 300  # what a delta takes besides its text
MAX_SHARE = 8  # no entry takes more than this part of the whole
MAX_AGE = re.compile(r"max-age=(\d+)")


@dataclass(frozen=True)
class CacheControl:
    """What the caller's cache-control says (RFC 9111). max_age: of what it still takes, in seconds."""

    read: bool = True
    store: bool = True
    max_age: float | None = None

    @classmethod
    def of(cls, header: str) -> "CacheControl":
        words = header.lower()
        age = MAX_AGE.search(words)
        no_store = "no-store" in words
        return cls(not no_store and "no-cache" not in words, not no_store, float(age[1]) if age else None)


@dataclass(frozen=True)
class Answer:
    """A complete answer and the target that gave it."""

    target: TargetSettings
    deltas: tuple[Delta, ...]
    stored_at: float
    until: float

    @property
    def size(self) -> int:
        return sum(len(delta.text.encode()) + DELTA_BYTES for delta in self.deltas)


class ExactCache:
    """Least recently used answers go first when there is no room."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()
        self._bytes = 0
        self.hits = self.misses = 0

    def find(self, key: bytes, control: CacheControl) -> tuple[Answer, float] | None:
        """The answer and its age in seconds."""
        answer = self._answers.get(key) if control.read else None
        at = self._clock()
        if answer is not None and answer.until <= at:
            self._drop(key)
            answer = None
        if answer is None or (control.max_age is not None and at - answer.stored_at > control.max_age):
            self.misses += 1
            return None
        self.hits += 1
        self._answers.move_to_end(key)
        return answer, at - answer.stored_at

    def store(self, key: bytes, target: TargetSettings, deltas: list[Delta], seconds: float) -> None:
        at = self._clock()
        answer = Answer(target, tuple(deltas), at, at + seconds)
        if answer.size > self._max_bytes // MAX_SHARE:
            return
        self._drop(key)
        self._answers[key] = answer
        self._bytes += answer.size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._answers)))

    def clear(self) -> None:
        self._answers.clear()
        self._bytes = 0

    def _drop(self, key: bytes) -> None:
        answer = self._answers.pop(key, None)
        if answer:
            self._bytes -= answer.size


def cacheable(request: ChatRequest, route: RouteSettings) -> bool:
    deterministic = request.sampling.temperature == 0 and request.upstream_only.get("n", 1) == 1
    evidence = bool(request.quote_sources) or any(s.source_ids for m in request.messages for s in m.segments)
    return bool(route.cache_seconds) and deterministic and not evidence


def key_of(principal: Principal, request: ChatRequest, targets: list[TargetSettings]) -> bytes:
    """SHA-256 over everything that the answer depends on, and over who may see it.

    The tenant and the matters come first: a partition, not a filter. The targets: another model is another answer.
    """
    parts = (
        str(principal.tenant_id),
        sorted(principal.labels),
        [(target.name, target.provider, target.base_url, target.model) for target in targets],
        request.model,
        [
            (message.role, [(s.text, sorted(s.label)) for s in message.segments], message.extra)
            for message in request.messages
        ],
        request.sampling,
        request.upstream_only,
        request.raw,
        (sorted(request.hints.regions), request.hints.privileged),
    )
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).digest()


class Replay:
    """A kept answer in the place of a target's stream."""

    def __init__(self, answer: Answer) -> None:
        self.target = answer.target
        self._deltas = iter(answer.deltas)

    def __aiter__(self) -> "Replay":
        return self

    async def __anext__(self) -> Delta:
        try:
            return next(self._deltas)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        """Nothing to stop."""
