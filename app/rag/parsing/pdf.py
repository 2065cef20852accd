"""PDF by pypdfium2: the text layer, one box per character; pages without one by text recognition, where that is
installed. pdfium is not thread-safe: one document at a time."""

import contextlib
import ctypes
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pypdfium2 as pdfium  # type: ignore[import-untyped,unused-ignore]
import pypdfium2.raw as raw  # type: ignore[import-untyped,unused-ignore]

from app.errors import UnreadableDocument
from app.rag.parsing.document import Page, ParsedDocument
from app.rag.parsing.media import PDF
from app.rag.parsing.ocr import SCALE, available, characters_of, words_of
from app.rag.parsing.text import limited, title_of

MAX_PAGES = 10_000
PAGE_BREAK = "\n\n"
PASSWORD_ERROR = 4  # FPDF_ERR_PASSWORD
HYPHENS = frozenset((0x02, 0xFFFE, 0xAD))  # how pdfium reports a hyphen at a line end

_PDFIUM = threading.Lock()
_Box = tuple[float, float, float, float]
_NO_INK: _Box = (math.nan, math.nan, math.nan, math.nan)


def read(data: bytes, filename: str, max_characters: int) -> ParsedDocument:
    """Raises UnreadableDocument for an encrypted, corrupt, scanned, empty or oversized file."""
    with _PDFIUM, contextlib.closing(_open(data, filename)) as document:
        try:
            return _read(document, filename, max_characters)
        except pdfium.PdfiumError as error:
            raise UnreadableDocument(f"{filename!r} is corrupt: {error}", reason="corrupt") from error


def _open(data: bytes, filename: str) -> Any:
    try:
        return pdfium.PdfDocument(data)
    except pdfium.PdfiumError as error:
        if error.err_code == PASSWORD_ERROR:
            detail = f"{filename!r} is encrypted; save it without a password."
            raise UnreadableDocument(detail, reason="encrypted") from error
        raise UnreadableDocument(f"{filename!r} is corrupt: not a readable PDF.", reason="corrupt") from error


def _read(document: Any, filename: str, max_characters: int) -> ParsedDocument:
    if not 0 < len(document) <= MAX_PAGES:
        detail = f"{filename!r} has {len(document)} pages; a document has 1 to {MAX_PAGES}."
        raise UnreadableDocument(detail, reason="pages")
    characters: list[str] = []
    boxes: list[_Box] = []
    pages = []
    for number in range(1, len(document) + 1):
        start = len(characters)
        width, height = _read_page(document, number - 1, characters, boxes)
        pages.append(Page(number, start, len(characters), width, height))
        limited("".join(characters) if len(characters) > max_characters else "", filename, max_characters)
        if number < len(document):
            characters += PAGE_BREAK
            boxes += [_NO_INK] * len(PAGE_BREAK)
    text = "".join(characters)
    if not text.strip():
        raise UnreadableDocument(
            f"{filename!r} has no text layer: it is scanned or empty. Run text recognition on it first, or install "
            "Tesseract and the extra `ocr`.",
            reason="scanned",
        )
    return ParsedDocument(_title(document, text, filename), text, PDF, tuple(pages), boxes=_array(boxes))


def _read_page(document: Any, index: int, characters: list[str], boxes: list[_Box]) -> tuple[float, float]:
    """Append the page's characters and boxes; returns its width and height in points."""
    before = len(characters)
    with contextlib.closing(document[index]) as page, contextlib.closing(page.get_textpage()) as textpage:
        handle = textpage.raw
        for position, character in _characters(handle, raw.FPDFText_CountChars(handle)):
            characters.append(character)
            boxes.append(_NO_INK if character.isspace() else _box(handle, position))
        width, height = page.get_size()
        if len(characters) == before and available():
            _recognise(page, height, characters, boxes)
    return float(width), float(height)


def _recognise(page: Any, height: float, characters: list[str], boxes: list[_Box]) -> None:
    image = page.render(scale=SCALE).to_pil()
    for character, box in characters_of(words_of(image, float(height))):
        characters.append(character)
        boxes.append(box or _NO_INK)


def _characters(handle: Any, count: int) -> Iterator[tuple[int, str]]:
    """(position, character): surrogate pairs joined, line ends as one newline, control characters dropped."""
    high = 0
    for position in range(count):
        code = raw.FPDFText_GetUnicode(handle, position)
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000:
            if not high:
                continue
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)
        high = 0
        if code in HYPHENS:
            code = 0x2D
        if code >= 0x20 and code not in (0x7F, 0xFFFF):
            yield position, chr(code)
        elif code in (0x09, 0x0A, 0x0C):
            yield position, "\n" if code != 0x09 else "\t"


def _box(handle: Any, position: int) -> _Box:
    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    raw.FPDFText_GetCharBox(handle, position, left, right, bottom, top)
    return left.value, bottom.value, right.value, top.value


def _title(document: Any, text: str, filename: str) -> str:
    """The metadata title where somebody wrote one; word processors put file names and "untitled" there."""
    with contextlib.suppress(pdfium.PdfiumError):
        title = " ".join(document.get_metadata_value("Title").split())
        generated = title.lower().startswith(("untitled", "microsoft word", "(anonymous)")) or "." in title[-5:]
        if 2 < len(title) <= 120 and not generated:
            return title
    return title_of(text, filename)


def _array(boxes: list[_Box]) -> npt.NDArray[np.float32]:
    return np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
