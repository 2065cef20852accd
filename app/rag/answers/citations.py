"""Quotes of an answer, verified against their sources. `quote` is always source text; the model's words are `said`.

A citation is a quotation with a passage number beside it, before ([2]: "…") or after ("…" [2]). It is looked for in
the passage that the number names. When it is not there but stands word for word in another passage of the same
prompt, that passage is cited instead and `index` says so while `marker` keeps what the model wrote. Numbers outside
1..k count as not written. Quotations that are nowhere are reported in `CitationScanner.unverified`, never as citations.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.rag.answers.quotes import Found, Match, find, find_nearly, skeleton
from app.rag.answers.spans import SourceText, Span, furniture, spans

__all__ = [
    "Citation",
    "CitationScanner",
    "Evidence",
    "Match",
    "SourceText",
    "Span",
    "Unverified",
    "find_citations",
]

LOOKAHEAD = 24  # characters after a quotation mark before it is decided: enough for ` [123].`
REACH = 400  # characters between a number and a quotation after it
MIN_CHARS = 8  # of a quotation without spaces; shorter ones are defined terms and emphasis

_MARKER = re.compile(r"\[(\d{1,3})\]")
_AFTER = re.compile(r"[\s.,;:)]{0,4}((?:\[\d{1,3}\]\s?)+)")
_ADJACENT = re.compile(r"\]\s*[:,–—-]?\s*\Z")
_STRAIGHT, _OPEN, _CLOSE = '"', "“", "”"


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One numbered passage of a prompt: evidence[0] is cited as [1]. `start`/`end` are offsets in the document."""

    document_id: str
    version: int
    chunk_id: str
    start: int
    end: int
    source: SourceText


@dataclass(frozen=True, slots=True)
class Citation:
    """`quote == document_text[start:end]`. `marker` is the number the model wrote; `index` the 0-based evidence in
    which the quote was really found. Only exact and normalized matches are verified."""

    marker: int
    index: int
    document_id: str
    version: int
    chunk_id: str
    quote: str
    said: str
    match: Match
    verified: bool
    start: int
    end: int
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Unverified:
    """A quotation with a number that is in none of the passages; `start`/`end` are offsets in the answer."""

    marker: int
    said: str
    start: int
    end: int


def find_citations(answer: str, evidence: Sequence[Evidence]) -> list[Citation]:
    """All citations of a whole answer, in order of appearance."""
    scanner = CitationScanner(evidence)
    return scanner.feed(answer) + scanner.finish()


