"""The server adapter of VectorIndex: a Qdrant server, shared by replicas and workers.

One collection for each embedding model, chunks and documents told apart by `kind`. Sparse vectors are made here, by the
same BM25 as the embedded adapter's, so that scores agree. Legs are separate requests of one batch, each with the whole
access filter: fusing is the retriever's business, so that nothing of another tenant can be fused before it is filtered.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from app.errors import ConfigurationError, Unavailable
from app.rag.index.base import DENSE, SPARSE, FloatArray, Hit, IndexPoint, Kind, Legs, SearchFilter, StoredPoint
from app.rag.index.bm25 import Bm25

UPSERT_BATCH = 256
OVERSAMPLING = 2.0  # int8 candidates fetched for each hit, then compared exactly
_KEYWORDS = ("tenant", "labels", "document_id", "collection", "kind")
_SHOWN = ["tenant", "labels", "document_id", "version", "start", "end", "ordinal"]
_PAYLOAD = [*_SHOWN, "collection"]


class QdrantIndex:
    """Thread-safe; every write waits until searches see it."""

    def __init__(
        self, url: str, dimension: int, *, model: str = "", api_key: str = "", timeout_seconds: float = 10.0
    ) -> None:
        """Connect, and create the collection where it is missing.

        Raises Unavailable when the server does not answer, ConfigurationError when it refuses the key or holds the
        collection with another dimension.
        """
        self.rejected_hits = 0  # points a filter let through that the second check refused; must stay 0
        self.collection = collection_name(model, dimension)
        self._bm25 = Bm25()
        self._closed = False
        self._counting = threading.Lock()
        self._dimension = dimension
        self._client = QdrantClient(
            url=url, api_key=api_key or None, timeout=max(1, round(timeout_seconds)), check_compatibility=False
        )
        self.renew()
        with _calling():
            self._require(dimension)

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert or replace points by chunk_id; visible to searches on return."""
        self.store([self._bm25.stored(point) for point in points])

    def store(self, points: Sequence[StoredPoint]) -> None:
        """Points as `scan` of any adapter gives them."""
        self._require_open()
        rows = [_struct(point) for point in points]
        with _calling():
            for first in range(0, len(rows), UPSERT_BATCH):
                self._client.upsert(self.collection, rows[first : first + UPSERT_BATCH], wait=True)

    def delete_document(self, tenant: str, document_id: str, version: int | None = None) -> None:
        """Remove every point of a document, or of one version of it."""
        self._require_open()
        must = [_equals("tenant", tenant), _equals("document_id", document_id)]
        if version is not None:
            must.append(_equals("version", version))
        with _calling():
            selector = qm.FilterSelector(filter=qm.Filter(must=_any(must)))
            self._client.delete(self.collection, selector, wait=True)

    def search(
        self,
        dense: FloatArray | None,
        terms: Mapping[str, float] | None,
        where: SearchFilter,
        limit: int,
        *,
        kind: Kind = "chunk",
    ) -> Legs:
        """Up to `limit` hits per leg; the access filter is part of each leg, statistics are the tenant's own."""
        self._require_open()
        asked: dict[str, qm.QueryRequest] = {}
        if dense is not None and limit > 0:
            asked[DENSE] = _request(dense.tolist(), DENSE, where, kind, limit, _DENSE_PARAMS)
        weights = self._bm25.weights(kind, terms or {})
        if weights and limit > 0:
            words = qm.SparseVector(indices=list(weights), values=list(weights.values()))
            corpus = _filter(SearchFilter(where.tenant, where.atoms), kind)
            params = qm.SearchParams(idf=qm.IdfCorpusParams(corpus=corpus))
            asked[SPARSE] = _request(words, SPARSE, where, kind, limit, params)
        if not asked:
            return Legs()
        with _calling():
            answers = self._client.query_batch_points(self.collection, list(asked.values()))
        found = {name: self._allowed(answer.points, where) for name, answer in zip(asked, answers, strict=True)}
        return Legs(found.get(DENSE, ()), found.get(SPARSE, ()))

    def coverage(self, chunk_ids: Sequence[str], terms: Mapping[str, float]) -> Mapping[str, float]:
        """For each chunk the share (0-1) of the weight of `terms` that occurs in it; ids must come from a search."""
        self._require_open()
        wanted = self._bm25.weights("chunk", terms)
        if not wanted or not chunk_ids:
            return dict.fromkeys(chunk_ids, 0.0)
        with _calling():
            rows = self._client.retrieve(self.collection, list(chunk_ids), with_payload=False, with_vectors=[SPARSE])
        found = {str(row.id): _sparse_of(row).indices for row in rows}
        total = sum(wanted.values())
        return {name: sum(wanted.get(i, 0.0) for i in found.get(name, ())) / total for name in chunk_ids}

    def count(self, tenant: str | None = None, document_id: str | None = None, *, kind: Kind | None = "chunk") -> int:
        """Exact number of points, of both kinds when `kind` is None."""
        self._require_open()
        given = (("tenant", tenant), ("document_id", document_id), ("kind", kind))
        must = [_equals(key, value) for key, value in given if value is not None]
        with _calling():
            return self._client.count(self.collection, qm.Filter(must=_any(must)) if must else None, exact=True).count

    def scan(self, kind: Kind, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        """Points in the order of their ids, from `after` on, and where the next page starts (None: the end)."""
        self._require_open()
        with _calling():
            rows, following = self._client.scroll(
                self.collection,
                scroll_filter=qm.Filter(must=_any([_equals("kind", kind)])),
                limit=limit,
                offset=after,
                with_payload=_PAYLOAD,
                with_vectors=True,
            )
        return [_stored(row, kind) for row in rows], str(following) if following is not None else None

    def optimize(self) -> None:
        """Nothing: a server optimizes by itself."""

    def snapshot(self) -> str:
        """Make a snapshot of the collection on the server; returns its name there."""
        self._require_open()
        with _calling():
            made = self._client.create_snapshot(self.collection, wait=True)
        return made.name if made else ""

    def is_gone(self) -> bool:
        """A server that lost its disk comes back without the collection."""
        self._require_open()
        with _calling():
            return not self._client.collection_exists(self.collection)

    def renew(self) -> None:
        """Make the collection, and its payload indexes, where they are missing.

        Replicas that start at once all find it missing: one makes it, and whoever was second finds it made. Indexes are
        asked for every time, since the one that made the collection may have died before it came to them.
        """
        with _calling():
            if not self._client.collection_exists(self.collection):
                self._create(self._dimension)
            self._index_payload()

    def close(self) -> None:
        """Disconnect. Closing twice is allowed."""
        self._closed = True
        self._client.close()

    def _require_open(self) -> None:
        if self._closed:
            raise Unavailable("The document index is closed.")

    def _create(self, dimension: int) -> None:
        int8 = qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, quantile=0.99, always_ram=True)
        try:
            self._client.create_collection(
                self.collection,
                vectors_config={DENSE: qm.VectorParams(size=dimension, distance=qm.Distance.COSINE)},
                sparse_vectors_config={SPARSE: qm.SparseVectorParams(modifier=qm.Modifier.IDF)},
                quantization_config=qm.ScalarQuantization(scalar=int8),
            )
        except UnexpectedResponse:
            if not self._client.collection_exists(self.collection):
                raise

    def _index_payload(self) -> None:
        for field in _KEYWORDS:
            schema = qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, is_tenant=field == "tenant")
            self._client.create_payload_index(self.collection, field, schema, wait=True)
        self._client.create_payload_index(self.collection, "version", qm.PayloadSchemaType.INTEGER, wait=True)

    def _require(self, dimension: int) -> None:
        vectors = self._client.get_collection(self.collection).config.params.vectors
        params = vectors.get(DENSE) if isinstance(vectors, dict) else None
        if params is None or params.size != dimension:
            raise ConfigurationError(f"The collection {self.collection!r} was not made by Precedent for this model.")

    def _allowed(self, points: Sequence[qm.ScoredPoint], where: SearchFilter) -> tuple[Hit, ...]:
        """The second line of defence: rights are compared again, here, on what the server returned."""
        hits = []
        for point in points:
            row = point.payload or {}
            if row.get("tenant") != where.tenant or not where.atoms.issuperset(row.get("labels", ("?",))):
                with self._counting:
                    self.rejected_hits += 1
                continue
            place = (row["document_id"], row["version"], row["start"], row["end"], row["ordinal"])
            hits.append(Hit(str(point.id), *place, point.score))
        return tuple(hits)


