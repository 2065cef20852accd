"""Our engine against transformers on the same weights, threads and dtype, in one run.

    python -m benchmarks.engine --json engine.json [--workload legal-cpu] [--model demo/model] [--rounds 3]

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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment
from app.engine.runner import resolve_threads
from benchmarks.workloads import SHAPES, Item, Workload, build

STATIC_BATCH = 16


@dataclass(frozen=True, slots=True)
class Result:
    """One contender in one round. kv_waste: allocated but unwritten share of KV slots, mean over steps."""

    seconds: float
    output_tokens: int
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    kv_waste: float | None = None
    prefill_asked: int | None = None
    prefill_computed: int | None = None

    @property
    def rate(self) -> float:
        return self.output_tokens / self.seconds


class Ours:
    """The engine under test."""

    def __init__(self, folder: Path, workload: Workload, dtype: str, threads: int | None) -> None:
        settings = EngineConfig(folder, dtype=dtype, threads=threads, max_num_seqs=workload.max_batch)
        self.engine = LLMEngine(settings)
        self.engine.warm_up()

    def run(self, items: list[Item]) -> Result:
        engine = self.engine
        engine.pool.forget_all()
        before = engine.stats()
        began = time.perf_counter()
        for i, item in enumerate(items):
            sampling = SamplingParams(temperature=0, max_tokens=item.output_len, ignore_eos=True)
            engine.add_request(Request(str(i), (TokenSegment(item.prompt),), sampling))
        ttft, waste = [], []
        while engine.has_work:
            for output in engine.step():
                if output.metrics is not None:
                    ttft.append(output.metrics.ttft_ms)
            waste += [unwritten_share(engine)] if engine.pool.used else []
        seconds = time.perf_counter() - began
        computed = engine.stats().prefill_tokens_computed - before.prefill_tokens_computed
        ranked = sorted(ttft)
        return Result(
            seconds,
            sum(item.output_len for item in items),
            ranked[len(ranked) // 2],
            ranked[int(len(ranked) * 0.95)],
            statistics.fmean(waste),
            sum(len(item.prompt) for item in items),
            computed,
        )


def unwritten_share(engine: LLMEngine) -> float:
    """Of the KV slots in use now, those that hold nothing yet; shared blocks are full and count once."""
    size = engine.config.block_size
    unwritten = sum(len(seq.blocks) * size - seq.num_computed for seq in engine.scheduler.running)
    return unwritten / (engine.pool.used * size)


class Peer:
    """transformers' generate on batches of a fixed size, padded on the left, each batch to its longest answer."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size

    @torch.inference_mode()
    def run(self, items: list[Item]) -> Result:
        began = time.perf_counter()
        for i in range(0, len(items), self.batch_size):
            self._batch(items[i : i + self.batch_size])
        return Result(time.perf_counter() - began, sum(item.output_len for item in items))

    def _batch(self, items: list[Item]) -> None:
        longest = max(len(item.prompt) for item in items)
        padding = [longest - len(item.prompt) for item in items]
        ids = torch.tensor([[0] * pad + item.prompt for pad, item in zip(padding, items, strict=True)])
        mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
        new = max(item.output_len for item in items)
        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert out.shape[1] == longest + new


def random_llama(folder: Path) -> Path:
    """28 million parameters: 8 layers of 512, 8 heads over 4, tied vocabulary of 8,192."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


def load_peer(folder: Path, dtype: torch.dtype) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.requires_grad_(False)
    model.generation_config.pad_token_id = 0
    return model


def main() -> None:
    args = parse()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.model) if args.model else random_llama(Path(scratch))
        report = measure(folder, args, console)
    console.print(table(report))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="write the report here")
    parser.add_argument("--workload", default="legal-cpu", choices=sorted(SHAPES))
    parser.add_argument("--model", help="a Hugging Face folder; default: a random Llama of 28M parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, help="fewer requests than the workload's")
    parser.add_argument("--single-sample", type=int, default=3, help="requests given to one-at-a-time")
    parser.add_argument("--static-sample", type=int, default=STATIC_BATCH, help="requests given to static batches")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def measure(folder: Path, args: argparse.Namespace, console: Console) -> dict[str, Any]:
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    workload = build(args.workload, vocab_size, num_requests=args.requests)
    ours = Ours(folder, workload, args.dtype, args.threads)
    model = load_peer(folder, ours.engine.runner.dtype)
    single, static = workload.items[: args.single_sample], workload.items[: args.static_sample]
    runs: dict[str, Callable[[], Result]] = {
        "precedent": lambda: ours.run(workload.items),
        "hf one at a time": lambda: Peer(model, 1).run(single),
        f"hf static {STATIC_BATCH}": lambda: Peer(model, STATIC_BATCH).run(static),
    }
    results: dict[str, list[Result]] = {name: [] for name in runs}
    turns = [name for _ in range(args.rounds) for name in runs]
    for name in track(turns, description=workload.name, console=console):
        results[name].append(runs[name]())
    counts = [len(workload.items), len(single), len(static)]
    return describe(workload, ours, results, dict(zip(runs, counts, strict=True)), args)


def describe(
    workload: Workload, ours: Ours, results: dict[str, list[Result]], counts: dict[str, int], args: argparse.Namespace
) -> dict[str, Any]:
    rates = {name: statistics.median(r.rate for r in found) for name, found in results.items()}
    best = rates["precedent"]
    contenders = [
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
                     "output_tokens": workload.output_tokens},
        "model": args.model or "random Llama, 28M parameters",
        "dtype": str(ours.engine.runner.dtype).removeprefix("torch."),
        "threads": resolve_threads(args.threads),
        "hardware": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": os.getloadavg(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "contenders": contenders,
    }  # fmt: skip


def table(report: dict[str, Any]) -> Table:
    title = f"{report['workload']['name']} · {report['model']} · {report['dtype']} · {report['threads']} threads"
    caption = f"load average {report['load_average'][0]:.1f}; medians of rounds; hf: transformers.generate"
    made = Table(title=title, caption=caption)
    for column in ("", "requests", "tokens/s", "ratio", "TTFT p50/p95 s", "KV waste", "prefill done/asked"):
        made.add_column(column, justify="left" if not column else "right")
    for row in report["contenders"]:
        rounds = sorted(row["rounds"], key=lambda r: r["seconds"])
        middle = rounds[len(rounds) // 2]
        made.add_row(row["name"], str(row["requests"]), f"{row['tokens_per_s']:.1f}", *_details(row, middle))
    return made


def _details(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    ratio = f"{row['precedent_is_times']:.2f}x"
    if result["kv_waste"] is None:
        return [ratio, "", "", ""]
    return [
        ratio,
        f"{result['ttft_p50_ms'] / 1e3:.2f}/{result['ttft_p95_ms'] / 1e3:.2f}",
        f"{result['kv_waste']:.2%}",
        f"{result['prefill_computed'] / 1e3:.1f}k/{result['prefill_asked'] / 1e3:.1f}k",
    ]


if __name__ == "__main__":
    main()
