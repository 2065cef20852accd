"""Measuring retrieval the way LegalBench-RAG does (arXiv 2408.10343), through the code that serves searches."""

import json
import lzma
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from app.errors import InvalidRequest
from app.rag.documents.chunking import chunk
from app.rag.index.edge import EdgeIndex
from app.rag.index.embedding import Embedder
from app.rag.index.points import DocumentVersion, chunk_points, document_point
from app.rag.retrieval.retriever import Passage, Retriever, SearchQuery

KS = (1, 8, 64)
WRONG_AT = 8  # the wrong-document rate is taken over this many results
TENANT = "evaluation"

Progress = Callable[[str, int, int], None]  # stage, done, total
Answered = tuple[tuple[Passage, ...], float]  # what a search returned, and its milliseconds
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A gold range of characters of a file."""

    file: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """One question with its gold snippets."""

    text: str
    category: str
    snippets: tuple[Snippet, ...]

    def asking(self, text: str) -> "RetrievalQuery":
        """The same question in other words."""
        return RetrievalQuery(text, self.category, self.snippets)


def evaluate_retrieval(
    corpus: Path,
    queries: Path,
    *,
    embedder: Embedder,
    limit: int | None = None,
    expand: bool = True,
    seed: int = 0,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Index every document of `corpus`, ask all `queries` (or a stratified sample of `limit`) over all of them.

    All fractions 0-1. `seconds` is everything, embedding included; `ms` is per search on this machine.
    """
    began = perf_counter()
    rows = read_queries(queries)
    asked = rows if limit is None else stratified(rows, lambda row: row.category, limit, seed)
    with tempfile.TemporaryDirectory(prefix="precedent-eval-") as folder:
        index = EdgeIndex(Path(folder), embedder.dimension, model=embedder.name)
        try:
            index_corpus(corpus, index, embedder, progress)
            results = ask_all(asked, Retriever(index, embedder, expand=expand), progress)
        finally:
            index.close()
    found = [passages for passages, _ in results]
    report = summarise(asked, found) | {"rows": retrieval_rows(asked, found)}
    return report | {"ms": timings(results), "queries": len(asked), "seconds": perf_counter() - began}


def summarise(asked: Sequence[RetrievalQuery], results: Sequence[Sequence[Passage]]) -> dict[str, Any]:
    """Averages over the queries of precision and recall by characters, at each k."""
    report: dict[str, Any] = {"k": {}, "characters": {}}
    for k in KS:
        scores = [precision_recall(row.snippets, found[:k]) for row, found in zip(asked, results, strict=True)]
        precision, recall = np.mean(scores, axis=0) if scores else (0.0, 0.0)
        report["k"][str(k)] = {"precision": float(precision), "recall": float(recall)}
        lengths = [sum(p.end - p.start for p in found[:k]) for found in results]
        report["characters"][str(k)] = float(np.mean(lengths)) if lengths else 0.0
    wrong = [wrong_documents(row.snippets, found[:WRONG_AT]) for row, found in zip(asked, results, strict=True)]
    report["wrong_document_rate"] = float(np.mean(wrong)) if wrong else 0.0
    return report


def retrieval_rows(asked: Sequence[RetrievalQuery], results: Sequence[Sequence[Passage]]) -> list[dict[str, Any]]:
    """Measures of each query, so that two runs can be paired."""
    rows = []
    for number, (query, found) in enumerate(zip(asked, results, strict=True)):
        measures = {"wrong_document_rate": wrong_documents(query.snippets, found[:WRONG_AT])}
        for k in KS:
            measures[f"precision@{k}"], measures[f"recall@{k}"] = precision_recall(query.snippets, found[:k])
        rows.append({"question": f"{number}: {query.text}", "measures": measures})
    return rows


def precision_recall(gold: Sequence[Snippet], found: Sequence[Passage]) -> tuple[float, float]:
    """By characters; overlapping gold or overlapping results count once."""
    wanted = _characters((s.file, s.start, s.end) for s in gold)
    returned = _characters((p.document_id, p.start, p.end) for p in found)
    hit = sum(len(wanted[file] & returned[file]) for file in wanted.keys() & returned.keys())
    total_wanted, total_returned = (sum(map(len, each.values())) for each in (wanted, returned))
    return (hit / total_returned if total_returned else 0.0, hit / total_wanted if total_wanted else 0.0)


def wrong_documents(gold: Sequence[Snippet], found: Sequence[Passage]) -> float:
    """Share of results from a document without gold."""
    right = {snippet.file for snippet in gold}
    return sum(passage.document_id not in right for passage in found) / len(found) if found else 0.0


def stratified(rows: Sequence[Row], stratum: Callable[[Row], str], limit: int, seed: int) -> list[Row]:
    """About `limit` rows with every stratum in proportion, at least one each where they fit; the same seed gives
    the same rows."""
    if limit >= len(rows):
        return list(rows)
    strata: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        strata[stratum(row)].append(i)
    random, chosen = Random(seed), []
    for name in sorted(strata):
        share = max(1, round(limit * len(strata[name]) / len(rows)))
        chosen += random.sample(strata[name], min(share, len(strata[name])))
    if len(strata) > limit:
        chosen = random.sample(chosen, limit)
    return [rows[i] for i in sorted(chosen)]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a JSON Lines file, plain or xz. Raises InvalidRequest naming the line that is not JSON."""
    if not path.is_file():
        raise InvalidRequest(f"{path} does not exist.")
    with lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise InvalidRequest(f"{path}, line {number}: not JSON ({error.msg}).") from error


def timings(results: Sequence[Answered]) -> dict[str, float]:
    """Median and 95th percentile of milliseconds per search."""
    return {f"p{p}": float(np.percentile([ms for _, ms in results], p)) for p in (50, 95)} if results else {}


def read_queries(path: Path) -> list[RetrievalQuery]:
    """The queries of a LegalBench-RAG file: query, category, snippets with file_path and span."""
    return [
        RetrievalQuery(
            row["query"],
            row.get("category", ""),
            tuple(Snippet(s["file_path"], *s["span"]) for s in row["snippets"]),
        )
        for row in read_lines(path)
    ]


def index_corpus(
    corpus: Path, index: EdgeIndex, embedder: Embedder, progress: Progress, chunk_characters: int = 500
) -> None:
    """Chunk, embed and index every document, in the order of the file."""
    documents = list(read_lines(corpus))
    for done, row in enumerate(documents, 1):
        name, text = row["file_path"], row["text"]
        document = DocumentVersion(TENANT, name, 1, "corpus", (), "", name)
        index.upsert(chunk_points(document, text, chunk(text, max_chars=chunk_characters), embedder))
        index.upsert([document_point(document, text, embedder)])
        progress("index", done, len(documents))


def ask_all(asked: Sequence[RetrievalQuery], retriever: Retriever, progress: Progress) -> list[Answered]:
    """Ask every question of the whole corpus."""
    results: list[Answered] = []
    for done, row in enumerate(asked, 1):
        began = perf_counter()
        found = retriever.search(SearchQuery(TENANT, frozenset(), row.text, max(KS)))
        results.append((found.passages, (perf_counter() - began) * 1e3))
        progress("search", done, len(asked))
    return results


def _characters(ranges: Iterable[tuple[str, int, int]]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for file, start, end in ranges:
        found[file].update(range(start, end))
    return found
