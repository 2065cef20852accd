"""Who a contract is between: names in its preamble, by the way in which preambles are written."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

PREAMBLE_WITHIN = 5000  # characters from the start of a document in which its preamble begins
PREAMBLE_LENGTH = 1800
MAX_PARTIES = 12

_SUFFIXES = """
    Inc Inc. Incorporated Corp Corp. Corporation Company Co. LLC L.L.C. Ltd Ltd. Limited LP L.P. LLP L.L.P. PLC plc
    N.A. S.A. SA SAS S.A.S. SARL S.à.r.l. S.r.l. Srl SpA S.p.A. GmbH AG KG KGaA AB ASA A/S ApS Oy Oyj BV B.V. NV N.V.
    KK K.K. Pte Pty Trust Bank University Foundation Association Partnership SE S.E. Cooperative Hf. ehf
    Kft Zrt s.r.o. a.s.
"""
_SUFFIX = "|".join(re.escape(word) for word in sorted(_SUFFIXES.split(), key=len, reverse=True))
_WORD = r"[A-Z0-9][\w&.’'/+-]*"
_LINK = (
    r"(?:\s+(?:of|for|the|de|du|des|der|van|von|&|and(?=\s+[A-Z][\w’'-]*,?\s+(?:Inc|LLC|LLP|Ltd|Co|Corp|Company)\b)))*"
)
_NAME = re.compile(rf"{_WORD}(?:{_LINK}\s+{_WORD})*(?:,?\s+(?:{_SUFFIX})(?![\w]))*")
_ENDS_IN_SUFFIX = re.compile(rf"(?:^|[\s,])(?:{_SUFFIX})$", re.IGNORECASE)
_ANCHOR = re.compile(
    r"(?i)\b(?:(?:by\s+and\s+)?(?:between|among)(?:\s+and\s+among)?|(?:made|entered\s+into)\b[^.]{0,80}?\bby)\b[\s:(]*"
    r"(?:\(?\d\)?\s*)?"
)
_END = re.compile(
    r"\b(?:WHEREAS|Whereas|RECITALS|Recitals|WITNESSETH|W I T N E S S E T H|BACKGROUND|Background|NOW,? THEREFORE|"
    r"TABLE OF CONTENTS|hereby agree|The parties|THE PARTIES)\b"
)
_ALIAS = re.compile(r"\(\s*(?:[^()]{0,100}?[\s,])?[\"“”‘'][^\"”“’]{2,60}[\"”“’][^()]{0,80}\)|\bhereinafter\b")
_OPENS = re.compile(
    r"(?:\band|\bbetween|\bamong|\bby|;|,\s+and|\(\d\)|\b(?:ii?i?)\))[\s,:]*(?:the\s+)?$", re.IGNORECASE
)
_FIRST_CLAUSE = re.compile(r"(?:\n|\s\s)\W*(?:1\.|(?:ARTICLE|Article|SECTION|Section)\s+(?:1|I)\b)")
_PERSON = re.compile(r"(?:Mr|Mrs|Ms|Dr|Prof)\b")
_SENTENCE_END = re.compile(r"\b(?:LLC|LLP|Ltd|Limited|GmbH|AG|Inc|Corp|Corporation|plc)(\.?\s+)(?=\d)")
_NEXT = re.compile(r"\b(?:LLC|LLP|Ltd|Limited|GmbH|AG|Inc|Corp|Corporation|plc)(\.?,?\s+and)\s")
_RESIDENT = re.compile(r"(\s+of)\s+\d")
_FORM = re.compile(r"(?i)\b(?:agreement|contract|lease|addendum|amendment|licen[cs]e)\b\s*")
_REGISTERED = re.compile(
    r"\b(?:Inc|Inc\.|Corp|Corp\.|LLC|L\.L\.C\.|Ltd|Ltd\.|LP|L\.P\.|LLP|GmbH|AG|AB|SA|S\.A\.|KK|plc|Cooperative)(\s+of)\s"
)
_ANOTHER = re.compile(r"(?i)\band\s+(?:between\s+)?[A-Z][^()]{0,80}$")
_NO_NAME_WORDS = """
    agreement contract addendum amendment effective date delaware california york texas nevada florida state
    commonwealth party parties this the each by and inc corporation company street avenue suite road article section
    exhibit schedule lease licence license purchaser seller between dated lender borrower the by and
