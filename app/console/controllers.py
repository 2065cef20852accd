"""/console: the built pages, from memory. Data comes from the same REST API that everybody has."""

import gzip
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from litestar import Request, Response, Router, get
from litestar.datastructures import ResponseHeader
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.params import FromPath

from app.errors import NotFound, Unavailable
from app.tenants.auth import PUBLIC

STATIC = Path(__file__).parent / "static"
NOT_BUILT = "The console was not built into this installation (SKIP_CONSOLE=1); install again without it."
FOREVER = "public, max-age=31536000, immutable"  # names of assets contain a hash of what is in them
COMPRESSED = {".js", ".css", ".html", ".svg", ".json"}
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "vary": "accept-encoding",
}


@dataclass(frozen=True)
class Page:
    """A built file, plain and (where that makes it smaller) compressed once."""

    body: bytes
    compressed: bytes | None
    media_type: str


@cache
def pages(folder: Path) -> dict[str, Page]:
    """Every built file by its name; empty where the console was not built."""
    if not (folder / "index.html").exists():
        return {}
    files = [*folder.glob("*.html"), *(path for path in (folder / "assets").iterdir() if path.is_file())]
    return {path.name: _page(path) for path in files}


def _page(path: Path) -> Page:
    body = path.read_bytes()
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return Page(body, gzip.compress(body, 9, mtime=0) if path.suffix in COMPRESSED else None, media_type)


@get(["/console", "/console/{path:path}"], opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def console(request: Request[Any, Any, Any], path: FromPath[str] = "") -> Response[bytes]:
    """The one page; which of its views is meant is decided in the browser."""
    found = pages(STATIC).get("index.html")
    if found is None:
        return Response(NOT_BUILT.encode(), status_code=503, media_type="text/plain; charset=utf-8", headers=HEADERS)
    return _answer(request, found, "no-cache")


@get("/console/assets/{name:str}", opt=PUBLIC, include_in_schema=False, sync_to_thread=False)
def asset(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
    found = pages(STATIC).get(name)
    if found is None or name.endswith(".html"):
        raise NotFound("There is no such file.")
    return _answer(request, found, FOREVER)


class Documentation(OpenAPIRenderPlugin):
    """/docs: Swagger UI as it was built with the console. The framework's own pages load theirs from elsewhere, which
    fails where nothing but this server can be reached.
    """

    def __init__(self) -> None:
        super().__init__(path="/")

    def receive_router(self, router: Router) -> None:
        router.response_headers = [ResponseHeader(name=name, value=value) for name, value in HEADERS.items()]

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        found = pages(STATIC).get("docs.html")
        if found is None:
            raise Unavailable(NOT_BUILT)
        return found.body


def _answer(request: Request[Any, Any, Any], page: Page, caching: str) -> Response[bytes]:
    headers = {**HEADERS, "cache-control": caching}
    if page.compressed and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(page.compressed, media_type=page.media_type, headers={**headers, "content-encoding": "gzip"})
    return Response(page.body, media_type=page.media_type, headers=headers)
