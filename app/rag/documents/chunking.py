"""Text → chunks at clause and sentence borders whose concatenation is the text, byte for byte."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.rag.documents.structure import Clause, clauses, items, section_path, sentence_starts
from app.rag.parsing.document import Heading, Page

# How good a place to cut is, in fractions of max_chars a chunk may stay shorter for it.
CLAUSE, PARAGRAPH, SENTENCE, ITEM, PHRASE = 0.8, 0.45, 0.25, 0.15, 0.05
MIN_FILL = 0.25  # of max_chars, before a chunk may end anywhere

_PARAGRAPH = re.compile(r"\n\s*\n\s*(?=\S)")
_LINE = re.compile(r"\n\s*(?=\S)")
_PHRASE = re.compile(r"[;:]\s+(?=\S)")
_WORD = re.compile(r"\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Chunk:
    """text[start:end]; `section` is the path of headings above it, outermost first (for indexing only)."""

    ordinal: int
    start: int
    end: int
    section: tuple[str, ...] = ()


def chunk(text: str, headings: Sequence[Heading] = (), pages: Sequence[Page] = (), max_chars: int = 500) -> list[Chunk]:
    """Cut `text` into chunks of at most `max_chars` characters; white space stays with the chunk before it."""
    opened = clauses(text, headings)
    borders = _borders(text, opened, pages)
    spans = list(_pack(text, borders, max_chars))
    paths = _paths(spans, opened)
    return [Chunk(i, start, end, path) for i, ((start, end), path) in enumerate(zip(spans, paths, strict=True))]


def _borders(text: str, opened: Sequence[Clause], pages: Sequence[Page]) -> list[tuple[int, float]]:
    """(position, worth) in order of position; a position found twice keeps its better worth."""
    worth: dict[int, float] = {}
    kinds: tuple[tuple[Iterator[int], float], ...] = (
        ((match.end() for match in _LINE.finditer(text)), ITEM),
        ((match.end() for match in _PHRASE.finditer(text)), PHRASE),
        ((page.start for page in pages), PHRASE),
        (items(text), ITEM),
        (sentence_starts(text), SENTENCE),
        ((match.end() for match in _PARAGRAPH.finditer(text)), PARAGRAPH),
        ((clause.start for clause in opened), CLAUSE),
    )
    for positions, value in kinds:
        for position in positions:
            worth[position] = max(value, worth.get(position, 0.0))
    return sorted((position, value) for position, value in worth.items() if 0 < position < len(text))


def _pack(text: str, borders: Sequence[tuple[int, float]], max_chars: int) -> Iterator[tuple[int, int]]:
    positions = [position for position, _ in borders]
    start = 0
    while start < len(text):
        limit = start + max_chars
        window = borders[bisect_right(positions, start) : bisect_right(positions, limit)]
        end = _cut(text, window, start, limit)
        yield start, end
        start = end


def _cut(text: str, window: Sequence[tuple[int, float]], start: int, limit: int) -> int:
    """The best end for a chunk that begins at `start`: far on, and at a good border."""
    size = limit - start
    ends = [*window, (len(text), CLAUSE)] if len(text) <= limit else window
    good = [(position, value) for position, value in ends if position - start >= MIN_FILL * size]
    if good:
        return max(good, key=lambda border: ((border[0] - start) / size + border[1], border[0]))[0]
    spaces = [match.end() for match in _WORD.finditer(text, start + 1, limit)]
    return max([position for position, _ in ends] + spaces[-1:], default=min(limit, len(text)))


def _paths(spans: Sequence[tuple[int, int]], opened: Sequence[Clause]) -> Iterator[tuple[str, ...]]:
    """For each span the clauses open at it; a clause that begins within its first half counts as its own."""
    stack: list[Clause] = []
    position = 0
    for start, end in spans:
        while position < len(opened) and opened[position].start <= start + (end - start) // 2:
            stack = section_path(stack, opened[position])
            position += 1
        # A bare "5.2" says nothing to a search or a reader that the number in the text does not.
        yield tuple(clause.title for clause in stack if any(map(str.isalpha, clause.title)))
