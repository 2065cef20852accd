"""Quotes of an answer, verified against their sources. `quote` is always source text; the model's words are `said`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from app.rag.parsing.document import Page

Match = Literal["exact", "normalized", "fuzzy"]


@dataclass(frozen=True, slots=True, eq=False)
class SourceText:
    """One document version as citations need it; pages and boxes as in ParsedDocument."""

    text: str
    pages: tuple[Page, ...] = ()
    boxes: npt.NDArray[np.float32] | None = field(default=None, repr=False)


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
class Span:
    """The part of a quote on one page; boxes are one (left, bottom, right, top) per line, PDF points."""

    page: int | None  # None where the format has no pages
    start: int
    end: int
    boxes: tuple[tuple[float, float, float, float], ...] = ()


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


class CitationScanner:
    """Finds citations while the answer streams: feed deltas, then finish()."""

    def __init__(self, evidence: Sequence[Evidence]) -> None: ...

    def feed(self, text: str) -> list[Citation]:
        raise NotImplementedError

    def finish(self) -> list[Citation]:
        raise NotImplementedError


def find_citations(answer: str, evidence: Sequence[Evidence]) -> list[Citation]:
    """All citations of a whole answer, in order of appearance."""
    raise NotImplementedError
