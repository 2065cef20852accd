"""What adapters cost a step that decodes: `python -m benchmarks.lora [--rounds N] [--rows N] [--dtype D] [--json F]`.

A random Llama of 0.1 thousand million parameters with 8 random LoRA adapters of rank 16 on every linear layer, written
by `peft` (`pip install peft`), which is also the peer: transformers' generate with `adapter_names`. Contenders decode
the same rows in turns within each round; ratios are medians over rounds of one run. It is also told in how many rows
two of them say the same tokens, which is all in float32, and that adapters change what is said.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import StoppingCriteria, StoppingCriteriaList

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment
from benchmarks.peers import load_peer, random_llama

SHAPE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8}
RANK, PROMPT, NEW = 16, 32, 48
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMES = [f"a{i}" for i in range(8)]
MIXES = (0, 1, 4, 8)  # different adapters in a batch
Outputs = list[list[int]]
Contender = Callable[[], tuple[float, Outputs]]  # seconds of a decoding step, and what was said


class Ours:
    """Rows with the first `count` adapters in turn, none with 0."""

    def __init__(self, folder: Path, dtype: str, prompts: Outputs, adapters: dict[str, Path]) -> None:
        config = EngineConfig(
            folder, dtype=dtype, threads=1, max_draft_tokens=0, enable_prefix_cache=False, adapters=adapters,
            num_blocks=len(prompts) * 8, max_num_seqs=len(prompts), max_num_batched_tokens=len(prompts) * PROMPT,
        )  # fmt: skip
        self._engine, self._prompts = LLMEngine(config), prompts

    def run(self, count: int) -> tuple[float, Outputs]:
        params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
        asked = [
            Request(str(i), (TokenSegment(prompt),), params, adapter=adapter)
            for i, (prompt, adapter) in enumerate(zip(self._prompts, turns(count, len(self._prompts)), strict=True))
        ]
        outputs = self._engine.generate_requests(asked)
        seconds = max(output.metrics.decode_ms for output in outputs) / 1000 / (NEW - 1)
        return seconds, [output.token_ids for output in outputs]


class Clock(StoppingCriteria):
    """Never stops: notes when each token was there."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        self.stamps.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Peft:
    """transformers with PEFT around it; with 0 adapters transformers alone."""

    def __init__(self, plain: Any, wrapped: Any, prompts: Outputs) -> None:
        self._plain, self._wrapped, self._ids = plain, wrapped, torch.tensor(prompts)

    @torch.inference_mode()
    def run(self, count: int) -> tuple[float, Outputs]:
        clock = Clock()
        more = {"adapter_names": turns(count, len(self._ids))} if count else {}
        out = (self._wrapped if count else self._plain).generate(
            input_ids=self._ids, attention_mask=torch.ones_like(self._ids), max_new_tokens=NEW, min_new_tokens=NEW,
            do_sample=False, stopping_criteria=StoppingCriteriaList([clock]), **more,
        )  # fmt: skip
        return (clock.stamps[-1] - clock.stamps[0]) / (NEW - 1), out[:, self._ids.shape[1] :].tolist()


def turns(count: int, rows: int) -> list[str | None]:
    return [NAMES[i % count] if count else None for i in range(rows)]


def write_adapters(folder: Path, place: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Path]]:
    """The model with all of them in PEFT, their folders, and in place/merged the model with the first one in it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MODULES, init_lora_weights="gaussian")
    model: Any = get_peft_model(load_peer(folder, dtype, "cpu"), config, adapter_name=NAMES[0])
    for name in NAMES[1:]:
        model.add_adapter(name, config)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(place)
    first: Any = get_peft_model(load_peer(folder, dtype, "cpu"), config)
    first.load_adapter(place / NAMES[0], NAMES[0])
    first.set_adapter(NAMES[0])
    first.merge_and_unload().save_pretrained(place / "merged")
    model.requires_grad_(False)
    return model.eval(), {name: place / name for name in NAMES}


def contenders(place: Path, dtype: str, rows: int) -> dict[str, Contender]:
    folder, kind = random_llama(place / "model", **SHAPE), getattr(torch, dtype)
    generator = torch.Generator().manual_seed(2)
    prompts = torch.randint(3, 8192, (rows, PROMPT), generator=generator).tolist()
    wrapped, adapters = write_adapters(folder, place, kind)
    ours, merged = Ours(folder, dtype, prompts, adapters), Ours(place / "merged", dtype, prompts, {})
    peer = Peft(load_peer(folder, kind, "cpu"), wrapped, prompts)
    mixes = sorted({min(count, rows) for count in MIXES})
    made: dict[str, Contender] = {f"ours, {count}": partial(ours.run, count) for count in mixes}
    made["ours, merged"] = partial(merged.run, 0)
    return made | {f"PEFT, {count}": partial(peer.run, count) for count in mixes}


def measure(rounds: int, running: dict[str, Contender]) -> tuple[dict[str, list[float]], dict[str, Outputs]]:
    times: dict[str, list[float]] = {name: [] for name in running}
    said: dict[str, Outputs] = {}
    for number in track(range(rounds + 1), "rounds"):
        for name in running if number % 2 else reversed(running):
            seconds, said[name] = running[name]()
            if number:  # the first round warms up
                times[name].append(seconds)
    return times, said


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def show(times: dict[str, list[float]], said: dict[str, Outputs], rows: int, console: Console) -> None:
    table = Table("adapters", "ms a step", "tokens/s", "times the step without", "PEFT / ours")
    for name, seconds in times.items():
        who, _, mix = name.partition(", ")
        step = statistics.median(seconds)
        beside = f"{ratio(times[f'PEFT, {mix}'], seconds):.2f}" if who == "ours" and mix != "merged" else ""
        without = ratio(seconds, times[f"{who}, 0"])
        table.add_row(name, f"{step * 1000:.1f}", f"{rows / step:.0f}", f"{without:.2f}", beside)
    console.print(table)
    last = list(times)[-1].removeprefix("PEFT, ")
    pairs = [(f"ours, {mix}", f"PEFT, {mix}") for mix in dict.fromkeys(("0", "1", last))]
    for one, other in (*pairs, ("ours, 1", "ours, merged"), ("ours, 0", f"ours, {last}")):
        same = sum(a == b for a, b in zip(said[one], said[other], strict=True))
        console.print(f"{one} and {other}: the same {NEW} tokens in {same} of {rows} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8, help="requests in the batch")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="precedent-lora-") as place:
        times, said = measure(given.rounds, contenders(Path(place), given.dtype, given.rows))
    show(times, said, given.rows, console)
    console.print(
        f"{given.rows} rows, {given.dtype}, 1 thread, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    if given.json:
        given.json.write_text(json.dumps({"seconds": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
