"""python -m benchmarks.retrieval --corpus F --queries F [--limit N] [--json F]: retrieval quality and speed.

Runs the evaluation of `precedent eval retrieval` with and without the legal thesaurus, and with the part of a query
that names the document removed, on one index; prints the ratio to the two-stage BM25 baseline of the data set.
"""

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from app.rag.edge import EdgeIndex
from app.rag.embedding import Embedder
from app.rag.evaluation import ask_all, index_corpus, read_queries, stratified, summarise, timings
from app.rag.query import split
from app.rag.retrieval import Retriever

BASELINE = {"1": 0.266, "8": 0.579, "64": 0.827}  # P@1, R@8, R@64 of two-stage BM25, 500-character chunks


def main() -> None:
    """Index once, ask four ways."""
    options = _options()
    embedder = Embedder(options.model)
    queries = read_queries(options.queries)
    asked = stratified(queries, lambda row: row.category, options.limit or len(queries), seed=0)
    with tempfile.TemporaryDirectory(prefix="precedent-bench-") as folder:
        index = EdgeIndex(Path(folder), embedder.dimension, model=embedder.name)
        began = perf_counter()
        index_corpus(options.corpus, index, embedder, _progress)
        report: dict[str, Any] = {
            "index": {"seconds": perf_counter() - began, "chunks": index.count(), "dtype": embedder.dtype}
        }
        for name, expand, named in _VARIANTS:
            rows = asked if named else [row.asking(split(row.text)[1]) for row in asked]
            results = ask_all(rows, Retriever(index, embedder, expand=expand), _progress)
            report[name] = summarise(rows, [passages for passages, _ in results]) | {"ms": timings(results)}
            _print(name, report[name])
        index.close()
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


_VARIANTS = (
    ("full", True, True),
    ("no_thesaurus", False, True),
    ("document_not_named", True, False),
)


def _print(name: str, scores: dict[str, Any]) -> None:
    p1, r8, r64 = scores["k"]["1"]["precision"], scores["k"]["8"]["recall"], scores["k"]["64"]["recall"]
    print(
        f"{name:20s} P@1 {p1:.3f} ({p1 / BASELINE['1']:.2f}x)  R@8 {r8:.3f} ({r8 / BASELINE['8']:.2f}x)  "
        f"R@64 {r64:.3f} ({r64 / BASELINE['64']:.2f}x)  wrong {scores['wrong_document_rate']:.3f}  "
        f"{scores['characters']['8']:.0f} characters in the top 8  p50 {scores['ms']['p50']:.1f} ms "
        f"p95 {scores['ms']['p95']:.1f} ms",
        flush=True,
    )


def _progress(stage: str, done: int, total: int) -> None:
    if done % max(1, total // 20) == 0:
        print(f"{stage} {done}/{total}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
