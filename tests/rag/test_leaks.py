"""Nobody sees another tenant's word in thousands of mixed calls; with filters taken out, the same calls show them."""

import dataclasses
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MethodType
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio

from app import migrate
from app.asgi import create_app
from app.config import LimitSettings, RouteSettings, TargetSettings
from app.db import Database
from app.rag.index.base import Hit, Kind, Legs, SearchFilter, VectorIndex
from app.rag.models import Document
from app.rag.retrieval.retriever import SearchResult
from app.rag.retrieval.search import Dropped, Found, SearchService
from app.services import Services
from app.tenants.principal import Principal
from tests.conftest import fake_settings, listen
from tests.rag.leaks import Harness, Tenant, settle

pytestmark = pytest.mark.slow
TENANTS, CALLS, CONTROL = 50, 5_000, 150


@dataclasses.dataclass
class Firms:
    services: Services
    http: httpx.AsyncClient
    tenants: list[Tenant]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def firms(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Firms]:
    folder: Path = tmp_path_factory.mktemp("leaks")
    settings = fake_settings(
        folder,
        targets=(TargetSettings(name="echo", provider="fake"),),
        routes=(RouteSettings(model="echo", targets=("echo",)),),
        limits=LimitSettings(requests_per_minute=1_000_000, tokens_per_minute=1_000_000_000, concurrency=1_000),
    )
    settings = dataclasses.replace(
        settings, rag=dataclasses.replace(settings.rag, min_confidence=0.0, max_answer_tokens=60)
    )
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        services: Services = app.state.services
        yield Firms(services, http, await settle(services, http, TENANTS))


class EveryTenant:
    """An index whose tenant filter is gone: everybody's points are found for everybody."""

    def __init__(self, index: VectorIndex, tenants: list[str]) -> None:
        self._index = index
        self._tenants = tenants

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)

    def search(
        self, dense: Any, terms: Mapping[str, float] | None, where: SearchFilter, limit: int, *, kind: Kind = "chunk"
    ) -> Legs:
        found = [
            self._index.search(dense, terms, dataclasses.replace(where, tenant=tenant), limit, kind=kind)
            for tenant in self._tenants
        ]

        def best(hits: list[Hit]) -> tuple[Hit, ...]:
            return tuple(sorted(hits, key=lambda hit: -hit.score)[:limit])

        return Legs(best([h for one in found for h in one.dense]), best([h for one in found for h in one.sparse]))


async def unfenced(
    self: SearchService, principal: Principal, result: SearchResult
) -> tuple[list[Found], tuple[Dropped, ...], dict[str, float]]:
    """Whatever the index says, with its text, whoever asks."""
    found = []
    async with self._database.session() as session:
        for passage in result.passages:
            document = await session.get_one(Document, UUID(passage.document_id))
            owner = dataclasses.replace(principal, tenant_id=document.tenant_id)
            evidence = await self._evidence(session, owner, passage)
            found.append(Found(passage, evidence, document.title, (), frozenset()))
    return found, (), {}


async def test_nobody_sees_anothers_word_in_thousands_of_mixed_calls(firms: Firms) -> None:
    outcome = await Harness(firms.services, firms.http, firms.tenants).run(CALLS)
    print(outcome)
    assert outcome.leaks.total() == 0, outcome
    assert outcome.calls.total() == CALLS and not outcome.errors, outcome
    for kind in ("search", "answer", "turn", "history", "page"):
        assert outcome.own[kind] > outcome.calls[kind] / 3, outcome
    assert outcome.own["ended"] == outcome.calls["revoked"] > 0, outcome
    reports = await firms.services.library.reconciler.run(repair=False)
    assert all(report.clean for report in reports)


@pytest.mark.parametrize("missing", ["index", "fence", "both"])
async def test_each_filter_alone_holds_and_without_both_the_harness_reports_leaks(firms: Firms, missing: str) -> None:
    """Which layer catches what: the fence an index without its filter, the index a missing fence; with both gone the
    searches leak, and answers are ended by the rights that they are watched under.
    """
    search = firms.services.library.search
    retriever, index = search._retriever, search._retriever._index
    tenants = [str(tenant_id) for tenant_id in await _tenant_ids(firms)]
    if missing in ("index", "both"):
        retriever._index = EveryTenant(index, tenants)  # type: ignore[assignment]
    if missing in ("fence", "both"):
        search._fence = MethodType(unfenced, search)  # type: ignore[method-assign]
    try:
        harness = Harness(firms.services, firms.http, firms.tenants, seed=1)
        outcome = await harness.run(CONTROL, {"search": 2, "answer": 1})
    finally:
        retriever._index = index
        search.__dict__.pop("_fence", None)
    print(missing, outcome)
    if missing == "both":
        assert outcome.leaks["search"] > 0
        assert outcome.leaks["answer"] == 0 and outcome.errors["answers conflict"] > 0
    else:
        assert outcome.leaks.total() == 0


async def _tenant_ids(firms: Firms) -> list[UUID]:
    ids = []
    for tenant in firms.tenants[:: len(firms.tenants) // 10]:
        principal = await firms.services.authenticator.authenticate(tenant.key)
        ids.append(principal.tenant_id)
    return ids
