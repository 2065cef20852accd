"""Citations: the quote is source text, the split of the stream does not matter, nothing invented is verified."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.rag.answers.citations import Citation, CitationScanner, Evidence, SourceText, find_citations
from app.rag.answers.quotes import find_nearly, skeleton
from app.rag.parsing import parse
from tests.rag.conftest import make_pdf

LAW = "9. Governing Law. This Agreement is governed by the laws of Delaware, without regard to conflicts of law."
TERM = (
    '3. Term. The initial term is three (3) years from the Effective Date. "Confidential Information" means any '
    "non-\npublic  information disclosed by a Party (the “Discloser”). Either party may terminate — for cause."
)


def evidence(*texts: str) -> list[Evidence]:
    return [Evidence(f"d{n}", 1, f"c{n}", 0, len(text), SourceText(text)) for n, text in enumerate(texts, 1)]


BOTH = evidence(LAW, TERM)


def only(answer: str, passages: list[Evidence] | None = None) -> Citation:
    (citation,) = find_citations(answer, BOTH if passages is None else passages)
    source = (BOTH if passages is None else passages)[citation.index].source.text
    assert citation.quote == source[citation.start : citation.end]
    assert citation.verified == (citation.match != "fuzzy")
    return citation


@pytest.mark.parametrize(
    ("answer", "marker", "index", "match", "quote"),
    [
        (
            'The contract states [2]: "The initial term is three (3) years from the Effective Date."',
            2, 1, "exact", "The initial term is three (3) years from the Effective Date.",
        ),
        ('"governed by the laws of Delaware" [1].', 1, 0, "exact", "governed by the laws of Delaware"),
        ('[1] “governed by the laws of Delaware”', 1, 0, "exact", "governed by the laws of Delaware"),
        ('It says "governed by the laws of Delaware." [1]', 1, 0, "normalized", "governed by the laws of Delaware"),
        (
            '[2]: ""Confidential Information" means any non-public information disclosed by a Party"',
            2, 1, "normalized", '"Confidential Information" means any non-\npublic  information disclosed by a Party',
        ),
        ('[2] "(the "Discloser"). Either party may terminate"', 2, 1, "normalized",
         "(the “Discloser”). Either party may terminate"),
        ('[2] "Either party may terminate - for cause."', 2, 1, "normalized",
         "Either party may terminate — for cause."),
        ('[1] "The initial term is three (3) years"', 1, 1, "exact", "The initial term is three (3) years"),
        ('[9] and [2]: "The initial term is three (3) years"', 2, 1, "exact", "The initial term is three (3) years"),
        ('[2] "The inital term is three (3) years from the Effective Date."', 2, 1, "fuzzy",
         "The initial term is three (3) years from the Effective Date."),
        ('[2]: "The initial term is three (3) years fr', 2, 1, "exact", "The initial term is three (3) years fr"),
    ],
)  # fmt: skip
def test_quote_is_found(answer: str, marker: int, index: int, match: str, quote: str) -> None:
    found = only(answer)
    assert (found.marker, found.index, found.match, found.quote) == (marker, index, match, quote)


@pytest.mark.parametrize(
    "answer",
    [
        "The documents provided do not answer this question.",
        '"The initial term is three (3) years" without a number',
        '[7] "The initial term is three (3) years"',
        '[0] "The initial term is three (3) years"',
        '[2] "Term"',
        '[2] "The initial term is five (5) years"',
        '[2] "The initial term is three (3) years and may be extended at the discretion of the Buyer"',
        "[2] [1] [2]",
        '""""""',
        "",
    ],
)
def test_nothing_is_cited(answer: str) -> None:
    assert find_citations(answer, BOTH) == []
    assert find_citations(answer, []) == []


def test_changed_number_is_never_verified() -> None:
    said = '[2] "The initial term is three (8) years from the Effective Date."'
    assert all(not citation.verified for citation in find_citations(said, BOTH))


def test_invented_quote_is_reported_with_its_place() -> None:
    answer = 'Indeed [1]: "The Buyer shall pay a penalty of ten dollars." Yes.'
    scanner = CitationScanner(BOTH)
    assert scanner.feed(answer) + scanner.finish() == []
    (invented,) = scanner.unverified
    assert answer[invented.start : invented.end] == '"The Buyer shall pay a penalty of ten dollars."'


def test_each_quote_takes_its_own_number() -> None:
    answer = '[1] "governed by the laws of Delaware" [2] "The initial term is three (3) years"'
    assert [(c.marker, c.index) for c in find_citations(answer, BOTH)] == [(1, 0), (2, 1)]
    after = '"governed by the laws of Delaware" [1], "The initial term is three (3) years" [2]'
    assert [(c.marker, c.index) for c in find_citations(after, BOTH)] == [(1, 0), (2, 1)]


_ANSWERS = st.lists(
    st.sampled_from(
        [
            "[1]",
            "[2]: ",
            ' "',
            '" ',
            '"',
            "“",
            "”",
            ". ",
            "\n\n",
            LAW[:40],
            TERM[9:60],
            TERM[70:140],
            LAW,
            TERM,
            "words ",
        ]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(_ANSWERS, st.lists(st.integers(0, 400), max_size=6))
def test_any_split_gives_the_same_citations(answer: str, cuts: list[int]) -> None:
    scanner = CitationScanner(BOTH)
    borders = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    parts = [answer[a:b] for a, b in pairwise(borders)]
    streamed = [citation for part in parts for citation in scanner.feed(part)] + scanner.finish()
    assert streamed == find_citations(answer, BOTH)
    for citation in streamed:
        assert citation.quote == BOTH[citation.index].source.text[citation.start : citation.end]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(TERM) - 12), st.integers(12, 150))
def test_any_copied_passage_is_verified(start: int, length: int) -> None:
    said = TERM[start : start + length].strip()
    if "\n\n" in said or len("".join(said.split())) < 8 or '"' in said:
        return
    assert only(f"[2] “{said}”" if "”" not in said else f'[2] "{said}"').verified


def test_nearly_finds_the_place_with_few_edits() -> None:
    near = find_nearly("This Agreement is governed by the law of Delaware, without regard", skeleton(LAW))
    assert near is not None and LAW[near.start : near.end] == LAW[18:84]
    assert find_nearly("This Contract was governed in the law of Nevada without any regard", skeleton(LAW)) is None


def test_quote_across_pages_has_a_span_with_boxes_on_each() -> None:
    head, foot = "ACME SUPPLY AGREEMENT", "Confidential - page {}"
    pages = [
        [head, "1. Price. The price of each unit is four", "dollars and fifty", foot.format(1)],
        [head, "cents, payable in advance.", "2. Term. Two years.", foot.format(2)],
        [head, "3. Law. Delaware.", foot.format(3)],
    ]
    parsed = parse(make_pdf(pages), "a.pdf")
    source = SourceText(parsed.text, parsed.pages, parsed.boxes)
    passages = [Evidence("d", 1, "c", 0, len(parsed.text), source)]
    said = "The price of each unit is four dollars and fifty cents, payable in advance."
    citation = only(f'[1]: "{said}"', passages)
    assert citation.match == "normalized" and citation.verified
    assert [span.page for span in citation.spans] == [1, 2]
    first, second = citation.spans
    assert parsed.text[second.start : second.end].endswith("payable in advance.")
    assert len(first.boxes) >= 2 and len(second.boxes) >= 1
    left, bottom, right, top = first.boxes[0]
    assert 72 < left < right < 595 and 735 < bottom < top < 765


def test_source_without_pages_has_one_span() -> None:
    (span,) = only('[1] "governed by the laws of Delaware"').spans
    assert (span.page, span.boxes) == (None, ())
