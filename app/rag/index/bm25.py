"""BM25 as sparse vectors, the same for every adapter of the index: Qdrant's own implementation, in this process."""

from collections.abc import Mapping

import numpy as np
import qdrant_edge as qe

from app.rag.index.base import KINDS, IndexPoint, Kind, StoredPoint

# Average tokens of an indexed text once stop words are gone: a chunk of ≤ 500 characters with its section path,
# and the opening of a document. Measured on the development contracts.
AVERAGE_TOKENS: dict[Kind, float] = {"chunk": 60.0, "document": 120.0}


class Bm25:
    """Words → stems with weights; documents → stems with saturated frequencies. The index adds the rarity."""

    def __init__(self) -> None:
        self._models = {kind: qe.Bm25(qe.Bm25Config(avg_len=AVERAGE_TOKENS[kind])) for kind in KINDS}

    def weights(self, kind: Kind, terms: Mapping[str, float]) -> dict[int, float]:
        """Words → weights of their stems; two words of one stem keep the larger weight."""
        weights: dict[int, float] = {}
        for weight in sorted(set(terms.values())):
            words = " ".join(word for word, each in terms.items() if each == weight)
            weights.update(dict.fromkeys(self._models[kind].embed_query(words).indices, weight))
        return weights

    def stored(self, point: IndexPoint) -> StoredPoint:
        """A point as indexes keep it: without its text."""
        sparse = self._models[point.kind].embed_document(point.text)
        payload = {
            "tenant": point.tenant,
            "document_id": point.document_id,
            "version": point.version,
            "collection": point.collection,
            "labels": sorted(set(point.labels)),
            "start": point.start,
            "end": point.end,
            "ordinal": point.ordinal,
        }
        dense = np.asarray(point.dense, dtype=np.float32)
        return StoredPoint(point.chunk_id, point.kind, payload, dense, tuple(sparse.indices), tuple(sparse.values))
