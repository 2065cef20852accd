"""What /api/v1 speaks about documents, search and answers."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from msgspec import Meta, Struct

from app.rag.answers.citations import Citation
from app.rag.answers.quotes import Difference, differences
from app.rag.api.schemas_search import ExplainView, FactConditions
from app.rag.documents import facts
from app.rag.models import DocumentFact

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
    pages_without_text: list[int] = []  # scanned, and not searchable


class FactView(Struct):
    """Read from text[start:end] of the current version; dates as YYYY-MM-DD."""

    value: str
    start: int
    end: int


class MetadataView(Struct):
    """What the current version says about itself, found by rules. In lists without `definitions`."""

    parties: list[FactView]
    document_type: FactView | None
    governing_law: FactView | None
    agreement_date: FactView | None
    effective_date: FactView | None
    expiry_date: FactView | None
    definitions: list[FactView]

    @classmethod
    def of(cls, found: Sequence[DocumentFact], *, definitions: bool) -> "MetadataView":
        def views(kind: str) -> list[FactView]:
            return [FactView(fact.value, fact.start, fact.end) for fact in found if fact.kind == kind]

        def first(kind: str) -> FactView | None:
            return next(iter(views(kind)), None)

        return cls(
            parties=views(facts.PARTY),
            document_type=first(facts.TYPE),
            governing_law=first(facts.LAW),
            agreement_date=first(facts.AGREED),
            effective_date=first(facts.EFFECTIVE),
            expiry_date=first(facts.EXPIRY),
            definitions=views(facts.DEFINITION) if definitions else [],
        )


class DocumentView(Struct):
    id: UUID
    title: str
    collection: str
    labels: list[str]
    current_version: int | None
    status: str
    created_at: datetime
    versions: list[VersionView]
    metadata: MetadataView


class DocumentList(Struct):
    documents: list[DocumentView]
    total: int


class FiledView(Struct):
    """`job_id` is null where the same content was there already."""

    id: UUID
    version: int
    filename: str
    job_id: UUID | None


class RefusedView(Struct):
    filename: str
    reason: str


class FiledList(Struct):
    """`refused`: members of archives and e-mails that could not be filed."""

    documents: list[FiledView]
    refused: list[RefusedView] = []


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
    attempts: int = 0


class JobList(Struct):
    """`next` is the cursor of the next page, null on the last one."""

    jobs: list[JobView]
    next: str | None


class SearchRequest(Struct, forbid_unknown_fields=True):
    query: Question
    k: Annotated[int, Meta(ge=1, le=100)] = 8
    collection: Collection | None = None
    documents: list[UUID] | None = None
    where: FactConditions | None = None
    explain: bool = False


class LabelsRequest(Struct, forbid_unknown_fields=True):
    """All matters that the document shall be filed under."""

    labels: Annotated[list[str], Meta(max_length=64)]


class PassageView(Struct):
    """`text == document_text[start:end]`; `document` is its title. `flags`: what in the text speaks to the reader
    instead of about the contract; it is never obeyed."""

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
    flags: Sequence[str] = ()


class SearchResponse(Struct):
    """`explain` where it was asked for."""

    passages: list[PassageView]
    confidence: float
    timings_ms: dict[str, float]
    explain: ExplainView | None = None


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
    """`quote` is source text; `said` is what the model wrote. `verified` only for exact and normalized matches; of a
    fuzzy one `difference` shows where the two part.
    """

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
    difference: Sequence[Difference] = ()

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
            difference=() if citation.verified else differences(citation.said, citation.quote),
        )


class UnverifiedView(Struct):
    """answer[start:end] is a quotation, with the number `marker`, that none of the passages holds."""

    marker: int
    said: str
    start: int
    end: int


class EvidenceView(Struct):
    """A passage that was in the prompt, as number `marker`."""

    marker: int
    document_id: UUID
    document: str
    version: int
    chunk_id: str
    page: int | None
    flags: Sequence[str] = ()


class SearchedView(Struct):
    """What was asked instead of the question as it stands, and what was carried over from before, and why."""

    question: str
    because: str = ""
    document: str | None = None
    topic: Sequence[str] = ()


class UsageView(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class AnswerView(Struct):
    """`cache`: hit, draft (a kept answer that the model verified) or miss of the semantic cache; none where it was not
    asked. `left_out`: passages that were found and not read, because the engine was busy.

    speculation: what drafts brought where the in-process engine answered; null elsewhere, and where none was tried.
    unverified: quotations that stand in the answer and in none of the passages.
    searched: in a conversation, what the documents were searched for.
    """

    id: UUID
    answer: str
    refused: bool
    citations: list[CitationView]
    usage: UsageView
    timings_ms: dict[str, float]
    served_by: str
    cache: str = "none"
    left_out: int = 0
    speculation: dict[str, Any] | None = None
    unverified: list[UnverifiedView] = []
    evidence: list[EvidenceView] = []
    flags: Sequence[str] = ()
    searched: SearchedView | None = None
