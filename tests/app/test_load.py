"""The load generator: what it sends, what it counts, and what it finds wrong."""

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from app.asgi import create_app
from app.config import LimitSettings, RouteSettings, TargetSettings
from app.errors import ConfigurationError
from app.load.generator import Client, Limits, Outcome, Scenario, Stage, arrivals, percentile, run
from app.load.report import figures, picture, table, verdicts
from app.tenants.principal import Scope
from tests.conftest import fake_settings, listen
from tests.gateway.upstream import prepared

ROOT = Path(__file__).parents[2]
SMALL = Scenario("m", 20, (5, 10), (3, 6), burst_every_seconds=0.5, burst_size=2)


def test_the_scenario_is_read_and_nonsense_named(tmp_path: Path) -> None:
    scenario = Scenario.read(ROOT / "scenarios" / "legal.toml")
    assert scenario.shared_words == 1400 and scenario.private_words == (40, 200)
    broken = tmp_path / "broken.toml"
    broken.write_text('[request]\nmodel = "m"\nshared_words = "many"\n')
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        Scenario.read(broken)


def test_arrivals_are_open_loop_at_the_rate_asked_for() -> None:
    rng = random.Random(2)
    found = arrivals(SMALL, 20.0, 200.0, rng)
    assert sum(count for _, count in found) == pytest.approx(4000, rel=0.06)
    assert sum(count == 2 for _, count in found) == 400
    times = [at for at, _ in found]
    assert times == sorted(times) and times[0] > 0 and times[-1] < 200
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert percentile(gaps, 0.99) > 3 * percentile(gaps, 0.5), "Poisson, not a metronome"


def stage(name: str, good: int, late: int, refused: int, seconds: float = 10.0) -> Stage:
    outcomes = [Outcome(0.0, "ok", 10, 5, 40, 3)] * good + [Outcome(0.0, "ok", 999, 5, 40, 3)] * late
    outcomes += [Outcome(0.0, "429", total_ms=4, retry_after=True)] * refused
    return Stage(name, good / seconds, seconds, outcomes, kv_leaked=0)


def test_figures_and_verdicts() -> None:
    limits = Limits(100, 50)
    fine = [figures(one, limits) for one in (stage("1x", 100, 2, 0), stage("3x", 98, 3, 200))]
    assert fine[1]["attainment"] == round(98 / 101, 4) and fine[1]["goodput"] == 9.8 and fine[1]["refused"] == 200
    assert verdicts(fine, SMALL) == []
    collapsed = [fine[0], figures(stage("3x", 40, 60, 0), limits)]
    assert [text.split(":")[0] for text in verdicts(collapsed, SMALL)] == ["3x", "goodput at 3x is 40% of that at 1x"]
    bad = stage("1x", 10, 0, 1)
    bad.outcomes += [Outcome(0.0, "503", total_ms=400), Outcome(0.0, "broken off")]
    bad.kv_leaked = 7
    said = " ".join(verdicts([figures(bad, limits)], SMALL))
    for wrong in ("errors {'broken off': 1}", "refusals took 400 ms", "1 refusals without Retry-After", "7 KV blocks"):
        assert wrong in said


async def test_against_a_real_server(tmp_path: Path) -> None:
    """One fast model, one that always refuses."""
    targets = (
        TargetSettings(name="fast", provider="fake", options="delay_ms=2,text=a b c d e f"),
        TargetSettings(name="full", provider="fake", options="queue_ms=99000"),
    )
    routes = tuple(RouteSettings(model=target.name, targets=(target.name,)) for target in targets)
    settings = fake_settings(tmp_path, targets=targets, routes=routes, limits=LimitSettings(overload_seconds=2))
    key = await prepared(settings, Scope.CHAT)
    said: list[str] = []
    async with listen(create_app(settings)) as url:
        client = Client(url, key, Scenario("fast", 20, (5, 10), (3, 6)))
        found = await run(client, [1.0, 2.0], 1.0, said.append, known_capacity=20.0)
        rows = [figures(one, found.limits) for one in found.stages]
        assert [row["stage"] for row in rows] == ["1x", "2x"] and rows[1]["sent"] > rows[0]["sent"] > 5
        assert all(row["answered"] == row["sent"] and row["ttft_ms"]["p50"] > 0 for row in rows)
        await client.close()
        refusing = Client(url, key, Scenario("full", 5, (1, 2), (3, 4)))
        outcome = await refusing.ask()
        assert outcome.status == "429" and outcome.retry_after
        with pytest.raises(ConfigurationError, match="no request was answered"):
            await run(refusing, [1.0], 0.5, said.append, known_capacity=5.0)
        await refusing.close()
    made: Any = table(rows, found.limits)
    assert made.row_count == 2
    picture(rows, found.limits, tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 10_000
