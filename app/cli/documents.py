"""`precedent ask`, `ingest`, `index`, `forget`: documents of a running server."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from app.cases import report_index
from app.cli.base import console, files_in
from app.client import Client, ask, ingest
from app.config import Settings


@click.command("ask")
@click.argument("question")
@click.option("--collection", help="Search this collection only.")
@click.option("--document", "documents", multiple=True, help="Search this document only (id; repeatable).")
@click.option("--model", help="Model name (default: the server's first route).")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def ask_command(
    question: str, collection: str | None, documents: tuple[str, ...], model: str | None, as_json: bool
) -> None:
    """Ask the documents of a running server."""
    request: dict[str, Any] = {"question": question, "collection": collection, "model": model}
    request["documents"] = list(documents) or None
    quiet = Console(quiet=True) if as_json else console
    answer = ask(Client(), request, quiet)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


@click.command("ingest")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--collection", default="default", show_default=True)
@click.option("--label", "labels", multiple=True, help="Matter to file under (repeatable).")
def ingest_command(paths: tuple[Path, ...], collection: str, labels: tuple[str, ...]) -> None:
    """File documents (folders with everything in them) with a running server and wait for them."""
    failures = ingest(Client(), files_in(paths), collection, list(labels), console)
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(1 if failures else 0)


@click.group()
def index() -> None:
    """The vector index of a running server (takes an operator's key)."""


@index.command("status")
def index_status() -> None:
    """Where the vectors are, and how far a move is."""
    click.echo(json.dumps(Client().get("/api/v1/index"), indent=2))


@index.command("optimize")
def index_optimize() -> None:
    """Build the search structures of the embedded index anew, while the server is stopped."""
    from app.rag.index.edge import EdgeIndex

    opened = EdgeIndex.existing(Settings.load().directory / "index")
    console.print(f"{opened.count()} chunks; this takes about a second for each thousand that are new.")
    opened.optimize()
    opened.close()


@index.command("move")
@click.option("--to", "to", required=True, help="edge, or the URL of a Qdrant server.")
def index_move(to: str) -> None:
    """Move the index to or from a Qdrant server while the server goes on answering."""
    from app.client import move_index

    move_index(Client(), to, console)


@click.group()
def forget() -> None:
    """What was deleted is gone (asks a running server)."""


@forget.command("verify")
@click.option("--repair", is_flag=True, help="Delete what should not be there, and index again what is missing.")
@click.option("--every", is_flag=True, help="All tenants; takes an operator's key.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def forget_verify(repair: bool, every: bool, as_json: bool) -> None:
    """Compare index and database; exit status 1 unless they agree."""
    report = report_index(Client(), Console(quiet=True) if as_json else console, repair=repair, every=every)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    sys.exit(0 if report["clean"] else 1)
