"""A target's provider behind deadlines, retries and a circuit breaker.

Source of the breaker: M. Nygard, "Release It!" (closed → open after failures in a row → one probe). Backoff with full
jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable

from app.config import TargetSettings
from app.errors import AppError, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from app.gateway.providers.base import Provider, TransientError
from app.gateway.schemas import Attempt, ChatRequest, Delta

# Failures of the target and not of the request: the next target is tried.
FALLBACK = (UpstreamError, Unavailable, RateLimited)
BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 2.0
# A target that asks for a longer wait than this is not waited for.
PATIENCE_SECONDS = 5.0
CLOSE_SECONDS = 5.0
PROBE_SECONDS = 10.0
# Whole answers that are handed through come after all their tokens: no useful target is slower than this.
SLOWEST_TOKENS_PER_SECOND = 20
UNLIMITED_TOKENS = 4_096


class Breaker:
    """Remembers how a target did. Open: it is left alone until the pause is over, then one request probes it."""

    def __init__(self, target: TargetSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = target.name
        self._threshold = target.breaker_failures
        self._pause = target.breaker_seconds
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0
        self._limited_until = 0.0
        self._probing = False

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        if self._failures < self._threshold:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    @property
    def limited(self) -> bool:
        return self._clock() < self._limited_until

    @property
    def condition(self) -> str:
        """For people: closed, rate limited, open or half-open."""
        return "rate limited" if self.limited else f"circuit {self.state}"

    def admit(self) -> None:
        """Raise RateLimited or Unavailable where the target is not to be asked. The first one after a pause probes."""
        wait = self._limited_until - self._clock()
        if wait > 0:
            raise RateLimited(f"The target {self._name!r} is rate limited.", retry_after=wait)
        state = self.state
        if state == "open" or (state == "half-open" and self._probing):
            raise Unavailable(f"The target {self._name!r} failed repeatedly and is left alone for a while.")
        self._probing = state == "half-open"

    def answering(self) -> None:
        """A first delta came. A probe has done its work; the next failure opens the circuit again."""
        if self._probing:
            self._probing = False
            self._failures = self._threshold - 1

    def succeeded(self) -> None:
        self._failures, self._probing = 0, False

    def failed(self, error: AppError) -> None:
        """A rate limit closes the door for as long as the upstream says, and is no sign of ill health."""
        self._probing = False
        if isinstance(error, RateLimited):
            self._limited_until = self._clock() + error.retry_after
            return
        self._failures += 1
        if self._failures >= self._threshold:
            self._open_until = self._clock() + self._pause

    def released(self) -> None:
        """The caller went away: nothing was learned."""
        self._probing = False


class GuardedTarget:
    """One target with everything that keeps its troubles away from callers."""

    def __init__(self, target: TargetSettings, provider: Provider, secret: str = "") -> None:
        self.target = target
        self.secret = secret
        self.provider = provider
        self.breaker = Breaker(target)
        self.running = 0
        self.ttft_ms: float | None = None
        """Of late: each first delta counts for a fifth."""

    def trouble(self) -> str | None:
        """Why the target would not answer now; None where nothing is known against it."""
        if reason := self.provider.unhealthy():
            return reason
        return None if self.breaker.state == "closed" and not self.breaker.limited else self.breaker.condition

    async def probe(self) -> None:
        """Ask whether the target is well, and remember the answer as if it were a request's."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self.provider.probe()
        except (UpstreamError, TimeoutError) as error:
            self.breaker.failed(error if isinstance(error, UpstreamError) else UpstreamTimeout("The probe timed out."))
        else:
            self.breaker.succeeded()

    def measured(self, milliseconds: float) -> None:
        before = milliseconds if self.ttft_ms is None else self.ttft_ms
        self.ttft_ms = before + (milliseconds - before) / 5

    async def open(self, request: ChatRequest, *, alternatives: bool) -> "DeltaStream":
        """The stream once its first delta is there. With `alternatives` (other targets) limits are not waited for.

        Raises one of FALLBACK where the target failed, and InvalidRequest where the request is at fault.
        """
        if reason := self.provider.unhealthy():
            raise Unavailable(f"The target {self.target.name!r} is not ready: {reason}.")
        self.breaker.admit()
        begun = asyncio.get_running_loop().time()
        self.running += 1
        try:
            stream = await self._persist(request, begun + self.target.total_seconds, alternatives)
        except BaseException as error:
            self.running -= 1
            self._learn(error)
            raise
        self.breaker.answering()
        self.measured((asyncio.get_running_loop().time() - begun) * 1000)
        return stream

    def _learn(self, error: BaseException) -> None:
        """What a request without an answer says of the target."""
        if isinstance(error, FALLBACK):
            self.breaker.failed(error)
        elif isinstance(error, AppError):
            self.breaker.succeeded()
        else:
            self.breaker.released()

    async def _persist(self, request: ChatRequest, deadline: float, alternatives: bool) -> "DeltaStream":
        """Try, and try again while that may help and there is time."""
        tries = 0
        while True:
            try:
                return await self._try(request, deadline)
            except FALLBACK as error:
                wait = pause(error, tries, alternatives=alternatives)
                late = wait is not None and asyncio.get_running_loop().time() + wait >= deadline
                if wait is None or late or tries >= self.target.max_retries:
                    raise
            tries += 1
            await asyncio.sleep(wait)

    def _patience(self, request: ChatRequest) -> float:
        """Seconds for the first delta. Where it is the whole answer, also what a slow target needs for all of it."""
        if request.streamed or not self.provider.relays(request):
            return self.target.timeout_seconds
        tokens = request.sampling.max_tokens or UNLIMITED_TOKENS
        return self.target.timeout_seconds + tokens / SLOWEST_TOKENS_PER_SECOND

    async def _try(self, request: ChatRequest, deadline: float) -> "DeltaStream":
        deltas = self.provider.stream(request)
        until = min(deadline, asyncio.get_running_loop().time() + self._patience(request))
        try:
            async with asyncio.timeout_at(until):
                first = await anext(deltas)
        except TimeoutError as error:
            await deltas.aclose()
            waited = min(self.target.timeout_seconds, self.target.total_seconds)
            raise UpstreamTimeout(f"The target {self.target.name!r} sent nothing in {waited:g} s.") from error
        except StopAsyncIteration as error:
            raise TransientError(f"The target {self.target.name!r} sent an empty answer.") from error
        return DeltaStream(self, first, deltas, deadline)