def collection_name(model: str, dimension: int) -> str:
    """Vectors of different models cannot be compared: each has a collection of its own."""
    return f"precedent-{re.sub(r'[^a-z0-9]+', '-', model.lower()).strip('-') or 'default'}-{dimension}"


_DENSE_PARAMS = qm.SearchParams(quantization=qm.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING))


@contextmanager
def _calling() -> Iterator[None]:
    """The client's exceptions in our tree."""
    try:
        yield
    except UnexpectedResponse as error:
        if error.status_code in (401, 403):
            raise ConfigurationError("The Qdrant server refuses the key in rag.qdrant_api_key.") from error
        raise Unavailable(f"The Qdrant server answers {error.status_code}.") from error
    except (ResponseHandlingException, ApiException) as error:
        raise Unavailable("The Qdrant server does not answer.") from error


def _request(
    query: Any, using: str, where: SearchFilter, kind: Kind, limit: int, params: qm.SearchParams
) -> qm.QueryRequest:
    visible = _filter(where, kind)
    return qm.QueryRequest(query=query, using=using, filter=visible, params=params, limit=limit, with_payload=_SHOWN)


def _filter(where: SearchFilter, kind: Kind) -> qm.Filter:
    """As in `edge`: no label outside the caller's atoms. MatchExcept is true for a point that has any other value."""
    must = [_equals("tenant", where.tenant), _equals("kind", kind)]
    if where.collection is not None:
        must.append(_equals("collection", where.collection))
    if where.document_ids is not None:
        must.append(qm.FieldCondition(key="document_id", match=qm.MatchAny(any=list(where.document_ids))))
    foreign = qm.FieldCondition(key="labels", match=qm.MatchExcept(**{"except": sorted(where.atoms)}))
    return qm.Filter(must=_any(must), must_not=_any([foreign]))


