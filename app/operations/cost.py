"""What answering costs a month: from a managed API, on GPUs of one's own, or with both.

Demand is a week in hours. GPUs are paid around the clock and must carry the busiest minutes; what a hybrid's GPUs
cannot carry spills to the managed API, but for what must stay. Engineering time is money like the rest.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from app.errors import ConfigurationError

WEEK_HOURS = 168
MONTH_HOURS = 8760 / 12
PRICES = Path(__file__).with_name("prices.toml")
MOST_TRIED = 4096
VOLUMES = tuple(round(10 ** (3 + step / 40)) for step in range(40 * 7 + 1))  # 1e3 … 1e10 requests a month


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When and where it was read."""

    read: date
    source: str


class Tokens(Price, frozen=True, forbid_unknown_fields=True):
    """Dollars for a million."""

    input: float
    cached_input: float
    output: float


class Hour(Price, frozen=True, forbid_unknown_fields=True):
    """Dollars for an hour of a GPU or a person."""

    hour: float


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    managed: dict[str, Tokens]
    gpu: dict[str, Hour]
    engineer: dict[str, Hour]


class Managed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    price: str
    engineering_hours: float


class SelfHosted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """requests_per_second: of one GPU within the service level. utilization: of that, at most, when it is busiest."""

    gpu: str
    requests_per_second: float
    utilization: float
    least_gpus: int
    servers: float
    engineering_hours: float
    setup_hours: float
    amortized_months: int


class Hybrid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    must_stay: float
    least_gpus: int
    engineering_hours: float


@dataclass(frozen=True)
class Demand:
    """`hours`: requests in each hour of a typical week, scaled to the month. Tokens are means of a request."""

    hours: tuple[float, ...]
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float
    burst: float

    @property
    def month(self) -> float:
        return sum(self.hours) / WEEK_HOURS * MONTH_HOURS

    def scaled(self, month: float) -> "Demand":
        return replace(self, hours=tuple(hour * month / self.month for hour in self.hours))


@dataclass(frozen=True)
class Scenario:
    demand: Demand
    managed: Managed
    self_hosted: SelfHosted
    hybrid: Hybrid
    engineer: str
    prices: Prices


@dataclass(frozen=True)
class Bill:
    """Dollars a month. `utilization`: share of what the GPUs could answer all month. `local`: share answered there."""

    way: str
    gpus: int
    gpu_hours: float
    gpu: float
    servers: float
    tokens: float
    engineering: float
    utilization: float
    local: float

    @property
    def total(self) -> float:
        return self.gpu + self.servers + self.tokens + self.engineering


def read(path: Path) -> Scenario:
    """A scenario with the prices that it names. Raises ConfigurationError."""
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text())
        prices = msgspec.convert(tomllib.loads(PRICES.read_text()), Prices)
        scenario = Scenario(
            demand=_demand(given["volume"], given["request"], given["profile"]),
            managed=msgspec.convert(given["managed"], Managed),
            self_hosted=msgspec.convert(given["self_hosted"], SelfHosted),
            hybrid=msgspec.convert(given["hybrid"], Hybrid),
            engineer=given["engineer"]["price"],
            prices=prices,
        )
    except KeyError as error:
        raise ConfigurationError(f"{path}: {error} is missing") from error
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError, TypeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    _check(scenario, path)
    return scenario


def _demand(volume: dict[str, float], request: dict[str, float], profile: dict[str, Any]) -> Demand:
    day = [float(weight) for weight in profile["hours"]]
    if len(day) != 24 or min(day) < 0 or not sum(day):
        raise ConfigurationError("[profile] hours are 24 weights, not all 0")
    week = tuple(day * 5 + [weight * profile["weekend"] for weight in day] * 2)
    return Demand(week, **request, burst=profile["burst"]).scaled(volume["requests_per_month"])


