"""What two questions must have in common, word for word, before any likeness of their vectors counts.

"May the tenant assign?" and "May the tenant not assign?" are almost one vector and two answers. So negation, duty or
permission, numbers, dates, clause numbers, names, roles, places, directions and what is asked for (who, when, how much)
are read off by rules and the words of slots.toml; two questions' slots are equal or they are not.
"""

import re
import tomllib
from collections.abc import Iterable
from importlib import resources

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’-][^\W\d_]+)*|[%$€£]")
_CLAUSE = re.compile(
    r"\b(section|clause|article|exhibit|schedule|annex|appendix|paragraph|§)s?\s*"
    r"([A-Z]\b|\d+(?:\.\d+)*(?:\([a-z0-9]+\))*|[ivxlc]+\b)",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<![.?!]\s)(?<!^)\b[A-Z][\w&'-]*[a-zA-Z][\w&'-]*\b")
_HOW = re.compile(r"\bhow\s+(much|many|long|often|soon|far|quickly|late|early)\b", re.IGNORECASE)
_HAVE_TO = re.compile(r"\b(?:have|has|had)\s+to\b", re.IGNORECASE)
_WH = re.compile(r"\b(?:who|whom|whose|what|which|when|where|why|how)\b", re.IGNORECASE)
# Politeness before a question, whose "could" and "need" are no duties.
_LEAD_IN = re.compile(
    r"^\W*(?:(?:please|kindly|quick question|(?:can|could|would) you (?:please )?(?:say|tell me|tell us|find out)"
    r"|(?:i|we) (?:(?:would|'d) like|want|need|wish) to know|tell (?:me|us)|find out|(?:if|whether))\b\W*)+",
    re.IGNORECASE,
)
_TIME = re.compile(r"^(second|minute|hour|day|week|month|quarter|year|decade)(?:s|ly)?$")
_PREFIXED = re.compile(r"^(?:un|in|im|ir|non-?|dis|il)(\w+)$")
_UNITS = {"%": "percent", "percentage": "percent", "percent": "percent", "$": "dollar", "usd": "dollar"}
_UNITS |= {"dollars": "dollar", "€": "euro", "eur": "euro", "euros": "euro", "£": "pound", "pounds": "pound"}
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000, "dozen": 12}
_FRACTIONS = {"half": "0.5", "quarter": "0.25", "double": "2", "twice": "2", "triple": "3", "once": "1"}
# Between a negation and what it denies.
_PASSED = frozenset({"a", "an", "any", "be", "been", "further", "have", "its", "of", "the", "their", "to"})
Words = dict[str, tuple[str, str]]


def _read() -> tuple[Words, dict[str, list[str]]]:
    """(kind and value of each word, lists of words by name)."""
    kinds = tomllib.loads(resources.files("app.rag.retrieval").joinpath("slots.toml").read_text("utf-8"))
    lists = {name: said.split() for name, said in kinds.pop("lists").items()}
    words = {
        word: (kind, word if value == "itself" else value)
        for kind, values in kinds.items()
        for value, said in values.items()
        for word in said.split()
    }
    return words, lists


_WORDS, _LISTS = _read()
_DATES = frozenset(_LISTS["months"] + _LISTS["days"])
_NUMBERS = {word: n for n, word in enumerate(_LISTS["numbers"])}
_NUMBERS |= {word: 10 * n for n, word in enumerate(_LISTS["tens"], start=2)}


def slots(question: str, names: Iterable[str] = ()) -> frozenset[str]:
    """As `kind:value`. `names`: what is a name here, such as the parties of the documents found, however written."""
    question = _LEAD_IN.sub("", question)
    tokens = [part for token in _TOKEN.findall(question) for part in _parts(token.casefold().replace("’", "'"))]
    known = {word.casefold() for name in names for word in re.findall(r"[^\W\d_]{3,}", name)}
    written = {word.casefold() for word in _NAME.findall(question)} | (known & set(tokens))
    found = {f"name:{word}" for word in written if not _is_common(word)}
    found |= {f"clause:{match[1][:4].casefold()} {match[2].casefold()}" for match in _CLAUSE.finditer(question)}
    found |= {f"how:{match[1].casefold()}" for match in _HOW.finditer(question)}
    found |= set() if _WH.search(question) else {"asks:whether"}
    found |= _repeated("duty:must", len(_HAVE_TO.findall(question)) + _count(tokens, "must"))
    found |= _repeated("duty:may", _count(tokens, "may"))
    for token in tokens:
        found |= _of(token)
    return frozenset(found | _negation(tokens) | _numbers(tokens))


def _parts(token: str) -> list[str]:
    """A compound and what it is made of, unless it is a word of the list itself."""
    return [token, *token.split("-")] if "-" in token and token not in _WORDS else [token]


def _is_common(word: str) -> bool:
    """Words with slots of their own, and those that contracts write large."""
    return any(word in words for words in (_WORDS, _LISTS["common"], _DATES, _NUMBERS))


def _of(token: str) -> set[str]:
    kind, value = _WORDS.get(token, ("", ""))
    elsewhere = (kind, value) in (("negation", "not"), ("duty", "may"), ("duty", "must"))
    found = {f"{kind}:{value}"} if kind and not elsewhere else set()
    if token in _DATES:
        found.add(f"date:{token}")
    if match := _TIME.match(token):
        found.add(f"unit:{match[1]}")
    if token in _UNITS:
        found.add(f"unit:{_UNITS[token]}")
    if (match := _PREFIXED.match(token)) and match[1] in _LISTS["negatable"]:
        found.add(f"negated:{match[1]}")
    return found


def _count(tokens: list[str], duty: str) -> int:
    return sum(_WORDS.get(token) == ("duty", duty) for token in tokens)


def _repeated(slot: str, count: int) -> set[str]:
    """Who asks about two rights asks more than who asks about one."""
    return {f"{slot} {count}"} if count else set()


def _negation(tokens: list[str]) -> set[str]:
    """Each with the word that it denies: "not assign" is not "not sublicense"."""
    found = set()
    for i, token in enumerate(tokens):
        if _WORDS.get(token) == ("negation", "not") or token.endswith("n't"):
            found.add(f"not:{next((word for word in tokens[i + 1 :] if word not in _PASSED), '')}")
    return found


def _numbers(tokens: list[str]) -> set[str]:
    """Digits and words alike: "thirty-five" is 35, "two hundred" is 200; ordinals and fractions keep their kind."""
    found: set[str] = set()
    total: int | None = None
    for token in [*(token for token in tokens if "-" not in token), ""]:
        if token in _NUMBERS:
            total = (total or 0) + _NUMBERS[token]
        elif token in _SCALES:
            total = max(1, total or 0) * _SCALES[token]
        elif token != "and":
            found |= {_number(token)} if total is None else {f"number:{total}", _number(token)}
            total = None
    return found - {""}


def _number(token: str) -> str:
    if token[:1].isdigit():
        digits = token.replace(",", "")
        return f"number:{digits.rstrip('0').rstrip('.') if '.' in digits else digits}"
    if token in _FRACTIONS:
        return f"number:{_FRACTIONS[token]}"
    ordinals = _LISTS["ordinals"]
    return f"ordinal:{ordinals.index(token) + 1}" if token in ordinals else ""
