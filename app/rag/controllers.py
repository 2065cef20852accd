"""/api/v1: documents, jobs, search, answers."""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, delete, get, post, put
from litestar.datastructures import UploadFile
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from app.config import Settings
from app.errors import AppError, InvalidRequest, PayloadTooLarge, UnreadableDocument
from app.jobs import Job, JobRunner
from app.rag.answers import AnswerDelta, AnswerDone, AnswerService, CitationFound, OpenAnswer
from app.rag.documents import DocumentInfo, DocumentService, Filed, Upload
from app.rag.models import DocumentVersion
from app.rag.parsing import detect
from app.rag.schemas import (
    DEFAULT_COLLECTION,
    AnswerRequest,
    Collection,
    DocumentList,
    DocumentView,
    FiledList,
    FiledView,
    JobView,
    PassageView,
    SearchRequest,
    SearchResponse,
    TextView,
    VersionView,
)
from app.rag.search import Found, SearchService
from app.telemetry import logger
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

log = logger(__name__)
READS = (requires_scope(Scope.DOCUMENTS_READ),)
WRITES = (requires_scope(Scope.DOCUMENTS_WRITE),)
ANSWERS = (requires_scope(Scope.ANSWERS),)


class DocumentController(Controller):
    path = "/api/v1/documents"
    tags = ("documents",)

    @post(guards=WRITES, status_code=202, summary="File documents; each is ingested by a job of its own")
    async def add(
        self,
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
        jobs: NamedDependency[JobRunner],
        settings: NamedDependency[Settings],
    ) -> FiledList:
        """Multipart form: one or more files under any name, `collection` (default: default), `labels` (repeated or
        comma-separated matters).
        """
        form = await request.form()
        collection = _collection(form.get("collection"))
        labels = _labels(form.getall("labels") if "labels" in form else [])
        uploads = [await _upload(item, settings) for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if not uploads:
            raise InvalidRequest("The form holds no file.", param="files")
        filed = [await documents.add(principal, upload, collection, labels) for upload in uploads]
        jobs.wake()
        return FiledList([_filed(one, upload) for one, upload in zip(filed, uploads, strict=True)])

    @get(guards=READS, summary="List documents, newest first")
    async def list_documents(
        self,
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
        collection: FromQuery[str | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100,
        offset: Annotated[int, QueryParameter(ge=0, le=2**31 - 1)] = 0,
    ) -> DocumentList:
        page, total = await documents.page(principal, collection, limit, offset)
        return DocumentList([_document(info) for info in page], total)

    @get("/{document_id:uuid}", guards=READS, summary="One document with its versions")
    async def get_document(
        self,
        document_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
    ) -> DocumentView:
        return _document(await documents.get(principal, document_id))

    @put("/{document_id:uuid}", guards=WRITES, status_code=202, summary="File a new version")
    async def replace(
        self,
        document_id: FromPath[UUID],
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
        jobs: NamedDependency[JobRunner],
        settings: NamedDependency[Settings],
    ) -> FiledView:
        """Multipart form with exactly one file."""
        form = await request.form()
        files = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if len(files) != 1:
            raise InvalidRequest(f"A new version is one file; the form holds {len(files)}.", param="files")
        upload = await _upload(files[0], settings)
        filed = await documents.replace(principal, document_id, upload)
        jobs.wake()
        return _filed(filed, upload)

    @delete("/{document_id:uuid}", guards=WRITES, summary="Delete a document with all its versions")
    async def remove(
        self,
        document_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
    ) -> None:
        await documents.delete(principal, document_id)

    @get("/{document_id:uuid}/text", guards=READS, summary="The text that all offsets refer to")
    async def text(
        self,
        document_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
        version: Annotated[int | None, QueryParameter(ge=1, le=2**31 - 1)] = None,
    ) -> TextView:
        row, text = await documents.text(principal, document_id, version)
        return TextView(document_id, row.version, text, row.pages)


@get("/api/v1/jobs/{job_id:uuid}", tags=["documents"], guards=READS, summary="How far a job is")
async def get_job(
    job_id: FromPath[UUID], principal: NamedDependency[Principal], documents: NamedDependency[DocumentService]
) -> JobView:
    return _job(await documents.job(principal, job_id))


@post("/api/v1/search", tags=["search"], guards=READS, status_code=200, summary="Find passages")
async def search(
    data: JSONBody[SearchRequest],
    principal: NamedDependency[Principal],
    searching: NamedDependency[SearchService],
) -> SearchResponse:
    found = await searching.search(principal, data.query, data.k, data.collection, data.documents)
    return SearchResponse([_passage(one) for one in found.passages], found.confidence, found.timings_ms)


@post("/api/v1/answers", tags=["answers"], guards=ANSWERS, status_code=200, summary="Ask the documents")
async def answer(
    data: JSONBody[AnswerRequest],
    principal: NamedDependency[Principal],
    answers: NamedDependency[AnswerService],
) -> Response[Any]:
    """An `AnswerView`, or with `stream` server-sent events: delta, citation, done, error."""
    opened = await answers.open(principal, data)
    if data.stream:
        return Stream(_frames(opened), media_type="text/event-stream")
    return Response(await opened.complete())


async def _frames(opened: OpenAnswer) -> AsyncIterator[bytes]:
    """Events as frames; after a failure one error frame and nothing else."""
    try:
        async for event in opened.events():
            match event:
                case AnswerDelta(text):
                    yield _event("delta", {"text": text})
                case CitationFound(citation):
                    yield _event("citation", citation)
                case AnswerDone(done):
                    yield _event("done", done)
    except AppError as error:
        yield _event("error", error.problem())
    except Exception:
        log.exception("answer stream failed")
        yield _event("error", AppError("The server failed while answering.").problem())


def _event(name: str, data: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def _collection(given: Any) -> str:
    try:
        return msgspec.convert(given or DEFAULT_COLLECTION, Collection)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The collection {given!r} is not a valid name.", param="collection") from error


def _labels(given: list[Any]) -> frozenset[str]:
    return frozenset(label.strip() for entry in given for label in str(entry).split(",") if label.strip())


async def _upload(file: UploadFile, settings: Settings) -> Upload:
    """Raises PayloadTooLarge and UnsupportedMediaType, naming the file, before anything is filed."""
    data = await file.read()
    if len(data) > settings.rag.max_document_bytes:
        raise PayloadTooLarge(
            f"{file.filename!r} has {len(data)} bytes; a document has at most {settings.rag.max_document_bytes}.",
            param=file.filename,
        )
    # A corrupt or encrypted file is filed all the same: its job fails with the reason, and the others go on.
    with contextlib.suppress(UnreadableDocument):
        detect(data, file.filename, file.content_type or None)
    return Upload(file.filename[:255], (file.content_type or "")[:100], data)


def _filed(filed: Filed, upload: Upload) -> FiledView:
    return FiledView(filed.document.id, filed.version, upload.filename, filed.job.id if filed.job else None)


def _document(info: DocumentInfo) -> DocumentView:
    document = info.document
    return DocumentView(
        id=document.id,
        title=document.title,
        collection=document.collection,
        labels=sorted(info.labels),
        current_version=document.current_version,
        status=info.versions[0].status if info.versions else "pending",
        created_at=document.created_at,
        versions=[_version(version) for version in info.versions],
    )


def _version(version: DocumentVersion) -> VersionView:
    return VersionView(
        version=version.version,
        status=version.status,
        error=version.error,
        job_id=version.job_id,
        filename=version.filename,
        media_type=version.media_type,
        size=version.size,
        sha256=version.sha256,
        pages=len(version.pages),
        created_at=version.created_at,
    )


def _job(job: Job) -> JobView:
    return JobView(
        id=job.id,
        kind=job.kind,
        status=job.status,
        stage=job.stage,
        done=job.done,
        total=job.total,
        error=job.error,
        document_id=UUID(job.payload["document_id"]),
        version=job.payload["version"],
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def _passage(found: Found) -> PassageView:
    passage = found.passage
    return PassageView(
        document_id=UUID(passage.document_id),
        document=found.title,
        version=passage.version,
        chunk_id=passage.chunk_id,
        page=found.page,
        start=passage.start,
        end=passage.end,
        text=found.text,
        score=passage.score,
        scores=passage.scores,
    )
