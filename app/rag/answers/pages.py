"""The cited page of a document's original, under the caller's rights."""

import asyncio
from uuid import UUID

from app.db import Database, owned
from app.errors import InvalidRequest, NotFound, UnsupportedMediaType
from app.rag.answers.page_image import render
from app.rag.answers.spans import spans
from app.rag.documents.files import FileStore
from app.rag.documents.service import DocumentService, get_visible
from app.rag.models import READY, DocumentVersion
from app.rag.parsing.media import PDF
from app.tenants.principal import Principal

LARGEST = 2**31  # beyond any number that a column holds


class Pages:
    """Draws pages off the event loop."""

    def __init__(self, database: Database, documents: DocumentService, files: FileStore) -> None:
        self._database = database
        self._documents = documents
        self._files = files

    async def image(
        self, principal: Principal, document_id: UUID, version: int, number: int, start: int, end: int
    ) -> bytes:
        """PNG of a page with text[start:end] highlighted; start = end highlights nothing.

        Raises NotFound, UnsupportedMediaType for what is no PDF, InvalidRequest for a range outside of the text.
        """
        async with self._database.session() as session:
            await get_visible(session, principal, document_id)
            rows = owned(DocumentVersion, principal.tenant_id)
            query = rows.where(DocumentVersion.document_id == document_id, DocumentVersion.version == version)
            row = await session.scalar(query) if version < LARGEST else None
            if row is None or row.status != READY:
                raise NotFound(f"The document {document_id} has no version {version} to be shown.")
            if row.media_type != PDF:
                raise UnsupportedMediaType(f"Pages of PDFs can be drawn; this document is {row.media_type}.")
            source = await self._documents.source(session, principal.tenant_id, document_id, version)
        if not 0 <= start <= end <= len(source.text):
            raise InvalidRequest(f"The text has {len(source.text)} characters; start and end are within.", param="end")
        page = next((page for page in source.pages if page.number == number), None)
        if page is None:
            raise NotFound(f"The document has no page {number}.")
        first, last = max(start, page.start), min(end, page.end)
        boxes = [box for span in spans(source, first, last) for box in span.boxes] if first < last else []
        data = await self._files.read(row)
        return await asyncio.to_thread(render, data, number, boxes)
