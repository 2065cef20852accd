"""A database as one file, taken while it is used: SQLite by its backup API, PostgreSQL by pg_dump."""

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection, create_engine, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool import NullPool

from app.db import Database
from app.errors import Conflict, Unavailable
from app.rag.models import DocumentVersion

Version = tuple[UUID, UUID]  # tenant, version: the name of an original


class Moment(Protocol):
    """One state of a database, held while others go on writing. `named`: the versions that this very state names."""

    @property
    def named(self) -> set[Version]: ...

    async def write(self, file: Path) -> None:
        """Write this state to `file`. Raises Unavailable."""


class Snapshots(Protocol):
    """`name`: of the file, which also tells the kinds apart."""

    name: str

    def moment(self) -> AbstractAsyncContextManager[Moment]:
        """The state of now. Raises Unavailable."""

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


@dataclass(frozen=True)
class SqliteMoment:
    """A read transaction of SQLite's, copied by its backup API (https://sqlite.org/backup.html)."""

    named: set[Version]
    connection: Connection

    async def write(self, file: Path) -> None:
        await asyncio.to_thread(self._write, file)

    def _write(self, file: Path) -> None:
        source = self.connection.connection.driver_connection
        assert isinstance(source, sqlite3.Connection)
        with closing(sqlite3.connect(file)) as copy:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            [verdict] = copy.execute("PRAGMA quick_check").fetchone()
        if verdict != "ok":
            raise Unavailable(f"The copy of {self.connection.engine.url.database} is damaged: {verdict}")


class SqliteSnapshots:
    """Readers and writers go on while a moment is held."""

    name = "database.sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Moment]:
        if not self._path.exists():
            raise Unavailable(f"There is no database at {self._path}.")
        engine = create_engine(f"sqlite:///{self._path}", poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")  # the driver sends it by itself before writes alone
            yield SqliteMoment(_named(connection), connection)

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


@dataclass(frozen=True)
class PostgresMoment:
    """A transaction's snapshot, which pg_dump reads as well while the transaction lasts."""

    named: set[Version]
    snapshot: str
    url: URL

    async def write(self, file: Path) -> None:
        await _run(self.url, "pg_dump", "--format=custom", f"--snapshot={self.snapshot}", f"--file={file}")


class PostgresSnapshots:
    """By PostgreSQL's own client programs."""

    name = "database.dump"

    def __init__(self, url: URL) -> None:
        self._url = url

    @asynccontextmanager
    async def moment(self) -> AsyncIterator[Moment]:
        async with self._connected() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            snapshot = (await connection.execute(text("SELECT pg_export_snapshot()"))).scalar_one()
            yield PostgresMoment(await connection.run_sync(_named), snapshot, self._url)

    async def holds_data(self) -> bool:
        async with self._connected() as connection:
            return bool(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))

    async def put_back(self, file: Path) -> None:
        once = ("--clean", "--if-exists", "--no-owner", "--single-transaction", "--exit-on-error")
        await _run(self._url, "pg_restore", *once, f"--dbname={self._url.database}", str(file))

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


async def _run(url: URL, program: str, *arguments: str) -> None:
    """Who and where go by the environment: what is in argv, everybody on the machine can read."""
    found = shutil.which(program)
    if found is None:
        raise Unavailable(f"{program} is not on PATH: install PostgreSQL's client programs.")
    where = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username}
    where |= {"PGPASSWORD": url.password, "PGDATABASE": url.database}
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
