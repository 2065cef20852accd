"""E-mails (EML, RFC 5322) by the standard library: the headers people read, the body, the names of attachments.

Attachments are documents of their own (`archive.unpack`). Nothing that a message refers to is fetched.
"""

from collections.abc import Iterator
from email import message_from_bytes, policy
from email.errors import MessageError
from email.message import EmailMessage

from app.errors import UnreadableDocument
from app.rag.parsing.document import ParsedDocument
from app.rag.parsing.html import read as read_html
from app.rag.parsing.media import EML
from app.rag.parsing.text import MAX_TITLE, clean, decode, limited

SHOWN = ("From", "To", "Cc", "Date", "Subject")
MAX_PARTS = 200
_BROKEN = (MessageError, LookupError, ValueError, AttributeError, TypeError, RecursionError)


def read(data: bytes, filename: str, max_characters: int) -> ParsedDocument:
    """Raises UnreadableDocument for what is no message, or too long."""
    message = _message(data, filename)
    try:
        lines = [f"{name}: {clean(' '.join(str(message[name]).split()))}" for name in SHOWN if message[name]]
        names = [name for name, _, _ in attachments(data, filename)]
        body = _body(message, filename, max_characters)
    except _BROKEN as error:
        raise UnreadableDocument(f"{filename!r} is corrupt: {error}", reason="corrupt") from error
    if names:
        lines.append(f"Attachments: {clean('; '.join(names))}")
    if not body.strip() and not names:
        raise UnreadableDocument(f"{filename!r} is empty: the message has no text.", reason="empty")
    text = limited("\n".join(lines) + "\n\n" + body, filename, max_characters)
    title = " ".join(clean(str(message["Subject"] or "")).split()) or filename
    return ParsedDocument(title[:MAX_TITLE], text, EML)


def attachments(data: bytes, filename: str) -> Iterator[tuple[str, str, bytes]]:
    """(name, media type, bytes) of each attached file; messages forwarded as attachments are EML files again.

    Raises UnreadableDocument.
    """
    message = _message(data, filename)
    try:
        for number, part in enumerate(message.iter_attachments(), 1):
            if number > MAX_PARTS:
                detail = f"{filename!r} has more than {MAX_PARTS} attachments."
                raise UnreadableDocument(detail, reason="members")
            kind = part.get_content_type()
            if kind == EML:
                yield part.get_filename() or f"message-{number}.eml", kind, _forwarded(part)
            elif not part.is_multipart() and part.get_filename():
                payload = part.get_payload(decode=True)
                yield str(part.get_filename()), kind, payload if isinstance(payload, bytes) else b""
    except _BROKEN as error:
        raise UnreadableDocument(f"{filename!r} is corrupt: {error}", reason="corrupt") from error


def _message(data: bytes, filename: str) -> EmailMessage:
    try:
        message = message_from_bytes(data, policy=policy.default)
        named = any(message[name] for name in SHOWN)
    except _BROKEN as error:
        raise UnreadableDocument(f"{filename!r} is corrupt: {error}", reason="corrupt") from error
    if not named:
        raise UnreadableDocument(f"{filename!r} is corrupt: it has none of a message's headers.", reason="corrupt")
    return message


def _forwarded(part: EmailMessage) -> bytes:
    inner = part.get_payload(0)
    return inner.as_bytes() if isinstance(inner, EmailMessage) else b""


def _body(message: EmailMessage, filename: str, max_characters: int) -> str:
    """Plain text where there is some, else the HTML as a reader would see it."""
    part = message.get_body(preferencelist=("plain", "html"))
    if part is None:
        return ""
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    if part.get_content_type() == "text/html":
        return read_html(raw, filename, max_characters).text if raw.strip() else ""
    charset = part.get_content_charset()
    try:
        text = raw.decode(charset) if charset else decode(raw)
    except (LookupError, UnicodeDecodeError):
        text = decode(raw)
    return clean(text)
