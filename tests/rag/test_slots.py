"""What two questions must have in common, word for word."""

import random

import pytest

from app.rag.evaluation.cache_metrics import evaluate, like, unlike
from app.rag.index.embedding import Embedder
from app.rag.retrieval.slots import slots

QUESTIONS = (
    "Which law governs the agreement?",
    "Is there a cap on liability under this contract?",
    "May the tenant sublet the premises without consent?",
    "How long does the client have to pay an undisputed invoice?",
    "Are the licences granted under this contract exclusive?",
    "What happens after termination of the agreement?",
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("May the tenant assign?", "May the tenant not assign?"),
        ("May the tenant not assign?", "May the tenant not sublet?"),
        ("Is the cap limited?", "Is the cap unlimited?"),
        ("Is the licence all-you-can-eat?", "Is the licence all-you-must-eat?"),
        ("May the tenant assign?", "Must the tenant assign?"),
        ("Does the client have to pay?", "Does the client have the right to pay?"),
        ("Is notice due in 30 days?", "Is notice due in 60 days?"),
        ("Is notice due in thirty days?", "Is notice due in thirty-five days?"),
        ("Is notice due in 30 days?", "Is notice due in 30 months?"),
        ("What is due on 1 March?", "What is due on 1 April?"),
        ("What does Section 4.2 say?", "What does Section 4.3 say?"),
        ("What does Exhibit A say?", "What does Exhibit B say?"),
        ("What may the licensor do?", "What may the licensee do?"),
        ("What may Northwind Holdings do?", "What may Southgate Partners do?"),
        ("What must be done before termination?", "What must be done after termination?"),
        ("Which tax applies in New York?", "Which tax applies in Delaware?"),
        ("Who pays?", "When is it paid?"),
    ],
)
def test_what_decides_is_a_difference(one: str, other: str) -> None:
    assert slots(one) != slots(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Which law governs the agreement?", "what law governs this contract"),
        ("Is notice due in thirty-five days?", "please tell me: is notice due in 35 days?"),
        ("May the fee exceed $1,000.00?", "We need to know if the fee may exceed $1000"),
        ("What is due on 1 May?", "What is due on 1 May"),
        ("Can’t the lease be ended?", "can't the lease be ended?"),
    ],
)
def test_what_does_not_decide_is_none(one: str, other: str) -> None:
    assert slots(one) == slots(other)


def test_known_names_count_however_they_are_written() -> None:
    names = ("Harbor Analytics LLC", "Norden Shipping")
    assert (
        slots("what may harbor do", names) == slots("What may Harbor do?", names) != slots("what may norden do", names)
    )
    assert slots("what may harbor do") == slots("what may norden do"), "the control: nobody knows them"


def test_a_thousand_pairs_made_by_program_have_different_slots() -> None:
    """The control: their vectors alone would let most of them pass (`precedent eval cache` says how many)."""
    rng = random.Random(9)
    pairs = [pair for _ in range(25) for question in QUESTIONS for pair in unlike(rng, question)]
    assert len(pairs) > 1_000
    assert {pair.kind for pair in pairs} >= {"negation", "number", "date", "party", "section", "modality", "place"}
    assert [pair for pair in pairs if slots(pair.one) == slots(pair.other)] == []
    same = [like(rng, question) for _ in range(25) for question in QUESTIONS]
    assert sum(slots(pair.one) == slots(pair.other) for pair in same) / len(same) > 0.9


def test_the_evaluation_finds_what_slots_alone_keep_apart() -> None:
    report = evaluate(QUESTIONS, Embedder("all-MiniLM-L6-v2"), threshold=0.9, pairs=300, seed=3)
    assert report["unsafe"] == [] and 0 < report["unsafe_at_most"] < 0.011
    assert report["alike"] > 100, "without slots a threshold serves these"
    assert report["hit_rate"] >= 0.4
