"""/api/v1/index: where the vectors are, and moving them. For who runs the installation."""

import asyncio
from typing import Annotated

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody
from msgspec import Meta, Struct

from app.db import Database
from app.rag.index.moving import MovableIndex, Move
from app.telemetry import logger
from app.tenants import audit
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

log = logger(__name__)
OPERATES = (requires_scope(Scope.OPERATOR),)


class MoveView(Struct):
    """`error` says why a move was given up; everything is then as it was."""

    to: str
    done: int
    total: int
    finished: bool
    error: str | None


class IndexView(Struct):
    """`place` is edge or the URL of a server; `rejected_hits` must be 0."""

    place: str
    chunks: int
    documents: int
    rejected_hits: int
    move: MoveView | None


class MoveRequest(Struct, forbid_unknown_fields=True):
    """`to`: edge, or the URL of a Qdrant server, for which the key in the settings must be right."""

    to: Annotated[str, Meta(pattern=r"^(edge|https?://[^\s@]+)$", max_length=300)]


class IndexController(Controller):
    path = "/api/v1/index"
    tags = ("index",)

    @get(guards=OPERATES, summary="Where the vectors are")
    async def show(self, index: NamedDependency[MovableIndex]) -> IndexView:
        return await asyncio.to_thread(_view, index)

    @post("/move", guards=OPERATES, status_code=202, summary="Move the index without a pause")
    async def move(
        self,
        data: JSONBody[MoveRequest],
        principal: NamedDependency[Principal],
        index: NamedDependency[MovableIndex],
        database: NamedDependency[Database],
    ) -> IndexView:
        """Answers at once; `GET /api/v1/index` says how far it is. Afterwards set `rag.index` (and `rag.qdrant_url`)
        before the next start.
        """
        async with database.session() as session:
            detail = {"from": index.place, "to": data.to}
            await audit.append(session, audit.actor_of(principal), "index.move", "index", None, detail)
            await session.commit()
        moving = asyncio.get_running_loop().run_in_executor(None, _move, index, data.to)
        await asyncio.wait((moving,), timeout=0.5)
        if moving.done():
            moving.result()
        return await asyncio.to_thread(_view, index)


def _move(index: MovableIndex, to: str) -> None:
    try:
        index.move(to)
    except Exception as error:
        log.warning("the index was not moved", to=to, reason=str(error))
        raise


def _view(index: MovableIndex) -> IndexView:
    chunks, documents = index.count(), index.count(kind="document")
    return IndexView(index.place, chunks, documents, index.rejected_hits, _move_view(index.moved))


def _move_view(move: Move | None) -> MoveView | None:
    return MoveView(move.to, move.done, move.total, move.finished, move.error) if move else None
