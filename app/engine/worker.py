"""One LLMEngine in one thread, from loading to its end. A failed one is never revived, but replaced.

However it ends, the device's memory is given back by this thread before it is gone.
"""

import asyncio
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.engine.config import EngineConfig
from app.engine.engine import LLMEngine
from app.engine.laps import Laps
from app.engine.request import EngineError, Request, StepOutput
from app.engine.warm import Warm
from app.errors import AppError

log = logging.getLogger(__name__)

# How long a thread waits for Python's lock before the one that runs must let go of it, for the whole process. A step
# gives the lock back at every tensor operation; with Python's own 5 ms a busy event loop kept it waiting that long
# each time, and refusing half a hundred requests a second cost the engine a quarter of its tokens.
SWITCH_INTERVAL_S = 0.0005

Outcome = StepOutput | Exception


@dataclass(frozen=True, slots=True)
class Submit:
    request: Request
    arrived: float


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class Call:
    """Something to do between two steps. Outputs that it causes go into the list; reply resolves on the loop."""

    function: Callable[[LLMEngine, list[StepOutput]], object]
    reply: "asyncio.Future[Any]"


@dataclass(frozen=True, slots=True)
class Stop:
    """keep: for a while only; what makes the next start faster stays in host memory."""

    keep: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """Another rank of the engine is gone, perhaps while nothing ran."""

    reason: str


Order = Submit | Abort | Call | Stop | Lost


class EngineWorker:
    """Orders in through a plain queue; each step's outputs out in one call_soon_threadsafe.

    on_outcomes(list of (request id, output or error)) and on_failure(worker, reason) are called on the loop.
    warm: what is left of the engine before.  laps: where the seconds of the start went.
    """

    def __init__(
        self,
        config: EngineConfig,
        on_outcomes: Callable[[list[tuple[str, Outcome]]], None],
        on_failure: Callable[["EngineWorker", str], None],
        warm: Warm,
    ) -> None:
        self.config = config
        self.laps = Laps()
        self._warm = warm
        self.engine: LLMEngine | None = None
        self.inbox: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._on_outcomes, self._on_failure = on_outcomes, on_failure
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._idle = True
        self._progressed = time.monotonic()

    async def start(self) -> None:
        """Raises what loading raised."""
        self._thread.start()
        await self._loaded

    async def stop(self, *, keep: bool = False) -> None:
        """After its current step; requests in flight end with "abort". keep: see Stop."""
        self.inbox.put(Stop(keep))
        await asyncio.to_thread(self._thread.join)

    async def ended(self) -> None:
        """Once a failed one has gone and its memory with it."""
        await asyncio.to_thread(self._thread.join)

    def stalled_seconds(self) -> float:
        """Since a step last progressed while there was work; 0 where there is none."""
        return 0.0 if self._idle else time.monotonic() - self._progressed

    def _main(self) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            self.engine = engine = self._load()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # who keeps the error keeps no weights
            self._call_soon(_reject, self._loaded, error)
            return
        self._call_soon(_resolve, self._loaded, None)
        try:
            stop = self._serve(engine)
            self._give_back(engine, keep=stop.keep)
        except Exception as error:
            log.exception("engine step failed")
            self._fail(engine, f"{type(error).__name__}: {error}")

    def _load(self) -> LLMEngine:
        engine = LLMEngine(self.config, self._warm, self.laps)
        self._warm.weights = None  # they are on the device again
        engine.runner.ranks.on_lost = lambda reason: self.inbox.put(Lost(reason))
        engine.warm_up()
        self.laps.lap("warm_up")
        return engine

    def _give_back(self, engine: LLMEngine, *, keep: bool) -> None:
        if keep:
            try:
                self._warm.put_away(engine.runner)
            except RuntimeError:  # no room in host memory
                log.exception("the weights could not be kept; the files will be read again")
        self.engine = None
        engine.runner.release()

    def _fail(self, engine: LLMEngine, reason: str) -> None:
        """Memory back first, then the news."""
        self.engine, self._idle = None, True
        for give_back in (engine.abort_all, engine.runner.release):
            try:
                give_back()
            except Exception:
                log.exception("the failed engine could not be emptied")
        self._call_soon(self._on_failure, self, reason)

    def _serve(self, engine: LLMEngine) -> Stop:
        while True:
            outputs: list[StepOutput] = []
            stop = self._take_orders(engine, outputs)
            if stop is not None:
                outputs += engine.abort_all()
            elif engine.has_work:
                outputs += self._step(engine)
            if outputs:
                self._call_soon(self._on_outcomes, [(output.request_id, output) for output in outputs])
            if stop is not None:
                return stop

    def _step(self, engine: LLMEngine) -> list[StepOutput]:
        steps = engine.stats().steps
        outputs = engine.step()
        if outputs or engine.stats().steps > steps:
            self._progressed = time.monotonic()
        else:
            time.sleep(0.001)  # nothing could be scheduled: a defect, and the watchdog will say so
        return outputs

    def _take_orders(self, engine: LLMEngine, outputs: list[StepOutput]) -> Stop | None:
        """Everything in the inbox; waits for something where there is no work. The order to stop ends it."""
        wait = self._idle = not engine.has_work
        while True:
            try:
                order = self.inbox.get(block=wait)
            except queue.Empty:
                return None
            if wait:
                self._progressed, self._idle, wait = time.monotonic(), False, False
            if isinstance(order, Stop):
                return order
            if isinstance(order, Lost):
                raise EngineError(order.reason)
            self._obey(order, engine, outputs)

    def _obey(self, order: Submit | Abort | Call, engine: LLMEngine, outputs: list[StepOutput]) -> None:
        if isinstance(order, Submit):
            try:
                engine.add_request(order.request, order.arrived)
            except (AppError, ValueError) as error:
                self._call_soon(self._on_outcomes, [(order.request.request_id, error)])
        elif isinstance(order, Abort):
            ended = engine.abort(order.request_id)
            outputs += [ended] if ended is not None else []
        else:
            try:
                self._call_soon(_resolve, order.reply, order.function(engine, outputs))
            except (AppError, EngineError, ValueError) as error:
                self._call_soon(_reject, order.reply, error)

    def _call_soon(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            log.warning("the event loop closed before the engine stopped")


def _resolve(reply: "asyncio.Future[Any]", result: object) -> None:
    if not reply.done():
        reply.set_result(result)


def _reject(reply: "asyncio.Future[Any]", error: BaseException) -> None:
    if not reply.done():
        reply.set_exception(error)
