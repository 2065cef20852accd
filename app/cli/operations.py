"""`precedent load`, `doctor`, `backup`, `restore`: what a server stands, what it lacks, and how it comes back."""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path

import click
import msgspec

from app.cli.base import console, with_session
from app.config import Settings
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


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Check configuration, servers, index, models, disk and clock; exit status 1 where something does not work."""
    from app.operations import findings
    from app.operations.doctor import examine

    found = asyncio.run(examine(Settings.load))
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in found], indent=2, ensure_ascii=False))
    else:
        console.print(findings.table(found))
    sys.exit(0 if findings.healthy(found) else 1)


@click.command("backup")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def backup(folder: Path) -> None:
    """Back up database and originals to a new FOLDER, also while a server runs."""
    from app.operations.backup import backup as run_backup

    manifest = asyncio.run(run_backup(Settings.load(), folder))
    console.print(f"{folder}: {len(manifest.files)} files, revision {manifest.revision}.")
    for name in manifest.missing:
        click.echo(f"missing: original {name}, which the database names, is not in the storage directory", err=True)
    sys.exit(1 if manifest.missing else 0)


@click.command("restore")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace what is there.")
def restore(folder: Path, force: bool) -> None:
    """Put a backup back while no server runs; the next start makes the index anew."""
    from app.operations.backup import restore as run_restore

    manifest = asyncio.run(run_restore(Settings.load(), folder, force=force))
    console.print(f"Restored the backup of {manifest.made_at}. The index is made anew at the next start.")


@click.command("cost")
@click.option("--scenario", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--ledger", "days", type=click.IntRange(1, 400), help="Take the demand of so many days from the ledger.")
@click.option("--load", "measured", type=click.Path(exists=True, path_type=Path), help="A report of `precedent load`.")
@click.option("--volume", type=click.FloatRange(min=1), help="Requests a month, in place of the scenario's.")
@click.option("--json", "output", type=click.Path(path_type=Path))
@click.option("--picture", "drawing", type=click.Path(path_type=Path), help="Draw the comparison as PNG.")
def cost(
    scenario: Path, days: int | None, measured: Path | None, volume: float | None, output: Path | None,
    drawing: Path | None,
) -> None:  # fmt: skip
    """What answering costs a month: managed, self-hosted, hybrid; and from which volume on a GPU pays."""
    from app.operations import cost_report
    from app.operations.cost import at, read

    chosen = read(scenario)
    if days:
        demand = with_session(lambda session: cost_report.from_ledger(session, days, chosen.demand.burst))
        chosen = dataclasses.replace(chosen, demand=demand)
    if measured:
        capacity = float(json.loads(measured.read_text())["capacity"])
        own = msgspec.structs.replace(chosen.self_hosted, requests_per_second=capacity)
        chosen = dataclasses.replace(chosen, self_hosted=own)
    said = cost_report.report(at(chosen, volume) if volume else chosen)
    console.print(cost_report.table(said))
    for sentence in cost_report.sentences(said):
        console.print(sentence, soft_wrap=True)
    if drawing:
        cost_report.picture(at(chosen, volume) if volume else chosen, drawing)
    if output:
        output.write_text(json.dumps(said, indent=2) + "\n")
