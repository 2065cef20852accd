"""Threads for work that nobody waits for: the machine gives them what the others leave."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
NICENESS = 10


class Background:
    """A pool whose threads, and those that libraries start from them, run at low priority."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "background", initializer=_be_nice)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)` in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))

    def close(self) -> None:
        """Let what runs end, drop what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _be_nice() -> None:
    """On Linux a thread has a priority of its own."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
