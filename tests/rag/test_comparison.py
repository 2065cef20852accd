"""Comparing two ways to retrieve, and looking citations up again in their files."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from app.cli import main
from app.errors import InvalidRequest
from app.rag.evaluation.citation_metrics import evaluate_citations
from app.rag.evaluation.comparison import Configuration, by_query, compare, draw, interval
from app.rag.evaluation.retrieval_metrics import RetrievalQuery, Snippet
from app.rag.retrieval.retriever import Passage
from benchmarks.retrieval import paraphrased, unnamed
from tests.rag.conftest import make_pdf

QUERY = RetrievalQuery("?", "c", (Snippet("a", 0, 10),))
HIT, MISS = Passage("a", 1, "x", 0, 10, 1.0), Passage("b", 1, "y", 0, 10, 1.0)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(40):
        low, high = interval(random.normal(0.3, 1.0, 60))
        covered += low <= 0.3 <= high
    assert 34 <= covered <= 39


def test_a_difference_is_shown_when_the_pairs_show_it_and_not_otherwise() -> None:
    asked = [QUERY] * 100
    good = by_query(asked, [[HIT]] * 60 + [[MISS]] * 40)
    better = by_query(asked, [[HIT]] * 75 + [[MISS]] * 25)
    report = compare(good, better)["recall@8"]
    assert report["difference"]["mean"] == pytest.approx(0.15)
    assert report["difference"]["shown"]
    low, high = report["first"]["interval"]
    assert low < 0.6 < high
    noise = by_query(asked, [[HIT]] * 59 + [[MISS]] * 40 + [[HIT]])  # one pair each way
    assert not compare(good, noise)["recall@8"]["difference"]["shown"]
    assert by_query(asked, [[MISS]] * 100)["wrong_document_rate"].mean() == 1.0


def test_a_configuration_is_changed_by_name() -> None:
    first = Configuration("model")
    assert first.changed("thesaurus=off, chunk_characters=800") == Configuration("model", 800, False)
    for wrong in ("colour=red", "thesaurus=maybe", "chunk_characters=10", ""):
        with pytest.raises(InvalidRequest):
            first.changed(wrong)


@pytest.mark.slow
def test_two_configurations_are_compared_on_the_command_line(tmp_path: Path) -> None:
    filler = "The pumps are painted green before they leave the works. " * 20
    texts = {f"{name}.txt": f"Supply Agreement of {name}. {name} pays monthly. {filler}" for name in ("Alder", "Birch")}
    lines = [json.dumps({"file_path": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    queries = [
        {"query": f"Consider the agreement of {name}; who pays?", "category": "pay", "snippets": [snippet]}
        for name in ("Alder", "Birch")
        for snippet in [{"file_path": f"{name}.txt", "span": [28, 50]}]
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    given = ["eval", "retrieval", "--corpus", str(tmp_path / "corpus.jsonl")]
    given += ["--queries", str(tmp_path / "queries.jsonl"), "--json", str(tmp_path / "out.json")]
    picture = tmp_path / "out.png"
    done = CliRunner().invoke(main, [*given, "--against", "chunk_characters=100", "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["queries"], report["second"]["chunk_characters"]) == (2, 100)
    assert report["precision@1"]["second"]["mean"] > report["precision@1"]["first"]["mean"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert CliRunner().invoke(main, [*given, "--against", "colour=red"]).exit_code == 1


def test_without_matplotlib_a_picture_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(InvalidRequest, match="matplotlib"):
        draw({}, ("a", "b"), tmp_path / "x.png")


LINES = [
    f"Clause {n} says that the supplier delivers {n} pumps, in good order, within {n} days of the call."
    for n in range(40)
]


def test_citations_of_a_pdf_stand_on_their_pages_and_in_their_boxes(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([LINES[:20], LINES[20:]]))
    broken = tmp_path / "b.pdf"
    broken.write_bytes(b"%PDF-1.7 broken")
    report = evaluate_citations([path, broken], 6, 0)
    assert report["quotes"] == report["cited"] == report["on_page"] == report["in_boxes"] > 3
    assert (report["files"], list(report["unreadable"]), report["failures"]) == (1, ["b.pdf"], [])


def test_a_citation_on_the_wrong_page_or_in_the_wrong_place_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([LINES[:20], LINES[20:]]))
    with monkeypatch.context() as patched:
        other = "app.rag.evaluation.citation_metrics._page_text"
        patched.setattr(other, lambda document, number: document[2 - number].get_textpage().get_text_range())
        report = evaluate_citations([path], 6, 0)
    assert report["on_page"] == 0 < report["in_boxes"]
    with monkeypatch.context() as patched:
        higher = lambda boxes: [(left, low - 40, right, top - 40) for left, low, right, top in boxes]  # noqa: E731
        patched.setattr("app.rag.evaluation.citation_metrics._rows", higher)
        report = evaluate_citations([path], 6, 0)
    assert report["in_boxes"] == 0 < report["on_page"]


def test_variants_of_a_query_keep_what_is_asked() -> None:
    query = 'Consider the Supply Agreement between Alder Inc. ("Alder"); Birch LLC ("Birch"); Which law governs?'
    assert unnamed(query) == "Which law governs?"
    other = paraphrased(query)
    assert "Consider" not in other
    assert all(part in other for part in ("Which law governs?", "Supply Agreement", "Birch LLC", "Alder Inc."))
    assert paraphrased("Which law governs?") == "Which law governs?"