class CitationScanner:
    """Finds citations while the answer streams: feed deltas, then finish(). The split does not change the result."""

    def __init__(self, evidence: Sequence[Evidence]) -> None:
        self.unverified: list[Unverified] = []
        self._passages = [_Passage(each) for each in evidence]
        self._text = ""
        self._at = 0  # everything before is decided
        self._depth = 0  # open quotation marks; 0 outside a quotation
        self._opened = 0  # position of the outermost opening mark
        self._final = False

    def feed(self, text: str) -> list[Citation]:
        """Citations that `text` completes."""
        self._text += text
        return list(self._scan())

    def finish(self) -> list[Citation]:
        """Citations that only the end of the answer decides, one left open by a token limit included."""
        self._final = True
        found = list(self._scan())
        if self._depth:
            whole = self._text.rstrip()
            marks = whole.endswith((_STRAIGHT, _CLOSE)) and len(whole) > self._opened + 1
            found += self._cite(len(whole) - marks, broken_off=True)
            self._depth = 0
        return found

    def _scan(self) -> Iterator[Citation]:
        while self._at < len(self._text) and (self._final or self._at + LOOKAHEAD < len(self._text)):
            at, character = self._at, self._text[self._at]
            self._at += 1
            if character in (_STRAIGHT, _OPEN, _CLOSE):
                yield from self._mark(at, character)
            elif self._depth and self._text.startswith("\n\n", at) and not self._continues(at):
                yield from self._cite(at, broken_off=True)
                self._depth = 0

    def _mark(self, at: int, character: str) -> Iterator[Citation]:
        """A quotation mark: it opens, opens inside, closes inside, or closes."""
        if self._depth and (character == _STRAIGHT) != (self._text[self._opened] == _STRAIGHT):
            return  # the other kind of mark than the one that opened: part of the quotation
        if self._opens(at, character):
            self._depth += 1
            if self._depth == 1:
                self._opened = at
        elif self._depth == 1 and not self._continues(at):
            self._depth = 0
            yield from self._cite(at)
        elif self._depth > 1:
            self._depth -= 1

    def _opens(self, at: int, character: str) -> bool:
        if character != _STRAIGHT:
            return character == _OPEN
        before = self._text[at - 1] if at else " "
        after = self._text[at + 1 : at + 2]
        opening_before = before.isspace() or before in "([{:—–“" or (before == _STRAIGHT and self._opened == at - 1)
        return opening_before and bool(after) and not after.isspace() and after not in ".,;:)]"

    def _continues(self, at: int) -> bool:
        """Whether the mark at `at` is part of the quoted source: the text goes on beyond it as the source does."""
        beyond = skeleton(self._text, self._opened + 1, min(len(self._text), at + 1 + LOOKAHEAD)).text
        within = skeleton(self._text, self._opened + 1, at).text
        grown = len(beyond) > len(within) + 1
        return grown and any(beyond in passage.bare.text for passage in self._passages)

    def _cite(self, end: int, *, broken_off: bool = False) -> Iterator[Citation]:
        """The citation, if it is one, of the quotation from the open mark to `end`."""
        said = self._text[self._opened + 1 : end]
        markers = [m for m in self._markers(end) if 1 <= m <= len(self._passages)]
        if not markers or len("".join(said.split())) < MIN_CHARS:
            return
        for marker, index, found in self._places(said.strip(), markers):
            if not broken_off or found.match != "fuzzy":
                yield self._citation(marker, index, said, found)
                return
        self.unverified.append(Unverified(markers[0], said, self._opened, min(end + 1, len(self._text))))

    def _markers(self, end: int) -> list[int]:
        """Numbers that may belong to the quotation, the likeliest first."""
        before_text = self._text[max(0, self._opened - REACH) : self._opened].rsplit("\n\n", 1)[-1]
        before = [int(n) for n in _MARKER.findall(before_text)][-1:]
        following = _AFTER.match(self._text[end + 1 : end + 1 + LOOKAHEAD])
        after = [int(n) for n in _MARKER.findall(following[1])] if following else []
        return before + after if _ADJACENT.search(before_text) else after + before

    def _places(self, said: str, markers: Sequence[int]) -> Iterator[tuple[int, int, Found]]:
        """(marker, evidence index, place): in the named passages, then in the others, then nearly in the named."""
        named = [(marker, marker - 1) for marker in markers]
        others = [(markers[0], i) for i in range(len(self._passages)) if i + 1 not in markers]
        for marker, index in named + others:
            if found := self._passages[index].find(said):
                yield marker, index, found
        for marker, index in named:
            if found := find_nearly(said, self._passages[index].bare):
                yield marker, index, found

    def _citation(self, marker: int, index: int, said: str, found: Found) -> Citation:
        evidence = self._passages[index].evidence
        return Citation(
            marker,
            index,
            evidence.document_id,
            evidence.version,
            evidence.chunk_id,
            evidence.source.text[found.start : found.end],
            said,
            found.match,
            found.match != "fuzzy",
            found.start,
            found.end,
            spans(evidence.source, found.start, found.end),
        )


class _Passage:
    """Evidence with its skeletons, made once: as it stands, and without the furniture of a page break."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        text, start, end = evidence.source.text, evidence.start, evidence.end
        self.bare = skeleton(text, start, end)
        between = furniture(evidence.source, start, end)
        self._forms = [self.bare, skeleton(text, start, end, between)] if between else [self.bare]

    def find(self, said: str) -> Found | None:
        return find(said, self.evidence.source.text, self.evidence.start, self.evidence.end, self._forms)
