"""Pure arithmetic between what the index found and what is shown: fusion, agreement, neighbours, routing."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from app.rag.index.base import Hit, Legs

DENSE_WEIGHT = 0.4  # against lexical; both are scaled to 0-1 over the candidates of one search
NEIGHBOUR_WEIGHT = 0.1  # a clause cut in two: half of a good neighbour is likely good as well
ROUTE_WEIGHT = 1.5
ROUTE_SHARPNESS = 4.0  # relevance 0.8 of the best document's earns 0.41 of its bonus
ROUTE_FLOOR = 0.5  # of the best document's relevance; below it a document is not routed to
ROUTE_DENSE_WEIGHT = 0.3
CROWDED_FLOOR = 0.85  # the same where more than MAX_ROUTED pass the first
MAX_ROUTED = 8  # more equally good documents than this means that the question names none


@dataclass(frozen=True, slots=True)
class Candidate:
    """A hit with its scores: dense (cosine) and lexical (BM25) as the index gave them, route and fused 0-1;
    score = fused + neighbour + bonus of the route."""

    hit: Hit
    dense: float
    lexical: float
    route: float = 0.0
    score: float = 0.0
    fused: float = 0.0
    neighbour: float = 0.0


def route(legs: Legs) -> dict[str, float]:
    """document_id → relevance in 0-1 for the documents a question plausibly names; empty when it names none."""
    lexical = _scaled({hit.document_id: hit.score for hit in reversed(legs.sparse)}, from_zero=True)
    dense = _scaled({hit.document_id: hit.score for hit in reversed(legs.dense)}, from_zero=False)
    if not lexical:
        return {}
    mixed = {
        document: (1 - ROUTE_DENSE_WEIGHT) * lexical.get(document, 0.0) + ROUTE_DENSE_WEIGHT * dense.get(document, 0.0)
        for document in lexical.keys() | dense.keys()
    }
    best = max(mixed.values())
    for floor in (ROUTE_FLOOR, CROWDED_FLOOR):
        kept = {document: value / best for document, value in mixed.items() if value >= floor * best}
        if len(kept) <= MAX_ROUTED:
            return kept
    return {}


def decisive(routed: Mapping[str, float]) -> bool:
    """Whether one document stands out so far that a global search beside it could only add noise."""
    values = sorted(routed.values(), reverse=True)
    return len(values) == 1 or (len(values) > 1 and values[1] < 0.7)


def gather(legs: Iterable[Legs], routed: Mapping[str, float]) -> list[Candidate]:
    """One candidate per chunk; a leg that did not return a chunk counts as the lowest score it returned."""
    dense: dict[str, float] = {}
    lexical: dict[str, float] = {}
    hits: dict[str, Hit] = {}
    for leg in legs:
        for scores, found in ((dense, leg.dense), (lexical, leg.sparse)):
            for hit in found:
                scores[hit.chunk_id] = hit.score
                hits[hit.chunk_id] = hit
    floor = min(dense.values(), default=0.0)
    return [
        Candidate(hit, dense.get(key, floor), lexical.get(key, 0.0), routed.get(hit.document_id, 0.0))
        for key, hit in hits.items()
    ]


def rank(candidates: list[Candidate]) -> list[Candidate]:
    """Best first, ties by position, so that equal input gives equal output."""
    dense = _scaled({c.hit.chunk_id: c.dense for c in candidates}, from_zero=False)
    lexical = _scaled({c.hit.chunk_id: c.lexical for c in candidates}, from_zero=True)
    agreed = {
        c.hit.chunk_id: DENSE_WEIGHT * dense[c.hit.chunk_id] + (1 - DENSE_WEIGHT) * lexical[c.hit.chunk_id]
        for c in candidates
    }
    places = {(c.hit.document_id, c.hit.version, c.hit.ordinal): agreed[c.hit.chunk_id] for c in candidates}
    scored = []
    for c in candidates:
        fused, near = agreed[c.hit.chunk_id], _support(c, places)
        scored.append(Candidate(c.hit, c.dense, c.lexical, c.route, fused + near + _bonus(c.route), fused, near))
    return sorted(scored, key=lambda c: (-c.score, c.hit.document_id, c.hit.ordinal))


def _support(candidate: Candidate, places: Mapping[tuple[str, int, int], float]) -> float:
    hit = candidate.hit
    near = (places.get((hit.document_id, hit.version, hit.ordinal + step), 0.0) for step in (-1, 1))
    return NEIGHBOUR_WEIGHT * max(near)


def _bonus(relevance: float) -> float:
    return ROUTE_WEIGHT * math.pow(relevance, ROUTE_SHARPNESS)


def _scaled(scores: Mapping[str, float], *, from_zero: bool) -> dict[str, float]:
    """Scores as fractions of their range; all equal means all 1."""
    if not scores:
        return {}
    low, high = (0.0 if from_zero else min(scores.values())), max(scores.values())
    return {key: (value - low) / (high - low) if high > low else 1.0 for key, value in scores.items()}
