"""Does each citation stand where it says? Quotes of PDF files, looked up again in the files themselves.

The product reads a PDF character by character once and keeps offsets; here the named page, and the area of the named
boxes on it, are read anew from the file and must hold the quote.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pypdfium2 as pdfium  # type: ignore[import-untyped,unused-ignore]

from app.errors import UnreadableDocument
from app.rag.answers.citations import Citation, Evidence, find_citations
from app.rag.answers.spans import Box, SourceText
from app.rag.documents.chunking import Chunk, chunk
from app.rag.parsing import ParsedDocument, parse

QUOTE = (60, 300)  # characters
SHORTEST = 20  # what is left of a chunk between quotation marks may be less: no quote then
MARGIN = 1.0  # points around a box: italic letters lean out of theirs
_RUN = re.compile(r"\w[^\"“”]*")
_INK = re.compile(r"[^\W_]+")

Progress = Callable[[int, int], None]


def evaluate_citations(
    files: Sequence[Path], per_document: int, seed: int, progress: Progress = lambda done, total: None
) -> dict[str, Any]:
    """Counts over all quotes: cited (of any kind), on_page and in_boxes; `unreadable` names files and why; `failures`
    says which quotes did not hold. Raises ValueError without files."""
    counts: Counter[str] = Counter()
    matches: Counter[str] = Counter()
    unreadable: dict[str, str] = {}
    failures: list[dict[str, Any]] = []
    for done, path in enumerate(files, 1):
        data = path.read_bytes()
        try:
            parsed = parse(data, path.name, "application/pdf")
        except UnreadableDocument as error:
            unreadable[path.name] = error.detail
            continue
        with closing(pdfium.PdfDocument(data)) as document:
            for quote, citation in _cited(parsed, path.name, per_document, Random(f"{seed} {path.name}")):
                verdict = _verdict(document, parsed, citation)
                counts.update(verdict)
                matches[citation.match if citation else "none"] += 1
                if verdict != {"quotes", "cited", "on_page", "in_boxes"}:
                    failures.append({"file": path.name, "quote": quote, "held": sorted(verdict)})
        progress(done, len(files))
    return {
        "files": len(files) - len(unreadable),
        **{name: counts[name] for name in ("quotes", "cited", "on_page", "in_boxes")},
        "matches": dict(matches),
        "unreadable": unreadable,
        "failures": failures,
    }


def _cited(parsed: ParsedDocument, name: str, number: int, random: Random) -> Iterator[tuple[str, Citation | None]]:
    """Quotes as a model would write them, on one line each, and what becomes of them."""
    source = SourceText(parsed.text, parsed.pages, parsed.boxes)
    chunks = [one for one in chunk(parsed.text, parsed.headings, parsed.pages) if one.end - one.start > QUOTE[0]]
    for one in random.sample(chunks, min(number, len(chunks))):
        quote = " ".join(parsed.text[slice(*_range(parsed.text, one, random))].split())
        if len(quote) < SHORTEST:
            continue
        found = find_citations(f'"{quote}" [1]', [Evidence(name, 1, str(one.ordinal), one.start, one.end, source)])
        yield quote, found[0] if found else None


def _range(text: str, one: Chunk, random: Random) -> tuple[int, int]:
    """A run of words of the chunk without quotation marks, which would end the quote."""
    runs = [(one.start + run.start(), one.start + run.end()) for run in _RUN.finditer(text[one.start : one.end])]
    start, end = random.choice([run for run in runs if run[1] - run[0] >= QUOTE[0]] or runs or [(one.start, one.start)])
    words = [start + word.start() for word in re.finditer(r"(?<!\S)\w", text[start:end])]
    start = random.choice([word for word in words if word + QUOTE[0] <= end] or [start])
    return start, min(end, start + random.randint(*QUOTE))


def _verdict(document: Any, parsed: ParsedDocument, citation: Citation | None) -> set[str]:
    held = {"quotes"}
    if citation is None:
        return held
    held.add("cited")
    texts = [parsed.text[span.start : span.end] for span in citation.spans]
    pages = [span.page for span in citation.spans]
    if all(page and _holds(_page_text(document, page), text) for page, text in zip(pages, texts, strict=True)):
        held.add("on_page")
    areas = ["".join(_area_text(document, span.page or 1, row) for row in _rows(span.boxes)) for span in citation.spans]
    if citation.spans and all(_holds(area, text) for area, text in zip(areas, texts, strict=True)):
        held.add("in_boxes")
    return held


def _rows(boxes: Sequence[Box]) -> list[Box]:
    """Boxes of one printed line as one: a comma that hangs below its line has a box of its own."""
    rows: list[Box] = []
    for box in boxes:
        if rows and rows[-1][1] - MARGIN <= (box[1] + box[3]) / 2 <= rows[-1][3] + MARGIN and box[0] >= rows[-1][0]:
            last = rows[-1]
            rows[-1] = (last[0], min(last[1], box[1]), max(last[2], box[2]), max(last[3], box[3]))
        else:
            rows.append(box)
    return rows


def _page_text(document: Any, number: int) -> str:
    with closing(document[number - 1]) as page, closing(page.get_textpage()) as text:
        return str(text.get_text_range())


def _area_text(document: Any, number: int, box: Box) -> str:
    left, bottom, right, top = box
    with closing(document[number - 1]) as page, closing(page.get_textpage()) as text:
        area = (left - MARGIN, bottom - MARGIN, right + MARGIN, top + MARGIN)
        return str(text.get_text_bounded(*area, errors="ignore"))


def _holds(whole: str, part: str) -> bool:
    """Whether the letters and digits of `part` stand in `whole` in order, without others between."""
    return "".join(_INK.findall(part)) in "".join(_INK.findall(whole))
