"""Everything that lives as long as the process, opened and closed in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

from app import migrate
from app.config import Settings
from app.db import Database
from app.errors import AppError
from app.gateway.embeddings import Embeddings
from app.gateway.providers.local import LocalProvider
from app.gateway.providers.registry import make_provider
from app.gateway.routing import Router
from app.gateway.schemas import Message, Segment
from app.gateway.service import Gateway
from app.jobs import JobRunner
from app.metrics import Metrics
from app.rag.answers import LEGAL_PROMPT, AnswerService
from app.rag.documents import INGEST, DocumentService, FileStore
from app.rag.edge import EdgeIndex
from app.rag.embedding import Embedder
from app.rag.forget import Forgetting
from app.rag.ingestion import Ingestion
from app.rag.retrieval import Retriever
from app.rag.search import SearchService
from app.telemetry import logger
from app.tenants.auth import Authenticator

log = logger(__name__)


@dataclass
class Services:
    """What handlers are given. `failures` says which targets could not start, and why."""

    settings: Settings
    database: Database
    authenticator: Authenticator
    gateway: Gateway
    embeddings: Embeddings
    documents: DocumentService
    search: SearchService
    answers: AnswerService
    jobs: JobRunner
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
        start = asyncio.create_task(_start_targets(services))
        stack.push_async_callback(_stop_targets, services, start)
        yield services


async def _wire(settings: Settings, database: Database, stack: AsyncExitStack) -> Services:
    metrics = Metrics(settings.telemetry)
    stack.push_async_callback(asyncio.to_thread, metrics.close)
    embedder = await asyncio.to_thread(Embedder, settings.rag.embedding_model)
    folder = settings.directory / "index"
    index = await asyncio.to_thread(EdgeIndex, folder, embedder.dimension, model=embedder.name)
    stack.push_async_callback(asyncio.to_thread, index.close)
    files = FileStore(settings.directory)
    router = Router(settings)
    providers = {target.name: make_provider(target, settings.engine) for target in router.targets.values()}
    gateway = Gateway(database, router, providers)
    forgetting = Forgetting()
    documents = DocumentService(database, files, index, forgetting)
    search = SearchService(database, Retriever(index, embedder), documents)
    ingestion = Ingestion(database, files, index, embedder, settings.rag.chunk_characters, forgetting)
    for provider in providers.values():
        if isinstance(provider, LocalProvider):
            forgetting.tell(provider.forget)
    return Services(
        settings=settings,
        database=database,
        authenticator=Authenticator(database, settings.auth.key_cache_seconds),
        gateway=gateway,
        embeddings=Embeddings(database, embedder),
        documents=documents,
        search=search,
        answers=AnswerService(search, gateway, settings.rag, forgetting),
        jobs=JobRunner(database, {INGEST: ingestion}, settings.rag.ingest_workers),
        metrics=metrics,
        starting=set(providers),
    )


async def _start_targets(services: Services) -> None:
    for name, provider in services.gateway.providers.items():
        try:
            await provider.start()
            if isinstance(provider, LocalProvider):
                services.metrics.watch_engine(partial(_counters, provider))
                await _pin_policy(provider)
        except Exception as error:
            services.failures[name] = f"could not start: {error}"
            log.exception("target could not start", target=name)
        services.starting.discard(name)


def _counters(provider: LocalProvider) -> dict[str, float]:
    return asdict(provider.stats())


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
