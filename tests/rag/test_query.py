"""Questions taken apart: what names a document, what asks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rag.retrieval.query import FORM_WEIGHT, NAME_WEIGHT, plan, split, stem, thesaurus


@pytest.mark.parametrize(
    ("question", "context", "content"),
    [
        ("What is the notice period?", "", "What is the notice period?"),
        (
            "Consider the Supply Agreement between A and B; what is the governing law?",
            "Consider the Supply Agreement between A and B",
            "what is the governing law?",
        ),
        (
            'Consider the LEASE between Acme, Inc. ("Acme"); Beta LLC; Who pays the rent?',
            'Consider the LEASE between Acme, Inc. ("Acme"); Beta LLC',
            "Who pays the rent?",
        ),
        ("In the Acme Lease, who pays the rent?", "In the Acme Lease", "who pays the rent?"),
        ("We signed the Acme Lease. Who pays the rent?", "We signed the Acme Lease.", "Who pays the rent?"),
        ("rent; due date", "", "rent; due date"),
        ("", "", ""),
    ],
)
def test_split(question: str, context: str, content: str) -> None:
    assert split(question) == (context, content)


@given(st.text())
def test_any_text_is_planned(text: str) -> None:
    planned = plan(text)
    assert all(0 < weight <= 1 for weight in planned.terms.values())


def test_names_route_and_weigh_little() -> None:
    planned = plan("What is the notice period under the Acme Widget Supply Agreement?")
    assert planned.route == "Acme Widget Supply Agreement"
    assert planned.terms["acme"] == NAME_WEIGHT and planned.terms["notice"] == 1.0
    assert planned.terms["agreement"] == FORM_WEIGHT
    assert plan("What is the notice period?").route == ""


def test_concepts_bring_the_wording_of_clauses() -> None:
    planned = plan("Which law governs this contract?")
    assert "governing_law" in planned.concepts
    assert 0 < planned.terms["construed"] < planned.terms["law"]
    assert not plan("Which law governs this contract?", expand=False).wordings
    assert plan("What colour is the logo?").concepts == ()


def test_renewal_words_share_a_stem() -> None:
    assert len({stem(word) for word in ("renewal", "renewals", "renewing", "renewed")}) == 1


def test_thesaurus_is_well_formed() -> None:
    for concept in thesaurus():
        assert concept.asks and all(concept.asks), concept.name
        assert concept.says and all(concept.says), concept.name
