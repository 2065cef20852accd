"""python -m benchmarks.rag_peers --corpus F --queries F --r2r URL [--documents N] [--limit N] [--json F]

Retrieval beside R2R: the same contracts, the same queries, chunks of at most 500 characters in both, in one run. R2R
is a server of its own (its hybrid search over PostgreSQL with pgvector, and its search by vectors alone), set to embed
with the same model, by the /v1/embeddings of a Precedent. What it finds is laid over the text it was given, so that
both are measured by the same characters. Searches take turns; the time of R2R's has HTTP in it, and so has its
embedding.

Settings of R2R that count: `ingestion.chunk_size = 500`, `chunk_overlap = 0`, `embedding.add_title_as_prefix = true`
(each chunk begins with its document's name, by which a question that names a contract can find it), no summaries, no
graph.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import httpx
import numpy as np

from app.rag.evaluation.comparison import by_query, interval
from app.rag.evaluation.retrieval_metrics import (
    KS,
    TENANT,
    RetrievalQuery,
    index_corpus,
    read_lines,
    read_queries,
    stratified,
    summarise,
)
from app.rag.index.edge import EdgeIndex
from app.rag.index.embedding import Embedder
from app.rag.retrieval.retriever import Passage, Retriever, SearchQuery
from benchmarks.retrieval import SHOWN

CHUNK = 500
PREFIX = "\n\nText: "
LIMIT = max(KS)
WAYS = ("precedent", "no thesaurus", "R2R, hybrid", "R2R, vectors")
Found = tuple[list[list[Passage]], list[float]]


class R2R:
    """A running R2R, by its REST interface (v3)."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=600)
        self._files: dict[str, str] = {}
        self._texts: dict[str, str] = {}

    def ingest(self, name: str, text: str) -> None:
        """Raises httpx.HTTPStatusError."""
        # By itself R2R makes the id of the text's beginning, which two contracts of one kind share.
        document = str(uuid5(NAMESPACE_URL, name))
        form = {"id": document, "raw_text": text, "metadata": json.dumps({"title": name}), "ingestion_mode": "fast"}
        answer = self._http.post("/v3/documents", data=form | {"run_with_orchestration": "false"})
        answer.raise_for_status()
        self._files[document] = name
        self._texts[name] = text

    def search(self, query: str, *, hybrid: bool) -> list[Passage]:
        """Up to LIMIT passages. Raises httpx.HTTPStatusError."""
        settings = {"limit": LIMIT, "use_hybrid_search": hybrid, "graph_settings": {"enabled": False}}
        settings["filters"] = {"document_id": {"$in": list(self._files)}}
        answer = self._http.post("/v3/retrieval/search", json={"query": query, "search_settings": settings})
        answer.raise_for_status()
        return [self._passage(row) for row in answer.json()["results"]["chunk_search_results"]]

    def forget(self) -> None:
        for document in self._files:
            self._http.delete(f"/v3/documents/{document}")

    def _passage(self, row: dict[str, Any]) -> Passage:
        """Where the chunk stands. A splitter may drop white space, so the words are looked for one by one."""
        name = self._files[row["document_id"]]
        said = row["text"].split(PREFIX, 1)[-1]
        start, end = span(self._texts[name], said)
        return Passage(name, 1, row["id"], start, end, row["score"])


def span(text: str, said: str) -> tuple[int, int]:
    """Where `said` stands in `text`, whatever white space is between its words. Raises ValueError where it does not."""
    at = text.find(said)
    if at >= 0:
        return at, at + len(said)
    words = said.split()
    first = text.find(words[0])
    while first >= 0:
        end = _followed(text, first, words)
        if end:
            return first, end
        first = text.find(words[0], first + 1)
    raise ValueError(f"not in the document: {said[:80]!r}")


def _followed(text: str, start: int, words: list[str]) -> int:
    """The end of these words in a row from `start` on; 0 where others stand there."""
    at = start
    for word in words:
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith(word, at):
            return 0
        at += len(word)
    return at


