"""/api/v1: labels of documents, cited pages, and whether the index holds what it should."""

from typing import Annotated
from uuid import UUID

from litestar import Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from msgspec import Struct

from app.jobs import JobRunner
from app.rag.answers.pages import Pages
from app.rag.api.schemas import LabelsRequest
from app.rag.documents.relabel import Relabelling
from app.rag.index.reconcile import Reconciler, Report
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

READS = (requires_scope(Scope.DOCUMENTS_READ),)
WRITES = (requires_scope(Scope.DOCUMENTS_WRITE),)
ADMIN = (requires_scope(Scope.ADMIN),)
Offset = Annotated[int, QueryParameter(ge=0, le=2**31 - 1)]


class LabelsView(Struct):
    id: UUID
    labels: list[str]


class IndexReport(Struct):
    """Of one tenant; see `Report` for what the numbers count."""

    tenant: str
    documents: int
    chunks: int
    points: int
    missing: int
    stale: int
    mislabelled: int
    orphans: int
    repaired: int
    clean: bool


class IndexReports(Struct):
    clean: bool
    tenants: list[IndexReport]


@put("/api/v1/documents/{document_id:uuid}/labels", tags=["documents"], guards=WRITES, summary="File under matters")
async def put_labels(
    document_id: FromPath[UUID],
    data: JSONBody[LabelsRequest],
    principal: NamedDependency[Principal],
    relabelling: NamedDependency[Relabelling],
    jobs: NamedDependency[JobRunner],
) -> LabelsView:
    """In force at once, also for answers in flight. Taking a label away lets others in and needs the scope `admin`."""
    labels = frozenset(data.labels)
    await relabelling.relabel(principal, document_id, labels)
    jobs.wake()
    return LabelsView(document_id, sorted(labels))


@get(
    "/api/v1/documents/{document_id:uuid}/versions/{version:int}/pages/{number:int}/image.png",
    tags=["documents"],
    guards=READS,
    summary="A page of a PDF with a passage highlighted",
)
async def get_page_image(
    document_id: FromPath[UUID],
    version: FromPath[int],
    number: FromPath[int],
    principal: NamedDependency[Principal],
    pages: NamedDependency[Pages],
    start: Offset = 0,
    end: Offset = 0,
) -> Response[bytes]:
    """`start` and `end` as in a citation's spans. 415 for documents that have no pages."""
    picture = await pages.image(principal, document_id, version, number, start, end)
    return Response(picture, media_type="image/png", headers={"cache-control": "private, no-store"})


@get("/api/v1/index/report", tags=["documents"], guards=ADMIN, summary="Whether the index holds what it should")
async def get_index_report(
    principal: NamedDependency[Principal], reconciler: NamedDependency[Reconciler], every: FromQuery[bool] = False
) -> IndexReports:
    """Of the caller's tenant; with `every` of all, for operators."""
    return _reports(await reconciler.run(repair=False, tenant_id=_whose(principal, every=every)))


@post("/api/v1/index/repair", tags=["documents"], guards=ADMIN, status_code=200, summary="Repair the index")
async def repair_index(
    principal: NamedDependency[Principal],
    reconciler: NamedDependency[Reconciler],
    jobs: NamedDependency[JobRunner],
    every: FromQuery[bool] = False,
) -> IndexReports:
    """Deletes points that should not be there; documents with missing points are indexed again by jobs."""
    reports = await reconciler.run(repair=True, tenant_id=_whose(principal, every=every))
    jobs.wake()
    return _reports(reports)


def _whose(principal: Principal, *, every: bool) -> UUID | None:
    if not every:
        return principal.tenant_id
    principal.require(Scope.OPERATOR)
    return None


def _reports(found: list[Report]) -> IndexReports:
    views = [IndexReport(**{name: getattr(one, name) for name in IndexReport.__struct_fields__}) for one in found]
    return IndexReports(all(one.clean for one in found), views)
