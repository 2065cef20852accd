"""python -m benchmarks.retrieval --corpus F --queries F [--limit N] [--index DIR] [--json F]: quality and speed.

Runs the evaluation of `precedent eval retrieval` on one index with and without the legal thesaurus, and with the part
of a query that names the document ("Consider the …;") paraphrased and removed; prints 95 % bootstrap intervals and the
ratio to the two-stage BM25 baseline of the data set. `--index` keeps the index there, and finds it again.

python -m benchmarks.retrieval --points N [--tenants N] [--optimize] [--index DIR]: search over N synthetic points,
without embedding; their documents belong to the tenants in turn.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any
from uuid import UUID

import numpy as np

from app.rag.evaluation.comparison import by_query, interval
from app.rag.evaluation.retrieval_metrics import ask_all, index_corpus, read_queries, stratified, summarise, timings
from app.rag.index.base import FloatArray, SearchFilter, StoredPoint
from app.rag.index.bm25 import Bm25
from app.rag.index.edge import EdgeIndex
from app.rag.index.embedding import Embedder
from app.rag.retrieval.query import split
from app.rag.retrieval.retriever import Retriever

DIMENSION = 384
SYNTHETIC_BATCH, SYNTHETIC_SEARCHES = 5_000, 100
SHOWN = ("precision@1", "recall@8", "recall@64")
_CONSIDER = re.compile(r"(?is)consider\s+(?P<name>.+);\s*(?P<asked>[^;]+)")
_BM25 = Bm25()
BASELINE = {"1": 0.266, "8": 0.579, "64": 0.827}  # P@1, R@8, R@64 of two-stage BM25, 500-character chunks


def main() -> None:
    """Index once, ask five ways; or search among synthetic points."""
    options = _options()
    if options.points:
        report = synthetic(options.points, options.tenants, optimize=options.optimize, kept=options.index)
    else:
        report = _corpus(options)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def _corpus(options: argparse.Namespace) -> dict[str, Any]:
    embedder = Embedder(options.model)
    queries = read_queries(options.queries)
    asked = stratified(queries, lambda row: row.category, options.limit or len(queries), seed=0)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="precedent-bench-") as folder:
        index = EdgeIndex(options.index or Path(folder), embedder.dimension, model=embedder.name)
        began = perf_counter()
        if not index.count():
            index_corpus(options.corpus, index, embedder, _progress)
        if options.optimize:
            index.optimize()
        report["index"] = {"seconds": perf_counter() - began, "chunks": index.count(), "dtype": embedder.dtype}
        for name, expand, reword in _VARIANTS:
            rows = [row.asking(reword(row.text)) for row in asked]
            results = ask_all(rows, Retriever(index, embedder, expand=expand), _progress)
            passages = [found for found, _ in results]
            intervals = {measure: interval(values) for measure, values in by_query(rows, passages).items()}
            report[name] = summarise(rows, passages) | {"ms": timings(results), "intervals": intervals}
            _print(name, report[name])
        index.close()
    return report


def paraphrased(query: str) -> str:
    """The same document named in other words and at another place; which words depends on the query alone."""
    match = _CONSIDER.match(query)
    if match is None:
        return query
    asked = match["asked"]
    kind, _, parties = re.sub(r"\s*\([^()]*\)+", "", match["name"]).partition(" between ")
    who = " and ".join(reversed([one.strip(" ,") for one in re.split(r";|\s+and\s+", parties) if one.strip(" ,")]))
    forms = (
        f"{asked} I am asking about {f'what {who} agreed in ' if who else ''}{kind}.",
        f"Looking at {f'the deal of {who}, ' if who else ''}{kind}: {asked}",
        f"{f'{who} signed ' if who else 'We have '}{kind}. {asked}",
    )
    return forms[Random(query).randrange(len(forms))]


def unnamed(query: str) -> str:
    """The question alone."""
    return split(query)[1]


def synthetic(points: int, tenants: int, *, optimize: bool, kept: Path | None) -> dict[str, Any]:
    """Latency of the legs over random points around 500 centres, 40 Zipfian words each."""
    report: dict[str, Any] = {"points": points, "tenants": tenants, "optimized": optimize}
    with tempfile.TemporaryDirectory(prefix="precedent-bench-") as folder:
        index = EdgeIndex(kept or Path(folder), DIMENSION, model="synthetic")
        made = Synthetic(tenants)
        began, there = perf_counter(), index.count()
        for first in range(there, points, SYNTHETIC_BATCH):
            index.store(made.points(first, min(points, first + SYNTHETIC_BATCH)))
        report["built_seconds"] = perf_counter() - began
        if optimize:
            began = perf_counter()
            index.optimize()
            report["optimize_seconds"] = perf_counter() - began
        for legs in ("dense", "sparse", "both"):
            taken = [made.search(index, number, legs) for number in range(SYNTHETIC_SEARCHES)]
            report[legs] = {f"p{p}": float(np.percentile(taken, p)) for p in (50, 95)}
        index.close()
    print(json.dumps(report), flush=True)
    return report


class Synthetic:
    """Points and queries from one seeded stream."""

    def __init__(self, tenants: int) -> None:
        self._tenants = tenants
        self._random = np.random.default_rng(0)
        self._centres = self._random.standard_normal((500, DIMENSION)).astype(np.float32)
        weights = 1 / np.arange(1, 20_001)
        self._words = np.cumsum(weights / weights.sum())

    def points(self, first: int, last: int) -> list[StoredPoint]:
        return [self._point(number) for number in range(first, last)]

    def search(self, index: EdgeIndex, number: int, legs: str) -> float:
        """Milliseconds of one search of the size that `Retriever` asks for, by the tenants in turn."""
        words = {f"w{word}": 1.0 for word in self._draw(12)} if legs != "dense" else None
        vector = self._vector() if legs != "sparse" else None
        where = SearchFilter(f"t{number % self._tenants}", frozenset())
        began = perf_counter()
        found = index.search(vector, words, where, 200)
        taken = (perf_counter() - began) * 1e3
        assert bool(found.dense) == (vector is not None) and bool(found.sparse) == (words is not None)
        return taken

    def _point(self, number: int) -> StoredPoint:
        document = number // 100
        payload = {"tenant": f"t{document % self._tenants}", "document_id": f"d{document}", "version": 1}
        payload |= {"collection": "c", "labels": []}
        payload |= {"start": 0, "end": 500, "ordinal": number % 100}
        words = " ".join(f"w{word}" for word in self._draw(40))
        stems = _BM25.weights("chunk", {words: 1.0})
        vector = self._vector()
        return StoredPoint(str(UUID(int=number + 1)), "chunk", payload, vector, tuple(stems), (1.0,) * len(stems))

    def _vector(self) -> FloatArray:
        centre = self._centres[self._random.integers(0, len(self._centres))]
        vector = centre + 0.7 * self._random.standard_normal(DIMENSION).astype(np.float32)
        return np.asarray(vector / np.linalg.norm(vector), dtype=np.float32)

    def _draw(self, number: int) -> list[int]:
        return [int(word) for word in np.unique(np.searchsorted(self._words, self._random.random(number)))]


_VARIANTS: tuple[tuple[str, bool, Callable[[str], str]], ...] = (
    ("full", True, str),
    ("no_thesaurus", False, str),
    ("paraphrased", True, paraphrased),
    ("document_not_named", True, unnamed),
    ("not_named_no_thesaurus", False, unnamed),
)


def _print(name: str, scores: dict[str, Any]) -> None:
    p1, r8, r64 = scores["k"]["1"]["precision"], scores["k"]["8"]["recall"], scores["k"]["64"]["recall"]
    print(
        f"{name:22s} P@1 {p1:.3f} ({p1 / BASELINE['1']:.2f}x)  R@8 {r8:.3f} ({r8 / BASELINE['8']:.2f}x)  "
        f"R@64 {r64:.3f} ({r64 / BASELINE['64']:.2f}x)  wrong {scores['wrong_document_rate']:.3f}  "
        f"{scores['characters']['8']:.0f} characters in the top 8  p50 {scores['ms']['p50']:.1f} ms "
        f"p95 {scores['ms']['p95']:.1f} ms  "
        + "  ".join(f"{n} {low:.3f}-{high:.3f}" for n, (low, high) in scores["intervals"].items() if n in SHOWN),
        flush=True,
    )


def _progress(stage: str, done: int, total: int) -> None:
    if done % max(1, total // 20) == 0:
        print(f"{stage} {done}/{total}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--queries", type=Path)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--tenants", type=int, default=1)
    parser.add_argument("--optimize", action="store_true")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.points and not (options.corpus and options.queries):
        parser.error("--corpus and --queries, or --points")
    return options


if __name__ == "__main__":
    main()
