"""`precedent route`: which target answers first."""

import asyncio

import click

from app import migrate
from app.cli.base import console
from app.config import RouteSettings, Settings
from app.db import Database


@click.group()
def route() -> None:
    """Routes (works on the configured database; running servers follow within seconds)."""


@route.command("promote")
@click.argument("model")
@click.argument("target")
@click.option("--force", "forced", default="", metavar="REASON", help="Without a passed gate; kept in the audit log.")
def promote_command(model: str, target: str, forced: str) -> None:
    """Make TARGET the first of the route for MODEL; only after `precedent eval gate --target TARGET` has passed."""
    from app.operations.promotion import promote

    async def run() -> RouteSettings:
        settings = Settings.load()
        database = Database(settings.storage.database_url)
        try:
            await migrate.require_current(database)
            return await promote(database, settings, model, target, forced)
        finally:
            await database.close()

    console.print(f"{model}: {' → '.join(asyncio.run(run()).targets)}")
