"""What the gateway adds, beside LiteLLM: mock upstream and load generator on one core, one gateway process on another.

    python -m benchmarks.gateway --litellm /path/to/litellm/bin/litellm --seconds 5

Every system gets the same closed-loop load in the same run: 1, 16 and 64 callers with plain answers, 16 callers with
streams of 64 chunks. `bare`: a key, no limits, no budget. `governed`: limits on requests, tokens and concurrency, a
budget, prices; both write the request log and the ledger to SQLite. LiteLLM runs with a master key and without its
database, so bare. Ours runs as `--role gateway` without documents, so that no torch is loaded. `CPU ms`: processor
time of the server for one request, which a busy machine does not change much.
Source of LiteLLM's set-up: https://docs.litellm.ai/docs/proxy/configs (one worker, no database, no callbacks).
"""

import argparse
import asyncio
import json
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import update

from app import migrate
from app.db import Database
from app.tenants import service
from app.tenants.models import ApiKey, Budget
from benchmarks.mock_upstream import CHUNKS

CONFIG = """
[server]
port = {port}
[storage]
database_url = "sqlite+aiosqlite:///{folder}/gateway.db"
directory = "{folder}"
[telemetry]
log_level = "warning"
[rag]
embedding_model = ""
[[targets]]
name = "mock"
base_url = "{upstream}/v1"
allow_private = true
[[routes]]
model = "mock"
targets = ["mock"]
[[prices]]
target = "mock"
input = 2500000
output = 10000000
"""
LITELLM = """
model_list:
  - model_name: mock
    litellm_params: {{model: openai/mock, api_base: "{upstream}/v1", api_key: none}}
litellm_settings: {{telemetry: false, set_verbose: false}}
"""


QUESTION = "Who may terminate the agreement, and how?"
MASTER = "sk-" + secrets.token_hex(32)


@dataclass(frozen=True)
class Figure:
    """Of one run: answers in a second, the middle and the 99th percentile of their times to the first byte and end."""

    per_second: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float
    cpu_ms: float = 0.0


class Caller(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, stop: Callable[[], bool], samples: list[tuple[float, float]]) -> None:
        self._request, self._stop, self._samples = request, stop, samples
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._started, self._first, self._received = time.perf_counter(), 0.0, bytearray()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._received or (not self._first and b"data: " in data):
            self._first = time.perf_counter()
        self._received += data
        if not complete(self._received):
            return
        if not self._received.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(bytes(self._received[:600]).decode()))
            return
        end = time.perf_counter()
        self._samples.append((self._first - self._started, end - self._started))
        if self._stop():
            self._transport.close()
            self.done.set_result(None)
        else:
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("closed in the middle of an answer"))


def complete(received: bytearray) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return body.endswith(b"0\r\n\r\n")


