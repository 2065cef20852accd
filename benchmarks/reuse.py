"""python -m benchmarks.reuse --contracts F --questions F [--noise 0.1] [--limit N] [--callers N] [--json F]

Passages in the order of their scores beside passages in the order that continues a resident prefix (rag.reuse_noise):
two installations in one process, the same contracts and questions, in turns of one batch each. Prints the time to the
first token, the prompt tokens taken from the cache, and hits, citations and refusals with the paired interval of their
difference. Which passages are given is the same by construction, so recall is too.
"""

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from rich.console import Console

from app.config import EngineSettings, RagSettings, Settings
from app.evaluation import _bar, _ingest, _Site, _site, _uploads
from app.gateway.providers.local import LocalProvider
from app.operations.gate import compare
from app.rag.api.schemas import AnswerRequest
from app.rag.evaluation.answer_metrics import (
    AnswerResult,
    EvalQuestion,
    answer_rows,
    load_questions,
    summarise_answers,
)
from app.rag.evaluation.comparison import LEVEL

AFTER_FIRST = ("decode", "verify", "total")
BATCH = 16


@dataclass
class Side:
    """One installation and what was measured on it. first_ms: until the first token, of each question."""

    site: _Site
    documents: dict[str, UUID]
    first_ms: list[float] = field(default_factory=list)
    results: list[AnswerResult] = field(default_factory=list)

    async def ask(self, questions: Sequence[EvalQuestion], callers: int) -> None:
        seats = asyncio.Semaphore(callers)

        async def one(question: EvalQuestion) -> tuple[float, AnswerResult]:
            async with seats:
                request = AnswerRequest(question=question.question, documents=[self.documents[question.contract]])
                opened = await self.site.services.library.answers.open(self.site.principal, request)
                view = await opened.complete()
                first = sum(ms for stage, ms in view.timings_ms.items() if stage not in AFTER_FIRST)
                citations = () if view.refused else tuple(opened.citations)
                return first, AnswerResult(view.answer, view.refused, citations)

        for first, result in await asyncio.gather(*map(one, questions)):
            self.first_ms.append(first)
            self.results.append(result)

    @property
    def cached(self) -> float:
        """Share of prompt tokens that came from the cache."""
        [engine] = [one for one in self.site.services.gateway.providers.values() if isinstance(one, LocalProvider)]
        stats = engine.stats()
        return stats.prefix_hit_tokens / max(1, stats.prompt_tokens)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    questions = load_questions(options.questions, options.limit, 0)
    random.Random(0).shuffle(questions)
    console = Console(stderr=True)
    async with AsyncExitStack() as stack:
        sides = []
        for noise in (0.0, options.noise):
            engine = EngineSettings(kv_cache_bytes=options.kv_mb * 2**20)
            settings = replace(Settings(engine=engine), rag=RagSettings(reuse_noise=noise, min_confidence=0.0))
            site = await stack.enter_async_context(_site(settings))
            wanted = {question.contract for question in questions}
            with _bar(console) as bar:
                sides.append(Side(site, await _ingest(site, _uploads(options.contracts, wanted), bar, len(wanted))))
        for first in range(0, len(questions), BATCH):
            for side in sides if first // BATCH % 2 else reversed(sides):
                await side.ask(questions[first : first + BATCH], options.callers)
        return report(questions, sides, options)


def report(questions: list[EvalQuestion], sides: list[Side], options: argparse.Namespace) -> dict[str, Any]:
    plain, reuse = sides
    scores = [
        summarise_answers(questions, side.results) | {"rows": answer_rows(questions, side.results)} for side in sides
    ]
    ratios = np.asarray(reuse.first_ms) / np.asarray(plain.first_ms)
    return {
        "questions": len(questions),
        "noise": options.noise,
        "callers": options.callers,
        "first_token_p50_ms": [statistics.median(side.first_ms) for side in sides],
        "first_token_p95_ms": [float(np.percentile(side.first_ms, 95)) for side in sides],
        "median_ratio_of_pairs": float(np.median(ratios)),
        "prompt_from_cache": [side.cached for side in sides],
        "level": LEVEL,
        "scores": {
            one.measure: [one.baseline, one.candidate, one.low, one.high] for one in compare(scores[0], scores[1])
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contracts", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--kv-mb", type=int, default=128)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = asyncio.run(run(options))
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
