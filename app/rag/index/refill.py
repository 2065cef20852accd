"""An index server that came back without what it held is filled again from the database, by itself."""

import asyncio
from dataclasses import asdict

from sqlalchemy import func, select

from app.db import Database
from app.errors import Unavailable
from app.jobs import QUEUED, RUNNING, Job, JobRunner
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
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await asyncio.to_thread(self._index.is_gone):
                    await self._fill()
            except Unavailable as away:
                log.warning("the index cannot be looked at", reason=away.detail)
            except Exception:
                log.exception("an empty index could not be filled")

    async def _fill(self) -> None:
        log.error("the index came back without its points and is filled again")
        self._search.closed = "The document index is being filled again; try later."
        try:
            await asyncio.to_thread(self._index.renew)
            for report in await self._reconciler.run(repair=True):
                log.info("filling the index", **asdict(report))
            self._jobs.wake()
            while await self._left():
                await asyncio.sleep(STEP_SECONDS)
        finally:
            self._search.closed = ""

    async def _left(self) -> int:
        waiting = select(func.count(Job.id)).where(Job.kind == REINDEX, Job.status.in_((QUEUED, RUNNING)))
        async with self._database.session() as session:
            return await session.scalar(waiting) or 0
