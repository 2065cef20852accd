"""A question under the caller's rights → passages with scores, timings and a confidence."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from app.rag.index.base import FloatArray, Legs, SearchFilter, VectorIndex
from app.rag.index.embedding import Embedder
from app.rag.retrieval.query import QueryPlan, plan, words
from app.rag.retrieval.ranking import Candidate, decisive, gather, rank, route

CANDIDATES = 200  # per leg; a contract of 80,000 characters is then ranked as a whole
ROUTE_CANDIDATES = 32
WORDING_CACHE = 4096  # vectors of thesaurus wordings, 1.5 kB each with MiniLM
CONFIDENCE_FROM = 3  # best passages whose features are used

# Logistic weights fitted on 2,632 (contract, question) pairs of half of the development contracts, a quarter of
# them answerable; AUC 0.852 and Brier score 0.128 on the other half (MiniLM, benchmarks/RESULTS.md).
CALIBRATION: Mapping[str, float] = {"dense": 2.61, "coverage": 0.86, "wording": 4.46}
BIAS = -4.36


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """`atoms` are the access atoms the caller holds; `text` is the question as asked."""

    tenant: str
    atoms: frozenset[str]
    text: str
    k: int = 8
    collection: str | None = None
    document_ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A character range of one document version. `score` orders the list; `scores` says why: dense (cosine),
    lexical (BM25), route (0-1, how clearly the question names this document), fused (0-1, both legs together),
    neighbour (what a good chunk beside it adds), and reranked (0-1) where a cross-encoder read it."""

    document_id: str
    version: int
    chunk_id: str
    start: int
    end: int
    score: float
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """How a search went: what the question was taken to ask, and the documents (relevance 0-1) it was taken to name.
    `scope` is "routed", "routed and all" or "all"; of `candidates` the best became passages."""

    plan: QueryPlan
    routed: Mapping[str, float]
    scope: str
    candidates: int


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`confidence` in 0-1: how likely the passages hold an answer at all. `timings_ms`: embed, search, rerank.
    `vector`: of the question as it was asked, of unit length."""

    passages: tuple[Passage, ...]
    confidence: float
    timings_ms: Mapping[str, float]
    decision: Decision
    vector: FloatArray
    features: Mapping[str, float] = field(default_factory=dict)  # what the confidence was computed from


class Retriever:
    """Routes to documents, searches inside, fuses and reranks. Blocking; thread-safe."""

    def __init__(self, index: VectorIndex, embedder: Embedder, *, expand: bool = True) -> None:
        """`expand` adds the wording of the legal thesaurus to the question."""
        self._index = index
        self._embedder = embedder
        self._expand = expand
        self._wordings: dict[str, FloatArray] = {}
        self._lock = threading.Lock()

    def search(self, query: SearchQuery) -> SearchResult:
        """The best `query.k` passages the caller may see; fewer when there are fewer."""
        began = perf_counter()
        asked = plan(query.text, expand=self._expand)
        question, named = self._embed(asked)
        content = self._expected(question, asked)
        embedded = perf_counter()
        where = SearchFilter(query.tenant, query.atoms, query.collection, query.document_ids)
        routed = self._route(asked, named, where)
        legs = self._legs(asked, content, where, routed, max(CANDIDATES, query.k))
        searched = perf_counter()
        candidates = gather(legs, routed)
        ranked = rank(candidates)[: query.k]
        features = self._features(asked, ranked)
        timings = {
            "embed": (embedded - began) * 1e3,
            "search": (searched - embedded) * 1e3,
            "rerank": (perf_counter() - searched) * 1e3,
        }
        scope = "all" if not routed else "routed" if decisive(routed) else "routed and all"
        decision = Decision(asked, routed, scope, len(candidates))
        return SearchResult(tuple(map(_passage, ranked)), confidence(features), timings, decision, question, features)

    def _embed(self, asked: QueryPlan) -> tuple[FloatArray, FloatArray | None]:
        """The question's vector and the document name's."""
        vectors = self._embedder.embed_queries([asked.content, asked.route] if asked.route else [asked.content])
        return vectors[0], vectors[1] if asked.route else None

    def _expected(self, question: FloatArray, asked: QueryPlan) -> FloatArray:
        """The question's vector, moved halfway to the clause wording it expects."""
        if not asked.wordings:
            return question
        return _unit(question + _unit(self._wording_vectors(asked.wordings).mean(axis=0)))

    def _wording_vectors(self, wordings: Sequence[str]) -> FloatArray:
        with self._lock:
            missing = [wording for wording in wordings if wording not in self._wordings]
            if missing:
                if len(self._wordings) > WORDING_CACHE:
                    self._wordings.clear()
                    missing = list(wordings)
                self._wordings.update(zip(missing, self._embedder.embed(missing), strict=True))
            return np.stack([self._wordings[wording] for wording in wordings])

    def _route(self, asked: QueryPlan, named: FloatArray | None, where: SearchFilter) -> dict[str, float]:
        if named is None or (where.document_ids is not None and len(where.document_ids) == 1):
            return {}
        terms = dict.fromkeys(words(asked.route), 1.0)
        return route(self._index.search(named, terms, where, ROUTE_CANDIDATES, kind="document"))

    def _legs(
        self, asked: QueryPlan, content: FloatArray, where: SearchFilter, routed: Mapping[str, float], limit: int
    ) -> list[Legs]:
        """Inside the routed documents, and globally unless the routing is beyond doubt."""
        legs = []
        if routed:
            inside = SearchFilter(where.tenant, where.atoms, where.collection, tuple(routed))
            legs.append(self._index.search(content, asked.terms, inside, limit))
        if not routed or not decisive(routed):
            legs.append(self._index.search(content, asked.terms, where, limit))
        return legs

    def _features(self, asked: QueryPlan, ranked: Sequence[Candidate]) -> dict[str, float]:
        if not ranked:
            return {}
        top = ranked[:CONFIDENCE_FROM]
        ids = [c.hit.chunk_id for c in top]
        own = {word: weight for word, weight in asked.terms.items() if weight == 1.0}
        return {
            "dense": max(c.dense for c in top),
            "coverage": max(self._index.coverage(ids, own or asked.terms).values()),
            "wording": max(self._index.coverage(ids, asked.terms).values()),
        }


def confidence(features: Mapping[str, float]) -> float:
    """Probability that an answer is in the passages: dense (cosine), coverage (share of the question's own words
    found) and wording (share of all weighted words found) of the best passages, in a logistic model."""
    if not features:
        return 0.0
    return 1 / (1 + math.exp(-BIAS - sum(weight * features[name] for name, weight in CALIBRATION.items())))


def _passage(candidate: Candidate) -> Passage:
    hit = candidate.hit
    scores = {
        "dense": candidate.dense,
        "lexical": candidate.lexical,
        "route": candidate.route,
        "fused": candidate.fused,
        "neighbour": candidate.neighbour,
    }
    return Passage(hit.document_id, hit.version, hit.chunk_id, hit.start, hit.end, candidate.score, scores)


def _unit(vector: FloatArray) -> FloatArray:
    norm = float(np.linalg.norm(vector))
    return (vector / norm if norm else vector).astype(np.float32)
