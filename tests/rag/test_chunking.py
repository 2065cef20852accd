"""Chunks: nothing lost, nothing too long, cut where a lawyer would."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.rag.documents.chunking import chunk
from app.rag.documents.structure import clauses, sentence_starts
from app.rag.parsing import Heading

_LEGAL = st.lists(
    st.sampled_from(
        [
            "12. Governing Law. ",
            "ARTICLE IV ",
            "Section 3.2 Term. ",
            "7.1 ",
            "(a) ",
            "Acme Inc. shall pay. ",
            "\n\n",
            "The fee is $5.00; ",
            "Each party agrees to the terms. ",
            "   ",
            "\n",
            "U.S. law, e.g. No. 5 applies. ",
            "“x” ",
        ]
    )
)


@given(st.one_of(st.text(), _LEGAL.map("".join)), st.integers(20, 600))
def test_chunks_concatenate_to_the_text(text: str, size: int) -> None:
    chunks = chunk(text, max_chars=size)
    assert "".join(text[c.start : c.end] for c in chunks) == text
    assert all(0 < c.end - c.start <= size for c in chunks)
    assert [c.ordinal for c in chunks] == list(range(len(chunks)))
    assert all(a.end == b.start for a, b in pairwise(chunks))


def _sentences(text: str) -> list[str]:
    borders = [0, *sentence_starts(text), len(text)]
    return [text[a:b].strip() for a, b in pairwise(borders)]


@pytest.mark.parametrize(
    "sentence",
    [
        "Acme, Inc. and Beta Corp. Limited agree.",
        "See No. 5 and Sec. 12 of the U.S. Code.",
        "Fees (e.g. Taxes) rise by 3.2 Percent.",
        "Mr. J. P. Morgan signs for Widget Co. Limited.",
        "Pursuant to Section 3.2 The term ends.",
        "The parties (i.e. Buyer and Seller) vs. Others agree.",
    ],
)
def test_no_sentence_border_inside(sentence: str) -> None:
    assert _sentences(f"{sentence} Next one. Last.") == [sentence, "Next one.", "Last."]


def test_sentences_end_where_they_end() -> None:
    assert _sentences('It ends on June 30, 2020. The fee is "net." Is it? Yes.') == [
        "It ends on June 30, 2020.",
        'The fee is "net."',
        "Is it?",
        "Yes.",
    ]


ONE_LINE = (
    "ARTICLE IV TERM AND TERMINATION. 4.1 Initial Term. The initial term is three years. 4.2 Either party may "
    "terminate as set out in Section 9.3 below. 12. Governing Law. This Agreement is governed by the laws of "
    "Delaware. Section 13.2 Notices. Notices are in writing and go to 12 Main Street."
)


def test_clauses_are_found_in_one_long_line() -> None:
    assert [(c.level, c.title) for c in clauses(ONE_LINE)] == [
        (1, "ARTICLE IV TERM AND TERMINATION"),
        (3, "4.1 Initial Term"),
        (3, "4.2"),
        (2, "12 Governing Law"),
        (3, "13.2 Notices"),
    ]


def test_section_path_names_the_open_clauses() -> None:
    chunks = chunk(ONE_LINE, max_chars=110)
    path = {ONE_LINE[c.start : c.end].strip()[:12]: c.section for c in chunks}
    assert path["12. Governin"] == ("ARTICLE IV TERM AND TERMINATION", "12 Governing Law")
    assert any(c.section[-1:] == ("4.1 Initial Term",) for c in chunks)


def test_quantities_are_no_clauses() -> None:
    assert clauses("The fee. 30 days after receipt it is due. 5.5 percent applies.") == []


def test_format_headings_win_and_start_a_chunk() -> None:
    text = "Preamble words here.\n2. Payment Terms\n" + "Fees are due monthly. " * 12
    at = text.index("2. Payment")
    headings = (Heading(at, at + len("2. Payment Terms"), 1, "2. Payment Terms"),)
    chunks = chunk(text, headings, max_chars=120)
    assert [c.title for c in clauses(text, headings)] == ["2. Payment Terms"]
    assert chunks[-1].section == ("2. Payment Terms",)


def test_chunks_end_at_clauses_when_there_is_room() -> None:
    text = "".join(f"{n}. Clause Name. {'Some words of a clause. ' * 8}" for n in range(1, 9))
    starts = {text[c.start : c.end].split(".")[0].strip() for c in chunk(text, max_chars=400)}
    assert starts == {str(n) for n in range(1, 9)}
