"""What a search can be narrowed to by what documents say about themselves, and how it explains itself."""

from collections.abc import Sequence
from datetime import date
from typing import Annotated
from uuid import UUID

from msgspec import Meta, Struct

from app.rag.documents.filters import FactFilter
from app.rag.retrieval.retriever import Decision
from app.rag.retrieval.search import Dropped


class FactConditions(Struct, forbid_unknown_fields=True):
    """Documents whose current version says all of this about itself; see MetadataView."""

    parties: Annotated[list[str], Meta(max_length=10)] = []
    governing_law: str | None = None
    document_type: str | None = None
    effective_from: date | None = None
    effective_to: date | None = None
    expires_from: date | None = None
    expires_to: date | None = None

    def filter(self) -> FactFilter:
        return FactFilter(
            tuple(self.parties),
            self.governing_law,
            self.document_type,
            self.effective_from,
            self.effective_to,
            self.expires_from,
            self.expires_to,
        )


class RoutedView(Struct):
    document_id: UUID
    relevance: float


class DroppedView(Struct):
    document_id: UUID
    version: int
    chunk_id: str
    reason: str


class ExplainView(Struct):
    """`question` and `names` are what the query was taken to ask, and of which documents; `wordings` is the clause
    language that the thesaurus added for `concepts`. `searched`: inside the routed documents, in all, or both. Of
    `candidates` the best became passages, whose `scores` say why; `dropped` are hits in older versions."""

    question: str
    names: str
    concepts: list[str]
    wordings: list[str]
    terms: dict[str, float]
    routed: list[RoutedView]
    searched: str
    candidates: int
    dropped: list[DroppedView]

    @classmethod
    def of(cls, decision: Decision, dropped: Sequence[Dropped]) -> "ExplainView":
        plan = decision.plan
        ranked = sorted(decision.routed.items(), key=lambda item: -item[1])
        return cls(
            question=plan.content,
            names=plan.route,
            concepts=list(plan.concepts),
            wordings=list(plan.wordings),
            terms=dict(plan.terms),
            routed=[RoutedView(UUID(document), relevance) for document, relevance in ranked],
            searched=decision.scope,
            candidates=decision.candidates,
            dropped=[
                DroppedView(UUID(one.passage.document_id), one.passage.version, one.passage.chunk_id, one.reason)
                for one in dropped
            ],
        )
