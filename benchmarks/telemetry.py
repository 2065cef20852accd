"""What seeing costs: requests a second with every request traced beside none traced, and how long a scrape takes.

    python -m benchmarks.telemetry --rounds 5 --seconds 4

Two servers as `--role gateway` on one core, the load on the other, rounds interleaved; one of them sends every span to
a collector that throws them away. The upstream answers at once, so that nothing hides what tracing costs: the worst
case. Then streams of 64 chunks, then the in-process engine with the demo model on that core. The scrape is of a server
on which 200 tenants asked.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.db import Database
from app.tenants import service
from benchmarks.gateway import cpu_seconds, load, prepare, running

UPSTREAM, PLAIN, TRACED, COLLECTOR = 8881, 8882, 8883, 8884
TENANTS = 200
SINK = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Sink).serve_forever()
"""


@contextmanager
def served(folder: Path, port: int, endpoint: str, role: str = "gateway") -> Iterator[tuple[int, str]]:
    """A server's process id and a key of it."""
    folder.mkdir()
    keys = asyncio.run(prepare(folder, f"http://127.0.0.1:{UPSTREAM}", port))
    environ = {"PRECEDENT_CONFIG": str(folder / "precedent.toml"), "PRECEDENT_TELEMETRY_OTLP_ENDPOINT": endpoint}
    with running([sys.executable, "-m", "app.cli", "serve", "--role", role], 1, port, environ) as pid:
        yield pid, keys["governed"]


async def other_tenants(folder: Path) -> list[str]:
    database = Database(f"sqlite+aiosqlite:///{folder}/gateway.db")
    keys = []
    async with database.session() as session:
        for number in range(TENANTS):
            tenant = await service.create_tenant(session, f"tenant {number}")
            key = await service.create_key(session, tenant.id, "key", scopes=frozenset({"chat"}))
            keys.append(key.secret)
    await database.close()
    return keys


async def scrapes(port: int, keys: list[str], rounds: int = 50) -> tuple[list[float], int]:
    """(milliseconds of each scrape, its size in bytes) after each tenant has asked twice."""
    body = {"model": "mock", "messages": [{"role": "user", "content": "Who may terminate?"}]}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        for key in keys * 2:
            answer = await http.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
            answer.raise_for_status()
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            found = await http.get("/metrics")
            taken.append((time.perf_counter() - began) * 1e3)
    return sorted(taken), len(found.content)


def compare(what: str, rounds: int, seconds: float, servers: dict[str, tuple[int, int, str]], **asked: Any) -> None:
    """Requests a second and processor time a request; medians of rounds, each of both."""
    rates: dict[str, list[float]] = {name: [] for name in servers}
    spent: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(rounds + 1):
        for name, (port, pid, key) in servers.items():
            before = cpu_seconds(pid)
            figure = asyncio.run(load(f"http://127.0.0.1:{port}", key, 16, seconds, **asked))
            if number:  # the first one warms
                rates[name].append(figure.per_second)
                spent[name].append((cpu_seconds(pid) - before) * 1e3 / (figure.per_second * seconds))
    ratio = statistics.median(b / a for a, b in zip(rates["plain"], rates["traced"], strict=True))
    cpu = {name: statistics.median(values) for name, values in spent.items()}
    print(
        f"{what}: "
        + ", ".join(f"{name} {statistics.median(found):.0f}/s" for name, found in rates.items())
        + f", ratio {ratio:.3f}; processor {cpu['plain']:.2f} and {cpu['traced']:.2f} ms a request",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {0})
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        stack.enter_context(running([sys.executable, "-m", "benchmarks.mock_upstream", str(UPSTREAM)], 0, UPSTREAM))
        stack.enter_context(running([sys.executable, "-c", SINK, str(COLLECTOR)], 0, COLLECTOR))
        plain = stack.enter_context(served(folder / "plain", PLAIN, ""))
        traced = stack.enter_context(served(folder / "traced", TRACED, f"http://127.0.0.1:{COLLECTOR}"))
        servers = {"plain": (PLAIN, *plain), "traced": (TRACED, *traced)}
        compare("plain answers", arguments.rounds, arguments.seconds, servers, stream=False)
        compare("streams of 64 chunks", arguments.rounds, arguments.seconds, servers, stream=True)
        keys = asyncio.run(other_tenants(folder / "plain"))
        taken, size = asyncio.run(scrapes(PLAIN, keys))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        stack.enter_context(running([sys.executable, "-c", SINK, str(COLLECTOR)], 0, COLLECTOR))
        plain = stack.enter_context(served(folder / "plain", PLAIN, "", "all"))
        traced = stack.enter_context(served(folder / "traced", TRACED, f"http://127.0.0.1:{COLLECTOR}", "all"))
        servers = {"plain": (PLAIN, *plain), "traced": (TRACED, *traced)}
        asked = {"stream": True, "model": "precedent-demo", "content": "Each party may terminate. " * 40}
        compare("the engine", arguments.rounds, 3 * arguments.seconds, servers, **asked)
    print(
        f"scrape with {TENANTS} tenants: p50 {statistics.median(taken):.1f} ms, "
        f"p95 {taken[int(len(taken) * 0.95)]:.1f} ms, {size / 1e3:.0f} kB"
    )


if __name__ == "__main__":
    main()
