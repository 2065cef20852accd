"""Quotes that exist: while an output is inside quotation marks, only tokens that continue a source are allowed.

The automaton reads the output byte by byte, because a word is often split into other tokens after a quotation mark
than inside a passage. After `[` only the numbers of sources are allowed, and a quote that follows `[n]` comes from
source n. So what stands between straight double quotation marks is verbatim by construction, white space apart
(a source's line break may be written as a space). Curly marks are not locked. No torch.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

QUOTE, OPEN = ord('"'), ord("[")
_BEFORE_START = frozenset(b" \t\r\n(\"'[")


class TokenBytes:
    """The vocabulary by what its tokens look like as bytes. Built once per tokenizer."""

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        """`token_bytes[id]` is None for control tokens, which never stand inside a quote."""
        self.of = list(token_bytes)
        self.ids: dict[bytes, list[int]] = defaultdict(list)
        self.closing: dict[bytes, list[int]] = defaultdict(list)  # what stands before the first mark -> tokens
        self.opening: list[int] = []  # tokens in which something follows a mark or a bracket
        self.after_mark: list[int] = []  # what may follow a closing mark: an end, a space, punctuation
        self.longest = max((len(b) for b in token_bytes if b), default=0)
        for token_id, data in enumerate(token_bytes):
            if not data or not chr(data[0]).isalnum():
                self.after_mark.append(token_id)
            if data:
                self._file(token_id, data)

    def _file(self, token_id: int, data: bytes) -> None:
        self.ids[data].append(token_id)
        if QUOTE in data:
            self.closing[data[: data.index(QUOTE)]].append(token_id)
        if any(mark in data[:-1] for mark in (QUOTE, OPEN)):
            self.opening.append(token_id)


class QuoteSources:
    """The numbered passages of one request as bytes, each as it stands and with its white space folded."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.forms: list[bytes] = []
        self.starts: list[list[tuple[int, int]]] = []  # per number, (form, position) where a quote may begin
        for text in texts:
            here = []
            for form in dict.fromkeys((text.strip().encode(), " ".join(text.split()).encode())):
                here += [(len(self.forms), at) for at in _word_starts(form)]
                self.forms.append(form)
            self.starts.append(here)

    def __len__(self) -> int:
        return len(self.starts)


def _word_starts(form: bytes) -> list[int]:
    """Not a mark itself: right after an opening mark it could not be told from the closing one."""
    starts = (at for at in range(len(form)) if at == 0 or form[at - 1] in _BEFORE_START)
    return [at for at in starts if form[at] > 32 and form[at] != QUOTE]


def _is_whole(source: bytes, end: int) -> bool:
    """No character of UTF-8 is cut at this place."""
    return end == len(source) or source[end] & 0xC0 != 0x80


class QuoteLock:
    """The automaton of one output: ask what is allowed next, tell it what was taken."""

    def __init__(self, vocabulary: TokenBytes, sources: QuoteSources) -> None:
        self._vocabulary = vocabulary
        self._sources = sources
        self._cited: int | None = None
        self._marker: bytes | None = None  # digits since an open bracket
        self._quote: list[tuple[int, int]] | None = None  # where the quote so far may go on, None outside
        self._begun = False  # the quote has at least one byte
        self._since_mark: bytes | None = None  # what followed a mark that the source has here too: it may have closed
        self._forbidden: dict[int | None, list[int]] = {}
        self.broken = False  # something was written that no source has; locking is over

    @property
    def inside(self) -> bool:
        """Within a quote or a citation number."""
        return self._quote is not None or self._marker is not None

    def allowed(self) -> list[int] | None:
        """Token ids, or None where anything goes but `forbidden()`."""
        if self.broken:
            return None
        if self._marker is not None:
            return self._numbers(self._marker) or None
        if self._quote is None:
            return None
        going_on = self._continuations(self._quote)
        if self._since_mark is None:
            return going_on or None
        never = set(self.forbidden())
        return [*going_on, *(token for token in self._vocabulary.after_mark if token not in never)]

    def forbidden(self) -> list[int]:
        """Tokens that would open a quote or a citation that does not exist; only where allowed() is None."""
        if self.broken or not self._vocabulary.opening:
            return []
        if self._cited not in self._forbidden:
            bad = [token for token in self._vocabulary.opening if self._would_break(token)]
            self._forbidden[self._cited] = bad
        return self._forbidden[self._cited]

    def advance(self, token_id: int) -> None:
        """The token was written."""
        for byte in self._vocabulary.of[token_id] or b"":
            self._read(byte)
        if self._since_mark:
            self._since_mark = None  # the source went on for the rest of a token: the quote does as well

    def _read(self, byte: int) -> None:
        if self._quote is not None:
            self._read_quoted(byte)
        elif self._marker is not None:
            self._read_marker(byte)
        elif byte == QUOTE:
            self._open()
        elif byte == OPEN:
            self._marker = b""

    def _open(self) -> None:
        starts = self._sources.starts
        cited = [starts[self._cited]] if self._cited is not None else starts
        self._quote = [start for numbered in cited for start in numbered]
        self._begun, self._since_mark = False, None

    def _read_quoted(self, byte: int) -> None:
        assert self._quote is not None
        forms = self._sources.forms
        going_on = [(f, at + 1) for f, at in self._quote if at < len(forms[f]) and forms[f][at] == byte]
        if going_on:
            self._quote, self._begun = going_on, True
            if byte == QUOTE:
                self._since_mark = b""
            elif self._since_mark is not None:
                self._since_mark += bytes([byte])
        elif self._since_mark is not None:
            outside = self._since_mark + bytes([byte])
            self._quote = self._since_mark = None
            for one in outside:  # it had closed at the mark after all
                self._read(one)
        elif byte == QUOTE and self._begun:
            self._quote = None
        else:
            self._quote, self.broken = None, True

    def _read_marker(self, byte: int) -> None:
        assert self._marker is not None
        digits = self._marker + bytes([byte])
        numbers = [b"%d]" % number for number in self._numbering()]
        if digits in numbers:
            self._cited, self._marker = numbers.index(digits), None
        elif any(number.startswith(digits) for number in numbers):
            self._marker = digits
        else:
            self._marker, self.broken = None, True

    def _numbering(self) -> range:
        return range(1, len(self._sources) + 1)

    def _numbers(self, digits: bytes) -> list[int]:
        """Tokens that go on towards a number that exists and its closing bracket."""
        found: dict[int, None] = {}
        for number in self._numbering():
            whole = b"%d]" % number
            if whole.startswith(digits):
                rest = whole[len(digits) :]
                for length in range(1, len(rest) + 1):
                    found.update(dict.fromkeys(self._vocabulary.ids.get(rest[:length], ())))
        return list(found)

    def _continuations(self, positions: list[tuple[int, int]]) -> list[int]:
        """Tokens that a source has next, and tokens that close the quote once it has begun."""
        vocabulary = self._vocabulary
        found: dict[int, None] = {}
        for form, at in positions:
            source = self._sources.forms[form]
            for length in range(min(vocabulary.longest, len(source) - at) + 1):
                piece = source[at : at + length]
                found.update(dict.fromkeys(vocabulary.ids.get(piece, ())))
                if (length or (self._begun and self._since_mark is None)) and _is_whole(source, at + length):
                    found.update(dict.fromkeys(vocabulary.closing.get(piece, ())))
        return list(found)

    def _would_break(self, token_id: int) -> bool:
        trial = QuoteLock(self._vocabulary, self._sources)
        trial._cited = self._cited
        trial.advance(token_id)
        return trial.broken
