"""`precedent worker`: ingestion on further machines, beside a server with the same database, index and files.

Redis only says that there is something to do; the job's row in the database decides who does it.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from app import migrate
from app.config import Settings
from app.db import Database
from app.errors import ConfigurationError
from app.jobs import JobRunner
from app.rag.forget import Forgetting
from app.rag.library import open_intake
from app.telemetry import logger

log = logger(__name__)


async def work(settings: Settings) -> None:
    """Run jobs until SIGINT or SIGTERM; what is half done then is taken over by another worker."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with open_worker(settings):
        log.info("the worker is ready", workers=settings.rag.ingest_workers)
        await stopping.wait()


@asynccontextmanager
async def open_worker(settings: Settings) -> AsyncIterator[JobRunner]:
    """Raises ConfigurationError where the settings leave nothing to share."""
    if settings.rag.index != "qdrant" or not settings.rag.jobs_redis_url:
        raise ConfigurationError(
            'A worker shares index and jobs with the server: set rag.index = "qdrant", rag.qdrant_url and '
            "rag.jobs_redis_url for both. An embedded index belongs to one process."
        )
    async with AsyncExitStack() as stack:
        database = Database(settings.storage.database_url, settings.storage.database_seconds)
        stack.push_async_callback(database.close)
        await migrate.require_current(database)
        jobs = (await open_intake(settings, database, Forgetting(), stack)).jobs
        await jobs.start()
        stack.push_async_callback(jobs.stop)
        yield jobs
