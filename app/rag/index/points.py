"""A parsed, chunked document → the points that are searched; ingestion and evaluation share it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from uuid import NAMESPACE_URL, uuid5

from app.rag.documents.chunking import Chunk
from app.rag.index.base import FloatArray, IndexPoint, Kind
from app.rag.index.embedding import Embedder

OPENING_CHARS = 1000  # of a document, for routing: title, parties and date stand there

_PIECES = re.compile(r"[A-Za-z]+|\d+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})")


@dataclass(frozen=True, slots=True)
class DocumentVersion:
    """What the index must know of a document version beside its text."""

    tenant: str
    document_id: str
    version: int
    collection: str
    labels: tuple[str, ...]
    title: str
    filename: str


def chunk_id(document_id: str, version: int, ordinal: int, kind: Kind = "chunk") -> str:
    """The same chunk of the same version always has the same id, so that a repeated ingestion replaces."""
    return str(uuid5(NAMESPACE_URL, f"precedent:{document_id}:{version}:{kind}:{ordinal}"))


def indexed_text(chunk: Chunk, text: str) -> str:
    """A chunk with its section path before it; for embedding and BM25 only, never shown or cited."""
    body = text[chunk.start : chunk.end]
    return f"{' > '.join(chunk.section)}\n{body}" if chunk.section else body


def routing_text(title: str, filename: str, text: str) -> str:
    """What a question may name a document by: file name, title, and the opening with its parties."""
    stem = " ".join(_PIECES.findall(_CAMEL.sub(" ", PurePath(filename).stem)))
    return f"{stem}\n{title}\n{text[:OPENING_CHARS]}"


def chunk_points(document: DocumentVersion, text: str, chunks: Sequence[Chunk], embedder: Embedder) -> list[IndexPoint]:
    """Embed and address the given chunks of a document; chunks without any ink have no point."""
    inked = [chunk for chunk in chunks if text[chunk.start : chunk.end].strip()]
    texts = [indexed_text(chunk, text) for chunk in inked]
    vectors = embedder.embed(texts)
    return [
        _point(document, "chunk", chunk, vector, indexed)
        for chunk, vector, indexed in zip(inked, vectors, texts, strict=True)
    ]


def document_point(document: DocumentVersion, text: str, embedder: Embedder) -> IndexPoint:
    """The point by which a question that names the document finds it."""
    route = routing_text(document.title, document.filename, text)
    opening = Chunk(0, 0, min(len(text), OPENING_CHARS))
    return _point(document, "document", opening, embedder.embed([route])[0], route)


def _point(document: DocumentVersion, kind: Kind, chunk: Chunk, vector: FloatArray, indexed: str) -> IndexPoint:
    return IndexPoint(
        chunk_id(document.document_id, document.version, chunk.ordinal, kind),
        document.tenant,
        document.document_id,
        document.version,
        document.collection,
        document.labels,
        chunk.start,
        chunk.end,
        chunk.ordinal,
        vector,
        indexed,
        kind,
    )
