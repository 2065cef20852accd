"""Probes: targets that want it are asked at intervals whether they are well, so that no caller finds out first."""

import asyncio
import time

from app.gateway.resilience import GuardedTarget
from app.gateway.service import Gateway

TICK_SECONDS = 0.5


class Prober:
    """Asks each target with `probe_seconds` as often, whichever targets there are at the time."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._asked: dict[GuardedTarget, float] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="probes")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.gather(*(guarded.probe() for guarded in self.due()))
            await asyncio.sleep(TICK_SECONDS)

    def due(self) -> list[GuardedTarget]:
        """Whose turn it is. A target that says by itself that it cannot serve (still loading) is not asked."""
        at = time.monotonic()
        targets = self._gateway.board.targets.values()
        self._asked = {guarded: then for guarded, then in self._asked.items() if guarded in targets}
        found = []
        for guarded in targets:
            wanted = guarded.target.probe_seconds
            if wanted and guarded.provider.unhealthy() is None and at - self._asked.get(guarded, 0.0) >= wanted:
                self._asked[guarded] = at
                found.append(guarded)
        return found
