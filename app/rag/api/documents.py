"""/api/v1: documents, jobs, search, answers."""

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Controller, Request, Response, delete, get, post, put
from litestar.datastructures import UploadFile
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import Stream

from app.config import Settings
from app.errors import AppError, InvalidRequest, UnreadableDocument
from app.jobs import JobRunner
from app.rag.answers.opened import AnswerDelta, AnswerDone, CitationFound, OpenAnswer
from app.rag.answers.service import AnswerService
from app.rag.api import uploads
from app.rag.api.schemas import (
    DEFAULT_COLLECTION,
    AnswerRequest,
    Collection,
    DocumentList,
    DocumentView,
    FiledList,
    FiledView,
    MetadataView,
    PassageView,
    RefusedView,
    SearchRequest,
    SearchResponse,
    TextView,
    VersionView,
)
from app.rag.api.schemas_search import ExplainView
from app.rag.documents.filters import FactFilter
from app.rag.documents.service import ANY, DocumentInfo, DocumentService, Filed, Upload
from app.rag.models import DocumentVersion
from app.rag.parsing import archive
from app.rag.retrieval.search import Found, SearchService
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

    @post(
        guards=WRITES,
        status_code=202,
        operation_class=uploads.Upload,
        summary="File documents; each is ingested by a job of its own",
    )
    async def add(
        self,
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
        jobs: NamedDependency[JobRunner],
        settings: NamedDependency[Settings],
    ) -> FiledList:
        """Multipart form: one or more files under any name, `collection` (default: default), `labels` (repeated or
        comma-separated matters). A ZIP archive files each member, an e-mail itself and its attachments; `refused` says
        which of these could not be filed, and why.
        """
        form = await request.form()
        collection = _collection(form.get("collection"))
        labels = _labels(form.getall("labels") if "labels" in form else [])
        unpacked = [await _unpack(item, settings) for _, item in form.multi_items() if isinstance(item, UploadFile)]
        if not unpacked:
            raise InvalidRequest("The form holds no file.", param="files")
        uploads = [Upload(file.filename, file.media_type, file.data) for one in unpacked for file in one.files]
        refused = [RefusedView(name, reason) for one in unpacked for name, reason in one.refused]
        if not uploads:
            reasons = "; ".join(f"{one.filename}: {one.reason}" for one in refused[:5])
            raise UnreadableDocument(f"No document could be filed. {reasons}".strip(), reason="empty")
        filed = [await documents.add(principal, upload, collection, labels) for upload in uploads]
        jobs.wake()
        return FiledList([_filed(one, upload) for one, upload in zip(filed, uploads, strict=True)], refused)

    @get(guards=READS, summary="List documents, newest first")
    async def list_documents(
        self,
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
        collection: FromQuery[str | None] = None,
        party: FromQuery[list[str] | None] = None,
        governing_law: FromQuery[str | None] = None,
        document_type: FromQuery[str | None] = None,
        effective_from: FromQuery[date | None] = None,
        effective_to: FromQuery[date | None] = None,
        expires_from: FromQuery[date | None] = None,
        expires_to: FromQuery[date | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=500)] = 100,
        offset: Annotated[int, QueryParameter(ge=0, le=2**31 - 1)] = 0,
    ) -> DocumentList:
        """Filters compare with what documents say about themselves; several `party` must all be parties."""
        where = FactFilter(
            tuple(party or ()), governing_law, document_type, effective_from, effective_to, expires_from, expires_to
        )
        page, total = await documents.page(principal, collection, limit, offset, where)
        return DocumentList([_document(info, definitions=False) for info in page], total)

    @get("/{document_id:uuid}", guards=READS, summary="One document with its versions")
    async def get_document(
        self,
        document_id: FromPath[UUID],
        principal: NamedDependency[Principal],
        documents: NamedDependency[DocumentService],
    ) -> DocumentView:
        return _document(await documents.get(principal, document_id))

    @put(
        "/{document_id:uuid}",
        guards=WRITES,
        status_code=202,
        operation_class=uploads.Replacement,
        summary="File a new version",
    )
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
        unpacked = await _unpack(files[0], settings)
        if not unpacked.files or unpacked.files[0].filename != files[0].filename[:255]:
            raise InvalidRequest("A new version is one document, not an archive.", param="files")
        first = unpacked.files[0]
        upload = Upload(first.filename, first.media_type, first.data)
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


@post("/api/v1/search", tags=["search"], guards=READS, status_code=200, summary="Find passages")
async def search(
    data: JSONBody[SearchRequest],
    principal: NamedDependency[Principal],
    searching: NamedDependency[SearchService],
) -> SearchResponse:
    where = data.where.filter() if data.where else ANY
    found = await searching.search(principal, data.query, data.k, data.collection, data.documents, where)
    explain = ExplainView.of(found.decision, found.dropped) if data.explain and found.decision else None
    return SearchResponse([_passage(one) for one in found.passages], found.confidence, found.timings_ms, explain)


@post("/api/v1/answers", tags=["answers"], guards=ANSWERS, status_code=200, summary="Ask the documents")
async def answer(
    data: JSONBody[AnswerRequest],
    principal: NamedDependency[Principal],
    answers: NamedDependency[AnswerService],
) -> Response[Any]:
    """An `AnswerView`, or with `stream` server-sent events: delta, citation, done, error."""
    return await answered(await answers.open(principal, data), stream=data.stream)


async def answered(opened: OpenAnswer, *, stream: bool) -> Response[Any]:
    """An answer as it is sent: whole, or as it comes."""
    if stream:
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


async def _unpack(file: UploadFile, settings: Settings) -> archive.Unpacked:
    """Raises PayloadTooLarge, UnsupportedMediaType and UnreadableDocument, naming the file, before anything is filed.

    A document that is damaged is filed all the same: its job fails with the reason, and the others go on.
    """
    upload = archive.File(file.filename[:255], (file.content_type or "")[:100], await file.read())
    return await asyncio.to_thread(archive.unpack, upload, settings.rag.max_document_bytes)


def _filed(filed: Filed, upload: Upload) -> FiledView:
    return FiledView(filed.document.id, filed.version, upload.filename, filed.job.id if filed.job else None)


def _document(info: DocumentInfo, *, definitions: bool = True) -> DocumentView:
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
        metadata=MetadataView.of(info.facts, definitions=definitions),
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
        pages_without_text=[int(page["number"]) for page in version.pages if page["start"] == page["end"]],
        created_at=version.created_at,
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
        flags=found.flags,
    )
