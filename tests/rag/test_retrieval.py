"""Retrieval: the right document, the right clause, the caller's rights, and a confidence that knows nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.rag.documents.chunking import chunk
from app.rag.index.base import Hit, Legs
from app.rag.index.edge import EdgeIndex
from app.rag.index.embedding import Embedder
from app.rag.index.points import DocumentVersion, chunk_id, chunk_points, document_point, indexed_text, routing_text
from app.rag.retrieval.ranking import gather, rank, route
from app.rag.retrieval.retriever import Retriever, SearchQuery

CLAUSES = (
    "1. Term. The initial term is {years} years from the Effective Date and renews for successive one-year periods. "
    "2. Payment. The {buyer} pays each invoice within {days} days of receipt. Late amounts bear interest. "
    "3. Governing Law. This Agreement is governed by the laws of {state}, without regard to conflicts of law. "
    "4. Confidentiality. Each party keeps the other's Confidential Information secret and uses it for this only. "
    "5. Assignment. Neither party may assign this Agreement without the prior written consent of the other. "
)
FACTS = {
    "Acme": ("Borealis", "Supply Agreement", "three", "30", "Delaware"),
    "Cobalt": ("Dunmore", "License Agreement", "five", "45", "New York"),
    "Everest": ("Falkirk", "Hosting Agreement", "two", "60", "Texas"),
}


def contract(seller: str) -> str:
    buyer, kind, years, days, state = FACTS[seller]
    opening = f"{kind.upper()} between {seller} Industries, Inc. (the Seller) and {buyer} Holdings LLC.\n\n"
    return opening + CLAUSES.format(years=years, buyer=buyer, days=days, state=state)


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory, minilm: Embedder) -> Iterator[Retriever]:
    index = EdgeIndex(tmp_path_factory.mktemp("index"), minilm.dimension, model=minilm.name)
    for tenant in ("t1", "t2"):
        for seller in FACTS:
            labels = ("secret",) if seller == "Everest" else ()
            _put(index, minilm, tenant, seller, labels)
    yield Retriever(index, minilm)
    index.close()


def _put(index: EdgeIndex, embedder: Embedder, tenant: str, seller: str, labels: tuple[str, ...]) -> None:
    text = contract(seller)
    facts = DocumentVersion(tenant, f"{tenant} {seller}", 1, "c", labels, FACTS[seller][1], f"{seller}.txt")
    points = chunk_points(facts, text, chunk(text, max_chars=160), embedder)
    index.upsert([*points, document_point(facts, text, embedder)])


def ask(
    retriever: Retriever, text: str, *atoms: str, tenant: str = "t1", k: int = 3, **more: object
) -> list[tuple[str, str]]:
    found = retriever.search(SearchQuery(tenant, frozenset(atoms), text, k, **more))  # type: ignore[arg-type]
    return [(p.document_id.split()[1], contract(p.document_id.split()[1])[p.start : p.end]) for p in found.passages]


@pytest.mark.parametrize("seller", ["Acme", "Cobalt"])
@pytest.mark.parametrize(
    ("question", "clause"),
    [
        ("what is the governing law?", "3. Governing Law"),
        ("how long is the initial term?", "1. Term"),
        ("may a party transfer the agreement?", "5. Assignment"),
        ("when are invoices paid?", "2. Payment"),
    ],
)
def test_named_document_and_clause_come_first(retriever: Retriever, seller: str, question: str, clause: str) -> None:
    buyer, kind = FACTS[seller][:2]
    asked = f"Consider the {kind} between {seller} Industries and {buyer} Holdings; {question}"
    document, text = ask(retriever, asked)[0]
    assert document == seller and clause in text


def test_question_that_names_no_document_searches_all(retriever: Retriever) -> None:
    assert {document for document, _ in ask(retriever, "What is the governing law?", k=2)} == {"Acme", "Cobalt"}


def test_search_stays_inside_the_callers_rights(retriever: Retriever) -> None:
    question = "Consider the Hosting Agreement between Everest and Falkirk; what is the governing law?"
    assert ask(retriever, question, "secret")[0][0] == "Everest"
    assert "Everest" not in {document for document, _ in ask(retriever, question, "other", k=50)}
    found = retriever.search(SearchQuery("t2", frozenset(), question, 50))
    assert {p.document_id for p in found.passages} == {"t2 Acme", "t2 Cobalt"}
    assert retriever.search(SearchQuery("t3", frozenset(), question)).passages == ()


def test_documents_and_collection_narrow(retriever: Retriever) -> None:
    found = ask(retriever, "Consider the Acme Supply Agreement; what is the term?", document_ids=("t1 Cobalt",), k=9)
    assert {document for document, _ in found} == {"Cobalt"}
    assert ask(retriever, "term?", collection="nothing") == []


def test_confidence_falls_where_nothing_answers(retriever: Retriever) -> None:
    def confidence(text: str) -> float:
        return retriever.search(SearchQuery("t1", frozenset(), text)).confidence

    answered = [confidence(q) for q in ("What is the governing law?", "How long is the initial term?")]
    foreign = [confidence(q) for q in ("Who won the football match?", "How many parking spaces does the garage have?")]
    assert min(answered) > max(foreign)
    assert all(0 <= value <= 1 for value in answered + foreign)
    assert retriever.search(SearchQuery("t3", frozenset(), "What is the governing law?")).confidence == 0.0


def test_result_is_the_same_twice_and_timed(retriever: Retriever) -> None:
    query = SearchQuery("t1", frozenset(), "What is the governing law?")
    first, second = retriever.search(query), retriever.search(query)
    assert first.passages == second.passages
    assert set(first.timings_ms) == {"embed", "search", "rerank"}
    assert [p.score for p in first.passages] == sorted((p.score for p in first.passages), reverse=True)


def _hit(document: str, ordinal: int, score: float) -> Hit:
    return Hit(f"{document}{ordinal}", document, 1, 0, 9, ordinal, score)


def test_neighbour_of_a_good_chunk_gains() -> None:
    sparse = (_hit("a", 5, 9.0), _hit("a", 6, 3.0), _hit("a", 9, 3.0))
    ranked = rank(gather([Legs((), sparse)], {}))
    assert [c.hit.ordinal for c in ranked] == [5, 6, 9]


def test_both_legs_count() -> None:
    dense = (_hit("a", 1, 0.9), _hit("a", 2, 0.8), _hit("a", 8, 0.1))
    sparse = (_hit("a", 2, 9.0), _hit("a", 8, 8.0))
    assert rank(gather([Legs(dense, sparse)], {}))[0].hit.ordinal == 2


def test_routing_gives_up_when_too_many_documents_fit() -> None:
    alike = tuple(_hit(f"d{n}", 0, 5.0) for n in range(20))
    assert route(Legs((), alike)) == {}
    clear = (_hit("x", 0, 9.0), *(_hit(f"d{n}", 0, 3.0) for n in range(20)))
    assert list(route(Legs((), clear))) == ["x"]
    assert route(Legs()) == {}


def test_context_is_indexed_and_ids_are_stable() -> None:
    text = "1. Term. Three years."
    (only,) = chunk(text)
    assert indexed_text(only, text) == f"{only.section[0]}\n{text}"
    assert chunk_id("d", 1, 0) == chunk_id("d", 1, 0) != chunk_id("d", 2, 0)
    assert chunk_id("d", 1, 0) != chunk_id("d", 1, 0, "document")
    assert routing_text("T", "AcmeINC_2020-Supply.pdf", "Body").startswith("Acme INC 2020 Supply\nT\nBody")


def test_thesaurus_file_ships_with_the_package() -> None:
    assert (Path(__file__).parents[2] / "app/rag/retrieval/thesaurus.toml").is_file()
