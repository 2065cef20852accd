"""`precedent cost`: sums that can be checked by hand, and demand from a ledger."""

import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest
from click.testing import CliRunner

from app.cli import main
from app.config import REPOSITORY
from app.db import Database, now
from app.errors import ConfigurationError, InvalidRequest
from app.gateway.models import LedgerEntry
from app.operations.cost import MONTH_HOURS, PRICES, Demand, Scenario, at, bills, break_even, read
from app.operations.cost_report import from_ledger, report
from app.tenants import service
from tests.conftest import fake_settings
from tests.operations.test_backup import bare

SCENARIO = REPOSITORY / "scenarios" / "cost.toml"


@pytest.fixture
def scenario() -> Scenario:
    """An even demand of 3,600 requests an hour; a GPU answers one a second."""
    given = read(SCENARIO)
    own = msgspec.structs.replace(given.self_hosted, requests_per_second=1.0, utilization=1.0, least_gpus=1)
    demand = Demand((3600.0,) * 168, 1000.0, 400.0, 100.0, burst=1.0)
    return replace(given, demand=demand, self_hosted=own)


def test_each_bill_is_the_sum_of_its_parts(scenario: Scenario) -> None:
    managed, own, hybrid = bills(scenario)
    price = scenario.prices.managed[scenario.managed.price]
    per_request = (600 * price.input + 400 * price.cached_input + 100 * price.output) / 1e6
    person = scenario.prices.engineer[scenario.engineer].hour
    assert managed.total == pytest.approx(3600 * MONTH_HOURS * per_request + 8 * person)
    assert (own.gpus, own.utilization, own.local) == (1, pytest.approx(1.0), pytest.approx(1.0))
    card = scenario.prices.gpu[scenario.self_hosted.gpu].hour
    assert own.total == pytest.approx(MONTH_HOURS * card + 900 + (50 + 240 / 24) * person)
    assert hybrid.gpus == 1 and hybrid.tokens == 0, "one GPU is the least, and it is enough"


def test_bursts_and_headroom_take_gpus(scenario: Scenario) -> None:
    bursty = replace(scenario, demand=replace(scenario.demand, burst=3.0))
    assert bills(bursty)[1].gpus == 3
    careful = msgspec.structs.replace(scenario.self_hosted, utilization=0.5)
    assert bills(replace(bursty, self_hosted=careful))[1].gpus == 6


def test_a_hybrid_spills_its_peak_unless_it_must_stay(scenario: Scenario) -> None:
    """One busy hour a week: renting a second GPU around the clock for it is dearer than the API."""
    peaky = replace(scenario, demand=replace(scenario.demand, hours=(*((3600.0,) * 167), 36_000.0)))
    free = msgspec.structs.replace(scenario.hybrid, must_stay=0.0)
    spilling = bills(replace(peaky, hybrid=free))[2]
    assert spilling.gpus == 1
    assert spilling.tokens > 0 and spilling.local == pytest.approx(168 / 177)
    kept = bills(replace(peaky, hybrid=msgspec.structs.replace(free, must_stay=1.0)))[2]
    assert (kept.gpus, kept.tokens) == (10, 0.0)


def test_break_even_is_where_the_two_cross(scenario: Scenario) -> None:
    found = break_even(scenario)
    assert found
    before, after = (bills(at(scenario, found * factor)) for factor in (0.9, 1.0))
    assert before[0].total < before[1].total
    assert after[0].total >= after[1].total
    slow = msgspec.structs.replace(scenario.self_hosted, requests_per_second=0.01)
    assert break_even(replace(scenario, self_hosted=slow)) is None


def test_every_price_has_a_day_and_a_source() -> None:
    said = report(read(SCENARIO))
    assert all(price["read"] and price["source"] for price in said["prices"].values())
    assert PRICES.read_text().count("source = ") == PRICES.read_text().count("read = ") >= 5


@pytest.mark.parametrize(
    "wrong",
    [("claude-sonnet-5", "unknown"), ("least_gpus = 2", "cores = 2"), ("[hybrid]", "[other]"), ("2.0 ", "0.5 ")],
)
def test_nonsense_is_named(wrong: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "cost.toml"
    file.write_text(SCENARIO.read_text().replace(*wrong, 1))
    with pytest.raises(ConfigurationError):
        read(file)


async def test_demand_is_what_the_ledger_says(tmp_path: Path) -> None:
    settings = await bare(fake_settings(tmp_path))
    database = Database(settings.storage.database_url)
    async with database.session() as session:
        with pytest.raises(InvalidRequest, match="no requests"):
            await from_ledger(session, 7, 2.0)
        tenant = await service.create_tenant(session, "firm")
        moment = now() - timedelta(days=1)
        for number in range(30):
            entry = {"request_id": uuid4(), "created_at": moment, "model": "m", "target": "t"}
            tokens = {"prompt_tokens": 100 + number, "cached_tokens": 50, "completion_tokens": 10}
            micros = dict.fromkeys(
                ("input_micros", "cached_input_micros", "output_micros", "computing_micros", "amount_micros"), 0
            )
            session.add(LedgerEntry(tenant_id=tenant.id, **entry, **tokens, **micros))
        await session.commit()
        demand = await from_ledger(session, 7, 2.0)
    await database.close()
    assert (demand.prompt_tokens, demand.cached_tokens, demand.output_tokens) == (114.5, 50, 10)
    assert demand.month == pytest.approx(30 * MONTH_HOURS / 168)
    assert [hour for hour in demand.hours if hour] == [pytest.approx(30)]
    assert demand.hours[moment.weekday() * 24 + moment.hour] > 0


def test_the_command_writes_table_json_and_picture(tmp_path: Path) -> None:
    measured = tmp_path / "load.json"
    measured.write_text(json.dumps({"capacity": 4.0}))
    files = ["--json", str(tmp_path / "cost.json"), "--picture", str(tmp_path / "cost.png"), "--load", str(measured)]
    said = CliRunner().invoke(main, ["cost", "--scenario", str(SCENARIO), "--volume", "20e6", *files])
    assert said.exit_code == 0, said.output
    written = json.loads((tmp_path / "cost.json").read_text())
    assert written["requests_per_month"] == 20_000_000
    busiest = max(at(read(SCENARIO), 20e6).demand.hours) * 2 / 3600
    assert written["ways"][1]["gpus"] == math.ceil(busiest / (4.0 * 0.7))
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
