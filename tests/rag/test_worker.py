"""Workers beside a server: one database, one Qdrant server, Redis to wake them."""

import asyncio
import dataclasses
from pathlib import Path
from uuid import UUID

import pytest
import redis.asyncio as redis

from app import migrate
from app.db import Database
from app.errors import ConfigurationError
from app.jobs import SUCCEEDED, Job
from app.rag.documents.bell import CHANNEL
from app.rag.documents.service import Upload
from app.services import open_services
from app.tenants import service
from app.tenants.principal import Scope
from app.worker import open_worker
from tests.conftest import fake_settings
from tests.servers import qdrant_server


async def test_a_worker_with_an_embedded_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="belongs to one process"):
        async with open_worker(fake_settings(tmp_path)):
            pass


async def both_listen(redis_url: str) -> None:
    async with redis.Redis.from_url(redis_url) as client, asyncio.timeout(30):
        while (await client.pubsub_numsub(CHANNEL))[0][1] < 2:
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_worker_ingests_what_the_server_files_and_the_server_hears_of_it(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.jobs.POLL_SECONDS", 600.0)  # what happens, happens because the bell was rung
    with qdrant_server() as url:
        plain = fake_settings(tmp_path)
        rag = dataclasses.replace(plain.rag, index="qdrant", qdrant_url=url, jobs_redis_url=redis_url)
        settings = dataclasses.replace(plain, rag=rag)
        database = Database(settings.storage.database_url)
        await migrate.upgrade(database)
        async with database.session() as session:
            tenant = await service.create_tenant(session, "firm")
            key = await service.create_key(session, tenant.id, "k", scopes=frozenset(Scope))
            principal = await service.find_principal(session, key.secret)
        assert principal
        idle = dataclasses.replace(settings, rag=dataclasses.replace(rag, ingest_workers=0))
        async with open_services(idle) as server, open_worker(settings):
            await both_listen(redis_url)

            async def filed(text: str, document: Job | None = None) -> Job:
                upload = Upload("a.txt", "", text.encode())
                one = (
                    await server.library.documents.replace(principal, UUID(document.payload["document_id"]), upload)
                    if document
                    else await server.library.documents.add(principal, upload, "default", frozenset())
                )
                assert one.job
                server.library.jobs.wake()
                async with asyncio.timeout(60):
                    while True:
                        async with database.session() as session:
                            job = await session.get(Job, one.job.id)
                            assert job
                            if job.status == SUCCEEDED:
                                return job
                        await asyncio.sleep(0.05)

            first = await filed("The rent is nine hundred crowns.")
            found = await server.library.search.search(principal, "How much is the rent?", 3)
            assert ["nine hundred" in one.text for one in found.passages] == [True]
            heard: list[str] = []

            async def listener(gone: object) -> None:
                heard.extend(gone)  # type: ignore[call-overload]

            server.library.answers._forgetting.tell(listener)
            await filed("The rent is one thousand crowns.", first)
            async with asyncio.timeout(30):
                while not heard:
                    await asyncio.sleep(0.05)
            assert heard == [f"{first.payload['document_id']}/1"]
        await database.close()
