"""What the commands have in common: errors as one line, the database, and writing results."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncSession

from app import migrate
from app.client import ClientError
from app.config import Settings
from app.db import Database
from app.errors import AppError

T = TypeVar("T")
console = Console(highlight=False)


class Group(click.Group):
    """Errors meant for people are one line on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AppError as error:
            raise click.ClickException(error.detail) from error
        except ClientError as error:
            raise click.ClickException(str(error)) from error


def files_in(paths: tuple[Path, ...]) -> list[Path]:
    """Files as given, and everything in folders, in a stable order."""
    found: list[Path] = []
    for path in paths:
        found += (
            sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if path.is_dir()
            else [path]
        )
    return found


def split(value: str) -> frozenset[str]:
    return frozenset(part.strip() for part in value.split(",") if part.strip())


def with_session(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async def run() -> T:
        database = Database(Settings.load().storage.database_url)
        try:
            await migrate.require_current(database)
            async with database.session() as session:
                return await work(session)
        finally:
            await database.close()

    return asyncio.run(run())


def write(output: Path, result: dict[str, Any]) -> None:
    """Everything into the file, and what is not a row for each question onto the screen."""
    output.write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps({name: value for name, value in result.items() if name != "rows"}))
