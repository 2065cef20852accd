"""Sessions: a database that is away is told apart from what their holders do meanwhile."""

import asyncio
import socket
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, text

from app import migrate
from app.db import Database, take_turn
from app.errors import Conflict, Unavailable
from app.tenants.models import Tenant

HERE = "127.0.0.1"


@pytest.mark.parametrize("error", [TimeoutError, ConnectionResetError])
async def test_an_error_of_whoever_holds_the_session_is_no_error_of_the_database(error: type[Exception]) -> None:
    database = Database("sqlite+aiosqlite://")

    async def ask_a_model() -> None:
        raise error("a model of somebody else's")

    with pytest.raises(error, match="somebody else's"):
        async with database.session() as session:
            await session.execute(text("SELECT 1"))
            await ask_a_model()
    await database.close()


@pytest.mark.parametrize("listens", [False, True], ids=["nobody there", "no answer in time"])
async def test_a_database_that_does_not_answer_is_said_to_be_away(listens: bool) -> None:
    with socket.socket() as server:
        server.bind((HERE, 0))
        if listens:
            server.listen()
        database = Database(f"postgresql+asyncpg://nobody@{HERE}:{server.getsockname()[1]}/none", 0.2)
        with pytest.raises(Unavailable, match="database does not answer"):
            async with asyncio.timeout(10), database.session() as session:
                await session.execute(text("SELECT 1"))
        await database.close()


async def test_a_cancelled_write_keeps_no_lock(tmp_path: Path) -> None:
    """Though somebody keeps the error, and with it every frame and cursor of the cancelled statement."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/locks.db")
    rows = Table("rows", MetaData(), Column("n", Integer))
    async with database.engine.begin() as connection:
        await connection.run_sync(rows.metadata.create_all)

    async def write(count: int) -> None:
        async with database.session() as session:
            await session.execute(rows.insert(), [{"n": n} for n in range(count)])
            await session.commit()

    kept: list[BaseException | None] = []
    for tenth in range(10):
        task = asyncio.create_task(write(20_000))
        await asyncio.sleep(0.01 + 0.004 * tenth)  # somewhere within the statement
        task.cancel()
        kept += await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(5):
            await write(1)
    assert any(isinstance(error, asyncio.CancelledError) for error in kept)
    await database.close()


async def test_what_is_read_in_turn_still_holds_when_it_is_written(tmp_path: Path) -> None:
    """On PostgreSQL: tests/faults/test_at_once.py."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/turns.db")
    await migrate.upgrade(database)
    tenant = Tenant(name="firm", requests_per_minute=0)
    async with database.session() as session:
        session.add(tenant)
        await session.commit()
    all_there = asyncio.Barrier(4)

    async def count() -> None:
        async with database.session() as session:
            await all_there.wait()
            assert await take_turn(session, Tenant, tenant.id)
            row = await session.get_one(Tenant, tenant.id)
            await asyncio.sleep(0)
            row.requests_per_minute = (row.requests_per_minute or 0) + 1
            await session.commit()

    await asyncio.gather(*(count() for _ in range(4)))
    async with database.session() as session:
        assert (await session.get_one(Tenant, tenant.id)).requests_per_minute == 4
        assert not await take_turn(session, Tenant, uuid4())
    await database.close()


async def test_a_row_that_somebody_else_has_deleted_is_a_conflict(tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/stale.db")
    await migrate.upgrade(database)
    tenant = Tenant(name="firm")
    async with database.session() as session:
        session.add(tenant)
        await session.commit()
    with pytest.raises(Conflict, match="just deleted"):
        async with database.session() as session:
            row = await session.get_one(Tenant, tenant.id)
            async with database.session() as other:
                await other.delete(await other.get_one(Tenant, tenant.id))
                await other.commit()
            row.name = "firm and sons"
            await session.commit()
    await database.close()
