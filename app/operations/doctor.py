"""`precedent doctor`: looks at everything a server needs, changes nothing, and says what to do.

Every check has a deadline, so that a server that hangs is named like one that is dead.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

from app.config import LOCAL, Settings
from app.db import now
from app.errors import AppError, ConfigurationError
from app.operations import machine, servers
from app.operations.findings import Finding, failed, ok

DEADLINE_SECONDS = 5.0
SLOW_SECONDS = 120.0  # reading a large model's files for their checksums
Check = Callable[[], Awaitable[Finding]]


async def examine(load: Callable[[], Settings], clock: Callable[[], datetime] = now) -> list[Finding]:
    """All checks that fit the settings, in an order in which the first failure explains the later ones."""
    try:
        settings = load()
    except ConfigurationError as error:
        return [failed("configuration", error.detail, "Correct this; docs/settings.md lists every setting.")]
    source = settings.source if settings.source and settings.source.exists() else "no file, defaults"
    found = [ok("configuration", f"{source}, role {settings.server.role}")]
    return found + [await _within(name, check, seconds) for name, check, seconds in _checks(settings, clock)]


def _checks(settings: Settings, clock: Callable[[], datetime]) -> list[tuple[str, Check, float]]:
    quick: dict[str, Check] = {
        "storage": partial(asyncio.to_thread, machine.storage, settings.directory),
        "disk": partial(asyncio.to_thread, machine.disk, settings.directory),
        "port": partial(asyncio.to_thread, machine.port, settings.server),
        "database": partial(servers.database, settings.storage.database_url),
        "clock": partial(servers.clock, settings.storage.database_url, clock),
        "encryption key": partial(servers.encryption_key, settings),
    }
    for name, url in (("redis (limits)", settings.limits.redis_url), ("redis (jobs)", settings.rag.jobs_redis_url)):
        if url:
            quick[name] = partial(servers.redis_answers, name, url)
    slow: dict[str, Check] = {}
    if settings.has_documents:
        quick["index"] = partial(asyncio.to_thread, servers.index, settings)
        slow["embedding model"] = partial(asyncio.to_thread, machine.embedding_model, settings.rag.embedding_model)
    for name, engine in settings.local_models.items():
        of = "" if name == LOCAL else f" {name}"
        slow[f"model{of}"] = partial(asyncio.to_thread, machine.model, engine)
        quick[f"quantization{of}"] = partial(asyncio.to_thread, machine.quantization, engine)
        if engine.adapters:
            slow[f"adapters{of}"] = partial(asyncio.to_thread, machine.adapters, engine)
        slow[f"device{of}"] = partial(asyncio.to_thread, machine.device, engine.device)
    timed = [(name, check, DEADLINE_SECONDS) for name, check in quick.items()]
    return timed + [(name, check, SLOW_SECONDS) for name, check in slow.items()]


async def _within(name: str, check: Check, seconds: float) -> Finding:
    try:
        async with asyncio.timeout(seconds):
            return await check()
    except TimeoutError:
        return failed(name, f"no answer within {seconds:g} s", f"Look why the {name} hangs: slow is worse than dead.")
    except AppError as error:
        return failed(name, error.detail, f"Put the {name} right and run this again.")
