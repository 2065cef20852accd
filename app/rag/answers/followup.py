"""A follow-up question made to stand on its own, by rules that can be told to whoever asked.

Nothing is guessed: what is carried over is the document that the last answer quoted and the words of the last
question, and only where the new question points back or says too little by itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.rag.retrieval.query import plan, words

MIN_CONTENT_WORDS = 2  # fewer of its own, and a question says too little
MAX_TOPIC_WORDS = 8

_POINTS = re.compile(
    r"(?i)\b(it|its|itself|they|them|their|theirs|this|that|these|those|he|she|his|her|the same|such|said|thereof|"
    r"therein|thereunder|there|the (?:former|latter|other)|above|aforementioned|that one|the (?:agreement|contract|"
    r"document|lease|clause|provision|section|parties|party))\b"
)
_THAT_CLAUSE = re.compile(r"(?i)\b(?:is it|that the|there (?:is|are|any|a)|is there|are there)\b")
_GOES_ON = re.compile(r"(?i)^\W*(and|but|or|also|what about|how about|then|so|what if|why|why not|how so|really|for)\b")
_ELSEWHERE = re.compile(
    r"(?i)\b(?:another|other|different|all (?:the |my |our )?|any|every|each|which) (?:\w+ )?"
    r"(?:agreements?|contracts?|documents?|leases?)\b"
)
_EMPTY_WORDS = """
    a an the and or but of to in on at by for from with about into as is are was were be been being do does did has
    have had can could may might must shall should will would what which who whom whose when where why how much many
    long often any some all it its they them their this that these those he she his her we you i us our your there
    here not no yes if then so also only just please tell me say says state same such said former latter one ones other
    another else more again happens happen mean means apply applies agreement contract document lease clause provision
    section party parties
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())


@dataclass(frozen=True)
class Before:
    """The last turn: its question as it was searched for, and the document its answer quoted, if it was one."""

    question: str
    document: str | None
    topic: tuple[str, ...] = ()


@dataclass(frozen=True)
class FollowUp:
    """`question` stands on its own. `because`: the rule that applied; empty where nothing was changed."""

    question: str
    because: str = ""
    document: str | None = None
    topic: tuple[str, ...] = ()


def rewrite(question: str, before: Before | None) -> FollowUp:
    """The question with what it leaves out."""
    own = content_words(question)
    if before is None:
        return FollowUp(question)
    short = len(own) < MIN_CONTENT_WORDS
    goes_on = bool(_GOES_ON.search(question)) and len(own) <= MIN_CONTENT_WORDS + 1
    points = _points_back(question)
    document = before.document if (short or goes_on or points) and not _names_a_document(question) else None
    topic = _topic(before, own) if short or goes_on else ()
    if not document and not topic:
        return FollowUp(question)
    reasons = [
        f"it points back ({points!r})" if points else "",
        "it goes on from the question before" if goes_on else "",
        "it says too little by itself" if short else "",
    ]
    return FollowUp(_put(question, document, topic), "; ".join(filter(None, reasons)), document, topic)


def content_words(text: str) -> tuple[str, ...]:
    """Its words that say something, each once, in order."""
    return tuple(dict.fromkeys(word for word in words(text) if word not in _EMPTY and len(word) > 1))


def _topic(before: Before, own: Sequence[str]) -> tuple[str, ...]:
    """What the question before was about, without what the new one says itself."""
    earlier = before.topic + tuple(w for w in content_words(plan(before.question).content) if w not in before.topic)
    return tuple(word for word in earlier if word not in own)[:MAX_TOPIC_WORDS]


def _points_back(question: str) -> str:
    found = _POINTS.search(_THAT_CLAUSE.sub(" ", question))
    return found[0].lower() if found else ""


def _names_a_document(question: str) -> bool:
    return bool(plan(question).route) or bool(_ELSEWHERE.search(question))


def _put(question: str, document: str | None, topic: Sequence[str]) -> str:
    """In the form that `query.split` understands: context first, then what is asked."""
    context = f"Consider {document.rstrip('.;?! ')}; " if document else ""
    about = f"Regarding {' '.join(topic)}: " if topic else ""
    return context + about + question.strip()
