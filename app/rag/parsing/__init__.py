"""Bytes of a file → `ParsedDocument`. Input is untrusted: sizes are bounded, nothing is fetched, nothing is run."""

from app.errors import UnreadableDocument
from app.rag.parsing import docx, html, mail, pdf, text
from app.rag.parsing.document import Heading, Page, ParsedDocument
from app.rag.parsing.media import DOCX, EML, HTML, MARKDOWN, PDF, TEXT, detect

__all__ = ["MAX_CHARACTERS", "Heading", "Page", "ParsedDocument", "detect", "parse"]

MAX_CHARACTERS = 5_000_000  # about 1,700 pages; the longest development contract has 0.34 million

_READERS = {
    PDF: pdf.read,
    DOCX: docx.read,
    HTML: html.read,
    MARKDOWN: text.read_markdown,
    TEXT: text.read_text,
    EML: mail.read,
}


def parse(
    data: bytes, filename: str, media_type: str | None = None, *, max_characters: int = MAX_CHARACTERS
) -> ParsedDocument:
    """Read a PDF, DOCX, HTML, Markdown, EML or text file.

    Raises UnsupportedMediaType for what we cannot read at all, and UnreadableDocument with the reason for an
    empty, encrypted, corrupt, scanned or oversized file.
    """
    if not data:
        raise UnreadableDocument(f"{filename!r} is empty: it has no bytes.", reason="empty")
    parsed = _READERS[detect(data, filename, media_type)](data, filename, max_characters)
    if not parsed.text.strip():
        raise UnreadableDocument(f"{filename!r} is empty: it has no text.", reason="empty")
    return parsed
