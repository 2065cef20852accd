"""/api/v1/engine/models: the models of this process, what they hold of their devices, and sending them to sleep."""

import time
from datetime import UTC, datetime

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath
from msgspec import Struct, structs

from app.db import Database
from app.errors import NotFound
from app.gateway.controllers_replica import local_engines
from app.gateway.providers.local import LocalProvider
from app.gateway.service import Gateway
from app.tenants import audit
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class ModelState(Struct):
    """`name`: of the target.  `routes`: the models that callers name and that may come here.

    `state`: asleep, waking, awake, leaving, failed or loading.  `bytes`: what it takes when awake; `held_bytes`: what
    it holds now.  `wake_seconds`: what the last wake took, before the first a guess; `start_seconds`: where the time of
    the last start went.  `trouble`: why it cannot serve.
    """

    name: str
    model: str
    routes: list[str]
    state: str
    device: str
    trouble: str | None
    pinned: bool = False
    bytes: int = 0
    held_bytes: int = 0
    in_use: int = 0
    waiting: int = 0
    last_used: datetime | None = None
    wakes: int = 0
    wake_seconds: float = 0.0
    start_seconds: dict[str, float] = {}


class DeviceState(Struct):
    """`budget_bytes` 0: unlimited.  `held_bytes`: by model, embedding and rerank model included."""

    device: str
    budget_bytes: int
    held_bytes: dict[str, int]


class ModelList(Struct):
    models: list[ModelState]
    devices: list[DeviceState]


def model_state(provider: LocalProvider, gateway: Gateway) -> ModelState:
    routes = [name for name, route in gateway.router.routes.items() if provider.name in route.targets]
    settings = provider.settings
    if not provider.opened:
        return ModelState(provider.name, settings.model, routes, "loading", settings.device, provider.unhealthy())
    model = provider.model
    ago = time.monotonic() - model.last_used
    return ModelState(
        name=provider.name,
        model=settings.model,
        routes=routes,
        state=model.state,
        device=model.arbiter.device,
        trouble=model.trouble or model.failure,
        pinned=model.pinned,
        bytes=model.num_bytes,
        held_bytes=model.held_bytes,
        in_use=model.users,
        waiting=model.waiting,
        last_used=datetime.fromtimestamp(time.time() - ago, UTC) if model.last_used else None,
        wakes=model.wakes,
        wake_seconds=round(model.wake_seconds, 3),
        start_seconds={stage: round(seconds, 3) for stage, seconds in model.start_seconds.items()},
    )


def _outline(model: ModelState) -> ModelState:
    return structs.replace(model, model="", trouble="not well" if model.trouble else None, last_used=None)


def named(gateway: Gateway, name: str) -> LocalProvider:
    """Raises NotFound."""
    for provider in local_engines(gateway):
        if provider.name == name:
            return provider
    raise NotFound(f"There is no model {name!r} in this process.")


class ModelController(Controller):
    path = "/api/v1/engine/models"
    tags = ("engine",)

    @get(guards=(requires_scope(Scope.USAGE),), summary="The models of this process and what they hold")
    async def list_models(self, gateway: NamedDependency[Gateway], principal: NamedDependency[Principal]) -> ModelList:
        """Folders, the words of errors and when a model was last used are for operators."""
        devices = [DeviceState(one.device, one.budget, one.held) for one in gateway.board.devices.all()]
        models = [model_state(provider, gateway) for provider in local_engines(gateway)]
        if Scope.OPERATOR not in principal.scopes:
            models = [_outline(model) for model in models]
        return ModelList(models, devices)

    @post("/{name:str}/sleep", status_code=200, guards=(requires_scope(Scope.OPERATOR),), summary="Free its memory")
    async def sleep(
        self,
        name: FromPath[str],
        gateway: NamedDependency[Gateway],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> ModelState:
        """409 while requests are in flight. The next request that asks for the model wakes it."""
        provider = named(gateway, name)
        await provider.model.sleep()
        await _record(database, principal, "model.sleep", name)
        return model_state(provider, gateway)

    @post("/{name:str}/wake", status_code=200, guards=(requires_scope(Scope.OPERATOR),), summary="Load it now")
    async def wake(
        self,
        name: FromPath[str],
        gateway: NamedDependency[Gateway],
        principal: NamedDependency[Principal],
        database: NamedDependency[Database],
    ) -> ModelState:
        """Also a model that was given up after it failed too often. 429 where others do not leave it any room, 503 with
        the reason where it cannot be loaded.
        """
        provider = named(gateway, name)
        await provider.wake()
        await _record(database, principal, "model.wake", name)
        return model_state(provider, gateway)


async def _record(database: Database, principal: Principal, action: str, name: str) -> None:
    async with database.session() as session:
        await audit.append(session, audit.actor_of(principal), action, f"model:{name}", None)
        await session.commit()
