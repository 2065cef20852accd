"""`precedent cost` for people: table, picture, JSON; and demand from the ledger."""

import dataclasses
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.table import Table
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import now
from app.errors import InvalidRequest
from app.gateway.models import LedgerEntry
from app.operations.cost import (
    MONTH_HOURS,
    WEEK_HOURS,
    Demand,
    Price,
    Scenario,
    at,
    bills,
    break_even,
    managed,
    self_hosted,
)

COLOURS = {"managed": "#663208", "self-hosted": "#273691", "hybrid": "#1b7f5c"}


async def from_ledger(session: AsyncSession, days: int, burst: float) -> Demand:
    """What every tenant asked in the last `days`, as a typical week. Raises InvalidRequest where nothing was."""
    since = now() - timedelta(days=days)
    columns = (LedgerEntry.prompt_tokens, LedgerEntry.cached_tokens, LedgerEntry.completion_tokens)
    means = select(func.count(LedgerEntry.id), *(func.avg(column) for column in columns))
    count, prompt, cached, output = (await session.execute(means.where(LedgerEntry.created_at >= since))).one()
    if not count:
        raise InvalidRequest(f"The ledger has no requests of the last {days} days.")
    hours = [0.0] * WEEK_HOURS
    rows = await session.stream_scalars(select(LedgerEntry.created_at).where(LedgerEntry.created_at >= since))
    async for moment in rows:
        hours[moment.weekday() * 24 + moment.hour] += 1
    demand = Demand(tuple(hours), float(prompt), float(cached), float(output), burst)
    return demand.scaled(count * MONTH_HOURS / (24 * days))


def report(scenario: Scenario) -> dict[str, Any]:
    demand, prices = scenario.demand, scenario.prices
    used: dict[str, tuple[str, Price]] = {
        "managed": (scenario.managed.price, prices.managed[scenario.managed.price]),
        "gpu": (scenario.self_hosted.gpu, prices.gpu[scenario.self_hosted.gpu]),
        "engineer": (scenario.engineer, prices.engineer[scenario.engineer]),
    }
    return {
        "requests_per_month": round(demand.month),
        "tokens_per_request": {
            "prompt": demand.prompt_tokens, "cached": demand.cached_tokens, "output": demand.output_tokens,
        },
        "ways": [dataclasses.asdict(bill) | {"total": bill.total} for bill in bills(scenario)],
        "break_even_requests_per_month": break_even(scenario),
        "must_stay": scenario.hybrid.must_stay,
        "prices": {
            kind: {"name": name, "read": str(price.read), "source": price.source}
            for kind, (name, price) in used.items()
        },
    }  # fmt: skip


def table(said: dict[str, Any]) -> Table:
    made = Table(
        "", "total", "GPUs", "GPU hours", "used", "GPU $", "servers $", "API $", "engineering $", "answered here",
        title=f"{said['requests_per_month']:,} requests a month, US dollars a month",
    )  # fmt: skip
    for way in said["ways"]:
        made.add_row(
            way["way"], f"{way['total']:,.0f}", str(way["gpus"]), f"{way['gpu_hours']:,.0f}",
            f"{way['utilization']:.0%}", f"{way['gpu']:,.0f}", f"{way['servers']:,.0f}", f"{way['tokens']:,.0f}",
            f"{way['engineering']:,.0f}", f"{way['local']:.0%}",
        )  # fmt: skip
    return made


def sentences(said: dict[str, Any]) -> list[str]:
    found = said["break_even_requests_per_month"]
    turning = f"from about {found:,} requests a month on" if found else "at no volume"
    made = [f"GPUs of one's own cost no more than the managed API {turning}."]
    if said["must_stay"]:
        made.append(f"{said['must_stay']:.0%} of requests may not leave: managed alone is shown for comparison.")
    for kind, price in said["prices"].items():
        made.append(f"{kind}: {price['name']}, read {price['read']}, {price['source']}")
    return made


def picture(scenario: Scenario, path: Path) -> None:
    """The three bills by what they are made of, and two of them over the volume. Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequest("A picture needs matplotlib: pip install matplotlib.") from error
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    made = bills(scenario)
    base = [0.0] * len(made)
    parts = (("gpu", "GPUs", "#273691"), ("servers", "servers", "#8a93a1"), ("tokens", "managed API", "#663208"),
             ("engineering", "engineering", "#d9a441"))  # fmt: skip
    for part, label, colour in parts:
        heights = [getattr(bill, part) for bill in made]
        left.bar([bill.way for bill in made], heights, bottom=base, label=label, color=colour, width=0.6)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    for place, bill in enumerate(made):
        left.annotate(f"${bill.total:,.0f}", (place, bill.total), ha="center", va="bottom")
    left.set_ylabel("US dollars a month")
    left.set_title(f"{scenario.demand.month:,.0f} requests a month")
    left.set_ylim(top=max(base) * 1.12)
    month = scenario.demand.month
    volumes = [month * 10 ** (step / 20) for step in range(-30, 31)]
    for way, bill_of in (("managed", managed), ("self-hosted", self_hosted)):
        totals = [bill_of(at(scenario, volume)).total for volume in volumes]
        right.plot(volumes, totals, color=COLOURS[way], label=way)
    if found := break_even(scenario):
        right.axvline(found, color="#b3261e", linewidth=0.8, linestyle="--", label=f"break-even {found:,}")
    right.axvline(month, color="#8a93a1", linewidth=0.8, linestyle=":", label="this scenario")
    right.set(xscale="log", yscale="log", xlabel="requests a month", ylabel="US dollars a month")
    for axes in (left, right):
        axes.grid(alpha=0.3, axis="y")
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
