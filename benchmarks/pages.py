"""What KV pages in 8 bits cost and bring on a CPU: `python -m benchmarks.pages [--rounds N] [--pieces N]`.

The demo model. Quality: texts that it was not trained on, read with pages in float32 and with pages of e4m3, by the
measures of `precedent eval quantization`. Speed: 16 requests of 1,000 tokens decoding together in bfloat16, with pages
in bfloat16 and of e4m3, taking turns; ratios are medians over rounds of one run.
"""

import argparse
import statistics
from typing import Any

import torch

from app.config import REPOSITORY
from app.engine import EngineConfig, LLMEngine, SamplingParams
from app.engine.config import KVCacheDtype
from app.engine.quant.quality import Limits, compare
from app.engine.reader import Reader
from app.engine.tokenizer import Tokenizer
from app.quantization import read_pieces

MODEL = REPOSITORY / "demo" / "model"
ROWS, CONTEXT, TOKENS = 16, 1000, 24


def quality(count: int) -> dict[str, Any]:
    limits, tokenizer = Limits(), Tokenizer(MODEL)
    texts = sorted((REPOSITORY / "demo" / "sources").glob("*.md"))
    pieces = [piece for path in texts for piece in read_pieces(path, tokenizer, limits.tokens)[:4]][:count]
    first, second = (Reader(MODEL, torch.float32, 2 * limits.tokens + 1) for _ in range(2))
    second.keep_in_8_bits()
    return compare(first.logits, second.logits, pieces, tokenizer.decode, limits, lambda done, total: None)


def engine(pages: KVCacheDtype) -> LLMEngine:
    return LLMEngine(
        EngineConfig(
            MODEL, dtype="bfloat16", kv_cache_dtype=pages, num_blocks=1200, max_num_seqs=ROWS, max_draft_tokens=0,
            enable_prefix_cache=False,
        )
    )  # fmt: skip


def decode_seconds(made: LLMEngine) -> float:
    """Of one step."""
    prompts = [[100 + i + j % 900 for j in range(CONTEXT)] for i in range(ROWS)]
    outputs = made.generate(prompts, SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True))
    return statistics.median(output.metrics.decode_ms for output in outputs) / 1000 / (TOKENS - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pieces", type=int, default=30)
    args = parser.parse_args()
    for name, measure in quality(args.pieces)["measures"].items():
        print(name, {key: round(value, 4) for key, value in measure.items()})
    kinds: tuple[KVCacheDtype, ...] = ("auto", "fp8")
    engines = {kind: engine(kind) for kind in kinds}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(args.rounds + 1):
        for kind, made in engines.items():
            seconds = decode_seconds(made)
            if i:  # the first round warms up
                times[kind].append(seconds)
    ratios = [plain / small for plain, small in zip(times["auto"], times["fp8"], strict=True)]
    print({kind: round(1000 * statistics.median(found), 2) for kind, found in times.items()}, "ms per step")
    print("fp8 is", round(statistics.median(ratios), 2), "times as fast")


if __name__ == "__main__":
    main()
