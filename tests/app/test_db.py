"""Sessions: a database that is away is told apart from what their holders do meanwhile."""

import asyncio
import socket

import pytest
from sqlalchemy import text

from app.db import Database
from app.errors import Unavailable

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
