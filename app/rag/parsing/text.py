"""Plain text and Markdown, and what every reader does with characters: decode, clean, limit, name."""

import codecs
import re
from pathlib import PurePath

from app.errors import UnreadableDocument
from app.rag.parsing.document import Heading, ParsedDocument
from app.rag.parsing.media import MARKDOWN, TEXT

MAX_TITLE = 120  # characters
MAX_CONTROL_SHARE = 0.02  # more control characters than this and it is no text

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NEWLINE = re.compile(r"\r\n?|[\x0c\x85\u2028\u2029]")
_ATX = re.compile(r"^ {0,3}(?P<marks>#{1,6})[ \t]+(?P<text>.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_SETEXT = re.compile(r"^(?P<text>[^\s#>*+|-][^\n]{0,200})\n(?P<line>=+|-{3,})[ \t]*$", re.MULTILINE)
_NO_TITLE = re.compile(  # what stands above the title of a filed contract
    r"(?i)\W*(exhibit|ex|annex|appendix|schedule)?[\s.-]*[\d().\w-]{0,10}\W*|(page )?\d+( of \d+)?|"
    r"(execution|final|draft|redacted) (version|copy)|.{0,20}confidential.{0,60}"
)
_FENCE = re.compile(r"^ {0,3}(```|~~~).*?^ {0,3}\1", re.MULTILINE | re.DOTALL)


def read_text(data: bytes, filename: str, max_characters: int) -> ParsedDocument:
    """Plain text in UTF-8, UTF-16 or Windows-1252. Raises UnreadableDocument when it is binary or too long."""
    text = _decoded(data, filename, max_characters)
    return ParsedDocument(title_of(text, filename), text, TEXT)


def read_markdown(data: bytes, filename: str, max_characters: int) -> ParsedDocument:
    """Markdown as written: the markup stays in the text, # and underlined headings are noted."""
    text = _decoded(data, filename, max_characters)
    headings = _markdown_headings(text)
    title = headings[0].text if headings else title_of(text, filename)
    return ParsedDocument(title[:MAX_TITLE], text, MARKDOWN, headings=headings)


def decode(data: bytes) -> str:
    """Bytes → text: byte order mark, then UTF-8, then UTF-16 by its zero bytes, then Windows-1252."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    sample = data[:4096]
    if sample.count(0) > len(sample) // 4:
        encoding = "utf-16-le" if sample[1::2].count(0) >= sample[::2].count(0) else "utf-16-be"
        return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def clean(text: str) -> str:
    """One kind of line end; no NUL, control characters, surrogates or noncharacters."""
    return _CONTROL.sub("", _NEWLINE.sub("\n", text))


def title_of(text: str, filename: str) -> str:
    """The first line that names something and is short enough, else the file's name without extension."""
    lines = (" ".join(line.split()) for line in text[:4000].splitlines())
    title = next((line for line in lines if line and not _NO_TITLE.fullmatch(line)), "")
    return title if 2 < len(title) <= MAX_TITLE else PurePath(filename).stem[:MAX_TITLE]


def limited(text: str, filename: str, max_characters: int) -> str:
    """`text`, or UnreadableDocument when it is longer than allowed."""
    if len(text) > max_characters:
        raise UnreadableDocument(
            f"{filename!r} has {len(text)} characters of text; a document has at most {max_characters}.",
            reason="too_long",
        )
    return text


def _decoded(data: bytes, filename: str, max_characters: int) -> str:
    raw = decode(data)
    if len(_CONTROL.findall(raw[:100_000])) > MAX_CONTROL_SHARE * min(len(raw), 100_000):
        raise UnreadableDocument(f"{filename!r} is corrupt: it is not text.", reason="corrupt")
    return limited(clean(raw), filename, max_characters)


def _markdown_headings(text: str) -> tuple[Heading, ...]:
    fences = [match.span() for match in _FENCE.finditer(text)]
    found = [
        Heading(match.start(), match.end(), len(match["marks"]), match["text"].strip()) for match in _ATX.finditer(text)
    ]
    found += [
        Heading(match.start(), match.end("text"), 1 if match["line"][0] == "=" else 2, match["text"].strip())
        for match in _SETEXT.finditer(text)
    ]
    outside = (h for h in found if not any(start <= h.start < end for start, end in fences))
    return tuple(sorted(outside, key=lambda heading: heading.start))
