"""Everything about documents that lives as long as the process, opened in order: the library, and its intake alone for
`precedent worker`."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from app.config import RagSettings, Settings
from app.db import Database
from app.gateway.service import Gateway
from app.jobs import Handler, JobRunner
from app.rag.answers.conversations import Conversations
from app.rag.answers.feedback import EvaluationCases, FeedbackService
from app.rag.answers.log import AnswerLog
from app.rag.answers.pages import Pages
from app.rag.answers.service import AnswerService
from app.rag.documents.background import Background
from app.rag.documents.bell import Bell
from app.rag.documents.erasure import FORGET
from app.rag.documents.ingestion import Ingestion
from app.rag.documents.job_control import JobControl
from app.rag.documents.relabel import REINDEX, Reindexing, Relabelling
from app.rag.documents.service import INGEST, DocumentService, FileStore
from app.rag.forget import Forgetting
from app.rag.index.embedding import Embedder
from app.rag.index.moving import IndexOpener, MovableIndex
from app.rag.index.reconcile import Reconciler
from app.rag.index.refill import Refill
from app.rag.retrieval.rerank import CrossEncoder
from app.rag.retrieval.retriever import Retriever
from app.rag.retrieval.rights import Rights
from app.rag.retrieval.search import SearchService
from app.telemetry import logger
from app.tenants.auth import Authenticator

log = logger(__name__)
DAY = 86_400
Hold = Callable[[str, str, int], None]
"""Device, name and bytes of a model that stays there; raises ConfigurationError where there is no room."""


@dataclass
class Intake:
    """What documents come in through. `jobs` are not started yet."""

    embedder: Embedder
    index: MovableIndex
    files: FileStore
    documents: DocumentService
    jobs: JobRunner


@dataclass
class Library:
    """What handlers are given."""

    embedder: Embedder
    index: MovableIndex
    documents: DocumentService
    jobs: JobRunner
    job_control: JobControl
    search: SearchService
    answers: AnswerService
    answer_log: AnswerLog
    conversations: Conversations
    feedback: FeedbackService
    cases: EvaluationCases
    relabelling: Relabelling
    pages: Pages
    reconciler: Reconciler
    refill: Refill

    async def start(self, retention_days: int, stack: AsyncExitStack) -> None:
        """Run jobs, put the index right beside the first requests, and let old records go."""
        await self.jobs.start()
        stack.push_async_callback(self.jobs.stop)
        for work in (self._reconcile(), self._expire(retention_days), self.refill.run()):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))

    async def _reconcile(self) -> None:
        """What a process that was killed left in the index."""
        try:
            for report in await self.reconciler.run(repair=True):
                if not report.clean:
                    log.warning("the index was not as it should be", **asdict(report))
        except Exception:
            log.exception("the index could not be compared with the database")
        self.jobs.wake()

    async def _expire(self, retention_days: int) -> None:
        """Records of answers are kept as long as the request log."""
        while True:
            try:
                await self.answer_log.expire(retention_days)
            except Exception:
                log.exception("old records of answers could not be deleted")
            await asyncio.sleep(DAY)


async def open_intake(settings: Settings, database: Database, forgetting: Forgetting, stack: AsyncExitStack) -> Intake:
    """Raises ConfigurationError where another process has the embedded index, or a server is wrong for the model."""
    rag = settings.rag
    embedder = await asyncio.to_thread(Embedder, rag.embedding_model)
    opener = IndexOpener(rag, settings.directory / "index", embedder.dimension, embedder.name)
    index = await asyncio.to_thread(MovableIndex, opener)
    stack.push_async_callback(asyncio.to_thread, index.close)
    background = Background(max(1, rag.ingest_workers))
    stack.callback(background.close)
    files = FileStore(settings.directory)
    documents = DocumentService(database, files, index, forgetting)
    handlers: dict[str, Handler] = {
        INGEST: Ingestion(database, files, index, embedder, rag.chunk_characters, forgetting, background),
        FORGET: documents.erasure,
        REINDEX: Reindexing(database, documents, index, embedder, background),
    }
    jobs = await _open_jobs(rag, database, handlers, forgetting, stack)
    return Intake(embedder, index, files, documents, jobs)


async def open_library(
    settings: Settings,
    database: Database,
    gateway: Gateway,
    authenticator: Authenticator,
    forgetting: Forgetting,
    stack: AsyncExitStack,
    hold: Hold,
) -> Library:
    """Raises as open_intake, and ConfigurationError where `hold` finds no room for the models."""
    intake = await open_intake(settings, database, forgetting, stack)
    hold(intake.embedder.device, intake.embedder.name, intake.embedder.num_bytes)
    documents, index = intake.documents, intake.index
    rights = Rights(database, authenticator)
    reranker = await _open_reranker(settings.rag)
    if reranker is not None:
        hold(reranker.device, reranker.name, reranker.num_bytes)
    search = SearchService(database, Retriever(index, intake.embedder), documents, rights, reranker)
    answer_log = AnswerLog(database)
    reconciler = Reconciler(database, documents, index, intake.embedder.dimension)
    answers = AnswerService(search, gateway, settings.rag, forgetting, rights, answer_log)
    return Library(
        embedder=intake.embedder,
        index=index,
        documents=documents,
        jobs=intake.jobs,
        job_control=JobControl(database),
        search=search,
        answers=answers,
        answer_log=answer_log,
        conversations=Conversations(database, answers),
        feedback=FeedbackService(database),
        cases=EvaluationCases(database, documents),
        relabelling=Relabelling(database, rights),
        pages=Pages(database, documents, intake.files),
        reconciler=reconciler,
        refill=Refill(database, index, reconciler, search, intake.jobs),
    )


async def _open_reranker(settings: RagSettings) -> CrossEncoder | None:
    if not settings.reranker:
        return None
    return await asyncio.to_thread(CrossEncoder, settings.reranker, max_ms=settings.reranker_ms)


async def _open_jobs(
    settings: RagSettings,
    database: Database,
    handlers: dict[str, Handler],
    forgetting: Forgetting,
    stack: AsyncExitStack,
) -> JobRunner:
    """Where Redis is configured the runner rings there for other processes."""
    if not settings.jobs_redis_url:
        return JobRunner(database, handlers, settings.ingest_workers)
    bell = Bell(settings.jobs_redis_url, lambda: runner.heard(), forgetting.sources)
    runner = JobRunner(database, handlers, settings.ingest_workers, shared=True, ring=bell.ring)
    forgetting.tell(bell.gone)
    await bell.start()
    stack.push_async_callback(bell.close)
    return runner


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
