"""Where a range of text is on its pages: spans with one box per line, and the furniture between pages."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from app.rag.parsing.document import Page

FURNITURE_LINES = 3  # at the head and at the foot of a page
FURNITURE_REACH = 4  # pages before and after, among which a running head has to repeat
SAME_LINE = 0.5  # of the smaller height, by which two characters of one line overlap at least

Box = tuple[float, float, float, float]

_PAGE_NUMBER = re.compile(r"(?i)\W*(page\s*)?(\d{1,4}|[ivxl]{1,6})(\s*(of|/)\s*\d{1,4})?\W*")
_LONE_NUMBER = re.compile(
    r"(?i)\n[ \t]*\n\s*[-–—]?[ \t]*(?:page\s*)?\d{1,4}(?:\s*of\s*\d{1,4})?[ \t]*[-–—]?[ \t]*\n\s*\n"
)


@dataclass(frozen=True, slots=True, eq=False)
class SourceText:
    """One document version as citations need it; pages and boxes as in ParsedDocument."""

    text: str
    pages: tuple[Page, ...] = ()
    boxes: npt.NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a quote on one page; boxes are one (left, bottom, right, top) per line, PDF points."""

    page: int | None  # None where the format has no pages
    start: int
    end: int
    boxes: tuple[Box, ...] = ()


def spans(source: SourceText, start: int, end: int) -> tuple[Span, ...]:
    """text[start:end] page by page; parts without ink (the break between pages) have no span."""
    if not source.pages:
        return (Span(None, start, end),)
    found = []
    for page in source.pages:
        first, last = max(start, page.start), min(end, page.end)
        if first < last and source.text[first:last].strip():
            found.append(Span(page.number, first, last, line_boxes(source.boxes, first, last)))
    return tuple(found)


def line_boxes(boxes: npt.NDArray[np.float32] | None, start: int, end: int) -> tuple[Box, ...]:
    """Character boxes merged into one per line, in reading order."""
    if boxes is None:
        return ()
    lines: list[Box] = []
    for row in boxes[start:end]:
        if np.isnan(row).any():
            continue
        box = (float(row[0]), float(row[1]), float(row[2]), float(row[3]))
        if lines and _same_line(lines[-1], box):
            lines[-1] = _around(lines[-1], box)
        else:
            lines.append(box)
    return tuple((round(a, 1), round(b, 1), round(c, 1), round(d, 1)) for a, b, c, d in lines)


def furniture(source: SourceText, start: int, end: int) -> list[tuple[int, int]]:
    """Ranges inside text[start:end] that are running heads, feet and page numbers between two pages."""
    if not source.pages:
        return [match.span() for match in _LONE_NUMBER.finditer(source.text, start, end)]
    touched = [i for i, page in enumerate(source.pages) if page.start < end and page.end > start]
    if len(touched) < 2:
        return []
    reach = source.pages[max(0, touched[0] - FURNITURE_REACH) : touched[-1] + FURNITURE_REACH + 1]
    edges = [(span, _key(source.text[slice(*span)])) for page in reach for span in _edge_lines(source.text, page)]
    repeated = Counter(key for _, key in edges)
    return [span for span, key in edges if (repeated[key] > 1 or _PAGE_NUMBER.fullmatch(key)) and span[0] < end]


def _edge_lines(text: str, page: Page) -> Iterator[tuple[int, int]]:
    """The first and last lines of a page that have ink."""
    lines, at = [], page.start
    for line in text[page.start : page.end].splitlines(keepends=True):
        if line.strip():
            lines.append((at, at + len(line)))
        at += len(line)
    yield from lines[:FURNITURE_LINES]
    yield from lines[FURNITURE_LINES:][-FURNITURE_LINES:]


def _key(line: str) -> str:
    """Lines that differ in numbers only are the same running head."""
    return re.sub(r"\d+", "1", " ".join(line.split()).lower())


def _same_line(line: Box, box: Box) -> bool:
    overlap = min(line[3], box[3]) - max(line[1], box[1])
    height = min(line[3] - line[1], box[3] - box[1])
    return overlap >= SAME_LINE * max(height, 0.1) and box[0] >= line[0] - 1


def _around(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])