def main() -> None:
    """Index in both, ask both in turns, print measures, intervals and ratios."""
    options = _options()
    peer, embedder = R2R(options.r2r), Embedder()
    documents = list(islice(read_lines(options.corpus), options.documents))
    names = {row["file_path"] for row in documents}
    queries = [query for query in read_queries(options.queries) if query.snippets[0].file in names]
    asked = stratified(queries, lambda row: row.category, options.limit, seed=0)
    with tempfile.TemporaryDirectory(prefix="precedent-bench-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(row) + "\n" for row in documents))
        index = EdgeIndex(Path(folder) / "index", embedder.dimension, model=embedder.name)
        report: dict[str, Any] = {"documents": len(documents), "queries": len(asked)}
        try:
            report["seconds"] = dict(_fill(corpus, index, embedder, peer))
            report["chunks"] = index.count()
            retrievers = {name: Retriever(index, embedder, expand=name == WAYS[0]) for name in WAYS[:2]}
            found = _ask(asked, retrievers, peer)
        finally:
            peer.forget()
            index.close()
    report |= {name: _measured(asked, *each) for name, each in found.items()}
    _print(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


def _fill(corpus: Path, index: EdgeIndex, embedder: Embedder, peer: R2R) -> Iterator[tuple[str, float]]:
    """Seconds of each ingestion."""
    began = perf_counter()
    index_corpus(corpus, index, embedder, lambda stage, done, total: None, CHUNK)
    yield "precedent", perf_counter() - began
    began = perf_counter()
    for done, row in enumerate(read_lines(corpus), 1):
        peer.ingest(row["file_path"], row["text"])
        print(f"\rR2R: {done} documents", end="", flush=True)
    print()
    yield "r2r", perf_counter() - began


def _ask(asked: list[RetrievalQuery], retrievers: dict[str, Retriever], peer: R2R) -> dict[str, Found]:
    found: dict[str, Found] = {name: ([], []) for name in WAYS}
    for query in asked:
        for name in WAYS:
            began = perf_counter()
            found[name][0].append(_search(name, query.text, retrievers, peer))
            found[name][1].append((perf_counter() - began) * 1e3)
    return found


def _search(name: str, text: str, retrievers: dict[str, Retriever], peer: R2R) -> list[Passage]:
    if name in retrievers:
        return list(retrievers[name].search(SearchQuery(TENANT, frozenset(), text, LIMIT)).passages)
    return peer.search(text, hybrid=name.endswith("hybrid"))


def _measured(asked: list[RetrievalQuery], passages: list[list[Passage]], taken: list[float]) -> dict[str, Any]:
    values = {measure: numbers for measure, numbers in by_query(asked, passages).items() if measure in SHOWN}
    measures = {measure: (float(numbers.mean()), *interval(numbers)) for measure, numbers in values.items()}
    ms = {f"p{p}": float(np.percentile(taken, p)) for p in (50, 95)}
    return summarise(asked, passages) | {"measures": measures, "ms": ms}


def _print(report: dict[str, Any]) -> None:
    print(f"{report['documents']} documents, {report['chunks']} chunks, {report['queries']} queries")
    print("seconds of ingestion:", {name: round(seconds, 1) for name, seconds in report["seconds"].items()})
    ours = report["precedent"]["measures"]
    for name in WAYS:
        measured = report[name]
        for measure, (mean, low, high) in measured["measures"].items():
            ratio = ours[measure][0] / mean if mean else float("inf")
            print(f"{name:13} {measure:12} {mean:.3f} ({low:.3f}-{high:.3f})  ours/this {ratio:.2f}")
        characters = {k: round(number) for k, number in measured["characters"].items()}
        print(f"{name:13} wrong document {measured['wrong_document_rate']:.1%}, characters {characters}")
        print(f"{name:13} p50 {measured['ms']['p50']:.0f} ms, p95 {measured['ms']['p95']:.0f} ms")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--r2r", required=True, help="http://127.0.0.1:7272")
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
