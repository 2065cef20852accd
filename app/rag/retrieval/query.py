"""What a question asks for and which documents it asks it of, without a model.

"Consider the Supply Agreement between A and B; what is the governing law?" names a document and asks a question;
"What is the notice period?" only asks. The first kind is split at clause borders, names inside a question serve
both purposes, and a small legal thesaurus adds the wording that clauses use.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

NAME_WEIGHT = 0.3  # of a name inside the question: it chooses documents, it hardly tells their clauses apart
FORM_WEIGHT = 0.1  # of words that nearly every question about a contract has
EXPANSION_WEIGHT = 0.5
MAX_TRIGGER_GAP = 2

_SEGMENT = re.compile(r";\s+|(?<=[.!?])\s+(?=[A-Z])|\n+")
_ASKS = re.compile(
    r"(?i)^\W*(who|what|when|where|which|whose|why|how|is|are|was|were|does|do|did|can|could|may|must|shall|should|"
    r"will|would|has|have|list|describe|summari[sz]e|explain|find|identify|state|name|tell|give|show|quote)\b"
)
_LEAD = re.compile(
    r"(?i)^(?P<context>(?:in|under|per|for|regarding|concerning|considering|consider|according to|pursuant to|"
    r"with respect to|as to)\b.{8,}?),\s+(?=(?:who|what|when|where|which|how|is|are|does|do|can|may|must|shall)\b)"
)
_NAME = re.compile(r"\b[A-Z][\w.&'’-]*(?:\s+(?:of|and|the|for|de|&)?\s*[A-Z0-9][\w.&'’-]*)*")
_WORD = re.compile(r"[A-Za-z0-9][\w'’-]*")
_FORM_WORDS = """
    contract contracts agreement agreements document documents clause clauses provision provisions
    section include included includes including contain contains specified specify specifies provide
    provided provides say says state states mention mentioned exist exists describe given apply applies
    required party parties please tell regarding concerning event happens happen conditions
    circumstances term terms
"""
_FORM = frozenset(_FORM_WORDS.split())
_SUFFIXES = ("ization", "ation", "ment", "ing", "ion", "ed", "al", "ie", "e", "y")


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """`content` is the question itself, `terms` its weighted words for BM25, `wordings` clause language to expect;
    `route` is what the question says about the document, empty when it says nothing."""

    content: str
    route: str
    terms: Mapping[str, float]
    wordings: tuple[str, ...] = ()
    concepts: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Concept:
    """One entry of the thesaurus: `asks` are stemmed trigger phrases."""

    name: str
    asks: tuple[tuple[str, ...], ...]
    says: tuple[str, ...]


def plan(question: str, *, expand: bool = True) -> QueryPlan:
    """Split a question and expand its concepts."""
    context, content = split(question)
    names = _names(content)
    concepts = _concepts(content) if expand else ()
    wordings = tuple(wording for concept in concepts for wording in concept.says)
    route = " ".join(part for part in (context, *names) if part)
    return QueryPlan(content, route, _terms(content, names, wordings), wordings, tuple(c.name for c in concepts))


def split(question: str) -> tuple[str, str]:
    """(context, content): segments before the one that asks are context; ("", question) when only one asks."""
    segments = [segment.strip() for segment in _SEGMENT.split(question.strip()) if segment.strip()]
    asking = [i for i, segment in enumerate(segments) if segment.endswith("?") or _ASKS.match(segment)]
    if asking and len(segments) > 1:
        content = segments[asking[-1]]
        context = "; ".join(segment for i, segment in enumerate(segments) if i != asking[-1])
        return context, content
    lead = _LEAD.match(question.strip())
    return (lead["context"], question.strip()[lead.end() :]) if lead else ("", question.strip())


def _names(content: str) -> tuple[str, ...]:
    """Capitalised runs that do not open the question; single words of form ("Agreement") are no names."""
    found = [match for match in _NAME.finditer(content) if match.start() > 0]
    return tuple(match[0] for match in found if match[0].lower() not in _FORM and len(match[0]) > 2)


def _terms(content: str, names: tuple[str, ...], wordings: tuple[str, ...]) -> dict[str, float]:
    named = {word for name in names for word in words(name)}
    terms: dict[str, float] = {}
    for word in words(content):
        weight = FORM_WEIGHT if word in _FORM else NAME_WEIGHT if word in named else 1.0
        terms[word] = max(weight, terms.get(word, 0.0))
    for word in (word for wording in wordings for word in words(wording)):
        terms.setdefault(word, EXPANSION_WEIGHT)
    return terms


def _concepts(content: str) -> tuple[Concept, ...]:
    stems = [stem(word) for word in words(content)]
    return tuple(c for c in thesaurus() if any(_triggered(stems, phrase) for phrase in c.asks))


def _triggered(stems: list[str], phrase: tuple[str, ...]) -> bool:
    """Whether the words of `phrase` stand in `stems` in order, with small gaps."""
    starts = [i for i, word in enumerate(stems) if word == phrase[0]]
    return any(_follows(stems, start, phrase[1:]) for start in starts)


def _follows(stems: list[str], at: int, rest: tuple[str, ...]) -> bool:
    for word in rest:
        window = stems[at + 1 : at + 2 + MAX_TRIGGER_GAP]
        if word not in window:
            return False
        at += 1 + window.index(word)
    return True


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def stem(word: str) -> str:
    """A light stem, good enough to match a trigger: renewals, renewing and renewal are one."""
    word = word.replace("’", "'").removesuffix("'s")
    if len(word) > 4 and not word.endswith("ss"):
        word = word.removesuffix("s")
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word.removesuffix(suffix)
    return word


@cache
def thesaurus() -> tuple[Concept, ...]:
    """The concepts of thesaurus.toml, read once."""
    rows = tomllib.loads(resources.files("app.rag.retrieval").joinpath("thesaurus.toml").read_text("utf-8"))
    return tuple(Concept(name, tuple(map(_stems, row["asks"])), tuple(row["says"])) for name, row in rows.items())


def _stems(phrase: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in words(phrase))
