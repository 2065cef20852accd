"""Real servers of our own for tests: PostgreSQL and Redis processes on free ports, from the machine's packages.

Each is a context manager that yields its URL and leaves nothing behind. Being processes of ours, they can also be
stopped and killed in the middle of a test.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import pytest

from tests.qdrant_server import handler

START_SECONDS = 30.0
Running = TypeVar("Running")


class ServerMissing(Exception):
    """The server's program is not installed."""


@contextmanager
def or_skip(server: AbstractContextManager[Running]) -> Iterator[Running]:
    """The server, for a test that is skipped where its program is not installed."""
    try:
        with server as running:
            yield running
    except ServerMissing as error:
        pytest.skip(str(error))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_program(name: str) -> str:
    """Path of a server program; Debian keeps PostgreSQL's own outside PATH. Raises ServerMissing."""
    if found := shutil.which(name):
        return found
    candidates = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not candidates:
        raise ServerMissing(f"{name} is not installed")
    return str(candidates[-1])


@contextmanager
def redis_server() -> Iterator[str]:
    """redis://… of a Redis without persistence."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="precedent-redis-") as folder:
        command = [find_program("redis-server"), "--port", str(port), "--save", "", "--dir", folder]
        with _process(command, port):
            yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def qdrant_server(api_key: str = "") -> Iterator[str]:
    """http://… of a Qdrant server without persistence: the real one where it is installed, else a stand-in that speaks
    the part of its REST interface that our adapter uses."""
    port = free_port()
    if shutil.which("qdrant"):
        with tempfile.TemporaryDirectory(prefix="precedent-qdrant-") as folder:
            names = {"SERVICE__HTTP_PORT": str(port), "SERVICE__GRPC_PORT": str(free_port())}
            names |= {"SERVICE__API_KEY": api_key} if api_key else {}
            names["STORAGE__STORAGE_PATH"] = folder
            environment = os.environ | {f"QDRANT__{name}": value for name, value in names.items()}
            with _process([find_program("qdrant")], port, environment):
                yield f"http://127.0.0.1:{port}"
        return
    server = ThreadingHTTPServer(("127.0.0.1", port), handler(api_key))
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()


@contextmanager
def postgres_server() -> Iterator[str]:
    """postgresql+asyncpg://… of an empty database."""
    port = free_port()
    initdb, postgres = find_program("initdb"), find_program("postgres")
    with tempfile.TemporaryDirectory(prefix="precedent-postgres-") as folder:
        data = Path(folder) / "data"
        prefix = _as_unprivileged(folder)
        initialise = [
            *prefix,
            initdb,
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
        subprocess.run(initialise, check=True, capture_output=True)
        command = [*prefix, postgres, "-D", str(data), "-p", str(port), "-k", folder, "-c", "fsync=off"]
        with _process([*command, "-c", "listen_addresses=127.0.0.1"], port):
            _wait_until_ready(port)
            yield f"postgresql+asyncpg://precedent@127.0.0.1:{port}/postgres"


def _wait_until_ready(port: int) -> None:
    """PostgreSQL listens before it takes connections."""
    asking = [find_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(asking, check=False).returncode:
        if time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL takes no connections after {START_SECONDS:g} s")
        time.sleep(0.05)


def _as_unprivileged(folder: str) -> list[str]:
    """PostgreSQL refuses to run as root: there, run it as Debian's postgres user."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextmanager
def _process(
    command: list[str], port: int, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        _wait_for_port(process, port)
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not listen within {START_SECONDS:g} s")
