"""/api/v1/targets, routes, prices, credentials and config: for who runs the installation."""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from litestar import Controller, delete, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import Meta, Struct
from sqlalchemy import delete as sql_delete
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.config.shown import shown
from app.db import Database
from app.errors import NotFound
from app.gateway import catalog
from app.gateway.models import CatalogEntry, Credential
from app.gateway.reload import Reloader
from app.gateway.service import Gateway
from app.tenants import audit
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope
from app.tenants.sealing import Sealer

OPERATOR = (requires_scope(Scope.OPERATOR),)
Json = dict[str, Any]


class EntryView(Struct):
    """`source`: file or api. `settings`: the fields of docs/settings.md."""

    name: str
    source: str
    settings: Json


class TargetHealth(Struct):
    """`state`: the circuit breaker's. `trouble`: why the target would not answer now."""

    name: str
    state: str
    trouble: str | None
    running: int
    first_delta_ms: float | None


class EntryList(Struct):
    entries: list[EntryView]


class TargetList(EntryList):
    health: list[TargetHealth] = []


class CredentialRequest(Struct, forbid_unknown_fields=True):
    secret: Annotated[str, Meta(min_length=1, max_length=10_000)]


class CredentialView(Struct):
    """The secret itself is never shown."""

    id: UUID
    name: str
    updated_at: datetime


class CredentialList(Struct):
    credentials: list[CredentialView]


class ConfigView(Struct):
    """`error`: why the file or the database as it is now was not taken; what was loaded before goes on."""

    file: str | None
    loaded_at: datetime
    error: str | None


class SettingView(Struct):
    """`changed`: not the default. Secrets and passwords are shown as "…". `variable`: of the environment."""

    section: str
    name: str
    value: str
    changed: bool
    variable: str
    meaning: str


class SettingList(Struct):
    settings: list[SettingView]


class Editor:
    """Changes what is stored, where the whole still makes sense, with an entry in the audit log."""

    def __init__(self, reloader: Reloader, principal: Principal) -> None:
        self._reloader = reloader
        self._actor = audit.actor_of(principal)

    async def put(self, kind: str, name: str, body: Json) -> None:
        entry = (kind, name, body)

        def change(stored: catalog.Stored) -> catalog.Stored:
            others = tuple(one for one in stored.entries if one[:2] != entry[:2])
            return dataclasses.replace(stored, entries=(*others, entry))

        async def write(session: AsyncSession) -> None:
            await catalog.put_entry(session, kind, name, body)
            await audit.append(session, self._actor, f"{kind}.put", f"{kind}:{name}", None, body)

        await self._reloader.edit(change, write)

    async def delete(self, kind: str, name: str) -> None:
        """Raises NotFound: what the file says can be replaced, and deleted in the file alone."""

        def change(stored: catalog.Stored) -> catalog.Stored:
            others = tuple(one for one in stored.entries if one[:2] != (kind, name))
            if others == stored.entries:
                raise NotFound(f"Nothing named {name!r} was made through the API.")
            return dataclasses.replace(stored, entries=others)

        async def write(session: AsyncSession) -> None:
            gone = sql_delete(CatalogEntry).where(CatalogEntry.kind == kind, CatalogEntry.name == name)
            await session.execute(gone)
            await audit.append(session, self._actor, f"{kind}.delete", f"{kind}:{name}", None)

        await self._reloader.edit(change, write)


def provide_editor(reloader: NamedDependency[Reloader], principal: NamedDependency[Principal]) -> Editor:
    return Editor(reloader, principal)


def _entries(kind: str, reloader: Reloader) -> list[EntryView]:
    made = {name for of, name, _ in reloader.stored.entries if of == kind}
    now = getattr(catalog.overlaid(reloader.settings, reloader.stored.entries), kind)
    named: Sequence[tuple[str, Any]] = [(catalog.name_of(kind, item), item) for item in now]
    return [EntryView(name, "api" if name in made else "file", _shown(item)) for name, item in named]


