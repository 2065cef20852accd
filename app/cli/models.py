"""`precedent model`: the store of models, and what a running server does with them."""

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE
from rich.table import Table

from app.cli.base import console
from app.client import Client
from app.config import Settings
from app.errors import Conflict

if TYPE_CHECKING:
    from app.engine.store import Manifest, Store

MIB = 1 << 20


@click.group()
def model() -> None:
    """Models by name, with a manifest of where they came from and what they are."""


@model.command("add")
@click.argument("source")
@click.option("--revision", default="", help="Commit, tag or branch of a hub model.")
@click.option("--name", default="", help="Name in the store (default: the last part of the source).")
def add(source: str, revision: str, name: str) -> None:
    """Take SOURCE, a folder or a hub id such as Qwen/Qwen3-0.6B, into the store."""
    added = _store().add(source, name=name, revision=revision)
    what = f"{added.family}, {added.parameters / 1e6:,.1f} million parameters, {added.num_bytes / MIB:,.1f} MiB"
    console.print(f'{added.name}: {what}. Serve it with model = "{added.name}".')


@model.command("verify")
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Read every file of the models NAMES (default: all) again; exit status 1 where one is not what it was."""
    store = _store()
    chosen = names or tuple(manifest.name for manifest in store)
    wrong = [sentence for name in chosen for sentence in store.verify(name)]
    for sentence in wrong:
        click.echo(sentence, err=True)
    if not wrong:
        console.print(f"{len(chosen)} verified.")
    sys.exit(1 if wrong else 0)


@model.command("pin")
@click.argument("name")
def pin(name: str) -> None:
    """From now on the engine refuses the model NAME with any other content."""
    pinned = _store().pin(name)
    of = f" at revision {pinned.revision}" if pinned.revision else ""
    console.print(f"{name} is pinned{of}: {len(pinned.files)} files.")


@model.command("remove")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also where the configuration names it.")
def remove(name: str, force: bool) -> None:
    """Delete the model NAME from the store."""
    settings = Settings.load()
    store = _store(settings)
    if (users := _users(settings)[(store.folder / name).resolve()]) and not force:
        raise Conflict(f"The configuration names {name!r} for {', '.join(users)}; remove it all the same with --force.")
    freed = store.remove(name)
    console.print(f"{name} is removed: {freed / MIB:,.1f} MiB are free. What the hub's cache holds too stays there.")


@model.command("list")
@click.option("--live", is_flag=True, help="Ask the running server what its models do, too.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def list_models(live: bool, as_json: bool) -> None:
    """The models of the store, where the configuration uses them, and with --live those of the running server."""
    settings = Settings.load()
    store, users = _store(settings), _users(settings)
    rows = [(manifest, users[(store.folder / manifest.name).resolve()]) for manifest in store]
    serving: dict[str, Any] = Client().get("/api/v1/engine/models") if live else {}
    if as_json:
        stored = [asdict(manifest) | {"used_by": by} for manifest, by in rows]
        click.echo(json.dumps({"stored": stored, **({"serving": serving} if live else {})}, indent=2))
        return
    console.print(_stored(rows))
    if live:
        console.print(_serving(serving))


def _users(settings: Settings) -> defaultdict[Path, list[str]]:
    """The targets that serve a folder's model or take drafts from it."""
    found = defaultdict(list)
    for name, one in settings.local_models.items():
        for folder in {Path(model).resolve() for model in (one.model, one.draft_model) if model}:
            found[folder].append(name)
    return found


def _stored(rows: "list[tuple[Manifest, list[str]]]") -> Table:
    table = Table("name", "what", "MiB", "state", "used by", "source", box=SIMPLE)
    for one, used_by in rows:
        what = f"{one.family} {one.parameters / 1e6:,.1f} M" + (
            "" if one.quantization == "none" else f" {one.quantization}"
        )
        source = f"{one.source} @ {one.revision[:12]}" if one.revision else one.source
        state = "pinned" if one.pinned else "not pinned"
        table.add_row(one.name, what, f"{one.num_bytes / MIB:,.1f}", state, ", ".join(used_by) or "—", source)
    return table


def _serving(said: dict[str, Any]) -> Table:
    table = Table("target", "device", "state", "MiB", "held", "in use", "wakes", "wake s", "last used", box=SIMPLE)
    for one in said["models"]:
        held, last = f"{one['held_bytes'] / MIB:,.1f}", (one["last_used"] or "—")[:19]
        state, wake = one["trouble"] or one["state"], f"{one['wake_seconds']:.2f}"
        takes, wakes = f"{one['bytes'] / MIB:,.1f}", str(one["wakes"])
        table.add_row(one["name"], one["device"], state, takes, held, str(one["in_use"]), wakes, wake, last)
    return table


def _store(settings: Settings | None = None) -> "Store":
    from app.engine.store import Store

    return Store(Path((settings or Settings.load()).storage.models_dir))
