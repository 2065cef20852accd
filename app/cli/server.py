"""`precedent serve`, `worker`, `migrate`, `settings`, `demo`, `secret-key`."""

import asyncio
import sys

import click

from app import migrate
from app.cli.base import console
from app.config import Settings, settings_page
from app.db import Database
from app.tenants.sealing import new_key


@click.command()
@click.option("--host", help="Address to listen on (default: from the settings).")
@click.option("--port", type=int, help="Port to listen on (default: from the settings).")
@click.option("--role", help="all, gateway or engine (default: from the settings).")
def serve(host: str | None, port: int | None, role: str | None) -> None:
    """Serve the API until a signal comes."""
    import uvicorn

    from app.asgi import create_app

    settings = Settings.load().as_role(role) if role else Settings.load()
    asyncio.run(require_migrated(settings))  # one clear line here instead of a stack from inside the server
    server = settings.server
    uvicorn.run(
        create_app(settings),
        host=host or server.host,
        port=port or server.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=server.shutdown_seconds,
    )


@click.command()
def worker() -> None:
    """Ingest documents beside a server, on this or another machine, until a signal comes."""
    from app import telemetry
    from app.worker import work

    settings = Settings.load()
    telemetry.configure_logging(settings.telemetry)
    asyncio.run(work(settings))


@click.command("migrate")
def migrate_command() -> None:
    """Bring the database to this version's schema."""

    async def run() -> None:
        database = Database(Settings.load().storage.database_url)
        await migrate.upgrade(database)
        await database.close()

    asyncio.run(run())
    console.print("The database is up to date.")


@click.command()
def settings() -> None:
    """Print every setting with its meaning, as Markdown."""
    click.echo(settings_page(), nl=False)


@click.command()
@click.option("--oneshot", is_flag=True, help="Exit after the answer: 0 only if it has a verified citation.")
def demo(oneshot: bool) -> None:
    """Set up the demo tenant and contracts, serve, and ask a question."""
    from app.demo import run

    sys.exit(run(console, oneshot=oneshot))


@click.command("secret-key")
def secret_key() -> None:
    """Print a new key for PRECEDENT_AUTH_ENCRYPTION_KEY."""
    click.echo(new_key())


async def require_migrated(settings: Settings) -> None:
    database = Database(settings.storage.database_url)
    try:
        await migrate.require_current(database)
    finally:
        await database.close()
