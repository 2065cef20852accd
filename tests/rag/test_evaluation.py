"""The metrics by hand, and the whole evaluation on a small corpus."""

import json
import lzma
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from app.errors import InvalidRequest
from app.rag.answers.citations import Citation, Match
from app.rag.documents.chunking import Chunk
from app.rag.evaluation.answer_metrics import (
    AnswerResult,
    EvalQuestion,
    GoldSpan,
    load_questions,
    oracle_passages,
    summarise_answers,
    token_f1,
)
from app.rag.evaluation.retrieval_metrics import (
    RetrievalQuery,
    Snippet,
    evaluate_retrieval,
    precision_recall,
    stratified,
    summarise,
    wrong_documents,
)
from app.rag.retrieval.retriever import Passage
from tests.rag.conftest import WordEmbedder


def passage(file: str, start: int, end: int) -> Passage:
    return Passage(file, 1, f"{file}{start}", start, end, 1.0)


def test_precision_and_recall_count_characters_once() -> None:
    gold = (Snippet("a", 0, 100), Snippet("a", 50, 150), Snippet("b", 0, 50))
    assert precision_recall(gold, [passage("a", 100, 200)]) == (0.5, 0.25)
    assert precision_recall(gold, [passage("a", 0, 150), passage("a", 0, 150), passage("b", 0, 50)]) == (1.0, 1.0)
    assert precision_recall(gold, [passage("c", 0, 150)]) == (0.0, 0.0)
    assert precision_recall(gold, []) == (0.0, 0.0)


def test_wrong_document_rate_and_cut_off() -> None:
    gold = (Snippet("a", 0, 10),)
    assert wrong_documents(gold, [passage("a", 5, 6), passage("b", 0, 9)]) == 0.5
    report = summarise([RetrievalQuery("q", "c", gold)], [[passage("b", 0, 10), passage("a", 0, 10)]])
    assert report["k"]["1"] == {"precision": 0.0, "recall": 0.0}
    assert report["k"]["8"] == {"precision": 0.5, "recall": 1.0}
    assert report["characters"] == {"1": 10.0, "8": 20.0, "64": 20.0}
    assert report["wrong_document_rate"] == 0.5


def test_stratified_sample_is_seeded_and_keeps_every_stratum() -> None:
    rows = [(n, "rare" if n < 4 else "common") for n in range(200)]
    sample = stratified(rows, lambda row: row[1], 50, 7)
    assert sample == stratified(rows, lambda row: row[1], 50, 7) != stratified(rows, lambda row: row[1], 50, 8)
    assert 48 <= len(sample) <= 52 and {kind for _, kind in sample} == {"rare", "common"}
    assert stratified(rows, lambda row: row[1], 500, 7) == rows
    assert len(stratified(rows, lambda row: str(row[0]), 10, 7)) == 10


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_retrieval_evaluation_on_a_small_corpus(tmp_path: Path, words: WordEmbedder, suffix: str) -> None:
    texts = {
        f"cuad/{name}.txt": f"AGREEMENT of {name}. 1. Term. It runs three years. 2. Law. Laws of {name} govern."
        for name in ("Alphaville", "Betatown", "Gammaburg")
    }
    queries = [
        {
            "query": f"Consider the agreement of {name}; which law governs?",
            "category": "law",
            "snippets": [{"file_path": file, "span": [text.index("2. Law"), len(text)]}],
        }
        for file, text in texts.items()
        for name in [file[5:-4]]
    ]
    corpus = _write(tmp_path / f"c.jsonl{suffix}", [{"file_path": f, "text": t} for f, t in texts.items()])
    asked = _write(tmp_path / f"q.jsonl{suffix}", queries)
    stages: list[str] = []
    report = evaluate_retrieval(
        corpus, asked, embedder=words, progress=lambda stage, done, total: stages.append(f"{stage} {done}/{total}")
    )
    assert report["k"]["8"]["recall"] == 1.0 and report["queries"] == 3 and report["seconds"] > 0
    assert set(report) >= {"k", "characters", "wrong_document_rate", "queries", "seconds"}
    assert stages[-1] == "search 3/3" and "index 3/3" in stages


def _write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())
    return path


def test_bad_input_is_named(tmp_path: Path, words: WordEmbedder) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"query": "x", "snippets": []}\nnot json\n')
    with pytest.raises(InvalidRequest, match="line 2"):
        evaluate_retrieval(bad, bad, embedder=words)
    with pytest.raises(InvalidRequest, match="does not exist"):
        evaluate_retrieval(tmp_path / "none", tmp_path / "none", embedder=words)


def test_token_f1_ignores_case_articles_and_punctuation() -> None:
    assert token_f1("The term is three years.", "term is THREE years") == 1.0
    assert token_f1("alpha beta", "beta gamma") == 0.5
    assert token_f1("alpha", "beta") == 0.0


TEXT = "The term is three years. The law is Delaware law."


def cite(start: int, end: int, verified: bool = True) -> Citation:
    match: Match = "exact" if verified else "fuzzy"
    return Citation(1, 0, "d", 1, "c", TEXT[start:end], TEXT[start:end], match, verified, start, end, ())


def test_answers_are_aggregated() -> None:
    asked = EvalQuestion("k", "term", "How long?", (GoldSpan(TEXT[:24], 0),))
    nothing = EvalQuestion("k", "rent", "What rent?", ())
    results = [
        (asked, AnswerResult("…", False, (cite(0, 24),))),
        (asked, AnswerResult("…", False, (cite(25, 49),))),
        (asked, AnswerResult("…", True)),
        (asked, AnswerResult("…", False, (cite(0, 24, verified=False),))),
        (nothing, AnswerResult("…", True)),
        (nothing, AnswerResult("It is free.", False)),
    ]
    report = summarise_answers([q for q, _ in results], [r for _, r in results])
    assert report["answerable_hit_rate"] == 0.5 and report["answerable_refused_rate"] == 0.25
    assert report["citation_accuracy"] == pytest.approx(1 / 3)
    assert report["refusal_accuracy"] == 0.5 and report["n"] == 6
    assert 0.5 <= report["span_f1"] < 0.7


def test_questions_are_read_and_their_answers_summarised(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"contract": "k", "category": "term", "question": "How long?", "answers": [{"text": TEXT[:24], "start": 0}]},
        {"contract": "k", "category": "rent", "question": "What rent?", "answers": []},
    ]
    asked = load_questions(_write(tmp_path / "q.jsonl", rows), None, 0)
    results = [AnswerResult("", not q.answers, (cite(0, 24),) if q.answers else ()) for q in asked]
    report = summarise_answers(asked, results)
    assert report["answerable_hit_rate"] == report["refusal_accuracy"] == report["citation_accuracy"] == 1.0


def test_oracle_passages_hold_the_gold_one_among_five() -> None:
    text = "".join(f"Sentence number {n:02d} here. " for n in range(20))
    chunks = [Chunk(n, n * 25, (n + 1) * 25) for n in range(20)]
    gold = [GoldSpan(text[75:100], 75)]
    chosen = oracle_passages(text, gold, chunks, seed=1)
    assert len(chosen) == 5 and [c.ordinal for c in chosen].count(3) == 1
    assert chosen == oracle_passages(text, gold, chunks, seed=1)
    assert len(oracle_passages(text, [], chunks, seed=1)) == 5
    assert 3 in [c.ordinal for c in oracle_passages(text, [GoldSpan(text[75:100])], chunks, seed=2)]
