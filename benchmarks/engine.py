"""Our engine against transformers on the same weights, threads and dtype, in one run.

    python -m benchmarks.engine --json engine.json [--workload legal-cpu] [--model demo/model] [--rounds 3]
    python -m benchmarks.engine --workload ragged --batch 16     also against static batches in this engine
    python -m benchmarks.engine --device cpu --quick             every contender once, at toy size

Contenders take turns within each round; the table shows medians over rounds and ratios within this run. The
peers are slow, so they get a stated sample of the workload (its first requests); all rates are output tokens
that the workload asked for, per second of wall clock, prefill included. Our engine starts each round cold.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment
from app.engine.model import resolve_threads
from benchmarks.peers import MODEL_SHAPES, ContinuousPeer, StaticPeer, VllmPeer, load_peer, model_shape, random_llama
from benchmarks.workloads import SHAPES, Item, Result, Workload, build, slot_bound

STATIC_BATCH = 16
Runs = dict[str, tuple[int, Callable[[], Result]]]  # name: how many requests, and the run


class Ours:
    """The engine under test, with a clock around the model's forward."""

    def __init__(self, config: EngineConfig, longest: int) -> None:
        self.engine = LLMEngine(config)
        self.longest = longest
        self.engine.warm_up()
        self._forward_seconds = 0.0
        decoder: Any = self.engine.runner.decoder
        self._forward, decoder.forward = decoder.forward, self._timed

    def _timed(self, *args: Any) -> Any:
        began = time.perf_counter()
        logits = self._forward(*args)
        self._forward_seconds += time.perf_counter() - began
        return logits

    def run(self, items: Sequence[Item]) -> Result:
        """All at once."""
        return self._run([items])

    def run_static(self, items: Sequence[Item], batch: int, *, run_on: bool) -> Result:
        """Each batch waits for the one before. run_on: a slot computes until the longest of its batch is done, as in
        a batch of fixed shape; else whoever is done costs nothing any more."""
        groups = [items[i : i + batch] for i in range(0, len(items), batch)]
        if run_on:
            groups = [
                [replace(item, output_len=max(i.output_len for i in group)) for item in group] for group in groups
            ]
        return replace(self._run(groups), output_tokens=sum(item.output_len for item in items))

    def _run(self, groups: Sequence[Sequence[Item]]) -> Result:
        engine = self.engine
        engine.pool.forget_all()
        before = engine.stats().prefill_tokens_computed
        ttft: list[float] = []
        steps: list[tuple[float, float]] = []
        fullest: dict[int, list[float]] = {}
        began = time.perf_counter()
        for group in groups:
            self._add(group)
            while engine.has_work:
                rows, share = self._step(ttft)
                steps += [self._unwritten()] if engine.pool.used else []
                fullest.setdefault(rows, []).append(share)
        seconds = time.perf_counter() - began
        everything = [item for group in groups for item in group]
        ours, contiguous = (statistics.fmean(column) for column in zip(*steps, strict=True))
        ranked = sorted(ttft)
        return Result(
            seconds,
            sum(item.output_len for item in everything),
            ranked[len(ranked) // 2],
            ranked[int(len(ranked) * 0.95)],
            ours,
            contiguous,
            sum(len(item.prompt) for item in everything),
            engine.stats().prefill_tokens_computed - before,
            statistics.median(fullest[max(fullest)]),
        )

    def _add(self, items: Sequence[Item]) -> None:
        for i, item in enumerate(items):
            sampling = SamplingParams(temperature=0, max_tokens=item.output_len, ignore_eos=True)
            self.engine.add_request(Request(str(i), (TokenSegment(item.prompt),), sampling))

    def _step(self, ttft: list[float]) -> tuple[int, float]:
        """Rows if it only decoded, else 0, and the share of its time outside the model's forward."""
        began, self._forward_seconds = time.perf_counter(), 0.0
        outputs = self.engine.step()
        seconds = time.perf_counter() - began
        ttft += [output.metrics.ttft_ms for output in outputs if output.metrics is not None]
        running = self.engine.scheduler.running
        decoded = len(outputs) >= len(running) and not self.engine.scheduler.waiting
        return (len(outputs) if decoded else 0), 1 - self._forward_seconds / seconds

    def _unwritten(self) -> tuple[float, float]:
        """Of the KV slots in use now, those that hold nothing yet: here, where shared blocks are full and count
        once, and with contiguous memory."""
        size, running = self.engine.config.block_size, self.engine.scheduler.running
        unwritten = sum(len(seq.blocks) * size - seq.num_computed for seq in running)
        reserved = max(1, len(running) * self.longest)
        written = sum(seq.num_computed for seq in running)
        return unwritten / (self.engine.pool.used * size), 1 - written / reserved if running else 0.0


def main() -> None:
    args = parse()
    console = Console(width=max(130, Console().width))
    with tempfile.TemporaryDirectory() as scratch:
        report = measure(model_folder(args, Path(scratch)), args, console)
    console.print(table(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the report here")
    parser.add_argument("--workload", default="legal-cpu", choices=sorted(SHAPES))
    parser.add_argument("--model", help="a Hugging Face folder; default: a random Llama of 28M parameters")
    parser.add_argument("--shape", choices=sorted(MODEL_SHAPES), help="instead of --model: dummy weights of this shape")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, help="requests at once; at 16 static batches are compared, too")
    parser.add_argument("--requests", type=int, help="fewer requests than the workload's")
    parser.add_argument("--single-sample", type=int, default=3, help="requests given to one-at-a-time, 0: none")
    parser.add_argument("--static-sample", type=int, default=STATIC_BATCH, help="requests given to static batches")
    parser.add_argument("--continuous-sample", type=int, default=8, help="requests given to generate_batch")
    parser.add_argument("--vllm", action="store_true", help="also vLLM, where it is installed (on a GPU)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="toy size: shows that everything runs, measures nothing")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.requests = 1, args.requests or 8
        args.single_sample, args.static_sample, args.continuous_sample = 1, 4, 2
    return args


def model_folder(args: argparse.Namespace, scratch: Path) -> Path:
    if args.model:
        return Path(args.model)
    if args.shape:
        return model_shape(args.shape, scratch, toy=args.quick)
    return random_llama(scratch, **({"hidden_size": 128, "num_hidden_layers": 2} if args.quick else {}))


def measure(folder: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    workload = build(args.workload, vocab_size, num_requests=args.requests, shrink=8 if args.quick else 1)
    ours = Ours(engine_config(folder, workload, args), workload.longest)
    runs = contenders(ours, workload, folder, args)
    results: dict[str, list[Result]] = {name: [] for name in runs}
    turns = [name for _ in range(args.rounds) for name in runs]
    for name in track(turns, description=workload.name, console=console):
        results[name].append(runs[name][1]())
    counts = {name: count for name, (count, _) in runs.items()}
    return describe(workload, ours, results, counts, args)


def engine_config(folder: Path, workload: Workload, args: argparse.Namespace) -> EngineConfig:
    return EngineConfig(
        folder, device=args.device, dtype=args.dtype, threads=args.threads,
        max_num_seqs=args.batch or workload.max_batch, load_format="dummy" if args.shape else "auto",
    )  # fmt: skip


def contenders(ours: Ours, workload: Workload, folder: Path, args: argparse.Namespace) -> Runs:
    items = workload.items
    runs: Runs = {"precedent": (len(items), lambda: ours.run(items))}
    if ours.engine.config.max_num_seqs == STATIC_BATCH:
        name = f"precedent, static {STATIC_BATCH}"
        runs[name] = len(items), lambda: ours.run_static(items, STATIC_BATCH, run_on=True)
        runs[f"{name}, done rows leave"] = len(items), lambda: ours.run_static(items, STATIC_BATCH, run_on=False)
    if args.vllm:
        vllm = VllmPeer(folder, ours.engine.runner.dtype, workload.longest, dummy=bool(args.shape))
        runs["vllm"] = len(items), lambda: vllm.run(items)
    samples = args.single_sample, args.static_sample, args.continuous_sample
    if not any(samples):
        return runs
    model = load_peer(folder, ours.engine.runner.dtype, args.device)
    peers = {
        "hf one at a time": StaticPeer(model, 1),
        f"hf static {STATIC_BATCH}": StaticPeer(model, STATIC_BATCH),
        "hf generate_batch": ContinuousPeer(model, workload.longest),
    }
    for (name, peer), count in zip(peers.items(), samples, strict=True):
        if count:
            runs[name] = count, lambda peer=peer, some=items[:count]: peer.run(some)  # type: ignore[misc]
    return runs


def describe(
    workload: Workload, ours: Ours, results: dict[str, list[Result]], counts: dict[str, int], args: argparse.Namespace
) -> dict[str, Any]:
    rates = {name: statistics.median(r.rate for r in found) for name, found in results.items()}
    best = rates["precedent"]
    rows = [
        {
            "name": name,
            "requests": counts[name],
            "tokens_per_s": round(rates[name], 1),
            "precedent_is_times": round(best / rates[name], 2),
            "rounds": [asdict(result) for result in found],
        }
        for name, found in results.items()
    ]
    return {
        "workload": {"name": workload.name, "requests": len(workload.items), "prompt_tokens": workload.prompt_tokens,
                     "output_tokens": workload.output_tokens, "batch": ours.engine.config.max_num_seqs,
                     "slot_bound": round(slot_bound(workload.items, STATIC_BATCH), 2)},
        "model": args.model or args.shape or "random Llama, 28M parameters",
        "quick": args.quick,
        "dtype": str(ours.engine.runner.dtype).removeprefix("torch."),
        "threads": resolve_threads(args.threads),
        "hardware": f"{args.device}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "contenders": rows,
    }  # fmt: skip


def table(report: dict[str, Any]) -> Table:
    title = f"{report['workload']['name']} · {report['model']} · {report['dtype']} · {report['threads']} threads"
    bound = f"slot bound of continuous over static {STATIC_BATCH}: {report['workload']['slot_bound']}x"
    caption = f"{bound}; load average {report['load_average'][0]:.1f}; medians of rounds"
    made = Table(title=title, caption=caption)
    for column in (
        "",
        "requests",
        "tokens/s",
        "ratio",
        "TTFT p50/p95 s",
        "KV waste (contiguous)",
        "prefill",
        "outside",
    ):
        made.add_column(column, justify="left" if not column else "right")
    for row in report["contenders"]:
        rounds = sorted(row["rounds"], key=lambda r: r["seconds"])
        middle = rounds[len(rounds) // 2]
        made.add_row(row["name"], str(row["requests"]), f"{row['tokens_per_s']:.1f}", *_details(row, middle))
    return made


def _details(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    ratio = f"{row['precedent_is_times']:.2f}x"
    if result["kv_waste"] is None:
        return [ratio, "", "", "", ""]
    return [
        ratio,
        f"{result['ttft_p50_ms'] / 1e3:.2f}/{result['ttft_p95_ms'] / 1e3:.2f}",
        f"{result['kv_waste']:.2%} ({result['contiguous_waste']:.0%})",
        f"{result['prefill_computed'] / 1e3:.1f}k/{result['prefill_asked'] / 1e3:.1f}k",
        f"{result['outside']:.1%}",
    ]


if __name__ == "__main__":
    main()
