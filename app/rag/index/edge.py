"""The embedded adapter of VectorIndex: Qdrant Edge, the Qdrant engine inside this process.

Two shards in one folder, `chunks` and `documents`, so that routing statistics and passage statistics do not mix.
A folder belongs to one process at a time; replicas need a Qdrant server.
"""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import qdrant_edge as qe

from app.errors import ConfigurationError, Unavailable
from app.rag.index.base import DENSE, KINDS, SPARSE, FloatArray, Hit, IndexPoint, Kind, Legs, SearchFilter, StoredPoint
from app.rag.index.bm25 import Bm25

UPSERT_BATCH = 512
META = "index.json"  # which model's vectors a folder holds
_KEYWORDS = ("tenant", "labels", "document_id", "collection")
_SHOWN = ["tenant", "labels", "document_id", "version", "start", "end", "ordinal"]


class EdgeIndex:
    """Thread-safe: searches run side by side, updates one at a time."""

    def __init__(self, folder: Path, dimension: int, *, model: str = "") -> None:
        """Open or create the index in `folder`.

        Raises ConfigurationError when another process (or object) holds the folder, or when it was built with
        another embedding model or dimension.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.rejected_hits = 0  # points a filter let through that the second check refused; must stay 0
        self._writing = threading.Lock()
        self._lock_file = _own(folder)
        try:
            _check_meta(folder, {"dimension": dimension, "model": model})
            self._bm25 = Bm25()
            self._shards = {kind: _open(folder / f"{kind}s", dimension) for kind in KINDS}
        except BaseException:
            self._lock_file.close()
            raise
        self._closed = False

    @classmethod
    def existing(cls, folder: Path) -> "EdgeIndex":
        """The index that is in `folder`. Raises ConfigurationError where there is none, or another process has it."""
        if not (folder / META).exists():
            raise ConfigurationError(f"There is no index in {folder}.")
        built = json.loads((folder / META).read_text("utf-8"))
        return cls(folder, built["dimension"], model=built["model"])

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert or replace points by chunk_id; visible to searches on return."""
        self.store([self._bm25.stored(point) for point in points])

    def store(self, points: Sequence[StoredPoint]) -> None:
        """Points as `scan` of any adapter gives them."""
        for kind in KINDS:
            rows = [_point(point) for point in points if point.kind == kind]
            for first in range(0, len(rows), UPSERT_BATCH):
                self._update(kind, qe.UpdateOperation.upsert_points(rows[first : first + UPSERT_BATCH]))

    def delete_document(self, tenant: str, document_id: str, version: int | None = None) -> None:
        """Remove every point of a document, or of one version of it."""
        must = [_equals("tenant", tenant), _equals("document_id", document_id)]
        if version is not None:
            must.append(_equals("version", version))
        for kind in KINDS:
            self._update(kind, qe.UpdateOperation.delete_points_by_filter(qe.Filter(must=_conditions(must))))

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
        shard, visible = self._shard(kind), _filter(where)
        found = Legs()
        if dense is not None and limit > 0:
            vector = qe.Query.Nearest(dense.tolist(), using=DENSE)
            found = Legs(self._hits(shard, vector, visible, where, limit), found.sparse)
        if terms and limit > 0 and (words := self._sparse(kind, terms)).indices:
            corpus = qe.IdfParams(corpus=_filter(SearchFilter(where.tenant, where.atoms)))
            params = qe.SearchParams(idf=corpus)
            sparse = qe.Query.Nearest(words, using=SPARSE)
            found = Legs(found.dense, self._hits(shard, sparse, visible, where, limit, params))
        return found

    def coverage(self, chunk_ids: Sequence[str], terms: Mapping[str, float]) -> Mapping[str, float]:
        """For each chunk the share (0-1) of the weight of `terms` that occurs in it; ids must come from a search."""
        wanted = self._bm25.weights("chunk", terms)
        total = sum(wanted.values())
        if not total or not chunk_ids:
            return dict.fromkeys(chunk_ids, 0.0)
        records = self._shard("chunk").retrieve(list(chunk_ids), with_payload=False, with_vector=[SPARSE])
        found = {str(record.id): cast("dict[str, qe.SparseVector]", record.vector)[SPARSE] for record in records}
        return {
            chunk_id: sum(wanted.get(i, 0.0) for i in found[chunk_id].indices) / total if chunk_id in found else 0.0
            for chunk_id in chunk_ids
        }

    def count(self, tenant: str | None = None, document_id: str | None = None, *, kind: Kind | None = "chunk") -> int:
        """Exact number of points, of both kinds when `kind` is None."""
        given = (("tenant", tenant), ("document_id", document_id))
        must = [_equals(key, value) for key, value in given if value is not None]
        request = qe.CountRequest(filter=qe.Filter(must=_conditions(must)) if must else None, exact=True)
        kinds = list(KINDS) if kind is None else [kind]
        return sum(self._shard(each).count(request) for each in kinds)

    def scan(self, kind: Kind, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        """Points in the order of their ids, from `after` on, and where the next page starts (None: the end)."""
        request = qe.ScrollRequest(offset=after, limit=limit, with_payload=True, with_vector=True)
        rows, following = self._shard(kind).scroll(request)
        return [_stored(row, kind) for row in rows], str(following) if following is not None else None

    def optimize(self) -> None:
        """Merge segments and build indexes: about a second for a thousand new points on one core.

        The library holds the interpreter's lock meanwhile, so nothing else runs in this process: not while it serves.
        """
        with self._writing:
            for kind in KINDS:
                self._shard(kind).optimize()
                self._shard(kind).flush()

    def is_gone(self) -> bool:
        """Never: it is this process's own."""
        return False

    def renew(self) -> None:
        """Nothing: it was made when it was opened."""

    def close(self) -> None:
        """Flush and release the folder. Closing twice is allowed."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            for shard in self._shards.values():
                shard.flush()
                shard.close()
            self._lock_file.close()

    def _shard(self, kind: Kind) -> qe.EdgeShard:
        if self._closed:
            raise Unavailable("The document index is closed.")
        return self._shards[kind]

    def _update(self, kind: Kind, operation: qe.UpdateOperation) -> None:
        with self._writing:
            self._shard(kind).update(operation)

    def _sparse(self, kind: Kind, terms: Mapping[str, float]) -> qe.SparseVector:
        weights = self._bm25.weights(kind, terms)
        return qe.SparseVector(list(weights), list(weights.values()))

    def _hits(
        self,
        shard: qe.EdgeShard,
        query: qe.Query,
        visible: qe.Filter,
        where: SearchFilter,
        limit: int,
        params: qe.SearchParams | None = None,
    ) -> tuple[Hit, ...]:
        request = qe.QueryRequest(limit=limit, query=query, filter=visible, with_payload=_SHOWN, params=params)
        return tuple(self._allowed(shard.query(request), where))

    def _allowed(self, points: Sequence[qe.ScoredPoint], where: SearchFilter) -> Iterator[Hit]:
        """The second line of defence: rights are compared again, in Python, on what the engine returned."""
        for point in points:
            row = point.payload or {}
            if row.get("tenant") != where.tenant or not where.atoms.issuperset(row.get("labels", ("?",))):
                self.rejected_hits += 1
                continue
            yield Hit(
                str(point.id),
                row["document_id"],
                row["version"],
                row["start"],
                row["end"],
                row["ordinal"],
                point.score,
            )


def _point(point: StoredPoint) -> qe.Point:
    sparse = qe.SparseVector(list(point.indices), list(point.values))
    vectors: dict[str, Any] = {DENSE: point.dense.tolist(), SPARSE: sparse}
    return qe.Point(point.chunk_id, vectors, dict(point.payload))


def _stored(row: qe.Record, kind: Kind) -> StoredPoint:
    vectors = cast("dict[str, Any]", row.vector)
    sparse = vectors[SPARSE]
    return StoredPoint.of(str(row.id), kind, row.payload or {}, vectors[DENSE], sparse.indices, sparse.values)


def _own(folder: Path) -> IO[str]:
    """Hold the folder's lock for as long as the returned file is open; the kernel releases it when we die."""
    file = open(folder / "owner.lock", "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip() or "unknown"
        file.close()
        raise ConfigurationError(
            f"The index in {folder} is in use by process {owner}. An embedded index belongs to one process; "
            "run a Qdrant server to share one between replicas."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _check_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Vectors of different models cannot be compared: refuse to mix them in one folder."""
    path = folder / META
    if not path.exists():
        path.write_text(json.dumps(meta), "utf-8")
        return
    built = json.loads(path.read_text("utf-8"))
    if built != meta:
        raise ConfigurationError(
            f"The index in {folder} was built with {built['model']!r} ({built['dimension']} dimensions), not "
            f"{meta['model']!r} ({meta['dimension']}). Move it away and ingest again."
        )


def _open(path: Path, dimension: int) -> qe.EdgeShard:
    if (path / "segments").is_dir():
        with contextlib.suppress(OSError):
            return qe.EdgeShard.load(str(path))
        raise ConfigurationError(f"The index in {path} cannot be read.")
    path.mkdir(parents=True, exist_ok=True)
    config = qe.EdgeConfig(
        vectors={DENSE: qe.EdgeVectorParams(size=dimension, distance=qe.Distance.Cosine)},
        sparse_vectors={SPARSE: qe.EdgeSparseVectorParams(modifier=qe.Modifier.Idf)},
    )
    shard = qe.EdgeShard.create(str(path), config)
    for field in _KEYWORDS:
        params = qe.KeywordIndexParams(is_tenant=field == "tenant")
        shard.update(qe.UpdateOperation.create_field_index(field, params))
    shard.update(qe.UpdateOperation.create_field_index("version", qe.PayloadSchemaType.Integer))
    return shard


def _filter(where: SearchFilter) -> qe.Filter:
    """Tenant equal, and no label outside the caller's atoms: MatchExcept is true for a point that has any value
    not in the list, so its negation is exactly "labels ⊆ atoms", the empty label set included."""
    must = [_equals("tenant", where.tenant)]
    if where.collection is not None:
        must.append(_equals("collection", where.collection))
    if where.document_ids is not None:
        any_of = qe.MatchAny(list(where.document_ids))
        must.append(qe.FieldCondition("document_id", match=any_of))
    foreign = qe.FieldCondition("labels", match=qe.MatchExcept(sorted(where.atoms)))
    return qe.Filter(must=_conditions(must), must_not=[foreign])


def _equals(key: str, value: str | int) -> qe.FieldCondition:
    return qe.FieldCondition(key, match=qe.MatchValue(value))


def _conditions(fields: Sequence[qe.FieldCondition]) -> Any:
    """The same list, typed as qdrant_edge's stubs want it (their union is invariant and exists in stubs only)."""
    return list(fields)
