"""The real scheduler, blocks and prefix cache against a step-time model: how a fleet behaves, without torch or GPUs.

    python -m benchmarks.simulate [--users 500] [--engines 1] [--seconds 120] [--cost cost.json] [--plot ttft.png]

Users read and ask: after an answer each waits about --think seconds. Prompts are the firm's policy, a matter's
documents, and a question; labels as in production. Users stay with their engine, chosen by tenant. The cost of a step
is a file of milliseconds (`EngineLoad.step_ms`); `python -m benchmarks.serving --rows steps --cost F` measures it on
the machine at hand. Without one, an H200 with an 8B model in bfloat16 is assumed: an estimate, not a measurement.
"""

import argparse
import heapq
import json
import os
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from app.engine.blocks import BlockPool
from app.engine.config import SamplingParams
from app.engine.cost import StepShape
from app.engine.facts import Forecaster
from app.engine.prefix import BlockHasher
from app.engine.request import Request, Sequence, TokenSegment
from app.engine.scheduler import Scheduler

ESTIMATED_COST = {"step": 7.0, "prefill_token": 0.035, "decode_row": 0.01, "thousand_keys": 0.03,
                  "thousand_chunk_keys": 0.0005}  # fmt: skip
BLOCK = 16
LONGEST = 500  # answer
TTFT_GOAL = 2.0
GOODPUT = f"goodput (TTFT under {TTFT_GOAL:g} s)"


@dataclass(frozen=True, slots=True)
class Fleet:
    users: int = 500
    engines: int = 1
    seconds: float = 120.0
    think: float = 30.0
    blocks: int = 40_000
    seats: int = 256
    budget: int = 8192
    policy_tokens: int = 2048
    matter_tokens: int = 1024
    question_tokens: int = 64
    tenants_per_engine: int = 20
    matters_per_tenant: int = 5
    common_tokens: int = 0  # of a matter's, text that every matter has: a statute, a standard form
    labelled: bool = True
    lengths_known: bool = False  # whether a request's max_tokens is what it gets, or only a bound of 500


@dataclass(slots=True)
class Measured:
    """ttft: (arrival, seconds) per request; prediction: (predicted median, 90 % bound, actual)."""

    ttft: list[tuple[float, float]] = field(default_factory=list)
    prediction: list[tuple[float, float, float]] = field(default_factory=list)
    output_tokens: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    steps: int = 0


