"""Where legal text may be cut, and what its clauses are called, from the characters alone.

Contracts often arrive as one long line, so a clause heading is recognised by its numbering and by what stands
before it (a line start, the end of a sentence, a gap of spaces) rather than by line breaks.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.rag.parsing.document import Heading

ARTICLE, SECTION = 1, 2  # levels; 7.1 is SECTION + 1, 7.1.2 is SECTION + 2

_NUMBER = r"\d{1,2}(?:\.\d{1,2}){0,4}"
_CLAUSE = re.compile(
    r"(?:(?<=\n)|(?<=[.;:!?)\"”]\s)|(?<=\s\s)|\A)[ \t]*"
    r"(?P<mark>(?P<article>(?:ARTICLE|Article)\s+(?:[IVXLC]{1,6}|\d{1,2})\b[.:]?)"
    r"|(?P<word>(?:SECTION|Section|Sec\.|§)\s*)?(?P<number>" + _NUMBER + r")(?P<dot>\.?\)?)(?=\s))"
    r"\s+(?=(?P<rest>[^\n]{0,120}))"
)
_ITEM = re.compile(
    r"(?:(?<=\n)|(?<=[.;:,]\s)|(?<=\s\s)|(?<=\sand\s)|(?<=\sor\s))\((?:[a-z]{1,2}|[ivx]{1,5}|\d{1,2})\)\s"
)
_TITLE_END = re.compile(r"[.:;]\s|\.$|\s{2,}|\s[-–—]\s|(?<=[A-Z]{3})\s+(?=[A-Z]?[a-z])")
_SMALL = """
    a an and as at by for from in of on or other the to under upon with without
"""
_SMALL_WORDS = frozenset(_SMALL.split())
_UNIT_WORDS = """
    days day months month years year percent hours business calendar shares dollars
"""
_MONTH_NAMES = """
    january february march april may june july august september october november december
"""
_MONTHS = frozenset(_MONTH_NAMES.split())
_UNITS = frozenset(_UNIT_WORDS.split())

_SENTENCE = re.compile(r"[.!?][\"”’')\]]*(\s+)(?=[\"“‘'(\[]?[A-Z0-9§])")
_LAST_WORD = re.compile(r"[\w.&'’-]+$")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]")
_ABBREVIATED = """
    inc corp co ltd llc llp lp plc no nos sec secs art arts par para cl ch ex exh sched mr mrs ms dr jr
    sr st vs v al seq cf e.g i.e u.s u.k u.s.c u.s.a d.c n.a s.a b.v n.v a.m p.m ph.d approx dept est
    fig gov hon jan feb mar apr jun jul aug sept sep oct nov dec mt ave blvd rd tel attn vol pp pg ed
    rev bros assn intl messrs prof gen rep sen cfr fed reg stat supp app pty gmbh
"""
ABBREVIATIONS = frozenset(_ABBREVIATED.split())


@dataclass(frozen=True, slots=True)
class Clause:
    """A numbered clause that starts at `start`; `title` is its number and, where it has one, its name."""

    start: int
    level: int
    title: str


def clauses(text: str, headings: Sequence[Heading] = ()) -> list[Clause]:
    """Format headings and numbered clauses by position; format headings win where both claim a line."""
    found = [Clause(h.start, min(h.level, SECTION) if h.level else ARTICLE, h.text) for h in headings]
    taken = sorted((h.start, h.end) for h in headings)
    starts = [start for start, _ in taken]
    for clause in _numbered(text):
        at = bisect_right(starts, clause.start) - 1
        if at < 0 or clause.start >= taken[at][1]:
            found.append(clause)
    return sorted(found, key=lambda clause: clause.start)


def _numbered(text: str) -> Iterator[Clause]:
    for match in _CLAUSE.finditer(text):
        mark = match["mark"]
        title = _title(match["rest"])
        if match["article"]:
            yield Clause(match.start("mark"), ARTICLE, f"{mark} {title}".strip())
        elif _is_clause_number(match, title):
            depth = match["number"].count(".") if not match["number"].endswith(".0") else 0
            yield Clause(match.start("mark"), SECTION + depth, f"{match['number']} {title}".strip())


def _is_clause_number(match: re.Match[str], title: str) -> bool:
    """Whether a number opens a clause: it is marked as one, or a capital letter follows it."""
    rest = match["rest"]
    if rest.split(" ", 1)[0].lower().strip(".,") in _UNITS:
        return False
    if match["word"] or match["dot"] or "." in match["number"]:
        return rest[:1].isupper() or rest[:1] in '"“([' or bool(title)
    return bool(title) and (title.isupper() or _fills_line(match, title))


def _fills_line(match: re.Match[str], title: str) -> bool:
    """ "9 Duration" alone on its line is a heading; "9 January 2025" and a wrapped sentence are not."""
    before = match.string[: match.start("mark")]
    alone = (not before or before[-1] == "\n") and match["rest"].strip() == title
    return alone and len(title.split()) <= 6 and title.split()[0].lower() not in _MONTHS


def _title(rest: str) -> str:
    """The name of a clause from the words after its number; empty where running text begins at once."""
    end = _TITLE_END.search(rest)
    candidate = rest[: end.start()] if end else rest
    words = candidate.strip(' \t"“”._').split()
    if not 0 < len(words) <= 10 or (end is None and len(rest) >= 120):
        return ""
    capital = sum(not word[0].islower() or word.lower() in _SMALL_WORDS for word in words)
    return " ".join(words) if words[0][:1].isupper() and capital >= 0.75 * len(words) else ""


def items(text: str) -> Iterator[int]:
    """Starts of enumerated items: (a), (ii), (3)."""
    return (match.start() for match in _ITEM.finditer(text))


def sentence_starts(text: str) -> Iterator[int]:
    """Starts of sentences after the first; not after Inc., No., U.S., 3.2, initials or a clause number."""
    for match in _SENTENCE.finditer(text):
        if text[match.start()] != "." or not _abbreviated(text, match.start()):
            yield match.end()


def _abbreviated(text: str, dot: int) -> bool:
    """Whether the full stop at `dot` belongs to the word before it."""
    last = _LAST_WORD.search(text, max(0, dot - 24), dot)
    if last is None:
        return False
    word = last[0].rstrip(".")
    if word.replace(".", "").isdigit():
        return _opens_line(text, last.start())
    return word.lower() in ABBREVIATIONS or bool(_INITIALS.fullmatch(word))


def _opens_line(text: str, start: int) -> bool:
    """A number at a clause position ("12. Term") is a label; elsewhere ("by June 2020. The") it ends one."""
    before = text[max(0, start - 2) : start]
    return not before.strip() or before[0] in ".;:)" or before.endswith(("\n", "§"))


def section_path(stack: list[Clause], clause: Clause) -> list[Clause]:
    """The stack of open clauses once `clause` begins."""
    return [open_ for open_ in stack if open_.level < clause.level] + [clause]
