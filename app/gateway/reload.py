"""Hot reload: the file and what the API changed take effect without a restart and without dropping a request.

A new switchboard is made and its new targets are started beside the old ones; only when all of that has succeeded is
it put in place. Whatever fails before changes nothing and is kept to be shown. Targets that are gone are closed when
their last request has ended. A model that is added to [[models]] or taken out of it is a target that is new or gone;
what the others are told, and sections other than models, targets, routes and prices, need a restart.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.config import Settings
from app.db import Database, now
from app.errors import AppError, ConfigurationError, Conflict
from app.gateway import catalog
from app.gateway.catalog import Stored
from app.gateway.events import EventBus
from app.gateway.providers.base import Provider
from app.gateway.resilience import GuardedTarget
from app.gateway.service import Gateway
from app.gateway.switchboard import Switchboard, build
from app.telemetry import logger
from app.tenants.sealing import Sealer

log = logger(__name__)
LOOK_SECONDS = 1.0
GRACE_SECONDS = 5.0
DRAIN_STEP_SECONDS = 0.1


class Reloader:
    """Looks once a second whether the file or the database has changed."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        sealer: Sealer,
        gateway: Gateway,
        stored: Stored,
        events: EventBus,
        before_start: Callable[[Provider], None],
    ) -> None:
        """before_start: called with every provider that the reloader is about to start."""
        self._events = events
        self._before_start = before_start
        self.error: str | None = None
        self.loaded_at: datetime = now()
        self.settings = settings
        """The file's and the environment's, without what the API made."""
        self._database = database
        self._sealer = sealer
        self._gateway = gateway
        self.stored = stored
        self._seen_file = _fingerprint(settings.source)
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._task = asyncio.create_task(self._watch(), name="reload")

    async def stop(self) -> None:
        tasks = [task for task in (self._task, *self._closing) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self) -> None:
        """Read everything again and put it in place. Raises Conflict with the reason; then nothing has changed."""
        async with self._lock:
            self._seen_file = _fingerprint(self.settings.source)
            try:
                file = _read(self.settings)
                stored = await catalog.read_stored(self._database, self._sealer)
                async with self._prepared(file, stored) as board:
                    self.settings, self.stored = file, stored
                    self._switch(board)
            except AppError as error:
                self.error = error.detail
                self._events.publish("config", {"loaded_at": self.loaded_at, "error": error.detail})
                raise Conflict(f"Not loaded; what was loaded before goes on. {error.detail}") from error

    async def edit(self, change: Callable[[Stored], Stored], write: Callable[[AsyncSession], Awaitable[None]]) -> None:
        """Try a change of what is stored, write it only where it makes sense, and put it in place here.

        Raises Conflict where the whole would make no sense, or another replica was faster; then nothing was written.
        """
        async with self._lock:
            stored = change(await catalog.read_stored(self._database, self._sealer))
            try:
                async with self._prepared(self.settings, stored) as board:
                    async with self._database.session() as session:
                        await catalog.require_unchanged(session, stored)
                        await write(session)
                        await session.commit()
                    self.stored = await catalog.read_stored(self._database, self._sealer)
                    self._switch(board)
            except ConfigurationError as error:
                raise Conflict(error.detail) from error

    @asynccontextmanager
    async def _prepared(self, file: Settings, stored: Stored) -> AsyncIterator[Switchboard]:
        """The switchboard to be put in place, with what is new in it started, and closed again where that does not come
        to be. Raises Conflict or ConfigurationError.
        """
        before = self._gateway.board
        board = build(catalog.overlaid(file, stored.entries), stored.secrets, before)
        new = [guarded for guarded in board.targets.values() if guarded not in before.targets.values()]
        begun: list[Provider] = []
        try:
            for guarded in new:
                begun.append(guarded.provider)
                await self._start(guarded.provider)
            yield board
        except BaseException:  # also where the process stops meanwhile
            for provider in begun:
                await provider.close()
            raise

    async def _start(self, provider: Provider) -> None:
        self._before_start(provider)
        try:
            await provider.start()
        except AppError:
            raise
        except Exception as error:
            raise Conflict(f"A target could not start: {error}") from error

    def _switch(self, board: Switchboard) -> None:
        gone = [old for old in self._gateway.board.targets.values() if old not in board.targets.values()]
        self._gateway.board = board
        self.error, self.loaded_at = None, now()
        self._events.publish("config", {"loaded_at": self.loaded_at, "error": None})
        log.info("configuration loaded", targets=len(board.targets), routes=len(board.router.routes))
        for guarded in gone:
            self._gateway.leaving.append(guarded.provider)
            task = asyncio.create_task(self._close_when_idle(guarded))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close_when_idle(self, guarded: GuardedTarget) -> None:
        try:
            # A request may have chosen the target and not asked it yet.
            await asyncio.sleep(GRACE_SECONDS)
            while guarded.running:
                await asyncio.sleep(DRAIN_STEP_SECONDS)
        finally:
            await guarded.provider.close()
            self._gateway.leaving.remove(guarded.provider)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if await self._changed():
                    await self.reload()
            except AppError as error:
                # Tried again when something changes again.
                self.stored = dataclasses.replace(self.stored, stamp=await catalog.read_stamp(self._database))
                log.error("configuration not loaded, the old one goes on", reason=error.detail)
            except Exception:
                log.exception("looking for a new configuration failed")

    async def _changed(self) -> bool:
        if _fingerprint(self.settings.source) != self._seen_file:
            return True
        return await catalog.read_stamp(self._database) != self.stored.stamp


def _read(settings: Settings) -> Settings:
    """The settings anew. A file that was never there is not missed."""
    if settings.source is None or not settings.source.exists():
        return settings
    return Settings.load(settings.source)


def _fingerprint(file: Path | None) -> tuple[Any, ...]:
    """Of a file that may be absent: replaced ones differ by their inode even where time and size agree."""
    if file is None or not file.exists():
        return ()
    status = file.stat()
    return (status.st_mtime_ns, status.st_size, status.st_ino)
