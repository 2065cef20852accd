"""python -m benchmarks.ingestion --documents DIR [--copies N] [--engine | --alone]: pages a second, and who waits.

Files a folder of PDFs (each copy with a line of its own, so that none is a duplicate) with the services that serve
requests, and meanwhile asks the demo contracts one question after the other: by the fake target, with `--engine` by the
in-process engine with the demo model, with `--alone` nothing. Prints pages per second end to end, the share of the
embedding forward, and the p95 of the answers before and during the ingestion; `--json F` keeps them.
"""

import argparse
import asyncio
import dataclasses
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sqlalchemy import func, select

from app import migrate
from app.config import REPOSITORY, EngineSettings, LogSettings, RouteSettings, Settings, StorageSettings, TargetSettings
from app.db import Database
from app.jobs import ENDED, Job
from app.rag.api.schemas import AnswerRequest
from app.rag.documents.service import Upload
from app.rag.models import Document, DocumentVersion
from app.services import Services, open_services
from app.tenants import service
from app.tenants.principal import Principal, Scope

COLLECTION = "bench"
QUESTION = "What is the governing law of the Supply Agreement of Vitkov Foundry?"
IDLE_ANSWERS = 30
PAUSE_SECONDS = 0.2  # between two questions: a person at work, not a load test


def main() -> None:
    options = _options()
    report = asyncio.run(run(options))
    print(json.dumps(report, indent=1))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Idle answers first, then ingestion with answers beside it."""
    async with _site(options.engine, options.workers) as (services, principal):
        for path in sorted((REPOSITORY / "demo" / "contracts").iterdir()):
            await services.library.documents.add(
                principal, Upload(path.name, "", path.read_bytes()), "demo", frozenset()
            )
        await _all_done(services)
        idle = [await _ask(services, principal) for _ in range(0 if options.alone else IDLE_ANSWERS)]
        forward = _Clock(services.library.search._retriever._embedder)
        began = perf_counter()
        await _file(services, principal, options)
        busy = await _until_done(services, None if options.alone else principal)
        seconds = perf_counter() - began
        async with services.database.session() as session:
            filed = select(DocumentVersion).join(Document, Document.id == DocumentVersion.document_id)
            versions = list(await session.scalars(filed.where(Document.collection == COLLECTION)))
        pages = sum(len(version.pages) for version in versions)
        return {
            "documents": len(versions),
            "pages": pages,
            "seconds": seconds,
            "pages_per_second": pages / seconds,
            "forward_share": forward.seconds / seconds,
            "chunks": services.library.index.count(),
            "idle_ms": _quantiles(idle),
            "busy_ms": _quantiles(busy),
            "answers_meanwhile": len(busy),
        }


class _Clock:
    """Seconds inside the embedding model's forward."""

    def __init__(self, embedder: Any) -> None:
        self.seconds = 0.0
        inner = embedder._forward

        def timed(ids: list[list[int]], **how: bool) -> Any:
            began = perf_counter()
            try:
                return inner(ids, **how)
            finally:
                self.seconds += perf_counter() - began

        embedder._forward = timed


async def _file(services: Services, principal: Principal, options: argparse.Namespace) -> None:
    files = sorted(path for path in options.documents.iterdir() if path.suffix.lower() == ".pdf")
    for number in range(options.copies):
        for path in files[: options.limit]:
            data = path.read_bytes() + f"\n% copy {number}".encode()  # after %%EOF: a comment
            await services.library.documents.add(principal, Upload(path.name, "", data), COLLECTION, frozenset())
    services.library.jobs.wake()


async def _until_done(services: Services, asks: Principal | None) -> list[float]:
    taken = []
    while await _waiting(services):
        if asks is not None:
            taken.append(await _ask(services, asks))
        await asyncio.sleep(PAUSE_SECONDS)
    return taken


async def _ask(services: Services, principal: Principal) -> float:
    """Milliseconds of one whole answer."""
    began = perf_counter()
    opened = await services.library.answers.open(principal, AnswerRequest(question=QUESTION, collection="demo"))
    await opened.complete()
    return (perf_counter() - began) * 1e3


async def _all_done(services: Services) -> None:
    services.library.jobs.wake()
    while await _waiting(services) or services.starting:
        await asyncio.sleep(0.1)


async def _waiting(services: Services) -> int:
    async with services.database.session() as session:
        left = select(func.count()).select_from(Job).where(Job.status.not_in(ENDED))
        return await session.scalar(left) or 0


@asynccontextmanager
async def _site(engine: bool, workers: int) -> AsyncIterator[tuple[Services, Principal]]:
    with tempfile.TemporaryDirectory(prefix="precedent-bench-") as folder:
        storage = StorageSettings(database_url=f"sqlite+aiosqlite:///{folder}/bench.db", directory=folder)
        settings = Settings(storage=storage, log=LogSettings(flush_seconds=0.05))
        settings = dataclasses.replace(settings, rag=dataclasses.replace(settings.rag, ingest_workers=workers))
        if not engine:
            target = TargetSettings(name="fake", provider="fake")
            route = RouteSettings(model="echo", targets=("fake",))
            settings = dataclasses.replace(
                settings, engine=EngineSettings(model=""), targets=(target,), routes=(route,)
            )
        database = Database(storage.database_url)
        await migrate.upgrade(database)
        async with database.session() as session:
            tenant = await service.create_tenant(session, "bench")
            key = await service.create_key(session, tenant.id, "bench", scopes=frozenset(Scope))
            principal = await service.find_principal(session, key.secret)
        await database.close()
        assert principal is not None, "a key made a moment ago"
        async with open_services(settings) as services:
            yield services, principal


def _quantiles(taken: list[float]) -> dict[str, float]:
    return {f"p{p}": float(np.percentile(taken, p)) for p in (50, 95)} if taken else {}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--workers", type=int, default=2)
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--engine", action="store_true")
    beside.add_argument("--alone", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
