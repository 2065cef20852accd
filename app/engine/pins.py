"""Prefixes that stay in the cache for good, and are computed again by every engine that takes over. No torch."""

import logging
from collections.abc import Awaitable, Callable
from itertools import takewhile

from app.engine.request import TokenSegment
from app.errors import AppError

log = logging.getLogger(__name__)
Prefix = tuple[TokenSegment, ...]
_TRIES = 3  # blocks may be evicted between computing and pinning


class Pins:
    """read: computes a prefix.  keep: pins as much of it as is in the cache, and says how many tokens that is."""

    def __init__(
        self, block_size: int, read: Callable[[Prefix], Awaitable[None]], keep: Callable[[Prefix], Awaitable[int]]
    ) -> None:
        self._size, self._read, self._keep = block_size, read, keep
        self._kept: list[Prefix] = []

    def remember(self, prefix: Prefix) -> None:
        """For the engines to come."""
        self._kept.append(prefix)

    def drop(self, prefix: Prefix) -> None:
        """For engines to come no more."""
        if prefix in self._kept:  # else forgotten meanwhile
            self._kept.remove(prefix)

    async def compute(self, prefix: Prefix) -> int:
        """Tokens that are pinned now, of a prefix that is remembered. Raises ValueError where too much of the pool
        would be."""
        wanted = sum(len(segment.token_ids) for segment in prefix) // self._size * self._size
        pinned = 0
        for _ in range(_TRIES):
            if prefix not in self._kept:
                break  # forgotten meanwhile: to read it again would bring back what is gone
            await self._read(prefix)
            pinned = await self._keep(prefix)
            if pinned == wanted:
                break
        return pinned

    async def again(self) -> None:
        """All of them, in a new engine. What does not fit is left out from now on: the pool may be another one."""
        for prefix in list(self._kept):
            try:
                await self.compute(prefix)
            except (ValueError, AppError) as error:
                log.warning("a prefix is not pinned any more: %s", error)
                self.drop(prefix)

    def forget(self, source_ids: frozenset[str]) -> None:
        """Every prefix ends before the first segment of one of these sources."""
        kept = (tuple(takewhile(lambda s: source_ids.isdisjoint(s.source_ids), prefix)) for prefix in self._kept)
        self._kept = [prefix for prefix in kept if prefix]
