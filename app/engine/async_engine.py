"""The engine for an event loop: one thread steps, the loop never waits for it.

Requests and aborts go in through a queue; the outputs of a step come back in one call_soon_threadsafe.
Detokenization and stop strings happen in the caller's task, outside the engine thread.
"""

import asyncio
import dataclasses
import itertools
import logging
import queue
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from app.engine.admission import Limits, check_request
from app.engine.config import EngineConfig
from app.engine.detokenizer import TextStream
from app.engine.engine import EngineStats, LLMEngine
from app.engine.request import EngineError, FinishReason, Request, RequestMetrics, StepOutput
from app.engine.tokenizer import Tokenizer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineDelta:
    """What a step added to one request. finish_reason and metrics come with the last.

    text: whole characters only, nothing of a stop string.  logprobs: per token, where they were asked for.
    """

    token_ids: list[int]
    text: str
    logprobs: list[float] | None = None
    finish_reason: FinishReason | None = None
    metrics: RequestMetrics | None = None


@dataclass(frozen=True, slots=True)
class _Abort:
    request_id: str


_STOP = object()
_Outbox = asyncio.Queue["StepOutput | EngineError"]


class AsyncEngine:
    """start() before use, stop() after. After a failure in a step `healthy` is False and start() begins anew."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.healthy = False
        self.reason: str | None = "not started"
        self._engine: LLMEngine | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox: queue.SimpleQueue[Request | _Abort | object] = queue.SimpleQueue()
        self._outboxes: dict[str, _Outbox] = {}
        self._ids = itertools.count()

    async def start(self) -> None:
        """Load and warm up in the engine's own thread. Raises what loading raised."""
        if self.healthy:
            return
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._loop = asyncio.get_running_loop()
        self._inbox = queue.SimpleQueue()
        loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(loaded,), name="engine", daemon=True)
        self._thread.start()
        await loaded
        self.healthy, self.reason = True, None

    async def stop(self) -> None:
        """End the thread after its current step; requests in flight finish with "abort"."""
        self.healthy, self.reason = False, "stopped"
        if self._thread is not None:
            self._inbox.put(_STOP)
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    @property
    def engine(self) -> LLMEngine:
        """For reading limits, tokenizer and spec; its methods belong to the engine thread."""
        if self._engine is None:
            raise EngineError(f"The engine is not ready: {self.reason}")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.engine.tokenizer

    @property
    def limits(self) -> Limits:
        return self.engine.limits

    def stats(self) -> EngineStats:
        """The snapshot of the last step; zeros before the first."""
        return EngineStats() if self._engine is None else self._engine.stats()

    def generate(self, request: Request) -> AsyncGenerator[EngineDelta, None]:
        """Deltas, one per step that gave this request tokens. Closing or cancelling aborts the request.

        Raises at once InvalidRequest or ContextTooLong for a request that cannot work, EngineError where the
        engine is not healthy; while iterating EngineError if a step fails.
        """
        if not self.healthy:
            raise EngineError(f"The engine is not ready: {self.reason}")
        check_request(request, self.limits)
        return self._stream(dataclasses.replace(request, request_id=f"{request.request_id}#{next(self._ids)}"))

    async def _stream(self, request: Request) -> AsyncGenerator[EngineDelta, None]:
        if not self.healthy:
            raise EngineError(f"The engine is not ready: {self.reason}")
        request_id = request.request_id
        outbox = self._outboxes[request_id] = asyncio.Queue()
        text = TextStream(self.tokenizer, request.sampling.stop)
        done = stopped = False
        self._inbox.put(request)
        try:
            while not done:
                output = await outbox.get()
                done = isinstance(output, EngineError) or output.finish_reason is not None
                if isinstance(output, EngineError):
                    raise output
                if not stopped:
                    yield _delta(output, text)
                elif done:
                    yield EngineDelta([], "", None, "stop", output.metrics)
                if text.stopped and not stopped and not done:  # the metrics come with the abort
                    self._inbox.put(_Abort(request_id))
                stopped = text.stopped
        finally:
            del self._outboxes[request_id]
            if not done:
                self._inbox.put(_Abort(request_id))

    def _main(self, loaded: "asyncio.Future[None]") -> None:
        """The engine thread."""
        assert self._loop is not None
        try:
            self._engine = engine = LLMEngine(self.config)
            engine.warm_up()
        except BaseException as error:
            self._loop.call_soon_threadsafe(loaded.set_exception, error)
            return
        self._loop.call_soon_threadsafe(loaded.set_result, None)
        try:
            self._serve(engine)
        except Exception as error:
            log.exception("engine step failed")
            ended = engine.abort_all()
            self._hand_over(self._fail, f"{type(error).__name__}: {error}", ended)

    def _serve(self, engine: LLMEngine) -> None:
        while True:
            outputs: list[StepOutput] = []
            if not self._take_orders(engine, outputs):
                self._hand_over(self._deliver, outputs + engine.abort_all())
                return
            if engine.has_work:
                outputs += engine.step()
            if outputs:
                self._hand_over(self._deliver, outputs)

    def _take_orders(self, engine: LLMEngine, outputs: list[StepOutput]) -> bool:
        """Everything in the inbox; waits for something where there is no work. False: stop."""
        wait = not engine.has_work
        while True:
            try:
                order = self._inbox.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if order is _STOP:
                return False
            if isinstance(order, Request):
                engine.add_request(order)
            elif isinstance(order, _Abort):
                ended = engine.abort(order.request_id)
                outputs += [ended] if ended is not None else []

    def _hand_over(self, function: "object", *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)  # type: ignore[arg-type]
        except RuntimeError:
            log.warning("the event loop closed before the engine stopped")

    def _deliver(self, outputs: list[StepOutput]) -> None:
        for output in outputs:
            if (outbox := self._outboxes.get(output.request_id)) is not None:
                outbox.put_nowait(output)

    def _fail(self, reason: str, _: list[StepOutput]) -> None:
        self.healthy, self.reason = False, reason
        for outbox in self._outboxes.values():
            outbox.put_nowait(EngineError(f"The engine failed ({reason}); the request may be sent again."))


def _delta(output: StepOutput, text: TextStream) -> EngineDelta:
    last, stop = output.finish_reason is not None, output.finish_reason == "stop"
    shown = text.push(output.token_ids, last=last, drop_last_token=stop)
    reason: FinishReason | None = "stop" if last and text.stopped else output.finish_reason
    return EngineDelta(output.token_ids, shown, output.logprobs, reason, output.metrics)
