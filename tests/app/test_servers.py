"""The servers that tests start for themselves."""

import pytest
import redis.asyncio
from sqlalchemy import text

from app.db import Database


@pytest.mark.slow
async def test_redis_answers(redis_url: str) -> None:
    client = redis.asyncio.from_url(redis_url)
    assert await client.ping()
    await client.aclose()


@pytest.mark.slow
async def test_postgres_answers(postgres_url: str) -> None:
    database = Database(postgres_url)
    async with database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1
    await database.close()
