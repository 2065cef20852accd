"""What drafts bring: `python -m benchmarks.speculation [--contracts DIR|F --questions F] [--json F]`.

Answers of the demo model from five passages, the gold one among them, with and without speculation on the same
weights and threads, taking turns within each round; ratios are medians over rounds of one run. Also what the suffix
index costs by itself.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, Tokenizer, TokenSegment
from app.engine.spec.suffix import SuffixIndex
from app.rag.answers.prompts import HEADER, render_passage, render_question
from app.rag.answers.service import LEGAL_PROMPT, fold
from app.rag.documents.chunking import chunk
from app.rag.evaluation.answer_metrics import load_questions, oracle_passages
from app.rag.evaluation.retrieval_metrics import read_lines
from app.rag.parsing import parse

DEMO = Path(__file__).parent.parent / "demo"
BATCHES = (1, 2, 4, 8, 16, 32, 64)
MAX_TOKENS = 128


@dataclass(frozen=True)
class Asked:
    """A question with its passages as text."""

    prompt: tuple[str, ...]
    sources: tuple[str, ...]


def questions(contracts: Path, asked: Path, limit: int | None) -> list[Asked]:
    found = load_questions(asked, limit, 0)
    texts = dict(_texts(contracts, {question.contract for question in found}))
    made = []
    for question in found:
        title, text = texts[question.contract]
        chosen = oracle_passages(text, question.answers, chunk(text), crc32(question.question.encode()))
        sources = tuple(fold(text[c.start : c.end]) for c in chosen)
        passages = [
            render_passage(number, title, " > ".join(c.section), source)
            for number, (c, source) in enumerate(zip(chosen, sources, strict=True), start=1)
        ]
        made.append(Asked((HEADER, *passages, render_question(question.question)), sources))
    return made


def _texts(contracts: Path, wanted: set[str]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Contract name to title and text."""
    if contracts.is_dir():
        for path in contracts.iterdir():
            if path.name in wanted:
                parsed = parse(path.read_bytes(), path.name)
                yield path.name, (parsed.title, parsed.text)
        return
    for row in read_lines(contracts):
        if row["contract"] in wanted:
            yield row["contract"], (row["contract"], row["text"])


def requests(tokenizer: Tokenizer, asked: list[Asked], *, lock: bool) -> list[Request]:
    made = []
    label = frozenset({"tenant:benchmark"})
    for number, question in enumerate(asked):
        messages = [{"role": "system", "content": LEGAL_PROMPT}, {"role": "user", "content": "".join(question.prompt)}]
        segments: list[TokenSegment] = []
        for piece in tokenizer.render_chat(messages):
            if piece.message_index == 1:
                segments += [TokenSegment(tokenizer.encode(text), label) for text in question.prompt]
            else:
                ids = tokenizer.encode_template if piece.is_template else tokenizer.encode
                segments.append(TokenSegment(ids(piece.text)))
        sampling = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
        sources = question.sources if lock else ()
        made.append(Request(str(number), tuple(segments), sampling, quote_sources=sources))
    return made


@dataclass
class Result:
    """Decoding only: from the step in which the last of a batch got its first token. wall: everything."""

    tokens: int = 0
    seconds: float = 0.0
    all_tokens: int = 0
    wall: float = 0.0
    drafted: int = 0
    accepted: int = 0
    by_position: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def per_forward(self) -> float:
        """Tokens that one row gets of one forward pass, first tokens left out."""
        return self.all_tokens / max(1, self.all_tokens - self.accepted)


def run(engine: LLMEngine, work: list[Request], batch: int) -> Result:
    result, began = Result(), time.perf_counter()
    for i in range(0, len(work), batch):
        _run_batch(engine, work[i : i + batch], result)
    result.wall = time.perf_counter() - began
    return result


def _run_batch(engine: LLMEngine, work: list[Request], result: Result) -> None:
    waiting = {request.request_id for request in work}
    for request in work:
        engine.add_request(request)
    began: float | None = None
    while engine.has_work:
        for output in engine.step():
            result.all_tokens += len(output.token_ids)
            result.tokens += len(output.token_ids) if began is not None else 0
            waiting.discard(output.request_id)
            if output.metrics is not None and (counts := output.metrics.speculation) is not None:
                result.drafted += counts.drafted
                result.accepted += counts.accepted
                longest = max(len(result.by_position), len(counts.by_position))
                padded = [(*found, *[0] * (longest - len(found))) for found in (result.by_position, counts.by_position)]
                result.by_position = tuple(a + b for a, b in zip(*padded, strict=True))
        if began is None and not waiting:
            began = time.perf_counter()
    result.seconds += time.perf_counter() - (began or time.perf_counter())


