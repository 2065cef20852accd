"""HTML by lxml: what a reader would see, as lines; scripts, styles and hidden elements are dropped."""

import re
from typing import Any

from lxml import etree
from lxml import html as lxml_html

from app.errors import UnreadableDocument
from app.rag.parsing.document import Heading, ParsedDocument
from app.rag.parsing.media import HTML
from app.rag.parsing.text import MAX_TITLE, clean, decode, limited, title_of

_DROPPED_TAGS = """
    script style noscript template head iframe object svg math select textarea
"""
_DROPPED = frozenset(_DROPPED_TAGS.split())
_BLOCK_TAGS = """
    address article aside blockquote body dd details div dl dt fieldset figcaption figure footer form h1
    h2 h3 h4 h5 h6 header hr li main nav ol p pre section summary table tbody tfoot thead tr ul
"""
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_CHARSET = re.compile(rb"(?i)<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]+)")
_HIDDEN = re.compile(r"(?i)(display\s*:\s*none|visibility\s*:\s*hidden)")
_SPACE = re.compile(r"[ \t\n\r\f\u00a0]+")


def read(data: bytes, filename: str, max_characters: int) -> ParsedDocument:
    """Raises UnreadableDocument when there is no markup to parse or the text is too long."""
    markup = _DECLARATION.sub("", clean(_decode(data)))
    parser = lxml_html.HTMLParser(no_network=True, huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = lxml_html.document_fromstring(markup, parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise UnreadableDocument(f"{filename!r} is empty or corrupt: {error}", reason="corrupt") from error
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise UnreadableDocument(f"{filename!r} is nested too deeply to be read whole.", reason="too_large")
    page = _Reader(filename, max_characters)
    page.walk(root)
    stated = " ".join((root.findtext(".//title") or "").split())
    title = stated or (page.headings[0].text if page.headings else title_of(page.text, filename))
    return ParsedDocument(title[:MAX_TITLE], page.text, HTML, headings=tuple(page.headings))


class _Reader:
    """Collects text while elements open and close; no recursion, so depth cannot exhaust the stack."""

    def __init__(self, filename: str, max_characters: int) -> None:
        self.headings: list[Heading] = []
        self._filename = filename
        self._limit = max_characters
        self._parts: list[str] = []
        self._length = 0
        self._dropped = 0  # open elements whose content is not read
        self._preformatted = 0
        self._heading = (0, 0)  # position in the text and in the parts

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def walk(self, root: Any) -> None:
        for event, element in etree.iterwalk(root, events=("start", "end")):
            if event == "start":
                self._open(element)
            else:
                self._close(element)
                if element is not root:
                    self._add(element.tail or "")

    def _open(self, element: Any) -> None:
        tag = element.tag
        self._dropped += _is_dropped(element)
        self._preformatted += tag == "pre"
        if tag in _BLOCKS:
            self._break()
        elif tag in ("td", "th") and not self._at_line_start():
            self._append("\t")
        if tag == "br":
            self._append("\n")
        if tag in _HEADINGS:
            self._heading = (self._length, len(self._parts))
        self._add(element.text or "")

    def _close(self, element: Any) -> None:
        tag = element.tag
        if tag in _HEADINGS and not self._dropped:
            start, part = self._heading
            words = "".join(self._parts[part:])
            if words.strip():
                end = start + len(words.rstrip())
                self.headings.append(Heading(start, end, _HEADINGS[tag], " ".join(words.split())))
        if tag in _BLOCKS:
            self._break()
        self._preformatted -= tag == "pre"
        self._dropped -= _is_dropped(element)

    def _add(self, text: str) -> None:
        if self._dropped:
            return
        if not self._preformatted:
            text = _SPACE.sub(" ", text)
            if text.startswith(" ") and (self._at_line_start() or self._parts[-1].endswith(" ")):
                text = text[1:]
        self._append(text)

    def _append(self, text: str) -> None:
        if text and not self._dropped:
            self._parts.append(text)
            self._length += len(text)
            limited(self.text if self._length > self._limit else "", self._filename, self._limit)

    def _break(self) -> None:
        if not self._at_line_start():
            self._append("\n")

    def _at_line_start(self) -> bool:
        return not self._parts or self._parts[-1].endswith(("\n", "\t"))


def _is_dropped(element: Any) -> bool:
    style = element.get("style")
    hidden = element.get("hidden") is not None or (style is not None and _HIDDEN.search(style) is not None)
    return element.tag in _DROPPED or hidden


def _decode(data: bytes) -> str:
    """A byte order mark wins, then the page's own charset, then the guesses for plain text."""
    declared = _CHARSET.search(data[:2048])
    if declared and not data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        try:
            return data.decode(declared[1].decode("ascii"), errors="replace")
        except LookupError:
            pass
    return decode(data)