def _check(scenario: Scenario, path: Path) -> None:
    own, prices = scenario.self_hosted, scenario.prices
    named = ((scenario.managed.price, prices.managed), (own.gpu, prices.gpu), (scenario.engineer, prices.engineer))
    for name, known in named:
        if name not in known:
            raise ConfigurationError(f"{path}: there is no price {name!r} in {PRICES.name}")
    if not (own.requests_per_second > 0 and 0 < own.utilization <= 1 and 0 <= scenario.hybrid.must_stay <= 1):
        raise ConfigurationError(f"{path}: requests_per_second, utilization or must_stay is out of range")
    if own.amortized_months < 1 or scenario.demand.burst < 1 or scenario.demand.month <= 0:
        raise ConfigurationError(f"{path}: amortized_months and burst are at least 1, the volume is above 0")


def managed(scenario: Scenario) -> Bill:
    engineering = scenario.managed.engineering_hours * scenario.prices.engineer[scenario.engineer].hour
    return Bill("managed", 0, 0.0, 0.0, 0.0, scenario.demand.month * _per_request(scenario), engineering, 0.0, 0.0)


def self_hosted(scenario: Scenario) -> Bill:
    """As many GPUs as the busiest minutes take."""
    gpus = max(scenario.self_hosted.least_gpus, math.ceil(max(scenario.demand.hours) / _hourly(scenario)))
    return _on_gpus(scenario, "self-hosted", gpus, scenario.self_hosted.engineering_hours)


def hybrid(scenario: Scenario) -> Bill:
    """The number of GPUs at which GPUs and spilled requests together cost least."""
    must = max(scenario.demand.hours) * scenario.hybrid.must_stay
    least = max(scenario.hybrid.least_gpus, math.ceil(must / _hourly(scenario)))
    enough = max(least, math.ceil(max(scenario.demand.hours) / _hourly(scenario)))
    counts = range(least, enough + 1, 1 + enough // MOST_TRIED)
    hours = scenario.hybrid.engineering_hours
    return min((_on_gpus(scenario, "hybrid", count, hours) for count in counts), key=lambda bill: bill.total)


def _on_gpus(scenario: Scenario, way: str, gpus: int, engineering_hours: float) -> Bill:
    own, demand = scenario.self_hosted, scenario.demand
    capacity = gpus * _hourly(scenario)
    weeks = MONTH_HOURS / WEEK_HOURS
    local = sum(min(hour, capacity) for hour in demand.hours) * weeks
    hours = gpus * MONTH_HOURS
    monthly = engineering_hours + own.setup_hours / own.amortized_months
    return Bill(
        way=way,
        gpus=gpus,
        gpu_hours=hours,
        gpu=hours * scenario.prices.gpu[own.gpu].hour,
        servers=own.servers,
        tokens=(demand.month - local) * _per_request(scenario),
        engineering=monthly * scenario.prices.engineer[scenario.engineer].hour,
        utilization=local / (hours * 3600 * own.requests_per_second),
        local=local / demand.month,
    )


def _hourly(scenario: Scenario) -> float:
    """Requests that one GPU may be given in an hour, so that its busiest minutes stay within `utilization`."""
    own = scenario.self_hosted
    return own.requests_per_second * own.utilization * 3600 / scenario.demand.burst


def _per_request(scenario: Scenario) -> float:
    """Dollars of a managed request."""
    price, demand = scenario.prices.managed[scenario.managed.price], scenario.demand
    fresh = demand.prompt_tokens - demand.cached_tokens
    cached = demand.cached_tokens * price.cached_input
    return (fresh * price.input + cached + demand.output_tokens * price.output) / 1e6


def bills(scenario: Scenario) -> list[Bill]:
    return [managed(scenario), self_hosted(scenario), hybrid(scenario)]


def at(scenario: Scenario, month: float) -> Scenario:
    return replace(scenario, demand=scenario.demand.scaled(month))


def break_even(scenario: Scenario, volumes: Sequence[int] = VOLUMES) -> int | None:
    """Requests a month from which on GPUs of one's own are never dearer than the managed API, to 6 %; None: never.

    GPUs come in whole pieces, so the two may cross more than once; this is the last crossing.
    """
    cheaper = [self_hosted(one).total <= managed(one).total for one in (at(scenario, month) for month in volumes)]
    if not cheaper[-1]:
        return None
    last_dearer = max((place for place, is_cheaper in enumerate(cheaper) if not is_cheaper), default=-1)
    return volumes[last_dearer + 1]