"""
_NO_NAME = frozenset(_NO_NAME_WORDS.split())


@dataclass(frozen=True, slots=True)
class Party:
    """text[start:end] is the name."""

    name: str
    start: int
    end: int


def parties(text: str) -> list[Party]:
    """The parties in the order in which the preamble names them; empty where it is not recognised."""
    for anchor in _ANCHOR.finditer(text, 0, PREAMBLE_WITHIN):
        found = _distinct(_listed(text, anchor.end(), _preamble_end(text, anchor.end())))
        if len(found) >= 2:
            return found
    found = _distinct(_defined(text, _preamble_end(text, 0)))
    return found if len(found) >= 2 else []


def _distinct(found: Iterator[Party]) -> list[Party]:
    by_key: dict[str, Party] = {}
    for party in found:
        by_key.setdefault(party_key(party.name), party)
    return list(by_key.values())[:MAX_PARTIES]


def party_key(name: str) -> str:
    """A name as it is compared: lower case, without punctuation and the company's legal form."""
    bare = name
    while match := _ENDS_IN_SUFFIX.search(bare.strip(" ,")):
        if match.start() == 0:
            break
        bare = bare[: match.start()].strip(" ,")
    return " ".join(re.findall(r"\w+", bare.lower()))


def _preamble_end(text: str, begin: int) -> int:
    stop = _END.search(text, begin, begin + PREAMBLE_LENGTH)
    return stop.start() if stop else min(len(text), begin + PREAMBLE_LENGTH)


def _listed(text: str, begin: int, end: int) -> Iterator[Party]:
    """After "between": names that open a party, each either a company's or followed by ("Alias")."""
    last_end = begin
    for party in _names(text, begin, end):
        opened = party.start == begin or _OPENS.search(text, max(begin - 12, party.start - 16), party.start)
        company = _ENDS_IN_SUFFIX.search(party.name)
        near = ". " not in text[last_end : party.start].replace("Inc. ", "")
        if opened and (company or (near and _aliased(text, party.end, end))):
            yield party
            last_end = party.end


def _defined(text: str, end: int) -> Iterator[Party]:
    """Without "between": for each ("Alias") before the first clause the company or person named before it."""
    clause = _FIRST_CLAUSE.search(text, 0, end)
    since = 0
    for alias in _ALIAS.finditer(text, 0, clause.start() if clause else end):
        certain = (
            p for p in _names(text, since, alias.start()) if _ENDS_IN_SUFFIX.search(p.name) or _PERSON.match(p.name)
        )
        yield from islice(certain, 1)
        since = alias.end()


def _names(text: str, begin: int, end: int) -> Iterator[Party]:
    while match := _NAME.search(text, begin, end):
        start, name = match.start(), match[0]
        if form := list(_FORM.finditer(name)):  # a heading ran into the name
            start, name = start + form[-1].end(), name[form[-1].end() :]
        for follows in (_REGISTERED, _RESIDENT, _SENTENCE_END, _NEXT):
            if place := follows.search(name):
                name = name[: place.start(1)]
        begin = max(start + len(name), match.start() + 1)
        name = name.rstrip(", ") if _ENDS_IN_SUFFIX.search(name.rstrip(", ")) else name.rstrip(".,'’ ")
        if _is_name(name):
            yield Party(" ".join(name.split()), start, start + len(name))


def _aliased(text: str, at: int, end: int) -> bool:
    """Whether ("Alias") follows a name, with at most its address and place of registration between."""
    alias = _ALIAS.search(text, at, min(end, at + 400))
    return alias is not None and not _ANOTHER.search(text[at : alias.start()])


def _is_name(name: str) -> bool:
    plain = re.findall(r"\w+", name.lower())
    return 2 < len(name) < 120 and bool(plain) and plain[0] not in _NO_NAME and not plain[0].isdigit()
