"""The engine for an event loop: one thread steps, the loop never waits for it.

Requests and aborts go in through a queue; the outputs of a step come back in one call_soon_threadsafe.
Detokenization and stop strings happen in the caller's task, outside the engine thread.

When a step fails, everybody who waits is told at once (EngineError: send it again), the failed engine's memory is
given back, and a new one is loaded, `restart_limit` times within RESTART_WINDOW. When no step progresses while
there is work, waiters fail and `healthy` is False until one does: a thread in native code cannot be interrupted.
"""

import asyncio
import dataclasses
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection
from collections.abc import Sequence as Seq
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from app.engine.admission import Limits, split_choices
from app.engine.config import EngineConfig
from app.engine.cost import TTFTPrediction
from app.engine.delta import EngineDelta, delta, ended
from app.engine.detokenizer import text_stream
from app.engine.engine import LLMEngine, pin_request
from app.engine.facts import EngineLoad, EngineStats, PromptKeys
from app.engine.laps import Laps
from app.engine.pins import Pins, Prefix
from app.engine.prefix import Label, LabelCount
from app.engine.request import EngineError, Request, StepOutput, TokenSegment
from app.engine.tokenizer import Tokenizer
from app.engine.warm import Warm
from app.engine.worker import Abort, Call, EngineWorker, Outcome, Submit
from app.errors import AppError

log = logging.getLogger(__name__)

RESTART_WINDOW = 600.0  # seconds
MAX_BACKOFF = 30.0
T = TypeVar("T")


