"""Bytes of a file → `ParsedDocument`. Input is untrusted: sizes are bounded, nothing is fetched, nothing is run."""

from app.rag.parsing.document import Heading, Page, ParsedDocument

__all__ = ["Heading", "Page", "ParsedDocument", "parse"]


def parse(
    data: bytes, filename: str, media_type: str | None = None, *, max_characters: int = 5_000_000
) -> ParsedDocument:
    """Read a PDF, DOCX, HTML, Markdown or text file.

    Raises UnsupportedMediaType for what we cannot read at all, and UnreadableDocument with the reason for an
    empty, encrypted, corrupt, scanned or oversized file.
    """
    raise NotImplementedError
