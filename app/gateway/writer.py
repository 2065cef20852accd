"""Request log and ledger are written in batches, off the request's path.

What waits in memory is at most `[log] flush_seconds` old while the database answers; kill -9 loses no more than that.
A batch is one transaction and may be tried again: rows that are there already are passed over. While the database is
away rows wait; when `[log] max_pending` wait, requests are refused, since nobody could say what they cost.
"""

import asyncio
import contextlib
import time
from datetime import timedelta
from typing import Any

from sqlalchemy import Table, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import LogSettings
from app.db import Database, now
from app.errors import Unavailable
from app.gateway.models import LedgerEntry, RequestRecord
from app.gateway.record import Row
from app.telemetry import logger

log = logger(__name__)
BATCH = 500
STOP_SECONDS = 10.0
EXPIRE_SECONDS = 3_600.0


class Writer:
    """Start it, `add()` rows, and stop it: stopping writes what is left."""

    def __init__(self, database: Database, settings: LogSettings) -> None:
        self._database = database
        self._settings = settings
        self._requests: list[Row] = []
        self._ledger: list[Row] = []
        self._writing = asyncio.Lock()
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        return len(self._requests) + len(self._ledger)

    def require_room(self) -> None:
        """Raise Unavailable where nothing more can wait."""
        if self.pending >= self._settings.max_pending:
            raise Unavailable("The request log cannot be written at present, so no request is taken.")

    def add(self, request: Row, ledger: Row | None) -> None:
        self._requests.append(request)
        if ledger:
            self._ledger.append(ledger)
        if len(self._requests) >= BATCH:
            self._full.set()

    async def expire(self) -> None:
        """Delete rows of the request log that are older than it is kept."""
        before = now() - timedelta(days=self._settings.retention_days)
        async with self._database.engine.begin() as connection:
            await connection.execute(delete(RequestRecord).where(RequestRecord.created_at < before))

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="request-log")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.flush()
        except Exception:
            log.exception("rows are lost", requests=len(self._requests), ledger=len(self._ledger))

    async def flush(self) -> None:
        """Write everything that waits now. Raises whatever the database raises; the rows then go on waiting."""
        async with self._writing:
            # Not what comes meanwhile: under load that would be many small batches without end.
            left = max(len(self._requests), len(self._ledger))
            while left > 0:
                left -= BATCH
                # A copy stays in the lists until it is written.
                requests, ledger = self._requests[:BATCH], self._ledger[:BATCH]
                async with self._database.engine.begin() as connection:
                    await self._insert(connection, RequestRecord, requests)
                    await self._insert(connection, LedgerEntry, ledger)
                del self._requests[: len(requests)]
                del self._ledger[: len(ledger)]

    async def _insert(self, connection: AsyncConnection, model: type[Any], rows: list[Row]) -> None:
        table: Table = model.__table__
        dialect = sqlite if self._database.is_sqlite else postgresql
        if rows:
            await connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)

    async def _run(self) -> None:
        expired_at = float("-inf")
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), self._settings.flush_seconds)
            self._full.clear()
            try:
                await self.flush()
                if time.monotonic() - expired_at > EXPIRE_SECONDS:
                    await self.expire()
                    expired_at = time.monotonic()
            except Exception:
                log.exception("request log could not be written, tries again", pending=self.pending)
                await asyncio.sleep(self._settings.flush_seconds)
