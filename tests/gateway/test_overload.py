"""What happens when an engine's queue is too long: elsewhere if permitted, else 429 at once; batch work waits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.config import LimitSettings, RouteSettings, TargetSettings
from app.gateway.providers.local_request import BATCH_LEVELS, RequestBuilder
from app.gateway.schemas import ChatRequest, Message, RouteHints, Segment
from tests.conftest import Site, fake_settings, open_site
from tests.gateway.test_local import tiny_model


def settings(folder: Path, strategy: str, *targets: TargetSettings) -> Any:
    route = RouteSettings(model="m", targets=tuple(target.name for target in targets), strategy=strategy)
    return fake_settings(folder, targets=targets, routes=(route,), limits=LimitSettings(overload_seconds=2.0))


def engine(name: str, seconds: float, **changes: Any) -> TargetSettings:
    return TargetSettings(name=name, provider="fake", options=f"queue_ms={seconds * 1000}", **changes)


async def ask(site: Site, **headers: str) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
    return await site.client.post("/v1/chat/completions", json=body, headers=await site.headers() | headers)


@pytest.mark.parametrize("strategy", ["order", "weight", "latency", "cost", "load", "affinity", "hybrid"])
async def test_a_long_queue_sends_requests_elsewhere_under_every_strategy(strategy: str, tmp_path: Path) -> None:
    managed = TargetSettings(name="managed", provider="fake")
    async with open_site(settings(tmp_path, strategy, engine("busy", 9), managed)) as site:
        assert (await ask(site)).headers["x-precedent-served-by"] == "managed"
        body = {"request": {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}}
        said = await site.client.post("/api/v1/routes/explain", json=body, headers=await site.headers())
        reasons = {verdict["target"]: verdict["reason"] for verdict in said.json()["targets"]}
        assert reasons["busy"] == "last: overloaded, first token in 9 s"


async def test_nowhere_else_to_go_is_429_with_the_time_to_come_back(tmp_path: Path) -> None:
    abroad = TargetSettings(name="abroad", provider="fake", region="us")
    async with open_site(settings(tmp_path, "order", engine("busy", 9, region="eu"), abroad)) as site:
        refused = await ask(site, **{"x-precedent-region": "eu"})
        assert refused.status_code == 429 and refused.headers["retry-after"] == "7"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        batch = await ask(site, **{"x-precedent-region": "eu", "x-precedent-batch": "true"})
        assert batch.status_code == 200 and batch.headers["x-precedent-served-by"] == "busy"
        assert (await ask(site, **{"x-precedent-batch": "maybe"})).status_code == 400


async def test_below_the_limit_nothing_changes_and_pressure_is_told(tmp_path: Path) -> None:
    async with open_site(settings(tmp_path, "order", engine("calm", 0.5), engine("busier", 1.5))) as site:
        assert (await ask(site)).headers["x-precedent-served-by"] == "calm"
        assert site.services.gateway.pressure("m") == 0.25


async def test_what_tells_nothing_is_under_no_pressure(tmp_path: Path) -> None:
    async with open_site(settings(tmp_path, "order", TargetSettings(name="quiet", provider="fake"))) as site:
        assert site.services.gateway.pressure("m") == 0.0


def test_batch_work_starts_after_everybody_elses(tmp_path: Path) -> None:
    from app.engine import Tokenizer

    builder = RequestBuilder(Tokenizer(tiny_model(tmp_path)), None)
    request = ChatRequest("m", (Message("user", (Segment("x", frozenset({"t"})),)),))
    segments = builder.prompt(request).segments
    assert builder.build(request, segments).priority == 0
    waiting = replace(request, hints=RouteHints(batch=True))
    assert builder.build(waiting, segments).priority == -BATCH_LEVELS < 0
