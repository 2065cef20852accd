"""Everything that lives as long as the process, opened and closed in order."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

from app import migrate
from app.config import Settings
from app.db import Database
from app.errors import AppError, ConfigurationError
from app.gateway import catalog
from app.gateway.cache.exact import ExactCache
from app.gateway.cache.semantic import SemanticCache
from app.gateway.embeddings import Embeddings
from app.gateway.events import EventBus
from app.gateway.health import Prober
from app.gateway.limits_redis import open_limits
from app.gateway.metering import Meter
from app.gateway.providers.local import LocalProvider
from app.gateway.providers.precedent import PrecedentProvider
from app.gateway.reload import Reloader
from app.gateway.schemas import Message, Segment
from app.gateway.service import Gateway
from app.gateway.switchboard import Switchboard, build
from app.gateway.writer import Writer
from app.jobs import Handler, JobRunner
from app.metrics import Metrics
from app.rag.answers.conversations import Conversations
from app.rag.answers.feedback import EvaluationCases, FeedbackService
from app.rag.answers.log import AnswerLog
from app.rag.answers.pages import Pages
from app.rag.answers.service import LEGAL_PROMPT, AnswerService
from app.rag.documents.background import Background
from app.rag.documents.erasure import FORGET
from app.rag.documents.ingestion import Ingestion
from app.rag.documents.job_control import JobControl
from app.rag.documents.relabel import REINDEX, Reindexing, Relabelling
from app.rag.documents.service import INGEST, DocumentService, FileStore
from app.rag.forget import Forgetting
from app.rag.index.embedding import Embedder
from app.rag.index.moving import MovableIndex
from app.rag.index.reconcile import Reconciler
from app.rag.retrieval.retriever import Retriever
from app.rag.retrieval.rights import Rights, label_in_use
from app.rag.retrieval.search import SearchService
from app.rag.wiring import open_index, open_jobs, open_reranker
from app.telemetry import logger
from app.tenants.auth import Authenticator
from app.tenants.matters import Matters
from app.tenants.oidc import SingleSignOn
from app.tenants.sealing import Sealer
from app.tenants.sessions import Logins

log = logger(__name__)


@dataclass
class Services:
    """What handlers are given. `failures` says which targets could not start, and why."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    matters: Matters
    relabelling: Relabelling
    pages: Pages
    reconciler: Reconciler
    logins: Logins
    sign_on: SingleSignOn
    gateway: Gateway
    embeddings: Embeddings
    documents: DocumentService
    search: SearchService
    answers: AnswerService
    answer_log: AnswerLog
    conversations: Conversations
    feedback: FeedbackService
    cases: EvaluationCases
    sealer: Sealer
    meter: Meter
    events: EventBus
    reloader: Reloader
    prober: Prober
    jobs: JobRunner
    job_control: JobControl
    index: MovableIndex
    metrics: Metrics
    failures: dict[str, str] = field(default_factory=dict)
    starting: set[str] = field(default_factory=set)

    def not_ready(self) -> dict[str, str]:
        """Reasons by component; empty when everything configured can serve."""
        reasons = {name: "is starting" for name in self.starting}
        for name, provider in self.gateway.providers.items():
            if name not in reasons and (reason := self.failures.get(name) or provider.unhealthy()):
                reasons[name] = reason
        return reasons


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open the database (which must be migrated), the index and the embedding model; start targets and jobs.

    Targets start in the background: until a model is loaded, its routes are served by their fallbacks.
    """
    async with AsyncExitStack() as stack:
        database = Database(settings.storage.database_url)
        stack.push_async_callback(database.close)
        await migrate.require_current(database)
        services = await _wire(settings, database, stack)
        await services.jobs.start()
        stack.push_async_callback(services.jobs.stop)
        for task in (services.prober, services.reloader):
            await task.start()
            stack.push_async_callback(task.stop)
        for work in (_reconcile(services), _expire(services)):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))
        start = asyncio.create_task(_start_targets(services))
        stack.push_async_callback(_stop_targets, services, start)
        yield services


async def _wire(settings: Settings, database: Database, stack: AsyncExitStack) -> Services:
    metrics = Metrics(settings.telemetry)
    stack.push_async_callback(asyncio.to_thread, metrics.close)
    embedder = await asyncio.to_thread(Embedder, settings.rag.embedding_model)
    index = await open_index(settings, embedder, stack)
    reranker = await open_reranker(settings.rag)
    background = Background(max(1, settings.rag.ingest_workers))
    stack.callback(background.close)
    files = FileStore(settings.directory)
    sealer = Sealer(settings.auth.encryption_key)
    writer = Writer(database, settings.log)
    await writer.start()
    stack.push_async_callback(writer.stop)
    limits = open_limits(settings.limits.redis_url, settings.limits.lease_seconds)
    stack.push_async_callback(limits.close)
    meter = Meter(limits, database, writer, settings.limits)
    metrics.watch("precedent.limits.store_failures", "{failure}", lambda: limits.failures)
    metrics.watch("precedent.log.pending", "{row}", lambda: writer.pending)
    stored = await catalog.read_stored(database, sealer)
    events = EventBus()
    cache = ExactCache(settings.cache.max_bytes)
    semantic = SemanticCache(database, settings.cache)
    gateway = Gateway(_switchboard(settings, stored), meter, writer, metrics, events, cache, semantic)
    forgetting = Forgetting()
    forgetting.tell(semantic.forget)
    documents = DocumentService(database, files, index, forgetting)
    authenticator = Authenticator(database, settings.auth)
    rights = Rights(database, authenticator)
    search = SearchService(database, Retriever(index, embedder), documents, rights, reranker)
    chunk_characters = settings.rag.chunk_characters
    ingestion = Ingestion(database, files, index, embedder, chunk_characters, forgetting, background)
    forgetting.tell(partial(_forget, gateway))
    handlers: dict[str, Handler] = {
        INGEST: ingestion,
        FORGET: documents.erasure,
        REINDEX: Reindexing(database, documents, index, embedder, background),
    }
    answer_log = AnswerLog(database)
    answers = AnswerService(search, gateway, settings.rag, forgetting, rights, answer_log)
    jobs = await open_jobs(settings, database, handlers, forgetting, stack)
    return Services(
        settings=settings,
        database=database,
        authenticator=authenticator,
        matters=Matters(label_in_use),
        relabelling=Relabelling(database, rights),
        pages=Pages(database, documents, files),
        reconciler=Reconciler(database, documents, index, embedder.dimension),
        logins=Logins(database, settings.auth),
        sign_on=SingleSignOn(settings.oidc, settings.server.public_url, sealer, database),
        gateway=gateway,
        sealer=sealer,
        meter=meter,
        events=events,
        embeddings=Embeddings(embedder, meter, gateway, writer),
        documents=documents,
        search=search,
        answers=answers,
        answer_log=answer_log,
        conversations=Conversations(database, answers),
        feedback=FeedbackService(database),
        cases=EvaluationCases(database, documents),
        reloader=Reloader(settings, database, sealer, gateway, stored, events),
        prober=Prober(gateway),
        jobs=jobs,
        index=index,
        job_control=JobControl(database),
        metrics=metrics,
        starting=set(gateway.providers),
    )


def _switchboard(settings: Settings, stored: catalog.Stored) -> Switchboard:
    """With what the API made; where that no longer agrees with the file, the file alone."""
    try:
        return build(catalog.overlaid(settings, stored.entries), stored.secrets)
    except ConfigurationError as error:
        if not stored.entries:
            raise
        log.error("what the API changed does not fit the file and is left out", reason=error.detail)
        return build(settings, stored.secrets)


async def _reconcile(services: Services) -> None:
    """What a process that was killed left in the index is put right beside the first requests."""
    try:
        for report in await services.reconciler.run(repair=True):
            if not report.clean:
                log.warning("the index was not as it should be", **asdict(report))
    except Exception:
        log.exception("the index could not be compared with the database")
    services.jobs.wake()


async def _expire(services: Services) -> None:
    """Records of answers are kept as long as the request log."""
    while True:
        try:
            await services.answer_log.expire(services.settings.log.retention_days)
        except Exception:
            log.exception("old records of answers could not be deleted")
        await asyncio.sleep(86_400)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _start_targets(services: Services) -> None:
    for name, provider in services.gateway.providers.items():
        try:
            await provider.start()
            if isinstance(provider, LocalProvider):
                services.metrics.watch_engine(partial(_counters, provider))
                services.metrics.watch("precedent.engine.predicted_ttft", "ms", provider.queue_ms)
                await _pin_policy(provider)
        except Exception as error:
            services.failures[name] = f"could not start: {error}"
            log.exception("target could not start", target=name)
        services.starting.discard(name)


def _counters(provider: LocalProvider) -> dict[str, float]:
    return asdict(provider.stats())


async def _forget(gateway: Gateway, gone: Collection[str]) -> None:
    for provider in gateway.providers.values():
        if isinstance(provider, LocalProvider | PrecedentProvider):
            await provider.forget(gone)


async def _pin_policy(provider: LocalProvider) -> None:
    """The firm's policy is computed before the first caller comes, and stays."""
    system = Message("system", (Segment(LEGAL_PROMPT),))
    question = Message("user", (Segment("?", frozenset({"tenant:none"})),))
    try:
        await provider.pin((system, question))
    except (ValueError, AppError) as error:
        log.warning("the policy is not pinned", reason=str(error))


async def _stop_targets(services: Services, start: asyncio.Task[None]) -> None:
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    for provider in services.gateway.providers.values():
        await provider.close()
