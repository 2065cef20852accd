"""What this engine promises those who wait, each row measured in one run of the engine itself.

    python -m benchmarks.serving [--rows prefix memory long steps prediction steady labels] [--json F]

prefix      64 prompts with a shared start arrive at once, with and without the prefix cache
memory      requests at once in the KV bytes that 16 requests of the longest length would have to themselves
long        time between the tokens of 16 short requests, without and beside one prompt of 32k tokens
steps       how well the fitted step times tell the next step; with --cost F they are written for benchmarks.simulate
prediction  TTFT predictions against what came, below and beyond what the engine can carry; time of a prediction
steady      the same, steps stretched to times that depend on their sizes alone: without the machine's other work
labels      an attacker of another tenant times 2,000 probes; as a control, one who has the same label
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from app.engine import AsyncEngine, EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment
from app.engine.cost import StepShape
from app.engine.request import Sequence as Running
from app.engine.schedule import Schedule
from benchmarks.peers import random_llama
from benchmarks.workloads import Item, Workload, build

Row = dict[str, Any]
SLOTS = 16
LONG_PROMPT, SHORT_ROWS, SHORT_STEPS = 32_000, 16, 600
PROBES = 2000


def greedy(output_len: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)


def request(name: object, prompt: Sequence[int], output_len: int) -> Request:
    return Request(str(name), (TokenSegment(list(prompt)),), greedy(output_len))


def prefix_row(config: Callable[..., EngineConfig], workload: Workload) -> Row:
    """One output token each, so that all the time is prefill."""
    found: Row = {"requests": len(workload.items), "shared_tokens": workload.shared_len}
    for name, cache in (("with", True), ("without", False)):
        engine = LLMEngine(config(enable_prefix_cache=cache, max_num_seqs=64))
        for _ in range(2):  # the first round warms the machine
            engine.pool.forget_all()
            before, began = engine.stats().prefill_tokens_computed, time.perf_counter()
            engine.generate([item.prompt for item in workload.items], greedy(1))
            seconds = time.perf_counter() - began
        found[f"seconds_{name}"] = round(seconds, 2)
        found[f"tokens_{name}"] = engine.stats().prefill_tokens_computed - before
    shared = len(workload.items) * workload.shared_len
    private = workload.prompt_tokens - shared
    found["shared_tokens_removed"] = round(1 - (found["tokens_with"] - private) / shared, 4)
    found["times_faster"] = round(found["seconds_without"] / found["seconds_with"], 1)
    return found


def memory_row(config: Callable[..., EngineConfig], workload: Workload) -> Row:
    """Running requests, mean over the steps in which somebody waits for memory."""
    blocks = SLOTS * -(-workload.longest // 16)
    engine = LLMEngine(config(num_blocks=blocks, max_num_seqs=256))
    items = workload.items * 4
    for i, item in enumerate(items):
        engine.add_request(request(i, item.prompt, item.output_len))
    running = []
    while engine.has_work:
        engine.step()
        if engine.scheduler.waiting:
            running.append(len(engine.scheduler.running))
    mean = statistics.fmean(running[len(running) // 10 :])
    return {
        "workload": workload.name,
        "kv_blocks": blocks,
        "contiguous": SLOTS,
        "running": round(mean, 1),
        "times": round(mean / SLOTS, 2),
        "preemptions": engine.stats().preemptions,
    }


def long_row(folder: Path) -> Row:
    """Short requests come and go, SHORT_ROWS at any time; then a long prompt joins them."""
    config = EngineConfig(
        random_llama(folder, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=64, vocab_size=6144, max_position_embeddings=LONG_PROMPT + 512),
        max_num_seqs=SHORT_ROWS + 1,
    )  # fmt: skip
    engine = LLMEngine(config)
    traffic = _ShortTraffic(engine)
    traffic.steps(SHORT_STEPS // 4)
    before = traffic.steps(SHORT_STEPS)
    rng = random.Random(1)
    engine.add_request(request("long", [rng.randrange(6144) for _ in range(LONG_PROMPT)], 1))
    long = engine._sequences["long"]
    began = time.perf_counter()
    beside = traffic.steps(100_000, until=lambda: bool(long.first_token))
    ratio = _percentile(beside, 0.95) / _percentile(before, 0.95)
    return {
        "prompt": LONG_PROMPT,
        "itl_p50_ms": [round(_percentile(x, 0.5) * 1e3, 1) for x in (before, beside)],
        "itl_p95_ms": [round(_percentile(x, 0.95) * 1e3, 1) for x in (before, beside)],
        "p95_times": round(ratio, 2),
        "long_ttft_s": round(time.perf_counter() - began, 1),
    }


class _ShortTraffic:
    def __init__(self, engine: LLMEngine) -> None:
        self.engine, self.rng = engine, random.Random(0)
        self.count = 0

    def steps(self, count: int, until: Callable[[], bool] = lambda: False) -> list[float]:
        """Seconds between two tokens of each short request."""
        gaps: list[float] = []
        last: dict[str, float] = {}
        for _ in range(count):
            self._fill()
            outputs = self.engine.step()
            now = time.perf_counter()
            for output in outputs:
                if output.request_id in last:
                    gaps.append(now - last[output.request_id])
                last[output.request_id] = now
            if until():
                break
        return gaps

    def _fill(self) -> None:
        short = [name for name in self.engine._sequences if name != "long"]
        for _ in range(SHORT_ROWS - len(short)):
            self.count += 1
            prompt = [self.rng.randrange(6144) for _ in range(self.rng.randint(64, 256))]
            self.engine.add_request(request(self.count, prompt, self.rng.randint(32, 128)))


def _percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)]


class _Steps:
    """What the fit said of each step just before it was learned, and what the step took."""

    def __init__(self, engine: LLMEngine) -> None:
        self.found: list[tuple[float, float]] = []
        self._cost, self._learn = engine.forecast.cost, engine.forecast.cost.learn
        engine.forecast.cost.learn = self._look  # type: ignore[method-assign]

    def _look(self, shape: StepShape, seconds: float) -> None:
        self.found.append((self._cost.seconds(shape), seconds))
        self._learn(shape, seconds)

    def error(self, together: int = 1) -> float:
        """Median relative error of so many steps' sum, over the second half."""
        half = self.found[len(self.found) // 2 :]
        groups = [half[i : i + together] for i in range(0, len(half) - together + 1, together)]
        return statistics.median(abs(sum(p for p, _ in g) / sum(t for _, t in g) - 1) for g in groups)


def steps_row(config: Callable[..., EngineConfig], vocab_size: int, path: Path | None) -> Row:
    """Prompts with and without a shared start, up to 64 at once, nothing drafted."""
    engine = LLMEngine(config(max_num_seqs=64, max_draft_tokens=0))
    steps = _Steps(engine)
    for seed in range(2):
        for name in ("mixed", "legal-cpu"):
            for i, item in enumerate(build(name, vocab_size, seed=seed).items):
                engine.add_request(request(f"{name} {i}", item.prompt, item.output_len))
                engine.step()
            while engine.has_work:
                engine.step()
    fitted = engine.load().step_ms
    if path is not None:
        path.write_text(json.dumps(fitted, indent=2))
    errors = {"error_of_one": round(steps.error(), 3), "error_of_twenty": round(steps.error(20), 3)}
    return {"steps": len(steps.found)} | errors | {name: round(ms, 5) for name, ms in fitted.items()}


def prediction_row(
    config: Callable[..., EngineConfig], workload: Workload, load: float, seconds: float, *, steady: bool
) -> Row:
    """Poisson arrivals at `load` times what the engine carries, as measured on the spot."""
    return asyncio.run(_predict(config(max_num_seqs=16), workload, load, seconds, steady))


def _steady(engine: LLMEngine) -> None:
    """Takes the machine's other work out: every step is stretched to a time that depends on its size alone."""
    run, rng = engine.runner.run, random.Random(5)

    def stretched(schedule: Schedule) -> Any:
        shape, began = schedule.shape(), time.perf_counter()
        found = run(schedule)
        wanted = 0.06 + 1e-4 * shape.prefill_tokens + 5e-4 * shape.decode_rows
        time.sleep(max(0.0, began + wanted * rng.uniform(0.95, 1.05) - time.perf_counter()))
        return found

    engine.runner.run = stretched  # type: ignore[method-assign]


async def _predict(config: EngineConfig, workload: Workload, load: float, seconds: float, steady: bool) -> Row:
    engine = AsyncEngine(config)
    await engine.start()
    if steady:
        _steady(engine.engine)
    steps = _Steps(engine.engine)
    rng = random.Random(7)

    async def ask(item: Item, found: list[tuple[float, float, float]]) -> None:
        prompt = (TokenSegment(item.prompt),)
        prediction, began = engine.predict_ttft(prompt), time.perf_counter()
        async with aclosing(engine.generate(Request("r", prompt, greedy(item.output_len)))) as deltas:
            async for _ in deltas:
                found.append((prediction.median_s, prediction.quantile_s, time.perf_counter() - began))
                break
            async for _ in deltas:
                pass

    await asyncio.gather(*(ask(item, []) for item in workload.items))  # warms up
    began = time.perf_counter()
    await asyncio.gather(*(ask(item, []) for item in workload.items))  # tells the capacity
    rate = load * len(workload.items) / (time.perf_counter() - began)
    found: list[tuple[float, float, float]] = []
    tasks, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        base = rng.choice(workload.items)
        item = Item([*base.prompt[:-32], *(rng.randrange(1000) for _ in range(32))], base.output_len)
        tasks.append(asyncio.create_task(ask(item, found)))
        await asyncio.sleep(rng.expovariate(rate))
    await asyncio.gather(*tasks)
    micros = _prediction_micros(engine, workload)
    await engine.stop()
    errors = [abs(median / actual - 1) for median, _, actual in found]
    return {
        "load": load,
        "requests": len(found),
        "ttft_p50_s": round(statistics.median(actual for *_, actual in found), 3),
        "ttft_p95_s": round(_percentile([actual for *_, actual in found], 0.95), 3),
        "step_error": round(steps.error(), 3),
        "error_of_twenty_steps": round(steps.error(20), 3),
        "median_error": round(statistics.median(errors), 3),
        "predicted_over_actual": round(statistics.median(median / actual for median, _, actual in found), 3),
        "quantile_90_covers": round(sum(actual <= high for _, high, actual in found) / len(found), 3),
        "prediction_us": round(micros, 1),
    }


def _prediction_micros(engine: AsyncEngine, workload: Workload) -> float:
    keys = engine.keys((TokenSegment(workload.items[0].prompt),))
    times = []
    for _ in range(1000):
        began = time.perf_counter()
        engine.predict_ttft(keys)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def labels_row(config: Callable[..., EngineConfig], vocab_size: int) -> Row:
    """The victim asks with a fresh secret before each probe; half of the probes guess it. The attacker knows the
    time to the first token alone."""
    engine = LLMEngine(config(max_num_seqs=4))
    return {
        "probes": PROBES,
        "auc_other_label": round(timing_auc(engine, vocab_size, frozenset({"attacker"}), PROBES), 3),
        "auc_same_label": round(timing_auc(engine, vocab_size, frozenset({"victim"}), PROBES), 3),
    }


def timing_auc(engine: LLMEngine, vocab_size: int, label: frozenset[str], probes: int) -> float:
    """How well waiting time tells right guesses from wrong ones: 0.5 not at all, 1 always."""
    rng = random.Random(len(label))
    policy = [rng.randrange(vocab_size) for _ in range(64)]
    times: dict[bool, list[float]] = {True: [], False: []}

    def ask(secret: list[int], who: frozenset[str]) -> Running:
        asked = (TokenSegment(policy), TokenSegment(secret, who), TokenSegment([rng.randrange(vocab_size)], who))
        engine.add_request(Request("probe", asked, greedy(1)))
        seq = engine._sequences["probe"]
        while engine.has_work:
            engine.step()
        return seq

    for _ in range(probes):
        secret, other = ([rng.randrange(vocab_size) for _ in range(256)] for _ in range(2))
        ask(secret, frozenset({"victim"}))
        right = rng.random() < 0.5
        seq = ask(secret if right else other, label)
        times[right].append(seq.first_token - seq.arrived)
    return auc(times[False], times[True])


def auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The probability that one of `higher` is more than one of `lower`; a tie counts half."""
    ranked = sorted(lower)
    wins = sum(bisect_left(ranked, x) + bisect_right(ranked, x) for x in higher)
    return wins / (2 * len(higher) * len(lower))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = ["prefix", "memory", "long", "steps", "prediction", "steady", "labels"]
    parser.add_argument("--rows", nargs="+", default=rows, choices=rows)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, for prediction")
    parser.add_argument("--cost", type=Path, help="where to write the step times, for benchmarks.simulate --cost")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    vocab_size = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]

    def config(**settings: Any) -> EngineConfig:
        return EngineConfig(args.model, dtype=args.dtype, **settings)

    report: dict[str, Row] = {}

    def show(name: str, row: Row) -> None:
        report[name] = row
        print(f"{name:<16} " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    if "prefix" in args.rows:
        show("prefix", prefix_row(config, build("legal-cpu", vocab_size)))
    if "memory" in args.rows:
        for name in ("mixed", "legal-cpu"):
            show(f"memory {name}", memory_row(config, build(name, vocab_size)))
    if "long" in args.rows:
        with tempfile.TemporaryDirectory() as scratch:
            show("long", long_row(Path(scratch)))
    if "steps" in args.rows:
        show("steps", steps_row(config, vocab_size, args.cost))
    for name in ("prediction", "steady"):
        for load in (0.7, 1.3) if name in args.rows else ():
            workload = build("legal-cpu", vocab_size)
            row = prediction_row(config, workload, load, args.seconds, steady=name == "steady")
            show(f"{name} {load}", row)
    if "labels" in args.rows:
        show("labels", labels_row(config, vocab_size))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
