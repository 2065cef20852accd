"""What a contract says about itself, by rules: parties, dates, governing law, kind of document, defined terms.

Every fact carries the range of characters that it was read from, so that a person can check it. Rules miss things;
they are not always right, so look at the characters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from app.rag.documents.dates import DateSpan, dates
from app.rag.documents.parties import parties, party_key

PARTY, EFFECTIVE, AGREED, EXPIRY = "party", "effective_date", "agreement_date", "expiry_date"
LAW, TYPE, DEFINITION = "governing_law", "document_type", "definition"
KINDS = (PARTY, EFFECTIVE, AGREED, EXPIRY, LAW, TYPE, DEFINITION)

OPENING = 6000  # characters in which title and dates of the whole agreement stand
MAX_DEFINITIONS = 300

_PLACE = (
    r"(?P<place>[A-Z][\w’'-]+(?:\s+(?:of\s+|and\s+)?[A-Z][\w’'-]+){0,3}"
    r"(?:\s+Special\s+Administrative\s+Region)?|[A-Z]{2,}(?:\s+[A-Z]{2,})*)"
)
_STATE = (
    r"(?:(?:internal\s+|substantive\s+)?laws?\s+(?:\([^)]*\)\s*)?(?:of|in\s+force\s+in|in\s+effect\s+in)\s+(?:the\s+)?"
    r"(?:(?:State|Commonwealth|Province|Republic|Kingdom|Canton)s?\s+of\s+)?)"
)
_LAW_OF = re.compile(rf"(?i:{_STATE}){_PLACE}")
_PLACE_LAW = re.compile(rf"(?i:(?:by|under|accordance\s+with|to))\s+{_PLACE}\s+(?:substantive\s+)?[Ll]aw\b")
_LAW_GOVERNS = re.compile(rf"(?<![\w]){_PLACE}\s+[Ll]aw\s+(?:applies|governs|shall\s+(?:apply|govern))")
_GOVERNED = re.compile(r"(?i)govern|constru|interpret|subject\s+to|applicable\s+law|read\s+under|choice\s+of\s+law")
_GOVERNS = re.compile(r"[^.(]{0,40}?\s(?:shall\s+)?(?:apply|applies|governs?)\b")
_NO_PLACE_WORDS = """
    the any such this that applicable all each state jurisdiction bankruptcy federal privacy other country which
    intellectual data antitrust
"""
_NO_PLACE = frozenset(_NO_PLACE_WORDS.split())
_ADJECTIVE_PAIRS = """
    english:england swedish:sweden finnish:finland norwegian:norway danish:denmark german:germany french:france
    swiss:switzerland dutch:netherlands belgian:belgium austrian:austria italian:italy spanish:spain irish:ireland
    scottish:scotland scots:scotland japanese:japan canadian:canada australian:australia czech:czechia polish:poland
    portuguese:portugal indian:india chinese:china israeli:israel korean:korea
