"""Targets, routes and prices as they hold now: those of the file, and over them those made through the API."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import PriceSettings, RouteSettings, Settings, TargetSettings, entry
from app.db import Database, now
from app.errors import ConfigurationError, Conflict, InvalidRequest
from app.gateway.models import CatalogEntry, Credential
from app.tenants import audit
from app.tenants.sealing import Sealer

TARGETS, ROUTES, PRICES = "targets", "routes", "prices"
Entry = TargetSettings | RouteSettings | PriceSettings
# What names a variable of the environment: through the API any secret of the process could be sent anywhere.
OF_THE_FILE = ("api_key_env", "cache_salt_env")


@dataclasses.dataclass(frozen=True)
class Stored:
    """What the database holds. `stamp` changes whenever any of it does."""

    entries: tuple[tuple[str, str, dict[str, Any]], ...]
    secrets: dict[str, str]
    stamp: tuple[Any, ...]


def name_of(kind: str, item: Any) -> str:
    """Under which name an entry is replaced."""
    if kind == TARGETS:
        return str(item.name)
    return str(item.model) if kind == ROUTES else f"{item.target}/{item.model}"


def overlaid(settings: Settings, entries: Iterable[tuple[str, str, dict[str, Any]]]) -> Settings:
    """The settings with the API's entries in them. Raises ConfigurationError where the whole makes no sense."""
    lists: dict[str, dict[str, Any]] = {
        kind: {name_of(kind, item): item for item in getattr(settings, kind)} for kind in (TARGETS, ROUTES, PRICES)
    }
    for kind, name, body in entries:
        lists[kind][name] = entry(kind, body)
    now_in_force: dict[str, Any] = {kind: tuple(items.values()) for kind, items in lists.items()}
    changed = dataclasses.replace(settings, **now_in_force)
    changed.validate()
    return changed


def checked(kind: str, body: dict[str, Any]) -> Entry:
    """An entry from a caller's body. Raises InvalidRequest."""
    for field in OF_THE_FILE:
        if body.get(field):
            raise InvalidRequest(f"{field!r} can be set in the file alone; store a credential instead.", param=field)
    try:
        made: Entry = entry(kind, body)
    except ConfigurationError as error:
        raise InvalidRequest(error.detail) from error
    return made


async def read_stamp(database: Database) -> tuple[Any, ...]:
    """Cheap to ask: has anything changed?"""
    async with database.session() as session:
        return await _stamp(session)


async def read_stored(database: Database, sealer: Sealer) -> Stored:
    async with database.session() as session:
        stamp = await _stamp(session)
        rows = list(await session.scalars(select(CatalogEntry).order_by(CatalogEntry.created_at)))
        credentials = list(await session.scalars(select(Credential)))
    secrets = {credential.name: sealer.open(credential.sealed) for credential in credentials}
    return Stored(tuple((row.kind, row.name, row.body) for row in rows), secrets, stamp)


async def _stamp(session: AsyncSession) -> tuple[Any, ...]:
    """Both tables are small: what is configured, not what happens."""
    rows = await session.execute(select(CatalogEntry.id, CatalogEntry.updated_at).order_by(CatalogEntry.id))
    secrets = await session.execute(select(Credential.id, Credential.updated_at).order_by(Credential.id))
    return (*(tuple(row) for row in rows), *(tuple(row) for row in secrets))


async def require_unchanged(session: AsyncSession, stored: Stored) -> None:
    """In turn with every other replica: two changes that make sense each may make none together, and what makes none
    is left out as a whole at the next start. Raises Conflict where what is stored has changed since it was read.
    """
    await audit.take_turn(session)
    if await _stamp(session) != stored.stamp:
        raise Conflict("Somebody else has just changed the configuration; look at it again and try again.")


async def put_entry(session: AsyncSession, kind: str, name: str, body: dict[str, Any]) -> None:
    """After `require_unchanged`, in the same transaction: two at once would both find no row and make one."""
    row = await session.scalar(select(CatalogEntry).where(CatalogEntry.kind == kind, CatalogEntry.name == name))
    if row is None:
        session.add(CatalogEntry(kind=kind, name=name, body=body, updated_at=now()))
    else:
        row.body, row.updated_at = body, now()


async def put_credential(session: AsyncSession, name: str, sealed: str) -> None:
    await audit.take_turn(session)
    row = await session.scalar(select(Credential).where(Credential.name == name))
    if row is None:
        session.add(Credential(name=name, sealed=sealed, updated_at=now()))
    else:
        row.sealed, row.updated_at = sealed, now()
