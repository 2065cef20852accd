"""Several models on one device: `python -m benchmarks.models turns|wake [--rounds N] [--device cuda] [--json F]`.

turns: two engines decode and prefill at once on the same cores, taking turns by steps or stepping as they please, in
alternating rounds of one run; ratios are medians over rounds. wake: where the seconds of a start go, with the files
read for the first time (their pages dropped from the page cache) and with the files in it, and what sleeping takes.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from app.engine import AsyncEngine, EngineConfig, Request, SamplingParams, TokenSegment
from app.engine.arbiter import DeviceArbiter
from app.engine.checksums import OWN, forget_known, write_sums
from app.engine.resident import Resident
from benchmarks.quantization import write_original
from benchmarks.workloads import build

CASES = ("turns", "free")


class Turns:
    """Fair, unlike a lock: who gives the turn back and asks again comes after those who waited meanwhile."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def between(self, step: Callable[[], Any]) -> Callable[[], Any]:
        def taking_turns() -> Any:
            self._take()
            try:
                return step()
            finally:
                self._pass_on()

        return taking_turns

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


async def turns(folder: Path, device: str, rounds: int, console: Console, requests: int) -> dict[str, Any]:
    engines = {case: [AsyncEngine(_config(folder, device)) for _ in range(2)] for case in CASES}
    for pair in engines.values():
        for engine in pair:
            await engine.start()
    shared = Turns()
    for engine in engines["turns"]:
        engine.engine.step = shared.between(engine.engine.step)  # type: ignore[method-assign]
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for number in range(rounds + 1):
        for case in CASES if number % 2 else CASES[::-1]:
            figures = await _both(engines[case], number, requests)
            if number:  # the first round warms up
                found[case].append(figures)
                console.print(f"round {number} {case}: {figures}")
    for pair in engines.values():
        for engine in pair:
            await engine.stop()
    table = Table("two engines at once", "tokens/s", "TTFT p50 ms", "TTFT p95 ms", "slower engine's share")
    for case in CASES:
        one = {name: statistics.median(row[name] for row in found[case]) for name in found[case][0]}
        table.add_row(case, f"{one['tokens_s']:.0f}", f"{one['p50']:.0f}", f"{one['p95']:.0f}", f"{one['share']:.2f}")
    console.print(table)
    ratio = statistics.median(a["tokens_s"] / b["tokens_s"] for a, b in zip(found["turns"], found["free"], strict=True))
    console.print(f"turns / free: {ratio:.2f} times the tokens per second")
    return {"rounds": found, "ratio": ratio}


async def _both(engines: list[AsyncEngine], seed: int, requests: int) -> dict[str, float]:
    """Tokens per second of both together, times to the first token, and which share the slower engine had."""
    began = time.perf_counter()
    results = await asyncio.gather(*(_load(engine, seed * 2 + at, requests) for at, engine in enumerate(engines)))
    seconds = time.perf_counter() - began
    firsts = sorted(first for _, firsts, _ in results for first in firsts)
    took = [seconds for _, _, seconds in results]
    return {
        "tokens_s": round(sum(count for count, _, _ in results) / seconds, 1),
        "p50": round(1000 * firsts[len(firsts) // 2], 1),
        "p95": round(1000 * firsts[int(0.95 * len(firsts))], 1),
        "share": round(min(took) / max(took), 3),
    }


async def _load(engine: AsyncEngine, seed: int, requests: int) -> tuple[int, list[float], float]:
    items = build("mixed", engine.engine.limits.vocab_size, seed=seed, num_requests=requests).items
    began = time.perf_counter()

    async def one(prompt: list[int], most: int) -> tuple[int, float]:
        params = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True)
        count, first = 0, 0.0
        async for delta in engine.generate(Request("b", (TokenSegment(prompt),), params)):
            first = first or time.perf_counter() - began
            count += len(delta.token_ids)
        return count, first

    done = await asyncio.gather(*(one(item.prompt, item.output_len) for item in items))
    return sum(count for count, _ in done), [first for _, first in done], time.perf_counter() - began


async def wake(folder: Path, device: str, rounds: int, console: Console, _: int) -> dict[str, Any]:
    write_sums(folder, folder / OWN)
    found: dict[str, list[dict[str, float]]] = {"start, cold": [], "start, warm": [], "wake": [], "wake, cold": []}
    sleeps = []
    for _ in range(rounds):
        for case in ("start, cold", "start, warm"):
            if "cold" in case:
                drop_pages(folder)
            forget_known()
            model = Resident("model", AsyncEngine(_config(folder, device)), DeviceArbiter(device))
            found[case].append(await _timed(model, model.open()))
            if case == "start, warm":
                for again in ("wake", "wake, cold"):
                    began = time.perf_counter()
                    await model.sleep()
                    sleeps.append(time.perf_counter() - began)
                    if "cold" in again:
                        drop_pages(folder)
                    found[again].append(await _timed(model, _woken(model)))
            await model.close()
    stages = list(dict.fromkeys(stage for case in found.values() for one in case for stage in one))
    table = Table("seconds", *stages)
    for case, runs in found.items():
        table.add_row(case, *(f"{statistics.median(one.get(stage, 0.0) for one in runs):.3f}" for stage in stages))
    console.print(table)
    console.print(f"sleep: {statistics.median(sleeps):.3f} s; {model.num_bytes / 2**20:,.0f} MiB")
    return {"starts": found, "sleeps": sleeps}


async def _woken(model: Resident) -> None:
    async with model.use():
        pass


async def _timed(model: Resident, doing: Any) -> dict[str, float]:
    began = time.perf_counter()
    await doing
    return {**model.start_seconds, "all": time.perf_counter() - began}


def drop_pages(folder: Path) -> None:
    """So that the files come from the disk once more."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _config(folder: Path, device: str) -> EngineConfig:
    return EngineConfig(folder, device=device, kv_cache_bytes=2**28, max_num_seqs=16, max_draft_tokens=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("turns", "wake"))
    parser.add_argument("--model", type=Path, help="default: a random one of 0.57 thousand million parameters")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=16, help="of each engine in a round")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.model or Path(temporary) / "model"
        if not given.model:
            write_original(folder)
        measure = {"turns": turns, "wake": wake}[given.what]
        found = asyncio.run(measure(folder, given.device, given.rounds, console, given.requests))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
