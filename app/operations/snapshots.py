"""A database as one file, taken while it is used: SQLite by its backup API, PostgreSQL by pg_dump."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection, create_engine, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database
from app.errors import Conflict, Unavailable
from app.rag.models import DocumentVersion

Version = tuple[UUID, UUID]  # tenant, version: the name of an original


class Snapshots(Protocol):
    """`name`: of the file, which also tells the kinds apart."""

    name: str

    async def take(self, file: Path) -> set[Version]:
        """Write the database to `file`; returns the versions that this very state names. Raises Unavailable."""

    async def holds_data(self) -> bool: ...

    async def put_back(self, file: Path) -> None:
        """Replace the database by `file`'s. Raises Unavailable, and then nothing was replaced."""


def snapshots_of(database_url: str) -> Snapshots:
    """Raises Conflict for a database in memory."""
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite":
        return PostgresSnapshots(url)
    if url.database in (None, "", ":memory:"):
        raise Conflict("A database in memory cannot be backed up.")
    return SqliteSnapshots(Path(str(url.database)))


class SqliteSnapshots:
    """https://sqlite.org/backup.html: readers and writers go on meanwhile."""

    name = "database.sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def take(self, file: Path) -> set[Version]:
        return await asyncio.to_thread(self._take, file)

    def _take(self, file: Path) -> set[Version]:
        if not self._path.exists():
            raise Unavailable(f"There is no database at {self._path}.")
        file.unlink(missing_ok=True)
        with closing(sqlite3.connect(self._path)) as source, closing(sqlite3.connect(file)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            [verdict] = copy.execute("PRAGMA quick_check").fetchone()
            if verdict != "ok":
                raise Unavailable(f"The copy of {self._path} is damaged: {verdict}")
        engine = create_engine(f"sqlite:///{file}")
        with engine.connect() as connection:
            named = _named(connection)
        engine.dispose()
        return named

    async def holds_data(self) -> bool:
        return self._path.exists()

    async def put_back(self, file: Path) -> None:
        await asyncio.to_thread(self._put_back, file)

    def _put_back(self, file: Path) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        incoming = self._path.with_name(self._path.name + ".restoring")
        shutil.copyfile(file, incoming)
        for left in ("-wal", "-shm"):  # of the database that goes: they would be applied to the one that comes
            self._path.with_name(self._path.name + left).unlink(missing_ok=True)
        incoming.replace(self._path)


class PostgresSnapshots:
    """pg_dump in the snapshot of a transaction of ours, so that dump and list of originals are of one moment."""

    name = "database.dump"

    def __init__(self, url: URL) -> None:
        self._url = url

    async def take(self, file: Path) -> set[Version]:
        async with self._connected() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            snapshot = (await connection.execute(text("SELECT pg_export_snapshot()"))).scalar_one()
            named = await connection.run_sync(_named)
            await self._run("pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={file}")
        return named

    async def holds_data(self) -> bool:
        async with self._connected() as connection:
            return bool(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))

    async def put_back(self, file: Path) -> None:
        once = ("--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error")
        await self._run("pg_restore", *once, f"--dbname={self._url.database}", str(file))

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AsyncConnection]:
        database = Database(self._url.render_as_string(hide_password=False))
        try:
            async with database.engine.connect() as connection:
                yield connection
        except (OSError, SQLAlchemyError) as error:
            raise Unavailable(f"The database does not answer: {type(error).__name__}") from error
        finally:
            await database.close()

    async def _run(self, program: str, *arguments: str) -> None:
        """Who and where go by the environment: what is in argv, everybody on the machine can read."""
        found = shutil.which(program)
        if found is None:
            raise Unavailable(f"{program} is not on PATH: install PostgreSQL's client programs.")
        where = {"PGHOST": self._url.host, "PGPORT": self._url.port, "PGUSER": self._url.username}
        where |= {"PGPASSWORD": self._url.password, "PGDATABASE": self._url.database}
        environment = os.environ | {name: str(value) for name, value in where.items() if value}
        process = await asyncio.create_subprocess_exec(
            found, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        if process.returncode:
            raise Unavailable(f"{program} failed: {said.decode(errors='replace').strip()}")


def _named(connection: Connection) -> set[Version]:
    rows = connection.execute(select(DocumentVersion.tenant_id, DocumentVersion.id))
    return {(tenant_id, version_id) for tenant_id, version_id in rows}
