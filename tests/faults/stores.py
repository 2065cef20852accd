"""Servers as processes that can be killed, frozen and started again at the same address with what they had on disk."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import (
    _as_unprivileged,
    _wait_for_port,
    _wait_until_ready,
    find_program,
    free_port,
)

QDRANT = (
    "import sys; from http.server import ThreadingHTTPServer; from tests.qdrant_server import handler; "
    "ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), handler('')).serve_forever()"
)


class Store:
    """`url` stays the same however often the process is started."""

    def __init__(self, command: list[str], port: int, url: str) -> None:
        self._command = command
        self._port = port
        self.url = url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(self._command, stdout=quiet, stderr=quiet)
        _wait_for_port(self._process, self._port)
        if self.url.startswith("postgresql"):
            _wait_until_ready(self._port)

    def kill(self) -> None:
        """As kill -9 of everything that belongs to it."""
        assert self._process
        self._signal(signal.SIGKILL)
        self._process.wait()
        time.sleep(0.1)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and never answers."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self.kill()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        for pid in (self._process.pid, *_children(self._process.pid)):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


@contextmanager
def running(store: Store) -> Iterator[Store]:
    store.start()
    try:
        yield store
    finally:
        store.stop()


def redis_store(folder: Path) -> Store:
    port = free_port()
    command = [find_program("redis-server"), "--port", str(port), "--save", "", "--dir", str(folder)]
    return Store(command, port, f"redis://127.0.0.1:{port}/0")


def qdrant_store() -> Store:
    port = free_port()
    return Store([sys.executable, "-c", QDRANT, str(port)], port, f"http://127.0.0.1:{port}")


def postgres_store(folder: Path) -> Store:
    port, data = free_port(), folder / "data"
    prefix = _as_unprivileged(str(folder))
    made = [
        *prefix,
        find_program("initdb"),
        "-D",
        str(data),
        "-U",
        "precedent",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-sync",
    ]
    subprocess.run(made, check=True, capture_output=True)
    command = [*prefix, find_program("postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
    command += ["-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"]
    return Store(command, port, f"postgresql+asyncpg://precedent@127.0.0.1:{port}/postgres")
