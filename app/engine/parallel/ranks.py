"""Starts, leads, watches and ends the ranks other than the first, which is the engine's own thread.

Everything is decided on rank 0: it schedules, builds each step's batch and samples. The others are told the batch and
run it over their parts, so that no order can differ between ranks.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.engine.parallel.peers import Peers
from app.engine.parallel.wire import Failed, Task, dumps, read
from app.engine.request import EngineError

LOAD_SECONDS = 300.0  # for the other ranks to load, from when rank 0 has its own part
_GRACE_SECONDS = 2.0  # for a process to end, or to say why it has


class Ranks:
    """The other processes of an engine; an engine of one rank has none.

    on_lost: called with the reason, in a thread of its own, when one ends that was not asked to.
    store: the file through which they find each other.
    """

    def __init__(self, count: int) -> None:
        self._room = tempfile.TemporaryDirectory(prefix="precedent-") if count > 1 else None
        self.store = Path(self._room.name if self._room is not None else "", "store")
        self.on_lost: Callable[[str], None] = lambda reason: None
        self._peers: list[Peers] = []
        self._children: list[_Child] = []
        self._closing = False

    def start(self, tasks: list[Task]) -> None:
        """Each loads its part meanwhile."""
        weakref.finalize(self, _end, self._children)
        on_end = weakref.WeakMethod(self._ended)  # an engine that nobody released shall be forgotten all the same
        for task in tasks:
            self._children.append(_Child(task, on_end))

    def wait_until_loaded(self) -> None:
        """Raises ValueError with what a rank says of its part, and where one says nothing within LOAD_SECONDS: whoever
        stops the engine waits for this."""
        deadline = time.monotonic() + LOAD_SECONDS
        for child in self._children:
            if not child.answered.wait(max(0.0, deadline - time.monotonic())):
                raise ValueError(f"rank {child.rank} has not loaded its part in {LOAD_SECONDS:g} s and is given up")
            if child.end is not None:
                raise ValueError(child.end)

    def met(self, peers: list[Peers]) -> None:
        """With whom this process exchanges tensors, to be told when a rank is gone."""
        self._peers = peers

    def tell(self, message: object) -> None:
        """Raises EngineError where a rank is gone."""
        if not self._children:
            return
        self.check()
        data = dumps(message)
        try:
            for child in self._children:
                child.write(data)
        except OSError as error:
            raise self.lost(error) from error

    def check(self) -> None:
        """Raises EngineError where a rank is gone: a GPU's sums with it may seem to be there, and are not."""
        if any(child.end is not None for child in self._children):
            raise self.lost()

    def lost(self, error: Exception | None = None) -> EngineError:
        """Why a rank cannot be reached. How it ended may take a moment to be known."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while (reason := self._reason()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return EngineError(reason or f"a rank does not answer ({error})")

    def close(self) -> None:
        """Returns when the processes are gone."""
        self._closing = True
        _end(self._children)
        if self._room is not None:
            self._room.cleanup()

    def _reason(self) -> str | None:
        """Who ended only because it lost another one is not the reason."""
        return next((child.end for child in self._children if child.end and not child.lost_another), None)

    def _ended(self) -> None:
        if not self._closing:
            for peers in self._peers:
                peers.abort()
            self.on_lost(str(self.lost()))


class _Child:
    """One process. end: how it ended, once it has.  answered: it has loaded, or ended."""

    def __init__(self, task: Task, on_end: Callable[[], Callable[[], None] | None]) -> None:
        self.rank, self._on_end = task.rank, on_end
        self.answered = threading.Event()
        self.end: str | None = None
        self.lost_another = False
        # Not multiprocessing: that would run the main module of whoever embeds us once more.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.engine.parallel.rank"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        threading.Thread(target=self._listen, name=f"rank {self.rank}", daemon=True).start()
        with suppress(OSError):  # it is gone already; its end says why
            self.write(dumps(task))

    def write(self, data: bytes) -> None:
        """Raises OSError where the process is gone."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def _listen(self) -> None:
        said: Failed | None = None
        assert self.process.stdout is not None
        with self.process.stdout as answers, suppress(EOFError, pickle.UnpicklingError):
            while True:
                answer = read(answers)
                if isinstance(answer, Failed):
                    said = answer
                else:
                    self.answered.set()
        self.lost_another = said is not None and said.lost
        self.end = f"rank {self.rank} {_how(self.process.wait(), said)}"
        self.answered.set()
        if (on_end := self._on_end()) is not None:
            on_end()


def _how(status: int, said: Failed | None) -> str:
    if said is not None:
        return f"failed: {said.reason}"
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _end(children: list[_Child]) -> None:
    """A process goes when its input ends; one that cannot is killed."""
    for child in children:
        assert child.process.stdin is not None
        with suppress(OSError):  # it is gone already, and cannot take what was still to be written
            child.process.stdin.close()
    for child in children:
        try:
            child.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