def _equals(key: str, value: str | int) -> qm.FieldCondition:
    return qm.FieldCondition(key=key, match=qm.MatchValue(value=value))


def _any(conditions: Sequence[qm.FieldCondition]) -> Any:
    """The same list, typed as the client wants it (a union that is invariant)."""
    return list(conditions)


def _struct(point: StoredPoint) -> qm.PointStruct:
    sparse = qm.SparseVector(indices=list(point.indices), values=list(point.values))
    vectors: dict[str, Any] = {DENSE: point.dense.tolist(), SPARSE: sparse}
    return qm.PointStruct(id=point.chunk_id, vector=vectors, payload={**point.payload, "kind": point.kind})


def _stored(row: qm.Record, kind: Kind) -> StoredPoint:
    vectors, sparse = cast("dict[str, Any]", row.vector), _sparse_of(row)
    payload = {key: value for key, value in (row.payload or {}).items() if key != "kind"}
    return StoredPoint.of(str(row.id), kind, payload, vectors[DENSE], sparse.indices, sparse.values)


def _sparse_of(row: qm.Record) -> qm.SparseVector:
    vectors = cast("dict[str, Any]", row.vector or {})
    return cast(qm.SparseVector, vectors.get(SPARSE) or qm.SparseVector(indices=[], values=[]))