class AsyncEngine:
    """start() before use, stop() after, as often as one likes. `healthy` and `reason` are what a readiness check wants.

    warm: what the next start need not do again.  laps: where the seconds of the last one went.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.warm = Warm()
        self.laps = Laps()
        self.given_up: Callable[[], None] = lambda: None  # called when a failed engine is not restarted any more
        self._down: str | None = "not started"
        self._worker: EngineWorker | None = None
        self._outboxes: dict[str, asyncio.Queue[Outcome]] = {}
        self._ids = itertools.count()
        self._pins = Pins(config.block_size, self._read, self._keep)
        self._calls: set[asyncio.Future[Any]] = set()
        self._failures: deque[float] = deque()
        self._failure = asyncio.Event()
        self._stopping = False
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load and warm up in the engine's own thread. Raises what loading raised."""
        if self._worker is not None and self._down is None:
            return
        await self._end_supervisor()
        if self._worker is not None:
            await self._worker.stop()
        self._failures.clear()
        self._stopping = False
        await self._begin()
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self, *, drain_seconds: float = 0.0, keep: bool = False) -> None:
        """Take no more requests, give those in flight so long to finish, abort the rest, end the thread.

        keep: what makes the next start() faster stays in host memory; on the device nothing does.
        """
        self._down, self._stopping = "stopping", True
        deadline = time.monotonic() + drain_seconds
        while self._outboxes and self._worker is not None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await self._end_supervisor()
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop(keep=keep)
        self._down = "stopped"

    @property
    def healthy(self) -> bool:
        return self.reason is None

    @property
    def reason(self) -> str | None:
        """Why the engine is not healthy."""
        if self._down is not None:
            return self._down
        return self._stalled()

    @property
    def engine(self) -> LLMEngine:
        """For reading limits, tokenizer and spec; its methods belong to the engine thread."""
        engine = self._worker.engine if self._worker is not None else None
        if engine is None:
            raise EngineError(f"The engine is not ready: {self.reason}")
        return engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Also while the engine is stopped, once it was prepared or started."""
        return self.warm.tokenizer

    @property
    def limits(self) -> Limits:
        return self.engine.limits

    def stats(self) -> EngineStats:
        """The snapshot of the last step; zeros before the first."""
        engine = self._worker.engine if self._worker is not None else None
        return EngineStats() if engine is None else engine.stats()

    def load(self) -> EngineLoad:
        """For routing, as of the last step. Raises EngineError where there is no engine."""
        return self.engine.load()

    def label_counts(self) -> dict[Label, LabelCount]:
        """Prompt tokens and prefix cache hits per access label."""
        return self.engine.label_counts()

    def keys(self, segments: Seq[TokenSegment], adapter: str | None = None) -> PromptKeys:
        """A prompt's block keys, for match() and predict_ttft(). About 2 microseconds per block."""
        return self.engine.forecast.keys(segments, adapter)

    def match(self, prompt: PromptKeys | Seq[TokenSegment]) -> list[int]:
        """Tokens of each segment that are in the cache now."""
        return self.engine.forecast.match(self._keys(prompt))

    def predict_ttft(self, prompt: PromptKeys | Seq[TokenSegment], *, quantile: float = 0.9) -> TTFTPrediction:
        """When the first token of this prompt would come if it were sent now."""
        unseen = self._worker.inbox.qsize() if self._worker is not None else 0
        return self.engine.forecast.predict(self._keys(prompt), quantile, unseen)

    async def pin(self, segments: Seq[TokenSegment]) -> int:
        """Compute the whole blocks of this prefix and keep them for good, over restarts too; returns their tokens.

        An engine that is stopped, or stops or fails meanwhile, computes them when it starts. Raises ValueError where
        too much would be pinned, InvalidRequest and ContextTooLong as generate(); then nothing is kept.
        """
        prefix = tuple(segments)
        self._pins.remember(prefix)
        try:
            return 0 if self._worker is None else await self._pins.compute(prefix)
        except EngineError:
            return 0
        except (ValueError, AppError):
            self._pins.drop(prefix)
            raise

    async def forget(self, source_ids: Collection[str]) -> None:
        """Drop all blocks and pins computed from these sources; requests that use them end as "forgotten"."""
        gone = frozenset(source_ids)
        self._pins.forget(gone)
        if self._worker is None or self._worker.engine is None:
            return  # nothing is in memory, and what is loaded next begins empty
        with suppress(EngineError):  # one that failed holds nothing any more, one that stalls takes the order first
            await self._call(lambda engine, outputs: outputs.extend(engine.forget(gone)))

    def generate(self, request: Request) -> AsyncGenerator[EngineDelta, None]:
        """Deltas, one per step that gave this request tokens. Closing or cancelling aborts the request.

        Raises at once InvalidRequest or ContextTooLong for a request that cannot work, EngineError where the
        engine is not healthy; while iterating EngineError if a step fails.
        """
        self._require_healthy()
        self.engine.check(request)
        return self._stream(dataclasses.replace(request, request_id=f"{request.request_id}#{next(self._ids)}"))

    def generate_choices(self, request: Request, count: int) -> list[AsyncGenerator[EngineDelta, None]]:
        """`n` answers to one prompt, each a stream of its own; the prompt is computed once. Raises as generate()."""
        self._require_healthy()
        return [self.generate(choice) for choice in split_choices(request, count, self.limits)]

    def _require_healthy(self) -> None:
        if (reason := self.reason) is not None:
            raise EngineError(f"The engine is not ready: {reason}")

    def _keys(self, prompt: PromptKeys | Seq[TokenSegment]) -> PromptKeys:
        return prompt if isinstance(prompt, PromptKeys) else self.keys(prompt)

    async def _stream(self, request: Request) -> AsyncGenerator[EngineDelta, None]:
        worker = self._worker
        if worker is None or worker.engine is None:
            raise EngineError(f"The engine is not ready: {self.reason}")
        outbox = self._outboxes[request.request_id] = asyncio.Queue()
        text = text_stream(self.tokenizer, request)
        done = stopped = False
        worker.inbox.put(Submit(request, time.perf_counter()))
        try:
            while not done:
                output = await outbox.get()
                done = isinstance(output, Exception) or output.finish_reason is not None
                if isinstance(output, Exception):
                    raise output
                if not stopped:
                    yield delta(output, text)
                elif done:
                    assert output.metrics is not None  # the last has them
                    yield EngineDelta([], "", None, "stop", ended(output.metrics, text))
                if text.stopped and not stopped and not done:  # the metrics come with the abort
                    worker.inbox.put(Abort(request.request_id))
                stopped = text.stopped
        finally:
            del self._outboxes[request.request_id]
            if not done:
                worker.inbox.put(Abort(request.request_id))

    async def _begin(self) -> None:
        self._failure.clear()
        self._worker = worker = EngineWorker(self.config, self._deliver, self._failed, self.warm)
        await worker.start()
        self.laps = worker.laps
        await self._pins.again()
        self.laps.lap("pins")
        self._down = None

    async def _read(self, prefix: Prefix) -> None:
        """Compute what is not in the cache yet."""
        request = dataclasses.replace(pin_request(prefix), request_id=f"pin#{next(self._ids)}")
        self.engine.check(request)
        async with aclosing(self._stream(request)) as deltas:
            async for _ in deltas:
                pass

    async def _keep(self, prefix: Prefix) -> int:
        return await self._call(lambda engine, _: engine.keep(prefix))

    async def _call(self, function: Callable[[LLMEngine, list[StepOutput]], T]) -> T:
        """What function returns, called in the engine thread between two steps."""
        worker = self._worker
        if worker is None or worker.engine is None:
            raise EngineError(f"The engine is not ready: {self.reason}")
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls.add(reply)
        reply.add_done_callback(self._calls.discard)
        worker.inbox.put(Call(function, reply))
        result: T = await reply
        return result

    def _deliver(self, outcomes: list[tuple[str, Outcome]]) -> None:
        for request_id, outcome in outcomes:
            if (outbox := self._outboxes.get(request_id)) is not None:
                outbox.put_nowait(outcome)

    def _failed(self, worker: EngineWorker, reason: str) -> None:
        """A step raised: on the loop, from the worker's last breath."""
        self._fail_waiters(reason)
        if worker is self._worker and not self._stopping:
            self._down = reason
            self._failures.append(time.monotonic())
            self._failure.set()

    def _fail_waiters(self, reason: str) -> None:
        error = EngineError(f"The engine failed ({reason}); the request may be sent again.")
        for outbox in self._outboxes.values():
            outbox.put_nowait(error)
        for reply in list(self._calls):
            if not reply.done():  # it is among them for one more turn of the loop
                reply.set_exception(error)

    def _stalled(self) -> str | None:
        seconds = self._worker.stalled_seconds() if self._worker is not None else 0.0
        return f"no step progressed for {seconds:.1f} s" if seconds > self.config.stall_s else None

    async def _supervise(self) -> None:
        """Until stop(): replaces a failed engine, and fails those who wait for a stalled one."""
        while True:
            try:
                await asyncio.wait_for(self._failure.wait(), min(1.0, self.config.stall_s / 4))
            except TimeoutError:
                if (stalled := self._stalled()) is not None and self._worker is not None:
                    for request_id in self._outboxes:
                        self._worker.inbox.put(Abort(request_id))
                    self._fail_waiters(stalled)
                continue
            if not await self._restart():
                return

    async def _restart(self) -> bool:
        """A new engine, after a pause that doubles; no more of them when it fails too often."""
        while True:
            while self._failures and self._failures[0] < time.monotonic() - RESTART_WINDOW:
                self._failures.popleft()
            count = len(self._failures)
            if count > self.config.restart_limit:
                self._down = f"{self._down}; given up after {count - 1} restarts"
                self.given_up()
                return False
            await asyncio.sleep(min(MAX_BACKOFF, self.config.restart_backoff_s * 2.0 ** max(0, count - 1)))
            try:
                if self._worker is not None:
                    await self._worker.ended()
                await self._begin()
                return True
            except Exception as error:
                log.exception("the engine could not be restarted")
                self._down = f"{type(error).__name__}: {error}"
                if not self._failure.is_set():
                    self._failures.append(time.monotonic())

    async def _end_supervisor(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
