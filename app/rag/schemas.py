"""What /api/v1 speaks about documents, search and answers."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct

from app.rag.citations import Citation

Collection = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Question = Annotated[str, Meta(min_length=1, max_length=4000)]
DEFAULT_COLLECTION = "default"


class VersionView(Struct):
    version: int
    status: str
    error: str | None
    job_id: UUID
    filename: str
    media_type: str
    size: int
    sha256: str
    pages: int
    created_at: datetime


class DocumentView(Struct):
    id: UUID
    title: str
    collection: str
    labels: list[str]
    current_version: int | None
    status: str
    created_at: datetime
    versions: list[VersionView]


class DocumentList(Struct):
    documents: list[DocumentView]
    total: int


class FiledView(Struct):
    """`job_id` is null where the same content was there already."""

    id: UUID
    version: int
    filename: str
    job_id: UUID | None


class FiledList(Struct):
    documents: list[FiledView]


class TextView(Struct):
    document_id: UUID
    version: int
    text: str
    pages: list[dict[str, float]]


class JobView(Struct):
    id: UUID
    kind: str
    status: str
    stage: str
    done: int
    total: int
    error: str | None
    document_id: UUID
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class SearchRequest(Struct, forbid_unknown_fields=True):
    query: Question
    k: Annotated[int, Meta(ge=1, le=100)] = 8
    collection: Collection | None = None
    documents: list[UUID] | None = None


class PassageView(Struct):
    """`text == document_text[start:end]`; `document` is its title."""

    document_id: UUID
    document: str
    version: int
    chunk_id: str
    page: int | None
    start: int
    end: int
    text: str
    score: float
    scores: Mapping[str, float]


class SearchResponse(Struct):
    passages: list[PassageView]
    confidence: float
    timings_ms: dict[str, float]


class AnswerRequest(Struct, forbid_unknown_fields=True):
    """`quote_lock`: while a local model writes a quote, only words that its passage has there are possible."""

    question: Question
    collection: Collection | None = None
    documents: list[UUID] | None = None
    model: str | None = None
    stream: bool = False
    quote_lock: bool = True


class SpanView(Struct):
    page: int | None
    start: int
    end: int
    boxes: list[tuple[float, float, float, float]]


class CitationView(Struct):
    """`quote` is source text; `said` is what the model wrote. `verified` only for exact and normalized matches."""

    marker: int
    document_id: UUID
    document: str
    version: int
    chunk_id: str
    quote: str
    said: str
    match: str
    verified: bool
    spans: list[SpanView]

    @classmethod
    def of(cls, citation: Citation, document: str) -> "CitationView":
        spans = [SpanView(span.page, span.start, span.end, list(span.boxes)) for span in citation.spans]
        return cls(
            marker=citation.marker,
            document_id=UUID(citation.document_id),
            document=document,
            version=citation.version,
            chunk_id=citation.chunk_id,
            quote=citation.quote,
            said=citation.said,
            match=citation.match,
            verified=citation.verified,
            spans=spans,
        )


class UsageView(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class AnswerView(Struct):
    """`cache` says which cache layer answered; there is none yet, so it is always "none".

    speculation: what drafts brought where the in-process engine answered; null elsewhere, and where none was tried.
    """

    id: UUID
    answer: str
    refused: bool
    citations: list[CitationView]
    usage: UsageView
    timings_ms: dict[str, float]
    served_by: str
    cache: str = "none"
    speculation: dict[str, Any] | None = None
