"""The nouns of the semantic cache: what is asked of it, what it keeps, what it says."""

import re
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

import numpy as np
import numpy.typing as npt

from app.gateway.cache.threshold import Threshold
from app.gateway.models import CachedAnswer

NEAREST = 8  # entries looked at
QUOTED_OR_NUMBER = re.compile(r'"[^"]*"|“[^”]*”|\[(\d+)\]')
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CachedSource:
    """A passage as evidence."""

    chunk: str
    document: str
    version: int

    def row(self) -> list[str | int]:
        return [self.chunk, self.document, self.version]


@dataclass(frozen=True, eq=False)
class CacheQuery:
    """A question and what was found for it. vector: of unit length.  slots: what must be equal.  scope: everything
    else that the answer depends on (prompt, filters, sampling).  evidence: passages as they are numbered now."""

    question: str
    vector: Vector
    slots: frozenset[str]
    scope: str
    evidence: tuple[CachedSource, ...]


@dataclass(frozen=True)
class Checked:
    """A fresh answer that is complete, and whose every quote was verified. `cited`: what it quotes."""

    text: str
    cited: frozenset[CachedSource]
    target: str
    cost_micros: int
    total_ms: float
    completion_tokens: int


@dataclass(frozen=True, eq=False)
class Kept:
    """An answer that was complete and checked. since, until: seconds since 1970."""

    id: UUID
    question: str
    vector: Vector
    slots: frozenset[str]
    evidence: tuple[CachedSource, ...]
    cited: frozenset[CachedSource]
    text: str
    target: str
    since: float
    until: float

    @classmethod
    def of(cls, row: CachedAnswer) -> "Kept":
        return cls(
            id=row.id,
            question=row.question,
            vector=np.frombuffer(row.vector, np.float32),
            slots=frozenset(row.slots),
            evidence=tuple(CachedSource(*source) for source in row.evidence),
            cited=frozenset(CachedSource(*source) for source in row.cited),
            text=row.answer,
            target=row.target,
            since=row.created_at.timestamp(),
            until=row.until.timestamp(),
        )

    def asks(self, question: str) -> bool:
        """Whether it is the same question but for case, white space and the mark at its end."""
        return normal(self.question) == normal(question)

    def as_numbered_in(self, evidence: tuple[CachedSource, ...]) -> str:
        """Its text with citations renumbered; what stands in quotation marks stays as it is."""
        place = {source: number for number, source in enumerate(evidence, start=1)}

        def renumber(match: re.Match[str]) -> str:
            number = int(match[1]) if match[1] else 0
            found = place.get(self.evidence[number - 1]) if 1 <= number <= len(self.evidence) else None
            return f"[{found}]" if found else match[0]

        return QUOTED_OR_NUMBER.sub(renumber, self.text)


@dataclass(frozen=True)
class Lookup:
    """What came of a question. `text`: the kept answer, renumbered. `similarity`: to the entry in question."""

    outcome: Literal["hit", "draft", "miss"]
    reason: str
    partition: str
    similarity: float = 0.0
    text: str = ""
    entry: Kept | None = None


@dataclass
class Partition:
    """The entries of one partition, and how alike questions must be there."""

    read_at: float
    entries: list[Kept]
    threshold: Threshold

    def nearest(self, vector: Vector) -> list[tuple[float, Kept]]:
        if not self.entries:
            return []
        found = np.stack([entry.vector for entry in self.entries]) @ vector
        return [(float(found[i]), self.entries[i]) for i in np.argsort(-found)[:NEAREST]]


def normal(question: str) -> str:
    return " ".join(question.casefold().split()).rstrip(" ?.!")
