"""Prices, budgets and limits over the whole pipeline: what is reserved, what is owed, what callers are told."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import pytest_asyncio
from sqlalchemy import func, select, update

from app.asgi import create_app
from app.config import LimitSettings, LogSettings, PriceSettings, RouteSettings, TargetSettings
from app.db import Database
from app.errors import Unavailable
from app.gateway.metering import window_end, window_start
from app.gateway.models import LedgerEntry, RequestRecord
from app.gateway.prices import PriceTable, dollars
from app.gateway.record import Record
from app.gateway.schemas import Usage
from app.gateway.writer import BATCH, Writer
from app.tenants.models import ApiKey, Budget, Tenant
from app.tenants.principal import Principal, Window
from app.tenants.service import hash_key
from tests.conftest import Site, fake_settings, listen, open_site
from tests.gateway.upstream import prepared

CHAT = "/v1/chat/completions"
# "one two three four" comes back as four words: with these prices exactly 4 × $0.01 for the answer.
PRICE = PriceSettings(target="fake", input=1_000_000, output=10_000_000_000)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    settings = fake_settings(
        tmp_path_factory.mktemp("shop"),
        targets=(
            TargetSettings(name="fake", provider="fake"),
            TargetSettings(name="slow", provider="fake", options="delay_ms=150"),
            TargetSettings(name="down", provider="fake", options="status=503", max_retries=0),
            TargetSettings(name="breaks", provider="fake", options="status=503,after=2"),
        ),
        routes=tuple(RouteSettings(model=name, targets=(name,)) for name in ("fake", "slow", "down", "breaks")),
        prices=(PRICE, replace(PRICE, target="slow"), replace(PRICE, target="breaks"), replace(PRICE, target="down")),
    )
    await prepared(settings)
    app = create_app(settings)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield Site(app, client, app.state.services)  # type: ignore[arg-type]  # a real socket: requests run at once


async def customer(shop: Site, tenant: str, limit: int | None = None, **limits: Any) -> dict[str, str]:
    """Headers of a new key, with a total budget of so many micro-dollars for its tenant."""
    headers = await shop.headers(tenant)
    digest = hash_key(headers["authorization"].removeprefix("Bearer "))
    async with shop.services.database.session() as session:
        if limits:
            await session.execute(update(ApiKey).where(ApiKey.hash == digest).values(**limits))
        owner = await session.scalar(select(Tenant).where(Tenant.name == tenant))
        if limit is not None and owner:
            session.add(Budget(tenant_id=owner.id, window="total", limit_micros=limit))
        await session.commit()
    return headers


def body(model: str = "fake", text: str = "one two three four", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


async def totals(shop: Site, tenant: str) -> tuple[int, int, int]:
    """(sum over the request log, sum over the ledger, entries of the ledger)."""
    await shop.logged()
    async with shop.services.database.session() as session:
        owner = await session.scalar(select(Tenant.id).where(Tenant.name == tenant))
        requests = select(func.coalesce(func.sum(RequestRecord.cost_micros), 0))
        ledger = select(func.coalesce(func.sum(LedgerEntry.amount_micros), 0), func.count(LedgerEntry.id))
        spent = await session.scalar(requests.where(RequestRecord.tenant_id == owner))
        amount, entries = (await session.execute(ledger.where(LedgerEntry.tenant_id == owner))).one()
        return int(spent or 0), amount, entries


def test_costs_are_integers_by_line_and_rounded_up() -> None:
    table = PriceTable(
        [PriceSettings(target="t", input=2_500_000, cached_input=1_250_000, output=10_000_000, second=700)]
    )
    cost = table.cost("t", "m", Usage(1001, 333, 100), computed_ms=1500)
    assert cost.lines() == {"input": 2253, "cached_input": 125, "output": 3330, "computing": 1050}
    assert cost.total == 6758
    assert table.cost("t", "m", Usage(1, 0, 0)).total == 3
    assert table.cost("other", "m", Usage(1000, 1000)).total == 0


def test_a_models_own_price_comes_before_the_targets() -> None:
    table = PriceTable(
        [PriceSettings(target="t", input=1_000_000), PriceSettings(target="t", model="m", input=5_000_000)]
    )
    assert [table.cost("t", model, Usage(1)).total for model in ("m", "n")] == [5, 1]
    assert table.most(["t", "free"], "m", Usage(2)) == 10


def test_dollars() -> None:
    assert [dollars(n) for n in (12_500_000, 42, -1)] == ["12.500000", "0.000042", "-0.000001"]


def test_windows_are_utc() -> None:
    at = datetime(2026, 2, 28, 23, 30, tzinfo=UTC)
    assert window_start(Window.MONTH, at) == datetime(2026, 2, 1, tzinfo=UTC)
    assert window_end(Window.MONTH, at) == datetime(2026, 3, 1, tzinfo=UTC)
    assert window_end(Window.DAY, at) == datetime(2026, 3, 1, tzinfo=UTC)
    assert window_start(Window.TOTAL, at) is window_end(Window.TOTAL, at) is None


async def test_cost_and_what_is_left_are_said(shop: Site) -> None:
    headers = await customer(shop, "told", 1_000_000)
    response = await shop.client.post(CHAT, json=body(), headers=headers)
    assert response.headers["x-precedent-cost-usd"] == "0.040004"
    assert response.headers["x-precedent-budget-remaining-usd"] == "0.959996"
    streamed = await shop.client.post(CHAT, json=body(stream=True), headers=headers)
    assert streamed.headers["x-precedent-cost-reserved-usd"] == "0.040009"
    assert await totals(shop, "told") == (80_008, 80_008, 2)


async def test_fifty_at_once_on_a_budget_for_ten(shop: Site) -> None:
    # A reservation is for nine estimated prompt tokens: ten of them fit into what ten requests may cost.
    headers = await customer(shop, "crowd", 10 * 40_009)
    answers = await asyncio.gather(*(shop.client.post(CHAT, json=body("slow"), headers=headers) for _ in range(50)))
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 402]
    assert (len(served), len(refused)) == (10, 40)
    assert "budget" in refused[0].json()["error"]["message"] and "/api/v1/budgets" in refused[0].text
    assert await totals(shop, "crowd") == (400_040, 400_040, 10)


async def test_money_spent_before_the_process_started_counts(shop: Site, tmp_path: Path) -> None:
    first = await customer(shop, "memory")
    await shop.client.post(CHAT, json=body(), headers=first)
    again = await customer(shop, "memory", 40_004 + 40_008)  # the budget is new, and one request is spent already
    assert (await shop.client.post(CHAT, json=body(), headers=again)).status_code == 402


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_is_billed_once_for_what_came(shop: Site, stream: bool) -> None:
    tenant = f"broken-{stream}"
    headers = await customer(shop, tenant, 1_000_000)
    await shop.client.post(CHAT, json=body("breaks", stream=stream), headers=headers)
    spent, ledger, entries = await totals(shop, tenant)
    assert spent == ledger > 0 and entries == 1


async def test_what_was_never_served_costs_nothing_and_is_given_back(shop: Site) -> None:
    headers = await customer(shop, "unserved", 40_009)
    for _ in range(3):
        assert (await shop.client.post(CHAT, json=body("down"), headers=headers)).status_code == 502
    assert await totals(shop, "unserved") == (0, 0, 0)
    assert (await shop.client.post(CHAT, json=body(), headers=headers)).status_code == 200


async def test_requests_per_minute(shop: Site) -> None:
    headers = await customer(shop, "rpm", requests_per_minute=3)
    answers = [await shop.client.post(CHAT, json=body(), headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers.get("x-ratelimit-remaining-requests") for answer in answers] == ["2", "1", "0", None]
    assert 1 <= int(answers[3].headers["retry-after"]) <= 62
    assert "3 requests a minute" in answers[3].json()["error"]["message"]
    message = await shop.client.post(
        "/v1/messages", json={**body(), "stream": False}, headers={"x-api-key": headers["authorization"][7:]}
    )
    assert message.json()["error"]["type"] == "rate_limit_error" and "retry-after" in message.headers


async def test_tokens_per_minute_count_what_was_really_used(shop: Site) -> None:
    headers = await customer(shop, "tpm", tokens_per_minute=60)
    generous = body() | {"max_tokens": 50}  # reserves 59, uses 8
    answers = [await shop.client.post(CHAT, json=generous, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    small = await shop.client.post(CHAT, json=body(), headers=headers)
    assert small.status_code == 200 and small.headers["x-ratelimit-limit-tokens"] == "60"


async def test_requests_at_once(shop: Site) -> None:
    headers = await customer(shop, "busy", concurrency=2)
    answers = await asyncio.gather(*(shop.client.post(CHAT, json=body("slow"), headers=headers) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
    assert (await shop.client.post(CHAT, json=body(), headers=headers)).status_code == 200


async def test_embeddings_are_within_the_limits_too(shop: Site) -> None:
    headers = await customer(shop, "vectors", requests_per_minute=1)
    request = {"model": shop.services.embeddings.name, "input": "x"}
    answers = [await shop.client.post("/v1/embeddings", json=request, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]


async def test_default_limits_hold_for_keys_without_their_own(tmp_path: Path) -> None:
    settings = fake_settings(tmp_path, limits=LimitSettings(requests_per_minute=1))
    async with open_site(settings) as site:
        headers = await site.headers()
        request = body("echo")
        assert [(await site.client.post(CHAT, json=request, headers=headers)).status_code for _ in range(2)] == [
            200,
            429,
        ]


async def test_the_writer_keeps_what_the_database_refuses(site: Site, tmp_path: Path) -> None:
    """Nothing is lost while the database is away, nothing is written twice, and nobody is served unrecorded."""
    await site.key()
    async with site.services.database.session() as session:
        tenant = await session.scalar(select(Tenant.id))
    assert isinstance(tenant, UUID)
    principal = Principal(tenant, "firm", None, frozenset(), frozenset())
    record = Record.of(principal, "chat", "writer-test", streamed=False)
    away = Database(f"sqlite+aiosqlite:///{tmp_path}/gone/nowhere.db")
    (tmp_path / "gone").rmdir()
    writer = Writer(away, LogSettings(max_pending=2))
    entry = record.ledger_row(PriceTable([]).cost("t", "m", Usage()))
    writer.add(record.row(), entry)
    with pytest.raises(Exception, match="unable to open"):
        await writer.flush()
    assert writer.pending == 2
    with pytest.raises(Unavailable):
        writer.require_room()
    writer._database = site.services.database
    await writer.flush()
    writer.add(record.row(), entry)
    await writer.flush()
    async with site.services.database.session() as session:
        rows = select(func.count(RequestRecord.id)).where(RequestRecord.model == "writer-test")
        assert await session.scalar(rows) == 1
    assert json.dumps(record.spans) == "[]"


async def test_a_stop_while_a_batch_is_written_loses_nothing(site: Site) -> None:
    """A cancelled batch would leave its transaction open, and the last rows would wait for its lock in vain."""
    await site.key()
    async with site.services.database.session() as session:
        tenant = await session.scalar(select(Tenant.id))
    assert isinstance(tenant, UUID)
    principal = Principal(tenant, "firm", None, frozenset(), frozenset())
    for round_ in range(20):
        writer = Writer(site.services.database, LogSettings(flush_seconds=60))
        await writer.start()
        model = f"stopped-{round_}"
        for _ in range(BATCH):
            writer.add(Record.of(principal, "chat", model, streamed=False).row(), None)
        while not writer._writing.locked():
            await asyncio.sleep(0)
        await asyncio.sleep(0.001 * round_)  # somewhere within the batch
        await writer.stop()
        async with site.services.database.session() as session:
            rows = select(func.count(RequestRecord.id)).where(RequestRecord.model == model)
            assert await session.scalar(rows) == BATCH
