"""A model that comes to its device when it is asked for and goes when others need the room.

    asleep ──► waking ──► awake ──► leaving ──► asleep
                  └─► asleep (it failed)  └─► failed (given up after too many restarts; see revive())

Asleep, nothing of it is on the device; its tokenizer, its pins as tokens and what was learned of its speed stay in host
memory, on a GPU its weights too. Everything here runs on one event loop; the engine has a thread of its own.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

from app.engine.arbiter import DeviceArbiter, Span
from app.engine.async_engine import AsyncEngine
from app.engine.cost import StepShape
from app.engine.footprint import prepare
from app.engine.laps import Laps
from app.engine.request import EngineError
from app.errors import Conflict

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # after a failed wake; until then nobody tries
_BYTES_PER_SECOND = 1e9  # of a model that never woke so far
_START_SECONDS = 0.5


class State(StrEnum):
    ASLEEP = "asleep"
    WAKING = "waking"
    AWAKE = "awake"
    LEAVING = "leaving"
    FAILED = "failed"


class Resident:
    """open() before use, close() after. Times by time.monotonic()."""

    def __init__(self, name: str, engine: AsyncEngine, arbiter: DeviceArbiter | Span, *, pinned: bool = False) -> None:
        """pinned: never put to sleep for others."""
        self.name, self.engine, self.arbiter, self.pinned = name, engine, arbiter, pinned
        self.num_bytes = 0
        self.state = State.ASLEEP
        self.users = self.waiting = self.wakes = 0
        self.awake_since = self.last_used = 0.0
        self.start_seconds: dict[str, float] = {}
        """Where the time of the last start went, by stage; of the first with what was done before it."""
        self.wake_seconds = 0.0
        """What the last wake took, without the wait for room; before the first a guess by size."""
        self.waking_seconds = 0.0
        """Of all wakes together."""
        self.failure: str | None = None
        """Why the last wake failed; None once one has succeeded."""
        self.on_change: Callable[[Resident], None] = lambda _: None
        """Called when `state` is another one."""
        self._laps = Laps()
        self._failed_at = 0.0
        self._waking: asyncio.Task[None] | None = None
        self._loading_since: float | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._closed = False
        engine.given_up = self._given_up

    async def open(self) -> None:
        """Find and check the model, and load it where there is room for it (a pinned one makes some).

        Raises whatever finding, checking and loading raise, and ConfigurationError where it could never fit.
        """
        await self._find()
        self.arbiter.register(self)
        if not self.pinned and not self.arbiter.has_room(self.num_bytes):
            return
        self.waiting += 1
        try:
            await asyncio.wait({task := self._begin_waking()})
            task.result()
        finally:
            self.waiting -= 1

    @property
    def held_bytes(self) -> int:
        """What it holds now of its device, or of each of them."""
        return self.arbiter.held_by(self)

    @property
    def idle(self) -> bool:
        """Awake, and nobody uses it or is about to."""
        wanted = self.users or (self.waiting and not self.arbiter.yields(self))
        return self.state is State.AWAKE and not wanted

    @property
    def trouble(self) -> str | None:
        """Why it cannot serve now. Being asleep is no reason."""
        if self._closed:
            return "stopping"
        if self.state in (State.AWAKE, State.FAILED):
            return self.engine.reason
        return self.failure if time.monotonic() < self._failed_at + RETRY_SECONDS else None

    def wake_s(self) -> float:
        """Seconds until it could begin with a request, as far as one can tell; 0 when awake."""
        if self.state is State.AWAKE:
            return 0.0
        if self._loading_since is not None:
            return max(0.0, self.wake_seconds - (time.monotonic() - self._loading_since))
        return self.wake_seconds + (self.arbiter.slice_seconds if self.arbiter.crowded(self) else 0.0)

    def first_token_s(self, num_tokens: int) -> float:
        """Seconds until a prompt of so many tokens would be answered while the model is not awake."""
        budget = self.engine.config.max_num_batched_tokens
        steps = max(1, -(-num_tokens // budget))
        shape = StepShape(min(num_tokens, budget), 0, 0, num_tokens * min(num_tokens, budget) // 2)
        return self.wake_s() + steps * self.engine.warm.cost.seconds(shape)

    @asynccontextmanager
    async def use(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Awake within this, and not put to sleep. Waits no longer than so many seconds for it.

        Raises TimeoutError then, and EngineError where it cannot be woken.
        """
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._ready()
            self.users += 1
        finally:
            self.waiting -= 1
            self._nobody_waits()
        try:
            yield
        finally:
            self.users -= 1
            self.last_used = time.monotonic()
            self.arbiter.changed()

    def revive(self) -> None:
        """What failed may be tried again at once."""
        self._failed_at = 0.0
        if self.state is State.FAILED:
            self._become(State.ASLEEP)

    async def sleep(self) -> None:
        """Leave the device. Raises Conflict where requests are in flight."""
        if self.state is State.WAKING:
            raise Conflict(f"The model {self.name!r} is waking.")
        if self.state is State.AWAKE:
            if not self.idle:
                raise Conflict(f"The model {self.name!r} has requests in flight: {self.users + self.waiting}.")
            self._become(State.LEAVING)
            self._leaving = asyncio.create_task(self._leave(), name=f"sleep of {self.name}")
        if self._leaving is not None:
            await asyncio.shield(self._leaving)

    async def close(self, *, drain_seconds: float = 0.0) -> None:
        """Those who wait are told; those in flight have so long to finish."""
        self._closed = True
        self.arbiter.changed()
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.wait({self._waking})
        if self._leaving is not None:
            await asyncio.wait({self._leaving})
        await self.engine.stop(drain_seconds=drain_seconds)
        self.arbiter.remove(self)
        self._become(State.ASLEEP)

    async def _ready(self) -> None:
        """Returns once it is awake and need not yield."""
        while self.state is not State.AWAKE or self.arbiter.yields(self):
            if (trouble := self.trouble) is not None:
                raise EngineError(f"The model {self.name!r} cannot serve: {trouble}")
            if self.state is State.AWAKE:
                await self.arbiter.change()
                continue
            task = self._waking or self._begin_waking()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise EngineError(f"The model {self.name!r} could not be woken: {error}") from error

    def _begin_waking(self) -> "asyncio.Task[None]":
        self._become(State.WAKING)
        self._waking = asyncio.create_task(self._wake(), name=f"wake of {self.name}")
        self._waking.add_done_callback(self._woken)
        return self._waking

    async def _find(self) -> None:
        prepared = await asyncio.to_thread(prepare, self.engine.config, self._laps)
        self.engine.warm.folder, self.engine.warm.tokenizer = prepared.folder, prepared.tokenizer
        self.num_bytes = prepared.num_bytes
        self.wake_seconds = _START_SECONDS + self.num_bytes / _BYTES_PER_SECOND

    async def _wake(self) -> None:
        if self._leaving is not None:
            await asyncio.wait({self._leaving})
        if self.engine.warm.folder is None:  # open() did not find it
            await self._find()
        self.arbiter.register(self)
        await self.arbiter.take(self)
        while not await self._load():  # it turned out larger than its files say
            self.arbiter.check(self)
            self._nobody_waits()
            await self.arbiter.take(self)

    async def _load(self) -> bool:
        """In its own thread; False where it is larger than the room that it was given, and gone again."""
        self._loading_since = began = time.monotonic()
        fits = False
        try:
            await self.engine.start()
            fits = self.arbiter.settle(self, self._measured())
        finally:
            if not fits:  # not to be given up meanwhile: its room would never be given back
                await self.engine.stop()
                self.arbiter.give_back(self)
            self._loading_since = None
        self.awake_since = self.last_used = time.monotonic()
        self.wake_seconds = self.awake_since - began
        self.waking_seconds += self.wake_seconds
        return fits

    def _measured(self) -> int:
        """Of several ranks only the first can be looked at; then what was expected counts."""
        alone = self.engine.config.num_ranks == 1
        return self.engine.engine.runner.num_bytes() if alone else self.num_bytes

    def _woken(self, task: "asyncio.Task[None]") -> None:
        if task is not self._waking:
            return  # nobody waits for it any more
        self._waking = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.failure, self._failed_at = f"{type(error).__name__}: {error}", time.monotonic()
            log.error("model %r could not be woken", self.name, exc_info=error)
        if error is not None or task.cancelled():
            self._become(State.ASLEEP)
            return
        self.failure, self.wakes = None, self.wakes + 1
        self._laps.add(self.engine.laps)
        self.start_seconds, self._laps = self._laps.seconds, Laps()
        self._become(State.AWAKE)

    def _nobody_waits(self) -> None:
        """A wake that waits for room in vain is given up; what is loading already goes on."""
        if not self.waiting and self._waking is not None and self._loading_since is None:
            task, self._waking = self._waking, None
            task.cancel()
            self._become(State.ASLEEP)
        self.arbiter.changed()

    async def _leave(self) -> None:
        try:
            await self.engine.stop(keep=True)
        finally:
            self._leaving = None
            self.arbiter.give_back(self)
            self._become(State.ASLEEP if self._waking is None else State.WAKING)

    def _given_up(self) -> None:
        """The engine failed too often: its memory is free, and it stays so until somebody wakes it."""
        self.arbiter.give_back(self)
        self._become(State.FAILED)

    def _become(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self.on_change(self)
            self.arbiter.changed()
