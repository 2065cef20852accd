"""Metrics: what the engine did is what a scrape says, and strangers do not scrape."""

import dataclasses
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app import migrate
from app.asgi import create_app
from app.config import EngineSettings, Settings, TelemetrySettings
from app.db import Database
from tests.conftest import Site, fake_settings, listen, open_site
from tests.gateway.test_local import tiny_model

TOKEN = {"authorization": "Bearer scrape-me"}


def with_engine(folder: Path) -> Settings:
    engine = EngineSettings(
        model=str(tiny_model(folder / "model")), served_name="tiny", threads=1, kv_cache_bytes=2**22
    )
    telemetry = TelemetrySettings(log_level="error", metrics_token="scrape-me")
    return dataclasses.replace(fake_settings(folder, engine=engine, targets=(), routes=()), telemetry=telemetry)


async def scrape(site: Site) -> dict[tuple[str, str], float]:
    """Sample values by name and `kind`."""
    response = await site.client.get("/metrics", headers=TOKEN)
    assert response.status_code == 200
    families = text_string_to_metric_families(response.text)
    return {(s.name, s.labels.get("kind", "")): s.value for family in families for s in family.samples}


async def test_the_engines_counters_are_what_was_served(tmp_path: Path) -> None:
    async with open_site(with_engine(tmp_path)) as site:
        before = await scrape(site)
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 7, "ignore_eos": True}
        answer = await site.client.post("/v1/chat/completions", json=body, headers=await site.headers())
        usage = answer.json()["usage"]
        after = await scrape(site)
        tokens = "precedent_engine_tokens_total"
        assert after[tokens, "output"] - before[tokens, "output"] == usage["completion_tokens"] == 7
        assert after[tokens, "prompt"] - before[tokens, "prompt"] == usage["prompt_tokens"]
        blocks = {kind: after["precedent_engine_kv_blocks", kind] for kind in ("free", "used", "cached")}
        assert sum(blocks.values()) == site.services.gateway.providers["local"].stats().total_blocks  # type: ignore[attr-defined]
        assert after["precedent_engine_requests", "running"] == 0


@pytest.mark.parametrize(
    ("token", "sent", "status"), [("scrape-me", "", 401), ("scrape-me", "wrong", 401), ("", "", 403)]
)
async def test_strangers_do_not_scrape(tmp_path: Path, token: str, sent: str, status: int) -> None:
    telemetry = TelemetrySettings(log_level="error", metrics_token=token)
    async with open_site(dataclasses.replace(fake_settings(tmp_path), telemetry=telemetry)) as site:
        headers = {"authorization": f"Bearer {sent}"} if sent else {}
        assert (await site.client.get("/metrics", headers=headers)).status_code == status


async def test_this_machine_needs_no_token(tmp_path: Path) -> None:
    settings = fake_settings(tmp_path)
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    async with listen(create_app(settings)) as url, httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/metrics")).status_code == 200