def _shown(item: Any) -> Json:
    """What differs from the defaults."""
    given = {f.name: getattr(item, f.name) for f in dataclasses.fields(item) if getattr(item, f.name) != f.default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


class TargetController(Controller):
    path = "/api/v1/targets"
    tags = ("configuration",)
    guards = OPERATOR

    @get(summary="Targets with their state")
    async def list_targets(self, gateway: NamedDependency[Gateway], reloader: NamedDependency[Reloader]) -> TargetList:
        health = [
            TargetHealth(name, guarded.breaker.state, guarded.trouble(), guarded.running, guarded.ttft_ms)
            for name, guarded in gateway.board.targets.items()
        ]
        return TargetList(_entries(catalog.TARGETS, reloader), health)

    @put("/{name:str}", summary="Make or replace a target; the body has the fields of [[targets]]")
    async def put_target(
        self,
        name: FromPath[str],
        data: JSONBody[Json],
        editor: NamedDependency[Editor],
        reloader: NamedDependency[Reloader],
    ) -> EntryList:
        body = {**data, "name": name}
        catalog.checked(catalog.TARGETS, body)
        await editor.put(catalog.TARGETS, name, body)
        return EntryList(_entries(catalog.TARGETS, reloader))

    @delete("/{name:str}", status_code=204, summary="Delete a target made through the API")
    async def delete_target(self, name: FromPath[str], editor: NamedDependency[Editor]) -> None:
        await editor.delete(catalog.TARGETS, name)


class RouteTableController(Controller):
    path = "/api/v1/routes"
    tags = ("configuration",)
    guards = OPERATOR

    @get(summary="Routes")
    async def list_routes(self, reloader: NamedDependency[Reloader]) -> EntryList:
        return EntryList(_entries(catalog.ROUTES, reloader))

    @put("/{model:path}", summary="Make or replace a route; the body has the fields of [[routes]]")
    async def put_route(
        self,
        model: FromPath[str],
        data: JSONBody[Json],
        editor: NamedDependency[Editor],
        reloader: NamedDependency[Reloader],
    ) -> EntryList:
        name = model.lstrip("/")
        body = {**data, "model": name}
        catalog.checked(catalog.ROUTES, body)
        await editor.put(catalog.ROUTES, name, body)
        return EntryList(_entries(catalog.ROUTES, reloader))

    @delete("/{model:path}", status_code=204, summary="Delete a route made through the API")
    async def delete_route(self, model: FromPath[str], editor: NamedDependency[Editor]) -> None:
        await editor.delete(catalog.ROUTES, model.lstrip("/"))


class PriceController(Controller):
    path = "/api/v1/prices"
    tags = ("configuration",)
    guards = OPERATOR

    @get(summary="Prices in micro-dollars")
    async def list_prices(self, reloader: NamedDependency[Reloader]) -> EntryList:
        return EntryList(_entries(catalog.PRICES, reloader))

    @put("/{target:path}", summary="Make or replace a price; the body has the fields of [[prices]]")
    async def put_price(
        self,
        target: FromPath[str],
        data: JSONBody[Json],
        editor: NamedDependency[Editor],
        reloader: NamedDependency[Reloader],
    ) -> EntryList:
        body = {**data, "target": target.strip("/")}
        name = catalog.name_of(catalog.PRICES, catalog.checked(catalog.PRICES, body))
        await editor.put(catalog.PRICES, name, body)
        return EntryList(_entries(catalog.PRICES, reloader))

    @delete("/{name:path}", status_code=204, summary="Delete a price made through the API: target or target/model")
    async def delete_price(self, name: FromPath[str], editor: NamedDependency[Editor]) -> None:
        """The target alone names its price for every model."""
        named = name.strip("/")
        await editor.delete(catalog.PRICES, named if "/" in named else f"{named}/")


class CredentialController(Controller):
    path = "/api/v1/credentials"
    tags = ("configuration",)
    guards = OPERATOR

    @get(summary="Names of the stored upstream keys")
    async def list_credentials(self, database: NamedDependency[Database]) -> CredentialList:
        async with database.session() as session:
            rows = await session.scalars(select(Credential).order_by(Credential.name))
            return CredentialList([CredentialView(row.id, row.name, row.updated_at) for row in rows])

    @put("/{name:str}", status_code=204, summary="Store an upstream's key, encrypted")
    async def put_credential(
        self,
        name: FromPath[str],
        data: JSONBody[CredentialRequest],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
        sealer: NamedDependency[Sealer],
        reloader: NamedDependency[Reloader],
    ) -> None:
        sealed = sealer.seal(data.secret)
        async with database.session() as session:
            await catalog.put_credential(session, name[:100], sealed)
            await audit.append(session, audit.actor_of(principal), "credential.put", f"credential:{name}", None)
            await session.commit()
        await reloader.reload()

    @delete("/{name:str}", status_code=204, summary="Delete a stored key that no target uses")
    async def delete_credential(
        self,
        name: FromPath[str],
        principal: NamedDependency[Principal],
        reloader: NamedDependency[Reloader],
    ) -> None:
        def change(stored: catalog.Stored) -> catalog.Stored:
            if name not in stored.secrets:
                raise NotFound(f"There is no credential {name!r}.")
            rest = {key: secret for key, secret in stored.secrets.items() if key != name}
            return dataclasses.replace(stored, secrets=rest)

        async def write(session: AsyncSession) -> None:
            await session.execute(sql_delete(Credential).where(Credential.name == name))
            await audit.append(session, audit.actor_of(principal), "credential.delete", f"credential:{name}", None)

        await reloader.edit(change, write)


class ConfigController(Controller):
    path = "/api/v1/config"
    tags = ("configuration",)
    guards = OPERATOR

    @get(summary="What is loaded, and what could not be")
    async def state(self, reloader: NamedDependency[Reloader]) -> ConfigView:
        return _config(reloader)

    @get("/settings", summary="The settings in force, without secrets")
    async def settings(self, reloader: NamedDependency[Reloader]) -> SettingList:
        return SettingList([SettingView(**dataclasses.asdict(one)) for one in shown(reloader.settings)])

    @post("/reload", status_code=200, summary="Read the file again now")
    async def reload(self, reloader: NamedDependency[Reloader]) -> ConfigView:
        """An invalid file is a 409 that says why, and changes nothing."""
        await reloader.reload()
        return _config(reloader)


def _config(reloader: Reloader) -> ConfigView:
    source = reloader.settings.source
    return ConfigView(str(source) if source else None, reloader.loaded_at, reloader.error)
