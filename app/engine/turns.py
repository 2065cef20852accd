"""Whose step runs: engines of one device take turns, in the order in which they ask. No torch.

Two engines that step at once on the same cores both run their threads on all of them, and each waits for threads that
the other keeps from running; what that costs is measured in benchmarks/RESULTS.md.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Fair, unlike a lock: who gives the turn back and asks again comes after those who waited meanwhile."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._take()
        try:
            yield
        finally:
            self._pass_on()

    def _take(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def _pass_on(self) -> None:
        """To the longest waiting, who need not take it: it never was free."""
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
