"""Migrations go up and agree with the models, on both databases."""

from pathlib import Path

import pytest

from app import migrate
from app.db import Database
from app.errors import Unavailable


async def check(url: str) -> None:
    database = Database(url)
    with pytest.raises(Unavailable, match="migrate"):
        await migrate.require_current(database)
    await migrate.upgrade(database)
    await migrate.upgrade(database)  # a second time changes nothing
    await migrate.require_current(database)
    assert await migrate.drift(database) == []
    await database.close()


async def test_sqlite(tmp_path: Path) -> None:
    await check(f"sqlite+aiosqlite:///{tmp_path}/deep/new.db")


@pytest.mark.slow
async def test_postgres(postgres_url: str) -> None:
    await check(postgres_url)
