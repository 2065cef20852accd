"""Which kind of file it is: content first, then the name, then what the client says."""

import io
import zipfile
from pathlib import PurePath

from app.errors import UnreadableDocument, UnsupportedMediaType

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = "text/html"
MARKDOWN = "text/markdown"
TEXT = "text/plain"
EML = "message/rfc822"

_BY_EXTENSION = {
    ".pdf": PDF,
    ".docx": DOCX,
    ".docm": DOCX,
    ".html": HTML,
    ".htm": HTML,
    ".xhtml": HTML,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".txt": TEXT,
    ".text": TEXT,
    ".eml": EML,
}
_BY_CLAIM = {PDF: PDF, DOCX: DOCX, HTML: HTML, "application/xhtml+xml": HTML, MARKDOWN: MARKDOWN, TEXT: TEXT, EML: EML}
_BINARY = (PDF, DOCX)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # old Office files, and the envelope of encrypted new ones
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")
_SNIFFED = 1024


def detect(data: bytes, filename: str, media_type: str | None = None) -> str:
    """The media type we read `data` as.

    Raises UnsupportedMediaType for a type we cannot read, UnreadableDocument when the content contradicts a
    binary type that the name promises, or is an encrypted Office file.
    """
    name = PurePath(filename)
    by_name = _BY_EXTENSION.get(name.suffix.lower())
    if by_name == EML:  # a message may begin with anything, and carries other formats inside
        return EML
    found = _by_content(data, filename)
    if found:
        return found
    promised = by_name or (_claim(media_type) if not name.suffix or media_type else None)
    if promised in _BINARY and data:
        raise UnreadableDocument(f"{filename!r} is corrupt: it is not a {_plain(promised)} file.", reason="corrupt")
    if promised:
        return promised
    if not name.suffix and b"\0" not in data[:_SNIFFED]:
        return TEXT
    raise UnsupportedMediaType(
        f"{filename!r} cannot be read; PDF, DOCX, HTML, Markdown, EML and plain text can.", filename=filename
    )


def _by_content(data: bytes, filename: str) -> str | None:
    head = data[:_SNIFFED]
    if b"%PDF-" in head:
        return PDF
    if head.startswith(b"PK\x03\x04"):
        return _zipped(data, filename)
    if head.startswith(_OLE):
        if _ENCRYPTED_PACKAGE in data:
            raise UnreadableDocument(f"{filename!r} is encrypted; save it without a password.", reason="encrypted")
        raise UnsupportedMediaType(f"{filename!r} is an old Office file; save it as DOCX or PDF.")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return HTML if start.startswith((b"<!doctype html", b"<html")) else None


def _zipped(data: bytes, filename: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        if PurePath(filename).suffix.lower() in (".docx", ".docm"):
            detail = f"{filename!r} is corrupt: its archive is damaged."
            raise UnreadableDocument(detail, reason="corrupt") from error
        raise UnsupportedMediaType(f"{filename!r} is not a document we can read.") from error
    if "word/document.xml" in names:
        return DOCX
    raise UnsupportedMediaType(f"{filename!r} is an archive, but not a Word document.")


def _claim(media_type: str | None) -> str | None:
    return _BY_CLAIM.get((media_type or "").split(";")[0].strip().lower())


def _plain(media_type: str) -> str:
    return "PDF" if media_type == PDF else "DOCX"
