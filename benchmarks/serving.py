"""What this engine promises those who wait, each row measured in one run of the engine itself.

    python -m benchmarks.serving [--rows prefix memory long prediction labels] [--model demo/model] [--json F]

prefix      64 prompts with a shared start arrive at once, with and without the prefix cache
memory      requests at once in the KV bytes that 16 requests of the longest length would have to themselves
long        time between the tokens of 16 short requests, without and beside one prompt of 32k tokens
prediction  TTFT predictions against what came, below and beyond what the engine can carry; time of a prediction
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
from app.engine.request import Sequence as Running
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


def prediction_row(config: Callable[..., EngineConfig], workload: Workload, load: float, seconds: float) -> Row:
    """Poisson arrivals at `load` times what the engine carries, as measured on the spot."""
    return asyncio.run(_predict(config(max_num_seqs=16), workload, load, seconds))


async def _predict(config: EngineConfig, workload: Workload, load: float, seconds: float) -> Row:
    engine = AsyncEngine(config)
    await engine.start()
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

    began = time.perf_counter()
    await asyncio.gather(*(ask(item, []) for item in workload.items))  # warms up and tells the capacity
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
        "median_error": round(statistics.median(errors), 3),
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
    rows = ["prefix", "memory", "long", "prediction", "labels"]
    parser.add_argument("--rows", nargs="+", default=rows, choices=rows)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals, for prediction")
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
    if "prediction" in args.rows:
        for load in (0.7, 1.3):
            show(f"prediction {load}", prediction_row(config, build("legal-cpu", vocab_size), load, args.seconds))
    if "labels" in args.rows:
        show("labels", labels_row(config, vocab_size))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
