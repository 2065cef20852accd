"""The audit log: one chain, append-only, and every tampering is found."""

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from app import migrate
from app.cli import main
from app.db import Database
from app.tenants import audit, service
from app.tenants.models import AuditEntry


async def chained(path: str) -> Database:
    database = Database(path)
    await migrate.upgrade(database)

    async def one(number: int) -> None:
        async with database.session() as session:
            tenant = await service.create_tenant(session, f"t{number}")
            await service.create_key(session, tenant.id, "k", scopes=frozenset({"chat"}))

    await asyncio.gather(*(one(number) for number in range(8)))
    return database


async def verified(database: Database) -> audit.Chain:
    async with database.session() as session:
        return await audit.verify(session)


async def run(database: Database, *statements: str) -> None:
    async with database.engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_concurrent_entries_make_one_chain(tmp_path: Path) -> None:
    database = await chained(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    assert (await verified(database)).entries == 16
    await database.close()


async def test_what_is_rolled_back_leaves_no_gap(tmp_path: Path) -> None:
    database = await chained(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    async with database.session() as session:
        await audit.append(session, "a", "b", "c", None)
        await session.rollback()
    assert (await verified(database)).entries == 16
    await database.close()


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
async def test_the_database_refuses_changes(tmp_path: Path, statement: str) -> None:
    database = await chained(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    with pytest.raises(DBAPIError, match="append-only"):
        await run(database, statement)
    await database.close()


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE audit SET actor = 'nobody' WHERE seq = 7", "Entry 7 .* changed"),
        ("UPDATE audit SET detail = '{}' WHERE seq = 1", "Entry 1 .* changed"),
        ("DELETE FROM audit WHERE seq = 5", "Entry 5 .* missing"),
        ("DELETE FROM audit WHERE seq > 10", "ends after entry 10"),
    ],
)
async def test_tampering_is_found(tmp_path: Path, statement: str, says: str) -> None:
    database = await chained(f"sqlite+aiosqlite:///{tmp_path}/a.db")
    await run(database, "DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete", statement)
    with pytest.raises(audit.BrokenChain, match=says):
        await verified(database)
    await database.close()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/a.db"
    monkeypatch.setenv("PRECEDENT_STORAGE_DATABASE_URL", url)
    CliRunner().invoke(main, ["migrate"])
    CliRunner().invoke(main, ["tenant", "create", "acme"])
    whole = CliRunner().invoke(main, ["audit", "verify"])
    assert whole.exit_code == 0 and whole.output.startswith("1 entries, whole")
    assert CliRunner().invoke(main, ["audit", "verify", "--expect", "0" * 64]).exit_code == 1
    arguments = ["user", "create", "acme", "a@acme.example", "--password", "correct horse battery"]
    assert CliRunner().invoke(main, arguments).exit_code == 0


@pytest.mark.slow
async def test_postgres(empty_postgres: str) -> None:
    database = await chained(empty_postgres)
    assert (await verified(database)).entries >= 16
    with pytest.raises(DBAPIError, match="append-only"):
        await run(database, "DELETE FROM audit")
    async with database.session() as session:
        assert (await session.scalars(select(AuditEntry).limit(1))).one().previous_hash
    await database.close()