class DeltaStream:
    """The deltas of an answer, each within the target's deadlines. Closing it stops the upstream."""

    def __init__(
        self, guarded: GuardedTarget, first: Delta, rest: AsyncGenerator[Delta, None], deadline: float
    ) -> None:
        self.target = guarded.target
        self._guarded = guarded
        self._breaker = guarded.breaker
        self._first: Delta | None = first
        self._rest = rest
        self._deadline = deadline
        self._idle = guarded.target.idle_seconds or guarded.target.timeout_seconds
        self._settled = False
        self._closed = False

    def __aiter__(self) -> "DeltaStream":
        return self

    async def __anext__(self) -> Delta:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            async with asyncio.timeout_at(min(self._deadline, asyncio.get_running_loop().time() + self._idle)):
                return await anext(self._rest)
        except StopAsyncIteration:
            self._settle(None)
            raise
        except TimeoutError as error:
            late = UpstreamTimeout(f"The target {self.target.name!r} stopped answering.")
            self._settle(late)
            raise late from error
        except AppError as error:
            self._settle(error)
            raise

    async def aclose(self) -> None:
        """Stop the upstream, within CLOSE_SECONDS."""
        if not self._closed:
            self._closed = True
            self._guarded.running -= 1
        if not self._settled:
            self._settled = True
            self._breaker.released()
        async with asyncio.timeout(CLOSE_SECONDS):
            await self._rest.aclose()

    def _settle(self, error: AppError | None) -> None:
        self._settled = True
        if error is None or not isinstance(error, FALLBACK):
            self._breaker.succeeded()
        else:
            self._breaker.failed(error)


def pause(error: AppError, tries: int, *, alternatives: bool) -> float | None:
    """Seconds before the same target is tried again; None where it is not."""
    if isinstance(error, RateLimited):
        wait: float | None = None if alternatives else error.retry_after
    elif isinstance(error, TransientError):
        wait = error.retry_after
        if wait is None:
            wait = random.uniform(0, min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2**tries))
    else:
        wait = None
    return wait if wait is not None and wait <= PATIENCE_SECONDS else None


def exhausted(attempts: list[Attempt]) -> AppError:
    """The one error for a caller after every target failed.

    429 where all are limited, with the shortest wait; 504 where all were silent, 503 where none was ready; else 502.
    """
    errors = [attempt.error for attempt in attempts]
    if len(errors) == 1:
        return errors[0]
    detail = "Every target failed. " + " ".join(f"{a.target}: {a.error.detail}" for a in attempts)
    waits = [error.retry_after for error in errors if isinstance(error, RateLimited)]
    if len(waits) == len(errors):
        return RateLimited(detail, retry_after=min(waits))
    for kind in (UpstreamTimeout, Unavailable):
        if all(isinstance(error, kind) for error in errors):
            return kind(detail)
    return UpstreamError(detail)
