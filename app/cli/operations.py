"""`precedent load`: what a server stands."""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

import click

from app.cli.base import console
from app.load.generator import Client, Run, Scenario, run
from app.load.report import figures, picture, table, verdicts


@click.command("load")
@click.option("--url", default="http://127.0.0.1:8800", show_default=True, envvar="PRECEDENT_URL")
@click.option("--key", required=True, envvar="PRECEDENT_KEY", help="An API key; better in PRECEDENT_KEY.")
@click.option("--scenario", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rate", "rates", default="1x,2x,3x", show_default=True, help="Multiples of the capacity, with commas.")
@click.option("--duration", default=60.0, show_default=True, help="Seconds of each rate.")
@click.option("--capacity", type=float, help="Requests a second, where it is known already.")
@click.option("--json", "output", type=click.Path(path_type=Path))
@click.option("--picture", "drawing", type=click.Path(path_type=Path), help="Draw goodput and latency as PNG.")
def load(
    url: str, key: str, scenario: Path, rates: str, duration: float, capacity: float | None, output: Path | None,
    drawing: Path | None,
) -> None:  # fmt: skip
    """Open-loop load; exit status 1 where the scenario's limits do not hold."""
    read = Scenario.read(scenario)
    multiples = [float(rate.strip().removesuffix("x")) for rate in rates.split(",")]
    found = asyncio.run(_run(Client(url, key, read), multiples, duration, capacity))
    stages = [figures(stage, found.limits) for stage in found.stages]
    wrong = verdicts(stages, read)
    console.print(table(stages, found.limits))
    for sentence in wrong:
        console.print(f"[red]{sentence}[/red]")
    if drawing:
        picture(stages, found.limits, drawing)
    if output:
        report = {"capacity": found.capacity, "limits": dataclasses.asdict(found.limits), "stages": stages}
        output.write_text(json.dumps(report | {"wrong": wrong}, indent=2) + "\n")
    sys.exit(1 if wrong else 0)


async def _run(client: Client, multiples: list[float], seconds: float, capacity: float | None) -> Run:
    try:
        return await run(client, multiples, seconds, console.print, capacity)
    finally:
        await client.close()
