"""DOCX by python-docx: paragraphs, headings by style, tables as rows, in reading order; tracked changes accepted.

python-docx parses with entities switched off, and nothing in the package is followed outside it.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

from docx import Document
from docx.table import Table
from docx.text.paragraph import Paragraph
from lxml import etree

from app.errors import UnreadableDocument
from app.rag.parsing.document import Heading, ParsedDocument
from app.rag.parsing.media import DOCX
from app.rag.parsing.text import MAX_TITLE, clean, limited, title_of

MAX_UNPACKED = 256 * 1024 * 1024  # bytes, all parts together
MAX_PARTS = 10_000
MAX_RATIO = 200  # unpacked : packed of one part over a mebibyte; text packs about 10 : 1

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"(?i)heading\s*(\d)")
_INK = {f"{_W}t": None, f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}
_GONE = (f"{_W}del", f"{_W}moveFrom")
_BROKEN = (  # what python-docx, zipfile and lxml raise on damaged packages
    zipfile.BadZipFile,
    zlib.error,
    etree.XMLSyntaxError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    RuntimeError,
)


def read(data: bytes, filename: str, max_characters: int) -> ParsedDocument:
    """Raises UnreadableDocument for a corrupt, empty or oversized file."""
    try:
        _guard(data, filename)
        document = Document(io.BytesIO(data))
        text, headings = _body(document, filename, max_characters)
        stated = " ".join((document.core_properties.title or "").split())
    except UnreadableDocument:
        raise
    except _BROKEN as error:
        raise UnreadableDocument(f"{filename!r} is corrupt: {error}", reason="corrupt") from error
    title = stated or (headings[0].text if headings else title_of(text, filename))
    return ParsedDocument(title[:MAX_TITLE], text, DOCX, headings=tuple(headings))


def _guard(data: bytes, filename: str) -> None:
    """Refuse zip bombs by the sizes the archive declares (zipfile enforces them) and XML with a DOCTYPE."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        bombs = [p for p in parts if p.file_size > 1 << 20 and p.file_size > MAX_RATIO * max(1, p.compress_size)]
        if len(parts) > MAX_PARTS or sum(p.file_size for p in parts) > MAX_UNPACKED or bombs:
            detail = f"{filename!r} unpacks to more than a document may."
            raise UnreadableDocument(detail, reason="too_large")
        if any(p.flag_bits & 1 for p in parts):
            raise UnreadableDocument(f"{filename!r} is encrypted; save it without a password.", reason="encrypted")
        for part in parts:
            if part.filename.endswith((".xml", ".rels")):
                with archive.open(part) as file:
                    if b"<!DOCTYPE" in file.read(4096):
                        detail = f"{filename!r} declares XML entities, which no Word document does."
                        raise UnreadableDocument(detail, reason="corrupt")


def _body(document: Any, filename: str, max_characters: int) -> tuple[str, list[Heading]]:
    parts: list[str] = []
    headings: list[Heading] = []
    length = 0
    for line, level in _lines(document):
        if level and line.strip():
            headings.append(Heading(length, length + len(line), level, " ".join(line.split())))
        parts.append(line + "\n")
        length += len(line) + 1
        limited("".join(parts) if length > max_characters else "", filename, max_characters)
    return "".join(parts), headings


def _lines(document: Any) -> Iterator[tuple[str, int]]:
    """(text, heading level or 0) of each paragraph and table row."""
    for block in document.iter_inner_content():
        if isinstance(block, Paragraph):
            yield clean(_text(block._p)), _level(block)
        elif isinstance(block, Table):
            for row in block._tbl.tr_lst:
                cells = (" ".join(clean(_text(cell)).split()) for cell in row.tc_lst)
                yield "\t".join(cells), 0


def _text(element: Any) -> str:
    """All text under an element as it reads with tracked changes accepted."""
    parts = []
    for node in element.iter(*_INK):
        if any(ancestor.tag in _GONE for ancestor in node.iterancestors()):
            continue
        fixed = _INK[node.tag]
        inside_tabs = node.getparent() is not None and node.getparent().tag == f"{_W}tabs"
        parts.append((node.text or "") if fixed is None else "" if inside_tabs else fixed)
    return "".join(parts)


def _level(paragraph: Paragraph) -> int:
    style = paragraph.style.name if paragraph.style is not None else ""
    if style == "Title":
        return 1
    match = _HEADING.match(style or "")
    return int(match[1]) if match else 0
