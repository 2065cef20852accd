"""What several ranks bring on one machine: `python -m benchmarks.parallel [--rounds N] [--json F]`.

One engine after the other, taking turns within each round, on random weights of one model; ratios against one rank with
as many threads as all ranks have together are medians over rounds of one run. With --device cuda each rank has a GPU.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment

VOCAB = 32000
SHAPE = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
    "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 2048,
}  # fmt: skip
PROMPTS, PROMPT_TOKENS, SHORT = 4, 512, 32
BATCHES = (1, 16)


@dataclass(frozen=True)
class Arrangement:
    tensor: int
    stages: int
    threads: int

    @property
    def name(self) -> str:
        ranks = f"TP {self.tensor}" if self.tensor > 1 else f"PP {self.stages}" if self.stages > 1 else "one rank"
        each = " each" if self.tensor * self.stages > 1 else ""
        return f"{ranks}, {self.threads} thread{'s' * (self.threads > 1)}{each}"


ARRANGEMENTS = (Arrangement(1, 1, 2), Arrangement(1, 1, 1), Arrangement(2, 1, 1), Arrangement(1, 2, 1))


@dataclass
class Measured:
    """Tokens a second of every round, by what was measured."""

    rates: dict[str, list[float]] = field(default_factory=dict)

    def add(self, what: str, rate: float) -> None:
        self.rates.setdefault(what, []).append(rate)


def prefill_rate(engine: LLMEngine) -> float:
    began = time.perf_counter()
    engine.generate(_prompts(PROMPTS, PROMPT_TOKENS), SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    return PROMPTS * PROMPT_TOKENS / (time.perf_counter() - began)


def decode_rate(engine: LLMEngine, batch: int, tokens: int) -> float:
    """From the step after which everybody has a first token."""
    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    for i, prompt in enumerate(_prompts(batch, SHORT)):
        engine.add_request(Request(str(i), (TokenSegment(prompt),), sampling))
    written = 0
    while written < batch:
        written += sum(len(output.token_ids) for output in engine.step())
    began, first = time.perf_counter(), written
    while engine.has_work:
        written += sum(len(output.token_ids) for output in engine.step())
    return (written - first) / (time.perf_counter() - began)


def _prompts(count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for _ in range(count)]


def measure(engines: dict[Arrangement, LLMEngine], rounds: int, tokens: int) -> dict[Arrangement, Measured]:
    found = {arrangement: Measured() for arrangement in engines}
    for _ in range(rounds):
        for arrangement, engine in engines.items():
            torch.set_num_threads(arrangement.threads)
            found[arrangement].add("prefill", prefill_rate(engine))
            for batch in BATCHES:
                found[arrangement].add(f"decode, batch {batch}", decode_rate(engine, batch, tokens))
    return found


def ratio(mine: list[float], peer: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(mine, peer, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="output tokens of each decoding request")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        (folder / "config.json").write_text(json.dumps(SHAPE))
        engines = {one: _engine(folder, one, args) for one in ARRANGEMENTS}
        found = measure(engines, args.rounds, args.tokens)
        for engine in engines.values():
            engine.runner.release()
    _show(found)
    if args.json:
        rates = {arrangement.name: measured.rates for arrangement, measured in found.items()}
        args.json.write_text(json.dumps({"torch": torch.__version__, "rates": rates}, indent=1))


def _engine(folder: Path, arrangement: Arrangement, args: argparse.Namespace) -> LLMEngine:
    config = EngineConfig(
        folder, load_format="dummy", device=args.device, dtype=args.dtype, threads=arrangement.threads,
        tensor_parallel_size=arrangement.tensor, pipeline_parallel_size=arrangement.stages,
        num_blocks=160, enable_prefix_cache=False, max_draft_tokens=0,
    )  # fmt: skip
    engine = LLMEngine(config)
    engine.warm_up()
    return engine


def _show(found: dict[Arrangement, Measured]) -> None:
    peer = found[ARRANGEMENTS[0]]
    table = Table(title="tokens a second, and against the first line")
    for column in ("", *peer.rates):
        table.add_column(column, justify="left" if not column else "right")
    for arrangement, measured in found.items():
        cells = [
            f"{statistics.median(rates):,.1f} ({ratio(rates, peer.rates[what]):.2f})"
            for what, rates in measured.rates.items()
        ]
        table.add_row(arrangement.name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
