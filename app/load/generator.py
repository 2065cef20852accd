"""`precedent load`: open-loop load on any server that speaks OpenAI's API, as many times its capacity as asked for.

Open loop: requests come when they come (Poisson, with bursts), whether or not the server keeps up; a closed loop would
slow down with it and hide what people would feel. First the capacity is measured, then half of it tells what this
machine can do at leisure: limits are set there, before the load is raised.
"""

import asyncio
import random
import time
import tomllib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec

from app.errors import ConfigurationError

WORDS = [
    "party", "term", "notice", "fee", "clause", "tenant", "lease", "consent", "breach", "remedy", "court", "law",
    "state", "date", "month", "year", "right", "duty",
]  # fmt: skip
TIMEOUT_SECONDS = 120.0
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Scenario:
    """What is asked and what is good enough; see scenarios/legal.toml."""

    model: str
    shared_words: int
    private_words: tuple[int, int]
    output_tokens: tuple[int, int]
    burst_every_seconds: float = 0.0
    burst_size: int = 0
    ttft_factor: float = 2.0
    itl_factor: float = 2.0
    attainment: float = 0.95
    goodput_kept: float = 0.95
    refusal_ms: float = 50.0

    @classmethod
    def read(cls, path: Path) -> "Scenario":
        """Raises ConfigurationError."""
        try:
            sections = tomllib.loads(path.read_text())
            fields = {name: value for section in sections.values() for name, value in section.items()}
            return msgspec.convert(fields, cls)
        except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError, AttributeError) as error:
            raise ConfigurationError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Limits:
    """In milliseconds: within these an answer is good."""

    ttft_ms: float
    itl_ms: float


@dataclass
class Outcome:
    """One request. itl_ms: the longest wait between two pieces of text."""

    sent_at: float
    status: str = "ok"
    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    total_ms: float = 0.0
    pieces: int = 0
    retry_after: bool = False

    def good(self, limits: Limits) -> bool:
        return self.status == "ok" and self.ttft_ms <= limits.ttft_ms and self.itl_ms <= limits.itl_ms


@dataclass
class Stage:
    """All requests of one rate."""

    name: str
    rate: float
    seconds: float
    outcomes: list[Outcome] = field(default_factory=list)
    most_at_once: int = 0
    kv_leaked: int | None = None


class Client:
    """Sends requests of a scenario. Every request differs in its private part, as people's do."""

    def __init__(self, url: str, key: str, scenario: Scenario, seed: int = 0) -> None:
        self.scenario = scenario
        self._rng = random.Random(seed)
        self._shared = " ".join(random.Random(1).choices(WORDS, k=scenario.shared_words))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        self._http = httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT_SECONDS, limits=limits
        )

    async def close(self) -> None:
        await self._http.aclose()

    def body(self) -> dict[str, Any]:
        scenario, rng = self.scenario, self._rng
        private = " ".join(rng.choices(WORDS, k=rng.randint(*scenario.private_words)))
        return {
            "model": scenario.model,
            "messages": [
                {"role": "system", "content": self._shared},
                {"role": "user", "content": f"{rng.random()} {private}?"},
            ],
            "max_tokens": rng.randint(*scenario.output_tokens),
            "temperature": 0.0,
            "stream": True,
        }

    async def ask(self) -> Outcome:
        """One request to its end; whatever goes wrong is its outcome."""
        began = time.perf_counter()
        outcome = Outcome(began)
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=self.body()) as response:
                if response.status_code != 200:
                    outcome.status = str(response.status_code)
                    outcome.retry_after = "retry-after" in response.headers
                else:
                    await _read(response, outcome)
        except httpx.HTTPError as error:
            outcome.status = type(error).__name__
        outcome.total_ms = (time.perf_counter() - began) * 1e3
        return outcome

    async def used_blocks(self) -> int | None:
        """KV blocks that requests hold; None where the server does not tell."""
        response = await self._http.get("/api/v1/engine/state")
        if response.status_code != 200:
            return None
        load = response.json().get("load") or {}
        return int(load["used_blocks"]) if "used_blocks" in load else None


async def _read(response: httpx.Response, outcome: Outcome) -> None:
    last = outcome.sent_at
    ended = False
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            ended = True
            break
        said = msgspec.json.decode(line[6:])
        if "error" in said:
            outcome.status = f"stream: {said['error'].get('code')}"
            return
        if any((choice.get("delta") or {}).get("content") for choice in said.get("choices") or []):
            now = time.perf_counter()
            waited = (now - last) * 1e3
            if outcome.pieces:
                outcome.itl_ms = max(outcome.itl_ms, waited)
            else:
                outcome.ttft_ms = waited
            outcome.pieces += 1
            last = now
    if not ended:
        outcome.status = "broken off"
    elif not outcome.pieces:  # an empty answer is one, too
        outcome.ttft_ms = (time.perf_counter() - outcome.sent_at) * 1e3


