"""Who may be on a device: one budget of bytes for all models there. No torch.

Embedding and rerank models hold their part for good. The engines' models share the rest: who needs room gets it by
putting idle models to sleep, the least recently used first. A model with requests in flight is never put to sleep. One
that never runs out of them is asked to yield once it has been awake for SLICE_SECONDS: requests that come after that
wait behind the model that waits, those in flight finish.

Steps of several engines are left to the operating system: letting them take turns did not help (RESULTS.md). Everything
here runs on one event loop.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from app.errors import ConfigurationError

SLICE_SECONDS = 10.0


class Sleepable(Protocol):
    """A model that can be put to sleep. num_bytes: of each device that it is on. Times by time.monotonic()."""

    name: str
    num_bytes: int
    pinned: bool
    awake_since: float
    last_used: float

    @property
    def idle(self) -> bool: ...

    async def sleep(self) -> None: ...


class DeviceArbiter:
    """budget: bytes for weights and KV pools together; 0: unlimited."""

    def __init__(self, device: str, budget: int = 0) -> None:
        self.device, self.budget = device, budget
        self.slice_seconds = SLICE_SECONDS
        self.fixed: dict[str, int] = {}
        self._models: list[Sleepable] = []
        self._held: dict[Sleepable, int] = {}
        self._queue = asyncio.Lock()  # first come, first served: a large model is not starved by small ones
        self._change = asyncio.Event()
        self._asked: Sleepable | None = None

    @property
    def held(self) -> dict[str, int]:
        """Bytes by name of who holds them; both copies of a model whose target is being replaced."""
        held = Counter(self.fixed)
        for model, num_bytes in self._held.items():
            held[model.name] += num_bytes
        return dict(held)

    @property
    def used(self) -> int:
        return sum(self.fixed.values()) + sum(self._held.values())

    def held_by(self, model: Sleepable) -> int:
        return self._held.get(model, 0)

    def hold(self, name: str, num_bytes: int) -> None:
        """For good, as an embedding model does. Raises ConfigurationError where there is no room for it."""
        if not self.has_room(num_bytes):
            raise ConfigurationError(f"{self._sentence(name, num_bytes)}; {self.used:,} are taken")
        self.fixed[name] = num_bytes

    def register(self, model: Sleepable) -> None:
        """Once or more often. Raises ConfigurationError as check()."""
        self.check(model)
        if model not in self._models:
            self._models.append(model)

    def check(self, model: Sleepable) -> None:
        """Raises ConfigurationError where this model, or another one beside it, could never fit, whoever sleeps."""
        models = [*self._models, model] if model not in self._models else self._models
        standing = sum(self.fixed.values()) + sum(one.num_bytes for one in models if one.pinned)
        largest = max((one.num_bytes for one in models if not one.pinned), default=0)
        if self.budget and standing + largest > self.budget:
            raise ConfigurationError(
                f"{self._sentence(model.name, model.num_bytes)}; what never sleeps there takes {standing:,} and the "
                f"largest other model {largest:,}: {self._advice(model)}"
            )

    def remove(self, model: Sleepable) -> None:
        """It is gone."""
        if model in self._models:
            self._models.remove(model)
        self.give_back(model)

    def has_room(self, num_bytes: int) -> bool:
        return not self.budget or self.used + num_bytes <= self.budget

    async def take(self, model: Sleepable) -> None:
        """Room for `num_bytes` of the model: waits until those who came before have theirs and enough is idle."""
        async with self._queue:
            try:
                while not self.has_room(model.num_bytes):
                    await self._make_room()
                self._held[model] = model.num_bytes
            finally:
                self._asked = None
                self.changed()

    def settle(self, model: Sleepable, num_bytes: int) -> bool:
        """What it takes in fact, once it is there. False where that is more than the budget allows."""
        model.num_bytes = self._held[model] = num_bytes
        self.changed()
        return self.has_room(0)

    def give_back(self, model: Sleepable) -> None:
        self._held.pop(model, None)
        self.changed()

    def yields(self, model: Sleepable) -> bool:
        """Whether new requests for this model shall wait, since another one has waited for its room long enough."""
        return self._asked is model and time.monotonic() - model.awake_since >= self.slice_seconds

    def crowded(self, model: Sleepable) -> bool:
        """Whether the model would have to wait for requests of others before there is room for it."""
        could_leave = sum(num_bytes for one, num_bytes in self._held.items() if one.idle and not one.pinned)
        return bool(self.budget) and self.used - could_leave + model.num_bytes > self.budget

    def changed(self) -> None:
        """Somebody came, left or is idle."""
        self._change.set()
        self._change = asyncio.Event()

    async def change(self) -> None:
        """Returns after the next changed()."""
        await self._change.wait()

    async def _make_room(self) -> None:
        idle = [model for model in self._held if model.idle and not model.pinned]
        if idle:
            await min(idle, key=lambda model: model.last_used).sleep()
            return
        if self._asked not in self._held:
            busy = [model for model in self._held if not model.pinned]
            self._asked = min(busy, key=lambda model: model.awake_since, default=None)
        await self.change()

    def _advice(self, model: Sleepable) -> str:
        if any(one.name == model.name and one is not model for one in self._models):
            return "the copy that serves now counts until the new one takes its place: raise the budget, or restart"
        return "raise the budget, or lower kv_cache_bytes"

    def _sentence(self, name: str, num_bytes: int) -> str:
        return f"{name!r} needs {num_bytes:,} bytes of the {self.budget:,} that models may take on {self.device!r}"


class Span:
    """The devices of a model that is on several at once, with the same bytes on each.

    Room is taken on one after the other in the order in which Devices names them, which is the same for all models:
    who waits for one device holds none behind it, so that no two models can wait for each other.
    """

    def __init__(self, arbiters: Sequence[DeviceArbiter]) -> None:
        self._arbiters = arbiters

    @property
    def device(self) -> str:
        return ", ".join(one.device for one in self._arbiters)

    @property
    def used(self) -> int:
        """Of the fullest."""
        return max(one.used for one in self._arbiters)

    @property
    def slice_seconds(self) -> float:
        return self._arbiters[0].slice_seconds

    def held_by(self, model: Sleepable) -> int:
        """On each."""
        return min(one.held_by(model) for one in self._arbiters)

    def register(self, model: Sleepable) -> None:
        """Everywhere or nowhere; raises ConfigurationError as DeviceArbiter.check()."""
        self.check(model)
        for one in self._arbiters:
            one.register(model)

    def check(self, model: Sleepable) -> None:
        for one in self._arbiters:
            one.check(model)

    def remove(self, model: Sleepable) -> None:
        for one in self._arbiters:
            one.remove(model)

    def has_room(self, num_bytes: int) -> bool:
        return all(one.has_room(num_bytes) for one in self._arbiters)

    async def take(self, model: Sleepable) -> None:
        """Everywhere or nowhere; see DeviceArbiter.take()."""
        try:
            for one in self._arbiters:
                await one.take(model)
        except BaseException:
            self.give_back(model)
            raise

    def settle(self, model: Sleepable, num_bytes: int) -> bool:
        return all([one.settle(model, num_bytes) for one in self._arbiters])

    def give_back(self, model: Sleepable) -> None:
        for one in self._arbiters:
            one.give_back(model)

    def yields(self, model: Sleepable) -> bool:
        return any(one.yields(model) for one in self._arbiters)

    def crowded(self, model: Sleepable) -> bool:
        return any(one.crowded(model) for one in self._arbiters)

    def changed(self) -> None:
        for one in self._arbiters:
            one.changed()

    async def change(self) -> None:
        """Returns after the next changed() of any."""
        changes = [asyncio.create_task(one.change()) for one in self._arbiters]
        try:
            await asyncio.wait(changes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for change in changes:
                change.cancel()


class Devices:
    """The arbiters of this process, one for each device; the budget is that of each."""

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        self._listeners: list[Callable[[str, str], None]] = []
        self._arbiters: dict[str, DeviceArbiter] = {}

    def of(self, device: str) -> DeviceArbiter:
        """auto and cpu are one device, and so are cuda and cuda:0."""
        name = {"auto": "cpu", "cuda": "cuda:0"}.get(device, device)
        return self._arbiters.setdefault(name, DeviceArbiter(name, self.budget))

    def place(self, device: str, num_ranks: int) -> DeviceArbiter | Span:
        """Of a model with so many ranks: each GPU is one's, on a CPU they are all together."""
        if num_ranks == 1 or device != "cuda":
            return self.of(device)
        return Span([self.of(f"cuda:{rank}") for rank in range(num_ranks)])

    def hold(self, device: str, name: str, num_bytes: int) -> None:
        """See DeviceArbiter.hold()."""
        self.of(device).hold(name, num_bytes)

    def all(self) -> list[DeviceArbiter]:
        return list(self._arbiters.values())

    def listen(self, listener: Callable[[str, str], None]) -> None:
        """Hear the name and the new state of every model whose state changes."""
        self._listeners.append(listener)

    def tell(self, name: str, state: str) -> None:
        for listener in self._listeners:
            listener(name, state)