"""
_ADJECTIVES = dict(pair.split(":") for pair in _ADJECTIVE_PAIRS.split())

_EFFECTIVE_BEFORE = re.compile(
    r"(?i)(?:\beffective\s+(?:as\s+of|on|from|date\b[^.;]{0,40}?(?:is|means|shall\s+be|of|:)?)|"
    r"\b(?:takes?|taking|into|in|with)\s+(?:effect|force)\s+(?:as\s+of|on|from)|\bcommenc(?:es|ing)\s+(?:on|as\s+of))"
    r"[\s:,]*(?:the\s+)?$"
)
_EFFECTIVE_AFTER = re.compile(r"^[\s,]*\(?[^().]{0,40}[\"“”'’]?Effective Date")
_AGREED_BEFORE = re.compile(
    r"(?i)(?:\b(?:dated|made|entered\s+into|executed|signed|concluded?|conclude\s+this\s+\w+|agreement|accepted)\b"
    r"[^.;]{0,90}?(?:\b(?:as\s+of|on|effective|this|of|dated|dated\s+as\s+of)\b)?)[\s:,]*(?:the\s+|this\s+)?$"
)
_EXPIRY_BEFORE = re.compile(
    r"(?i)(?:\bexpir(?:es?|ing|ation)\b[^.;]{0,60}?|\b(?:ends?|ending|terminates?)\s+(?:on|at|as\s+of)[^.;]{0,30}?|"
    r"\b(?:force|effect|continues?|term|period|lease|runs)\b[^.;]{0,120}?\b(?:until|through|to|till)\b[^.;]{0,20}?)"
    r"[\s:,]*(?:the\s+)?$"
)
_TYPE_WORDS = (
    r"AGREEMENT|CONTRACT|LEASE|ADDENDUM|AMENDMENT|LICEN[CS]E|DEED|GUARANT(?:Y|EE)|INDENTURE|"
    r"MEMORANDUM OF UNDERSTANDING|TERMS (?:AND CONDITIONS|OF (?:SERVICE|USE))|PLAN|POLICY|NDA"
)
_TYPE = re.compile(
    rf"(?:(?<=\n)|\A|(?<=\s\s)|(?<=[.\d]\s))[\s#*]*"
    rf"(?P<type>(?:[A-Z][\w’'&/,-]*[ \t]+(?:(?:of|and|for|to|the|in)[ \t]+)?)"
    rf"{{0,8}}(?i:{_TYPE_WORDS})\b(?:[ \t]+(?:FOR|OF|TO|For|for)(?:[ \t]+[A-Z][\w-]*){{1,5}})?)"
)
_MENTION = re.compile(r"(?i)(?:this|the|an?|such|said|under)\b")  # of the document in a sentence
_DEFINED = re.compile(
    r"[\"“](?P<term>[A-Z][^\"”“\n]{1,60})[\"”]\s*(?:\)|(?:,?\s*(?:shall\s+)?(?:means?|refers?\s+to|has\s+the\s+meaning|"
    r"have\s+the\s+meaning|includes?|is\s+defined)\b))"
)


@dataclass(frozen=True, slots=True)
class Fact:
    """`value` as people read it (dates as YYYY-MM-DD), `key` as it is compared; read from text[start:end]."""

    kind: str
    value: str
    key: str
    start: int
    end: int


def facts(text: str) -> list[Fact]:
    """Everything that the rules find, by kind and position."""
    found = [Fact(PARTY, p.name, party_key(p.name), p.start, p.end) for p in parties(text)]
    for one in (document_type(text), governing_law(text)):
        found += [one] if one else []
    return [*found, *_dates(text), *_definitions(text)]


def document_type(text: str) -> Fact | None:
    """The heading that says what the document is: "SUPPLY AGREEMENT"."""
    match = next((m for m in _TYPE.finditer(text, 0, OPENING) if not _MENTION.match(m["type"])), None)
    if match is None:
        return None
    value = " ".join(match["type"].split())
    return _fact(TYPE, value.title() if value.isupper() else value, match, "type")


def governing_law(text: str) -> Fact | None:
    """The place whose law governs, from the first sentence that says so."""
    found = []
    for pattern in (_LAW_OF, _PLACE_LAW, _LAW_GOVERNS):
        for match in pattern.finditer(text):
            if (pattern is _LAW_GOVERNS or _governs(text, match)) and match["place"].split()[
                0
            ].lower() not in _NO_PLACE:
                found.append(_fact(LAW, " ".join(match["place"].split()), match, "place"))
                break
    return min(found, key=lambda fact: len(text) if fact.start < 1500 else fact.start, default=None)


def _governs(text: str, match: re.Match[str]) -> bool:
    """Whether the sentence around a mention of some law makes it the governing one."""
    before = text[max(0, match.start() - 220) : match.end()].rsplit(". ", 1)[-1]
    return bool(_GOVERNED.search(before) or _GOVERNS.match(text, match.end()))


def law_key(place: str) -> str:
    """A place as it is compared: "English" and "England" are one, "the State of New York" is New York."""
    words = [word for word in re.findall(r"\w+", place.lower()) if word not in ("the", "state", "of", "law", "laws")]
    return " ".join(_ADJECTIVES.get(word, word) for word in words)


def _fact(kind: str, value: str, match: re.Match[str], group: str) -> Fact:
    key = law_key(value) if kind == LAW else " ".join(re.findall(r"\w+", value.lower()))
    return Fact(kind, value, key, match.start(group), match.end(group))


def _dates(text: str) -> Iterator[Fact]:
    """At most one date of each kind: the first that the rules are sure of."""
    spans = dates(text)
    opening = [span for span in spans if span.start < OPENING]
    chosen = {
        EFFECTIVE: next((span for span in opening if _is_effective(text, span)), None),
        AGREED: next((span for span in opening if _before(_AGREED_BEFORE, text, span, 130)), None),
        EXPIRY: next((span for span in spans if _before(_EXPIRY_BEFORE, text, span, 180)), None),
    }
    for kind, span in chosen.items():
        if span:
            yield Fact(kind, span.day.isoformat(), span.day.isoformat(), span.start, span.end)


def _is_effective(text: str, span: DateSpan) -> bool:
    return _before(_EFFECTIVE_BEFORE, text, span, 90) or bool(_EFFECTIVE_AFTER.match(text[span.end : span.end + 80]))


def _before(pattern: re.Pattern[str], text: str, span: DateSpan, within: int) -> bool:
    return pattern.search(text[max(0, span.start - within) : span.start]) is not None


def _definitions(text: str) -> Iterator[Fact]:
    seen: set[str] = set()
    for match in _DEFINED.finditer(text):
        fact = _fact(DEFINITION, " ".join(match["term"].split()).rstrip(",."), match, "term")
        if fact.key and fact.key not in seen and len(seen) < MAX_DEFINITIONS:
            seen.add(fact.key)
            yield fact
