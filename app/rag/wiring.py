"""Opening what the server and `precedent worker` both need, as the settings say."""

import asyncio
from contextlib import AsyncExitStack

from app.config import RagSettings, Settings
from app.db import Database
from app.jobs import Handler, JobRunner
from app.rag.documents.bell import Bell
from app.rag.forget import Forgetting
from app.rag.index.embedding import Embedder
from app.rag.index.moving import IndexOpener, MovableIndex
from app.rag.retrieval.rerank import CrossEncoder


async def open_index(settings: Settings, embedder: Embedder, stack: AsyncExitStack) -> MovableIndex:
    """Raises ConfigurationError where another process has the embedded index, or a server is wrong for the model."""
    opener = IndexOpener(settings.rag, settings.directory / "index", embedder.dimension, embedder.name)
    index = await asyncio.to_thread(MovableIndex, opener)
    stack.push_async_callback(asyncio.to_thread, index.close)
    return index


async def open_reranker(settings: RagSettings) -> CrossEncoder | None:
    if not settings.reranker:
        return None
    return await asyncio.to_thread(CrossEncoder, settings.reranker, max_ms=settings.reranker_ms)


async def open_jobs(
    settings: Settings, database: Database, handlers: dict[str, Handler], forgetting: Forgetting, stack: AsyncExitStack
) -> JobRunner:
    """A runner that is not started yet; where Redis is configured it rings there for other processes."""
    workers = settings.rag.ingest_workers
    if not settings.rag.jobs_redis_url:
        return JobRunner(database, handlers, workers)
    bell = Bell(settings.rag.jobs_redis_url, lambda: runner.heard(), forgetting.sources)
    runner = JobRunner(database, handlers, workers, shared=True, ring=bell.ring)
    forgetting.tell(bell.gone)
    await bell.start()
    stack.push_async_callback(bell.close)
    return runner
