"""Everything that lives as long as the process, opened and closed in order."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

from app import migrate
from app.config import Settings
from app.db import Database
from app.errors import ConfigurationError, NotFound
from app.gateway import catalog
from app.gateway.cache.exact import ExactCache
from app.gateway.cache.semantic import SemanticCache
from app.gateway.embeddings import Embeddings
from app.gateway.events import EventBus
from app.gateway.health import Prober
from app.gateway.limits_redis import open_limits
from app.gateway.metering import Meter
from app.gateway.providers.base import Provider
from app.gateway.providers.local import LocalProvider
from app.gateway.providers.precedent import PrecedentProvider
from app.gateway.reload import Reloader
from app.gateway.schemas import Message, Segment
from app.gateway.service import Gateway
from app.gateway.switchboard import Switchboard, build
from app.gateway.writer import Writer
from app.metrics import Metrics
from app.rag.answers.service import LEGAL_PROMPT
from app.rag.forget import Forgetting
from app.rag.library import Library, open_library
from app.rag.retrieval.rights import label_in_use
from app.telemetry import logger
from app.tenants.auth import Authenticator
from app.tenants.matters import Matters
from app.tenants.oidc import SingleSignOn
from app.tenants.sealing import Sealer
from app.tenants.sessions import Logins

log = logger(__name__)


@dataclass
class Services:
    """What handlers are given. `failures` says which targets could not start, and why.

    `opened`: the library, in processes that have one.
    """

    settings: Settings
    database: Database
    authenticator: Authenticator
    matters: Matters
    logins: Logins
    sign_on: SingleSignOn
    gateway: Gateway
    embeddings: Embeddings
    opened: Library | None
    sealer: Sealer
    meter: Meter
    events: EventBus
    reloader: Reloader
    prober: Prober
    metrics: Metrics
    failures: dict[str, str] = field(default_factory=dict)
    starting: set[str] = field(default_factory=set)

    @property
    def library(self) -> Library:
        """Raises NotFound where this process has none; its addresses are not served there either."""
        if self.opened is None:
            raise NotFound("This process keeps no documents.")
        return self.opened

    def heard(self, model: str, state: str) -> None:
        """One that could not start and was woken since is no failure any more."""
        if state == "awake":
            self.failures.pop(model, None)

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
        database = Database(settings.storage.database_url, settings.storage.database_seconds)
        stack.push_async_callback(database.close)
        await migrate.require_current(database)
        services = await _wire(settings, database, stack)
        if services.opened:
            await services.opened.start(settings.log.retention_days, stack)
        services.gateway.board.devices.listen(services.heard)
        start = asyncio.create_task(_start_targets(services))
        stack.push_async_callback(_stop_targets, services, start)
        for task in (services.prober, services.reloader):  # the reloader stops first: nothing is added meanwhile
            await task.start()
            stack.push_async_callback(task.stop)
        yield services


async def _wire(settings: Settings, database: Database, stack: AsyncExitStack) -> Services:
    metrics = Metrics(settings.telemetry)
    stack.push_async_callback(asyncio.to_thread, metrics.close)
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
    cache, semantic = ExactCache(settings.cache.max_bytes), SemanticCache(database, settings.cache)
    gateway = Gateway(_switchboard(settings, stored), meter, writer, metrics, events, cache, semantic)
    metrics.watch_engines(partial(_engines, gateway))
    gateway.board.devices.listen(lambda name, state: events.publish("model", {"model": name, "state": state}))
    authenticator = Authenticator(database, settings.auth)
    forgetting = Forgetting()
    forgetting.tell(semantic.forget)
    forgetting.tell(partial(_forget, gateway))
    library = None
    if settings.has_documents:
        hold = gateway.board.devices.hold
        library = await open_library(settings, database, gateway, authenticator, forgetting, stack, hold)
    return Services(
        settings=settings,
        database=database,
        authenticator=authenticator,
        matters=Matters(label_in_use),
        logins=Logins(database, settings.auth),
        sign_on=SingleSignOn(settings.oidc, settings.server.public_url, sealer, database),
        gateway=gateway,
        sealer=sealer,
        meter=meter,
        events=events,
        embeddings=Embeddings(library.embedder if library else None, meter, gateway, writer),
        opened=library,
        reloader=Reloader(settings, database, sealer, gateway, stored, events, _keep_policy),
        prober=Prober(gateway),
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


async def _start_targets(services: Services) -> None:
    for name, provider in services.gateway.providers.items():
        _keep_policy(provider)
        try:
            await provider.start()
        except Exception as error:
            services.failures[name] = f"could not start: {error}"
            log.exception("target could not start", target=name)
        services.starting.discard(name)


def _keep_policy(provider: Provider) -> None:
    """The firm's policy is computed before the first caller comes, and stays."""
    if isinstance(provider, LocalProvider):
        question = Message("user", (Segment("?", frozenset({"tenant:none"})),))
        provider.pin((Message("system", (Segment(LEGAL_PROMPT),)), question))


def _engines(gateway: Gateway) -> dict[str, dict[str, float]]:
    providers = gateway.providers.items()
    return {name: _counters(one) for name, one in providers if isinstance(one, LocalProvider) and one.opened}


def _counters(provider: LocalProvider) -> dict[str, float]:
    model, awake = provider.model, provider.model.state == "awake"
    predicted = provider.queue_ms() if awake else None
    own = {
        "awake": awake, "wakes": model.wakes, "wake_seconds": model.waking_seconds, "waking": model.waiting,
        "device_bytes": model.held_bytes,
    }  # fmt: skip
    return asdict(provider.stats()) | own | ({} if predicted is None else {"predicted_ttft_ms": predicted})


async def _forget(gateway: Gateway, gone: Collection[str]) -> None:
    for provider in (*gateway.providers.values(), *gateway.leaving):
        if isinstance(provider, LocalProvider | PrecedentProvider):
            await provider.forget(gone)


async def _stop_targets(services: Services, start: asyncio.Task[None]) -> None:
    """Side by side: each gives what it began some time to finish."""
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    providers = services.gateway.providers
    ends = await asyncio.gather(*(provider.close() for provider in providers.values()), return_exceptions=True)
    for name, error in zip(providers, ends, strict=True):
        if error is not None:
            log.error("target could not be closed", target=name, exc_info=error)