async def load(
    url: str, key: str, callers: int, seconds: float, *, stream: bool, model: str = "mock", content: str = QUESTION
) -> Figure:
    message = {"role": "user", "content": content}
    body = json.dumps({"model": model, "max_tokens": 64, "stream": stream, "messages": [message]}).encode()
    where = urlsplit(url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    samples: list[tuple[float, float]] = []
    until = time.perf_counter() + seconds
    started = time.perf_counter()
    connections = [
        await asyncio.get_running_loop().create_connection(
            lambda: Caller(head.encode() + body, lambda: time.perf_counter() > until, samples),
            where.hostname or "",
            where.port or 0,
        )
        for _ in range(callers)
    ]
    await asyncio.gather(*(protocol.done for _, protocol in connections))
    took = time.perf_counter() - started
    first, whole = sorted(s[0] * 1000 for s in samples), sorted(s[1] * 1000 for s in samples)
    p99 = int(len(samples) * 0.99)
    return Figure(len(samples) / took, statistics.median(whole), whole[p99], statistics.median(first), first[p99])


async def measure(url: str, key: str, seconds: float, pid: int) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for stream in (False, True):
        await load(url, key, 4, 1.0, stream=stream)  # warm
    for callers, stream in ((1, False), (16, False), (64, False), (16, True)):
        before = cpu_seconds(pid)
        figure = await load(url, key, callers, seconds, stream=stream)
        spent = (cpu_seconds(pid) - before) * 1000 / (figure.per_second * seconds)
        found[f"{'streams' if stream else 'plain'}, {callers}"] = replace(figure, cpu_ms=spent)
    return found


def cpu_seconds(pid: int) -> float:
    """Of the process and its children, as /proc says."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(fields[n]) for n in (11, 12, 13, 14)) / os.sysconf("SC_CLK_TCK")


async def prepare(folder: Path, upstream: str, port: int) -> dict[str, str]:
    """Settings, a migrated database and two keys."""
    (folder / "precedent.toml").write_text(CONFIG.format(folder=folder, upstream=upstream, port=port))
    database = Database(f"sqlite+aiosqlite:///{folder}/gateway.db")
    await migrate.upgrade(database)
    keys = {}
    async with database.session() as session:
        for name in ("bare", "governed"):
            tenant = await service.create_tenant(session, name)
            key = await service.create_key(session, tenant.id, name, scopes=frozenset({"chat"}))
            keys[name] = key.secret
        most = {"requests_per_minute": 10**8, "tokens_per_minute": 10**9, "concurrency": 10_000}
        await session.execute(update(ApiKey).where(ApiKey.id == key.key.id).values(**most))
        session.add(Budget(tenant_id=tenant.id, window="month", limit_micros=10**15))
        await session.commit()
    await database.close()
    return keys


@contextmanager
def running(command: list[str], core: int, port: int, environ: dict[str, str] | None = None) -> Iterator[int]:
    """The command on one core, once it listens; its process id."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env={**os.environ, **(environ or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(port, process)
        yield process.pid
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    import socket

    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} ended with status {process.returncode}")
        time.sleep(0.2)
    raise SystemExit("a server did not start")


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def endure(url: str, key: str, requests: int, pid: int) -> None:
    """Memory after each fifth of so many requests from 16 callers."""
    done = 0
    while done < requests:
        part = 0
        while part < requests / 5:
            figure = await load(url, key, 16, 2.0, stream=False)
            part += round(figure.per_second * 2.0)
        done += part
        print(f"after {done} more requests: {resident_mb(pid):.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--litellm", help="LiteLLM's command in an environment of its own.")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=0, help="Then so many governed ones, watching memory.")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {0})
    results: dict[str, dict[str, Figure]] = {}
    upstream, gateway, litellm = "http://127.0.0.1:8871", 8872, 8873
    mock = [sys.executable, "-m", "benchmarks.mock_upstream", "8871"]
    with tempfile.TemporaryDirectory() as name, running(mock, 0, 8871) as mock_pid:
        folder = Path(name)
        keys = asyncio.run(prepare(folder, upstream, gateway))
        results["direct"] = asyncio.run(measure(upstream, "none", arguments.seconds, mock_pid))
        environ = {"PRECEDENT_CONFIG": str(folder / "precedent.toml")}
        with running([sys.executable, "-m", "app.cli", "serve", "--role", "gateway"], 1, gateway, environ) as pid:
            for kind in ("bare", "governed"):
                results[f"precedent {kind}"] = asyncio.run(
                    measure(f"http://127.0.0.1:{gateway}", keys[kind], arguments.seconds, pid)
                )
            print(f"precedent: {resident_mb(pid):.0f} MB")
            if arguments.requests:
                asyncio.run(endure(f"http://127.0.0.1:{gateway}", keys["governed"], arguments.requests, pid))
        if arguments.litellm:
            (folder / "litellm.yaml").write_text(LITELLM.format(upstream=upstream))
            command = [arguments.litellm, "--config", str(folder / "litellm.yaml"), "--port", str(litellm)]
            with running(command, 1, litellm, {"LITELLM_MASTER_KEY": MASTER}) as pid:
                address = f"http://127.0.0.1:{litellm}"
                results["litellm"] = asyncio.run(measure(address, MASTER, arguments.seconds, pid))
                print(f"litellm: {resident_mb(pid):.0f} MB")
    report(results)


def report(results: dict[str, dict[str, Figure]]) -> None:
    direct, peer = results["direct"], results.get("litellm")
    print(f"\nStreams of {CHUNKS} chunks.")
    print("| system | load | per second | × LiteLLM | p50 ms | added p50 ms | p99 ms | first byte p99 ms | CPU ms |")
    for system, figures in results.items():
        for kind, figure in figures.items():
            ratio = f"{figure.per_second / peer[kind].per_second:.1f}" if peer else "—"
            added = figure.p50_ms - direct[kind].p50_ms
            print(
                f"| {system} | {kind} | {figure.per_second:.0f} | {ratio} | {figure.p50_ms:.2f} | {added:.2f} "
                f"| {figure.p99_ms:.2f} | {figure.first_p99_ms:.2f} | {figure.cpu_ms:.2f} |"
            )


if __name__ == "__main__":
    main()