class Engine:
    """One replica. Everything but the model is the code that serves."""

    def __init__(self, fleet: Fleet, cost: dict[str, float], seed: int) -> None:
        self.fleet, self.cost = fleet, cost
        self.rng = random.Random(seed)
        self.now = 0.0
        self.pool = BlockPool(fleet.blocks)
        hasher = BlockHasher("model", BLOCK)
        self.forecast = Forecaster(self.pool, hasher, block_size=BLOCK, clock=lambda: self.now)
        self.scheduler = Scheduler(
            self.pool, hasher, max_num_batched_tokens=fleet.budget, max_num_seqs=fleet.seats, block_size=BLOCK,
            clock=lambda: self.now,
        )  # fmt: skip
        self.measured = Measured()
        self._arrivals: list[tuple[float, int]] = []
        self._predictions: dict[Sequence, tuple[float, float]] = {}
        self._user: dict[Sequence, int] = {}
        self._length: dict[Sequence, int] = {}  # of its answer
        self._keys: dict[tuple[int, int], list[bytes]] = {}  # of policy and documents: hashed once per matter
        self._policy = TokenSegment([1] * fleet.policy_tokens)
        for user in range(fleet.users // fleet.engines):
            heapq.heappush(self._arrivals, (self.rng.uniform(0, fleet.think), user))

    def run(self) -> Measured:
        while self.now < self.fleet.seconds:
            self._admit_arrivals()
            if self.scheduler.has_work:
                self._step()
            elif self._arrivals:
                self.now = max(self.now, self._arrivals[0][0])
        self.measured.preemptions = self.scheduler.preemptions
        return self.measured

    def _admit_arrivals(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self.now:
            arrived, user = heapq.heappop(self._arrivals)
            tenant = user % self.fleet.tenants_per_engine
            matter = self.rng.randrange(self.fleet.matters_per_tenant)
            label = frozenset({f"tenant-{tenant}", f"matter-{tenant}-{matter}"} if self.fleet.labelled else ())
            common = self.fleet.common_tokens
            own = [2 + tenant * 100 + matter] * (self.fleet.matter_tokens - common)
            documents = TokenSegment([0] * common + own, label)
            question = [self.rng.randrange(1 << 30) for _ in range(self.fleet.question_tokens)]
            segments = (self._policy, documents, TokenSegment(question, label))
            length = self.rng.randint(50, LONGEST)
            max_tokens = length if self.fleet.lengths_known else LONGEST
            seq = Sequence(Request("", segments, SamplingParams(max_tokens=max_tokens)), 0, max_tokens, arrived)
            self._user[seq], self._length[seq] = user, length
            seq.keys = list(self._keys.get((tenant, matter), ()))
            self.scheduler.add(seq)
            self._keys.setdefault((tenant, matter), seq.keys[: seq.labels.runs()[-2][0] // BLOCK])
            self.forecast.arrived(seq)
            self._predictions[seq] = self.forecast.corrected(seq.predicted_ttft, 0.9)

    def _step(self) -> None:
        schedule = self.scheduler.schedule()
        shape = schedule.shape()
        self.forecast.stepping(shape)
        seconds = self._seconds(shape) * self.rng.uniform(0.95, 1.05)
        self.now += seconds
        ended = 0
        for row in schedule.rows:
            samples = row.samples
            self.scheduler.advance(row)
            if samples:
                ended += self._sampled(row.seq)
        self.measured.steps += 1
        self.forecast.stepped(shape, seconds, ended, shape.decode_rows)
        self.scheduler.took(schedule, seconds)
        self.forecast.refresh(self.scheduler)

    def _seconds(self, shape: StepShape) -> float:
        cost = self.cost
        tokens = shape.prefill_tokens * cost["prefill_token"] + shape.decode_rows * cost["decode_row"]
        decode, chunks = cost["thousand_keys"] / 1e3, cost["thousand_chunk_keys"] / 1e3
        return (cost["step"] + tokens + decode * shape.decode_context + chunks * shape.prefill_context) / 1e3

    def _sampled(self, seq: Sequence) -> bool:
        """One token more; whether it was the last."""
        if not seq.first_token:
            seq.first_token = self.now
            self.forecast.started_output(seq)
            ttft = self.now - seq.arrived
            self.measured.ttft.append((seq.arrived, ttft))
            self.measured.prediction.append((*self._predictions.pop(seq), ttft))
            self.measured.prompt_tokens += seq.num_prompt_tokens
            self.measured.hit_tokens += seq.num_cached
        seq.tokens.append(0)
        self.measured.output_tokens += 1
        if seq.num_output_tokens < self._length[seq]:
            return False
        del self._length[seq]
        self.scheduler.finish(seq)
        self.forecast.ended(seq)
        again = self.now + self.rng.expovariate(1 / self.fleet.think)
        heapq.heappush(self._arrivals, (again, self._user.pop(seq)))
        return True


def _replica(fleet: Fleet, cost: dict[str, float], seed: int) -> Measured:
    return Engine(fleet, cost, seed).run()


def simulate(fleet: Fleet, cost: dict[str, float], jobs: int) -> list[Measured]:
    """Engines do not know of each other, so processes share them out."""
    one = partial(_replica, fleet, cost)
    if jobs == 1 or fleet.engines == 1:
        return [one(seed) for seed in range(fleet.engines)]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(one, range(fleet.engines)))


def report(fleet: Fleet, results: list[Measured]) -> dict[str, object]:
    """The first tenth is warming up and does not count."""
    warm = fleet.seconds / 10
    ttft = sorted(seconds for one in results for arrived, seconds in one.ttft if arrived >= warm)
    learned = [p for one in results for p in one.prediction[len(one.prediction) // 10 :]]
    errors = sorted(abs(median / actual - 1) for median, _, actual in learned)
    return {
        "fleet": asdict(fleet),
        "requests": len(ttft),
        "output_tokens_per_s": round(sum(one.output_tokens for one in results) / fleet.seconds),
        "ttft_p50_s": round(ttft[len(ttft) // 2], 3),
        "ttft_p95_s": round(ttft[int(len(ttft) * 0.95)], 3),
        GOODPUT: round(sum(t <= TTFT_GOAL for t in ttft) / len(ttft), 4),
        "prefix_hit_share": round(sum(o.hit_tokens for o in results) / sum(o.prompt_tokens for o in results), 4),
        "preemptions": sum(one.preemptions for one in results),
        "steps": sum(one.steps for one in results),
        "prediction_median_error": round(errors[len(errors) // 2], 3),
        "prediction_90_covers": round(sum(actual <= high for _, high, actual in learned) / len(learned), 3),
    }


def load_curve(fleet: Fleet, cost: dict[str, float], jobs: int) -> list[tuple[int, dict[str, object]]]:
    """One engine of this fleet with a quarter to twice its users: (users, report)."""
    users = [users * fleet.users // fleet.engines // 4 for users in range(1, 9)]
    fleets = [replace(fleet, users=n, engines=1) for n in users]
    if jobs == 1:
        found = [_replica(one, cost, 0) for one in fleets]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            found = list(pool.map(_replica, reversed(fleets), [cost] * 8, [0] * 8))[::-1]  # the longest first
    return [(n, report(one, [result])) for n, one, result in zip(users, fleets, found, strict=True)]


def plot(path: Path, fleet: Fleet, cost: dict[str, float], source: str, results: list[Measured], jobs: int) -> None:
    """TTFT over time, goodput at every TTFT goal, and both by users per engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (over_time, goals, load) = pyplot.subplots(1, 3, figsize=(16, 4.8))
    figure.suptitle(f"{fleet.users:,} users on {fleet.engines} engines, {fleet.seconds:g} s simulated; {source}")
    _plot_time(over_time, fleet, results)
    ranked = sorted(seconds for one in results for _, seconds in one.ttft)
    goals.plot(ranked, [100 * (i + 1) / len(ranked) for i in range(len(ranked))])
    goals.set(xlabel="TTFT goal (s)", ylabel="goodput: requests within the goal (%)", xscale="log", ylim=(0, 103))
    goals.set_title("goodput of this run at every goal")
    goals.grid(alpha=0.3)
    _plot_load(load, load_curve(fleet, cost, jobs))
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _plot_time(axes: Any, fleet: Fleet, results: list[Measured]) -> None:
    """Per second of arrival."""
    found: dict[int, list[float]] = {}
    for arrived, seconds in (point for one in results for point in one.ttft):
        found.setdefault(int(arrived), []).append(seconds)
    times = sorted(found)
    for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
        axes.plot(times, [sorted(found[t])[int(share * len(found[t]))] for t in times], label=name)
    axes.axvspan(0, fleet.seconds / 10, alpha=0.1, color="gray", label="not counted")
    axes.set(xlabel="arrival (s)", ylabel="TTFT (s)", yscale="log", title="time to first token in this run")
    axes.grid(alpha=0.3)
    axes.legend()


def _plot_load(axes: Any, curve: list[tuple[int, dict[str, object]]]) -> None:
    users = [n for n, _ in curve]
    axes.plot(users, [found["ttft_p50_s"] for _, found in curve], "o-", label="TTFT p50 (s)")
    axes.plot(users, [found["ttft_p95_s"] for _, found in curve], "s-", label="TTFT p95 (s)")
    axes.set(xlabel="users of one engine", ylabel="TTFT (s)", yscale="log", title="one engine under other loads")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    share = [100 * float(str(found[GOODPUT])) for _, found in curve]
    right.plot(users, share, "k^--", label=f"goodput at {TTFT_GOAL:g} s (%)")
    right.set(ylabel=f"goodput at {TTFT_GOAL:g} s (%)", ylim=(0, 105))
    lines = [*axes.get_lines(), *right.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], loc="center left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated time")
    parser.add_argument("--think", type=float, default=30.0, help="mean seconds from an answer to the next question")
    parser.add_argument("--cost", type=Path, help="JSON of EngineLoad.step_ms; none: an estimate of an H200")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--seats", type=int, default=256, help="requests at once, per engine")
    parser.add_argument("--budget", type=int, default=8192, help="tokens per step")
    parser.add_argument("--lengths-known", action="store_true", help="every answer is as long as its max_tokens")
    args = parser.parse_args()
    fleet = Fleet(args.users, args.engines, args.seconds, args.think, seats=args.seats, budget=args.budget,
                  lengths_known=args.lengths_known)  # fmt: skip
    cost = json.loads(args.cost.read_text()) if args.cost else ESTIMATED_COST
    began = time.perf_counter()
    results = simulate(fleet, cost, args.jobs)
    print(json.dumps(report(fleet, results) | {"wall_s": round(time.perf_counter() - began, 1)}, indent=2))
    if args.plot:
        source = f"step times from {args.cost}" if args.cost else "step times estimated for an H200, not measured"
        plot(args.plot, fleet, cost, source, results, args.jobs)


if __name__ == "__main__":
    main()
