"""What happens, for who watches: a ring of recent events, and a queue for each watcher.

Ids are `boot-number`: a watcher that comes back with the last one it saw gets what it missed, or is told to start anew
where that is gone or another process answers now. Samples have no id and are not kept: the next one says more.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

KEPT = 1_000
TOPICS = frozenset({"request", "config", "engine", "metrics", "job", "budget", "beat", "model"})


@dataclass(frozen=True)
class Event:
    """`tenant_id`: whose alone it is; None: of the installation. `number` 0: a sample."""

    number: int
    topic: str
    data: Any
    tenant_id: UUID | None


class Watcher:
    """One listener's view: the topics it asked for, of its tenant and, for operators, of the installation."""

    def __init__(self, tenant_id: UUID, topics: Collection[str], *, operator: bool) -> None:
        self.tenant_id = tenant_id
        self.topics = topics
        self._operator = operator
        self.queue: asyncio.Queue[Event] = asyncio.Queue(KEPT)
        self.lost = False
        """It was too slow: events were dropped, and it must start anew."""

    def wants(self, event: Event) -> bool:
        mine = event.tenant_id == self.tenant_id or (event.tenant_id is None and self._operator)
        return mine and event.topic in self.topics

    def offer(self, event: Event) -> None:
        """A sample that finds no room is left out; anything else that does is a loss."""
        if not self.queue.full():
            self.queue.put_nowait(event)
        elif event.number:
            self.lost = True


class EventBus:
    """Events of this process."""

    def __init__(self) -> None:
        self._boot = secrets.token_hex(4)
        self._number = 0
        self._recent: deque[Event] = deque(maxlen=KEPT)
        self._watchers: set[Watcher] = set()
        self._listeners: list[Callable[[Event], None]] = []

    def publish(self, topic: str, data: Any, tenant_id: UUID | None = None) -> None:
        self._number += 1
        event = Event(self._number, topic, data, tenant_id)
        self._recent.append(event)
        for listener in self._listeners:
            listener(event)
        self._hand(event)

    def sample(self, topic: str, data: Any, tenant_id: UUID) -> None:
        """How something is just now."""
        self._hand(Event(0, topic, data, tenant_id))

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Hear every event as it is published, without waiting."""
        self._listeners.append(listener)

    def watched(self, topic: str) -> set[UUID]:
        """The tenants in which somebody watches the topic."""
        return {watcher.tenant_id for watcher in self._watchers if topic in watcher.topics}

    def _hand(self, event: Event) -> None:
        for watcher in self._watchers:
            if watcher.wants(event):
                watcher.offer(event)

    @contextmanager
    def watching(self, watcher: Watcher) -> Iterator[Watcher]:
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def missed(self, watcher: Watcher, last_id: str) -> list[Event] | None:
        """What the watcher has not seen since; None where nobody can tell."""
        boot, _, number = last_id.partition("-")
        if boot != self._boot or not number.isdecimal():
            return None
        oldest = self._recent[0].number if self._recent else self._number + 1
        if int(number) + 1 < oldest:
            return None
        return [event for event in self._recent if event.number > int(number) and watcher.wants(event)]

    def id_of(self, event: Event | None = None) -> str:
        """The event's id; without one that of the newest."""
        return f"{self._boot}-{event.number if event else self._number}"


async def follow(watcher: Watcher, heartbeat_seconds: float, until: float) -> AsyncIterator[Event | None]:
    """Events as they come, None where nothing came for a while. Ends at `until` on the loop's clock."""
    loop = asyncio.get_running_loop()
    while not watcher.lost and (left := until - loop.time()) > 0:
        try:
            async with asyncio.timeout(min(heartbeat_seconds, left)):
                event = await watcher.queue.get()
        except TimeoutError:
            yield None
        else:
            yield event