async def capacity(client: Client, seconds: float, say: Progress) -> float:
    """Requests a second that a closed loop of more and more callers gets out of the server, at most.

    Ends where twice in a row more callers brought next to nothing: once may be chance.
    """
    best, stalls = 0.0, 0
    for callers in (1, 2, 4, 8, 16, 32, 64):
        rate = await _closed(client, callers, seconds)
        say(f"{callers} callers: {rate:.2f} requests/s")
        stalls = stalls + 1 if rate < best * 1.05 else 0
        best = max(best, rate)
        if stalls == 2:
            break
    return best


async def _closed(client: Client, callers: int, seconds: float) -> float:
    done = 0
    until = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            outcome = await client.ask()
            done += outcome.status == "ok"

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - began)


async def open_loop(client: Client, name: str, rate: float, seconds: float, seed: int) -> Stage:
    """Requests at this rate for so long; then all of them are waited for."""
    stage, rng = Stage(name, rate, seconds), random.Random(seed)
    before = await client.used_blocks()
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        stage.outcomes.append(await client.ask())

    def send() -> None:
        task = asyncio.ensure_future(one())
        running.add(task)
        stage.most_at_once = max(stage.most_at_once, len(running))
        task.add_done_callback(running.discard)

    began = time.perf_counter()
    for at, count in arrivals(client.scenario, rate, seconds, rng):
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        for _ in range(count):
            send()
    while running:
        await asyncio.wait(running)
    after = await _settled(client.used_blocks, before)
    stage.kv_leaked = None if before is None or after is None else after - before
    return stage


async def _settled(used: Callable[[], Awaitable[int | None]], before: int | None) -> int | None:
    """What is still in use a moment later: a server may clean up after its last word."""
    found = await used()
    for _ in range(20):
        if found is None or before is None or found <= before:
            break
        await asyncio.sleep(0.1)
        found = await used()
    return found


def arrivals(scenario: Scenario, rate: float, seconds: float, rng: random.Random) -> list[tuple[float, int]]:
    """(second, how many): a Poisson stream with bursts in it that together make the rate."""
    bursts = []
    if scenario.burst_every_seconds and scenario.burst_size:
        count = int(seconds / scenario.burst_every_seconds)
        size = min(scenario.burst_size, max(1, int(rate * scenario.burst_every_seconds / 2)))
        bursts = [((i + 0.5) * scenario.burst_every_seconds, size) for i in range(count)]
    steady = max(0.0, rate - sum(size for _, size in bursts) / seconds)
    singles, at = [], rng.expovariate(steady) if steady else seconds
    while at < seconds:
        singles.append((at, 1))
        at += rng.expovariate(steady)
    return sorted([*singles, *bursts])


def limits_of(stage: Stage, scenario: Scenario) -> Limits:
    """From the stage at leisure. Raises ConfigurationError where nothing was answered there."""
    answered = [outcome for outcome in stage.outcomes if outcome.status == "ok"]
    if not answered:
        kinds = Counter(outcome.status for outcome in stage.outcomes)
        raise ConfigurationError(f"no request was answered at half of the capacity: {dict(kinds)}")
    ttft = percentile([outcome.ttft_ms for outcome in answered], 0.95) * scenario.ttft_factor
    return Limits(ttft, percentile([outcome.itl_ms for outcome in answered], 0.95) * scenario.itl_factor)


def percentile(values: list[float], share: float) -> float:
    """0 of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else 0.0


@dataclass(frozen=True)
class Run:
    """A whole test: the capacity in requests a second, the limits, and a stage for each multiple of it."""

    capacity: float
    limits: Limits
    stages: list[Stage]


async def run(
    client: Client, multiples: list[float], seconds: float, say: Progress, known_capacity: float | None = None
) -> Run:
    """Capacity, leisure, then each rate for so many seconds. Raises ConfigurationError where nothing is answered."""
    most = known_capacity or await capacity(client, max(2.0, seconds / 6), say)
    if not most:
        raise ConfigurationError("the server answered nothing: see its log")
    calm = await open_loop(client, "0.5x", most / 2, seconds, seed=1)
    limits = limits_of(calm, client.scenario)
    say(f"capacity {most:.2f} requests/s; limits: first token {limits.ttft_ms:.0f} ms, then {limits.itl_ms:.0f} ms")
    stages = []
    for number, multiple in enumerate(multiples, start=2):
        stages.append(await open_loop(client, f"{multiple:g}x", most * multiple, seconds, seed=number))
        say(f"{stages[-1].name}: {len(stages[-1].outcomes)} requests")
    return Run(most, limits, stages)
