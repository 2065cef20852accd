"""The vector index as the rest of rag sees it: nouns and one Protocol; `edge` and `qdrant` are its adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Kind = Literal["chunk", "document"]
KINDS: tuple[Kind, ...] = ("chunk", "document")
DENSE, SPARSE = "dense", "bm25"  # names of a point's two vectors


@dataclass(frozen=True, slots=True, eq=False)
class IndexPoint:
    """One searchable unit. `dense` is a unit vector; `text` is what BM25 indexes (context prefix included) and
    is not stored. `kind` "document" points carry title, parties and opening lines and serve routing only."""

    chunk_id: str  # UUID text; stable for (document, version, kind, ordinal)
    tenant: str
    document_id: str
    version: int
    collection: str
    labels: tuple[str, ...]  # access atoms; the caller must hold all of them, () is the whole tenant
    start: int
    end: int
    ordinal: int
    dense: FloatArray
    text: str
    kind: Kind = "chunk"


@dataclass(frozen=True, slots=True, eq=False)
class StoredPoint:
    """A point as an index keeps it, and as one hands it to another: sparse vector instead of text."""

    chunk_id: str
    kind: Kind
    payload: Mapping[str, Any]  # every other field of IndexPoint but dense and text
    dense: FloatArray
    indices: tuple[int, ...]
    values: tuple[float, ...]

    @classmethod
    def of(
        cls,
        chunk_id: str,
        kind: Kind,
        payload: Mapping[str, Any],
        dense: Sequence[float],
        indices: Sequence[int],
        values: Sequence[float],
    ) -> "StoredPoint":
        vector = np.asarray(dense, dtype=np.float32)
        return cls(chunk_id, kind, payload, vector, tuple(indices), tuple(values))


@dataclass(frozen=True, slots=True)
class SearchFilter:
    """Whose eyes: applied inside every leg of every search. `atoms` are the access atoms the caller holds."""

    tenant: str
    atoms: frozenset[str]
    collection: str | None = None
    document_ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One point of a leg, best first. `score` is cosine for the dense leg and BM25 for the sparse leg."""

    chunk_id: str
    document_id: str
    version: int
    start: int
    end: int
    ordinal: int
    score: float


@dataclass(frozen=True, slots=True)
class Legs:
    """What each leg found, separately; fusing them is the retriever's business."""

    dense: tuple[Hit, ...] = field(default=())
    sparse: tuple[Hit, ...] = field(default=())


class VectorIndex(Protocol):
    """Upserts, deletions and filtered hybrid search. Methods block: call them through `asyncio.to_thread`."""

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert or replace points by chunk_id; visible to searches on return."""

    def delete_document(self, tenant: str, document_id: str, version: int | None = None) -> None:
        """Remove every point of a document, or of one version of it."""

    def search(
        self,
        dense: FloatArray | None,
        terms: Mapping[str, float] | None,
        where: SearchFilter,
        limit: int,
        *,
        kind: Kind = "chunk",
    ) -> Legs:
        """Up to `limit` hits per leg; a leg whose query is None stays empty. `terms` are words with weights."""

    def coverage(self, chunk_ids: Sequence[str], terms: Mapping[str, float]) -> Mapping[str, float]:
        """For each chunk the share (0-1) of the weight of `terms` that occurs in it. Not filtered by rights: pass
        only ids that a search of the same caller returned."""

    def count(self, tenant: str | None = None, document_id: str | None = None, *, kind: Kind | None = "chunk") -> int:
        """Exact number of points."""

    def scan(self, kind: Kind, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        """Points in the order of their ids, from `after` on, and where the next page starts (None: the end)."""

    def store(self, points: Sequence[StoredPoint]) -> None:
        """Insert or replace points as `scan` of any adapter gives them."""

    def optimize(self) -> None:
        """Merge segments and build indexes; the caller decides when (after an ingestion)."""

    def is_gone(self) -> bool:
        """Whether the store lost everything, its very frame too."""

    def renew(self) -> None:
        """Make the store anew, empty, where it is gone."""

    def close(self) -> None:
        """Flush and release the store; the index cannot be used afterwards."""