def index_costs(engine: LLMEngine, work: list[Request]) -> dict[str, float]:
    """Million tokens indexed per second, and microseconds per draft, medians over the prompts."""
    build, ask = [], []
    for request in work:
        tokens = request.prompt_token_ids
        began = time.perf_counter()
        index = SuffixIndex(tokens)
        build.append(len(tokens) / (time.perf_counter() - began))
        contexts = [tokens[i - 32 : i] for i in range(64, len(tokens), 16)]
        began = time.perf_counter()
        for context in contexts:
            index.continuations(context, 8)
        ask.append((time.perf_counter() - began) / len(contexts))
    return {
        "build_million_tokens_per_s": statistics.median(build) / 1e6,
        "draft_microseconds": statistics.median(ask) * 1e6,
    }


def measure(args: argparse.Namespace, console: Console) -> dict[str, Any]:
    asked = questions(args.contracts, args.questions, args.limit)
    engines = {
        name: LLMEngine(EngineConfig(args.model, dtype=args.dtype, threads=args.threads, max_draft_tokens=most))
        for name, most in (("plain", 0), ("drafts", args.most))
    }
    tokenizer = engines["plain"].tokenizer
    assert tokenizer is not None
    work = {lock: requests(tokenizer, asked, lock=lock) for lock in (False, True)}
    for engine in engines.values():
        engine.warm_up()
        run(engine, work[True][: args.warm_up], 4)
    cases = [(batch, lock, name) for batch in args.batches for lock in (False, True) for name in engines]
    found: dict[tuple[int, bool, str], list[Result]] = {case: [] for case in cases}
    for case in track([case for _ in range(args.rounds) for case in cases], console=console):
        batch, lock, name = case
        some = work[lock][: max(args.least, 2 * batch)]
        found[case].append(run(engines[name], some, batch))
    rows = [row(batch, lock, found) for batch in args.batches for lock in (False, True)]
    return {
        "model": str(args.model),
        "questions": len(asked),
        "rounds": args.rounds,
        "max_draft_tokens": args.most,
        "hardware": f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "rows": rows,
        "suffix_index": index_costs(engines["plain"], work[False]),
    }


def row(batch: int, lock: bool, found: dict[tuple[int, bool, str], list[Result]]) -> dict[str, Any]:
    """Ratios are medians of the rounds' own ratios: each round's two runs stood side by side."""
    plain, drafts = found[batch, lock, "plain"], found[batch, lock, "drafts"]
    pairs = list(zip(plain, drafts, strict=True))
    last = drafts[-1]
    return {
        "batch": batch,
        "quote_lock": lock,
        "plain_tokens_per_s": statistics.median(r.rate for r in plain),
        "drafts_tokens_per_s": statistics.median(r.rate for r in drafts),
        "decoding_ratio": statistics.median(d.rate / p.rate for p, d in pairs),
        "end_to_end_ratio": statistics.median((d.all_tokens / d.wall) / (p.all_tokens / p.wall) for p, d in pairs),
        "tokens_per_forward": statistics.median(r.per_forward for r in drafts),
        "accepted_share": last.accepted / max(1, last.drafted),
        "accepted_by_position": last.by_position,
    }


def table(report: dict[str, Any]) -> Table:
    made = Table(
        title=f"{report['model']} · {report['questions']} questions · up to {report['max_draft_tokens']} draft tokens",
        caption=f"{report['hardware']}; medians of {report['rounds']} interleaved rounds; tokens/s while decoding",
    )
    for column in ("batch", "quote lock", "plain", "drafts", "decoding", "end to end", "tokens/forward", "accepted"):
        made.add_column(column, justify="right")
    for found in report["rows"]:
        made.add_row(
            str(found["batch"]),
            "on" if found["quote_lock"] else "off",
            f"{found['plain_tokens_per_s']:.0f}",
            f"{found['drafts_tokens_per_s']:.0f}",
            f"{found['decoding_ratio']:.2f}x",
            f"{found['end_to_end_ratio']:.2f}x",
            f"{found['tokens_per_forward']:.2f}",
            f"{found['accepted_share']:.0%}",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contracts", type=Path, default=DEMO / "contracts")
    parser.add_argument("--questions", type=Path, default=DEMO / "questions.jsonl")
    parser.add_argument("--limit", type=int, help="draw so many of the questions")
    parser.add_argument("--model", type=Path, default=DEMO / "model")
    parser.add_argument("--most", type=int, default=EngineConfig("x").max_draft_tokens, help="draft tokens per step")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=int, default=16, help="questions per run, or twice the batch if more")
    parser.add_argument("--warm-up", type=int, default=24, help="questions from which the engines learn before")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    console = Console()
    report = measure(args, console)
    console.print(table(report))
    costs = report["suffix_index"]
    console.print(
        f"suffix index: {costs['build_million_tokens_per_s']:.1f} M tokens/s to build, "
        f"{costs['draft_microseconds']:.1f} µs per draft"
    )
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
