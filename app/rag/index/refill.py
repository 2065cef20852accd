"""An index server that came back without what it held is filled again from the database, by itself."""

import asyncio
import math
from dataclasses import asdict

from sqlalchemy import ColumnElement, func, select

from app.db import Database, now
from app.errors import Unavailable
from app.jobs import FAILED, QUEUED, RUNNING, Job, JobRunner
from app.rag.documents.relabel import REINDEX
from app.rag.index.base import VectorIndex
from app.rag.index.reconcile import Reconciler
from app.rag.retrieval.search import SearchService
from app.telemetry import logger

log = logger(__name__)
LOOK_SECONDS = 5.0
STEP_SECONDS = 0.5


class Refill:
    """Looks every few seconds. While it fills, this process searches nothing: half an index gives wrong refusals.
    Other replicas do not know of it, and find what is there already.
    """

    def __init__(
        self, database: Database, index: VectorIndex, reconciler: Reconciler, search: SearchService, jobs: JobRunner
    ) -> None:
        self._database = database
        self._index = index
        self._reconciler = reconciler
        self._search = search
        self._jobs = jobs

    async def run(self) -> None:
        unfilled = False  # an index that was made anew is there, however little is in it
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if unfilled := unfilled or await asyncio.to_thread(self._index.is_gone):
                    await self._fill()
                    unfilled = False
            except Unavailable as away:
                log.warning("the index cannot be looked at", reason=away.detail)
            except Exception:
                log.exception("an empty index could not be filled")

    async def _fill(self) -> None:
        log.error("the index came back without its points and is filled again")
        self._search.closed = "The document index is being filled again; try later."
        await asyncio.to_thread(self._index.renew)
        before, failed = math.inf, await self._repair()
        while 0 < failed < before:  # the index may have been away for a moment; what can never be filed ends it
            before, failed = failed, await self._repair()
        self._search.closed = ""

    async def _repair(self) -> int:
        """Documents that could not be filed again."""
        began = now()
        for report in await self._reconciler.run(repair=True):
            log.info("filling the index", **asdict(report))
        self._jobs.wake()
        while await self._count(Job.status.in_((QUEUED, RUNNING))):
            await asyncio.sleep(STEP_SECONDS)
        return await self._count(Job.status == FAILED, Job.finished_at >= began)

    async def _count(self, *which: ColumnElement[bool]) -> int:
        async with self._database.session() as session:
            return await session.scalar(select(func.count(Job.id)).where(Job.kind == REINDEX, *which)) or 0
