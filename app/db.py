"""The database: one engine, one declarative base, sessions, and the one way tenant rows are read.

Works on SQLite (aiosqlite, write-ahead log) and PostgreSQL (asyncpg), chosen by URL. Nothing commits by itself:
a service that changed something says `await session.commit()`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from traceback import walk_tb
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from sqlalchemy import JSON, DateTime, ForeignKey, MetaData, Select, TypeDecorator, event, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError
from uuid_utils.compat import uuid7

from app.errors import Conflict, NotFound, Unavailable

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


# Opening one costs a thread and four pragmas, keeping it next to nothing: against 5, the default, 400 mixed calls of
# four concurrent callers took 7.9 s of processor time instead of 12.4 (tests/rag/leaks.py).
SQLITE_CONNECTIONS = 20
POOL_SECONDS = 30.0


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on every database; SQLite stores none of the zone by itself."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime without a zone was written")
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Every table: a time-ordered UUID as key and the time it was created."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        list[Any]: JSON(),
        list[str]: JSON(),
    }

    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7)
    created_at: Mapped[datetime] = mapped_column(default=now)


class TenantScoped:
    """Mixin of every table whose rows belong to a tenant. Read such rows through `owned()` or `get_owned()` alone."""

    tenant_id: Mapped[UUID] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), index=True)


Owned = TypeVar("Owned", bound=Any)


def owned(model: type[Owned], tenant_id: UUID) -> Select[tuple[Owned]]:
    """SELECT of the tenant's rows of `model`: the only place where the tenant filter is written."""
    return select(model).where(model.tenant_id == tenant_id)


async def get_owned(session: AsyncSession, model: type[Owned], tenant_id: UUID, row_id: UUID) -> Owned:
    """The tenant's row, or NotFound: another tenant's row cannot be told from one that does not exist."""
    row = await session.scalar(owned(model, tenant_id).where(model.id == row_id))
    if row is None:
        raise NotFound(f"There is no {model.__name__.lower()} {row_id}.")
    return row  # type: ignore[no-any-return]  # the bound is Any, so that models need no common mapped type


async def take_turn(session: AsyncSession, model: type[Base], row_id: UUID) -> bool:
    """Whoever takes the turn of this row as well, in any process, waits until this transaction ends: what is read from
    here on stays as it is until then. What was read before does not; so a turn comes first.

    A write that changes nothing, since SQLite knows no SELECT FOR UPDATE: there the first write locks out all others.
    False where there is no such row.
    """
    nothing = update(model).where(model.id == row_id).values(created_at=model.created_at)
    written = await session.execute(nothing.execution_options(synchronize_session=False))
    return bool(written.rowcount)  # type: ignore[attr-defined]


class Database:
    """Owns the connection pool."""

    def __init__(self, url: str, answer_seconds: float | None = None) -> None:
        """answer_seconds: the longest that PostgreSQL may take to connect or to answer a statement; None: no limit."""
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.is_sqlite and self.url.database and self.url.database != ":memory:":
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        in_file = self.is_sqlite and self.url.database not in (None, "", ":memory:")
        kept: dict[str, Any] = {"pool_size": SQLITE_CONNECTIONS} if in_file else {}
        if not self.is_sqlite:
            waits = {"timeout": answer_seconds, "command_timeout": answer_seconds}  # of asyncpg
            kept = {"pool_pre_ping": True, "pool_timeout": answer_seconds or POOL_SECONDS, "connect_args": waits}
        self.engine: AsyncEngine = create_async_engine(self.url, **kept)
        if self.is_sqlite:
            event.listen(self.engine.sync_engine, "connect", _configure_sqlite)
            event.listen(self.engine.sync_engine, "invalidate", _roll_back)
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session that rolls back what was not committed. Raises Unavailable where the database is away, and Conflict
        where a row that was read and is written has gone meanwhile.
        """
        try:
            async with self._sessions() as session:
                yield session
        except (ConnectionError, TimeoutError, PoolTimeout) as error:  # no connection, or not in time
            if not _of_a_driver(error):
                raise
            raise Unavailable("The database does not answer.") from error
        except StaleDataError as error:
            raise Conflict("Somebody else has just deleted what this would change.") from error
        except DBAPIError as error:
            if error.connection_invalidated:  # it broke
                raise Unavailable("The database does not answer.") from error
            raise

    async def ping(self) -> None:
        """Raise whatever the driver raises when the database does not answer."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


def _of_a_driver(error: Exception) -> bool:
    """Drivers raise Python's own errors, as whoever holds the session may for reasons of his own; only theirs came
    through SQLAlchemy."""
    return any(frame.f_globals["__name__"].startswith("sqlalchemy.") for frame, _ in walk_tb(error.__traceback__))


def _configure_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _roll_back(connection: Any, _record: Any, _error: BaseException | None) -> None:
    """Before a connection is thrown away whose statement was cancelled. To close it is not enough: SQLite keeps its
    lock until the last cursor is collected, and everybody else's writes wait for it in vain.
    """
    connection.rollback()
