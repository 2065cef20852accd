"""/api/v1/engine/{advert,generate,forget}: this process' engine for gateways in other processes (scope `engine`).

What comes here was authorised, limited and metered there: labels and sources are believed, so the scope is for the
installation's own gateways alone.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
from litestar import Controller, Request, get, post
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.params import FromQuery, JSONBody
from litestar.response import Stream
from msgspec import Struct

from app.errors import AppError, InvalidRequest, NotFound
from app.gateway.providers.advert import Advert
from app.gateway.providers.local import LocalProvider
from app.gateway.schemas import ChatRequest, Delta
from app.gateway.service import Gateway
from app.gateway.streaming import stream_response
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class Forgotten(Struct, forbid_unknown_fields=True):
    """Documents (`id`) or versions of them (`id/version`) that are gone."""

    source_ids: list[str]


class Done(Struct):
    count: int


def local_engines(gateway: Gateway) -> list[LocalProvider]:
    """The models of this process, that of [engine] first."""
    return [provider for provider in gateway.providers.values() if isinstance(provider, LocalProvider)]


def local_engine(gateway: Gateway, model: str | None = None) -> LocalProvider:
    """That of the target or route named so. Where there is one alone it is meant, however a gateway names it, but not
    where that is an adapter it does not have; among several an unknown name is none. Raises NotFound.
    """
    providers = {provider.name: provider for provider in local_engines(gateway)}
    if not providers:
        raise NotFound("There is no engine in this process.")
    route = gateway.router.routes.get(model or "")
    lacks = any((model or "").startswith(f"{one.settings.served_name}:") for one in providers.values())
    default = providers if model is None or (len(providers) == 1 and not lacks) else ()
    for name in (model, *(route.targets if route else ()), *default):
        if name in providers:
            return providers[name]
    raise NotFound(f"There is no model {model!r} in this process.")


class ReplicaController(Controller):
    path = "/api/v1/engine"
    tags = ("engine",)
    guards = (requires_scope(Scope.ENGINE),)

    @get("/advert", summary="What the engine takes, when it would answer, and which prefixes it holds")
    async def advert(self, gateway: NamedDependency[Gateway], model: FromQuery[str | None] = None) -> Advert:
        return local_engine(gateway, model).advert()

    @post("/forget", status_code=200, summary="Drop what was computed from these documents")
    async def forget(self, data: JSONBody[Forgotten], gateway: NamedDependency[Gateway]) -> Done:
        for provider in local_engines(gateway):
            await provider.forget(data.source_ids)
        return Done(len(data.source_ids))

    @post("/generate", status_code=200, summary="An answer as a gateway's own engine would give it, streamed")
    async def generate(
        self,
        request: Request[Principal, None, State],
        gateway: NamedDependency[Gateway],
    ) -> Stream:
        """Body: a request in the gateway's own words (schemas.ChatRequest); events: its deltas."""
        try:
            asked = msgspec.json.decode(await request.body(), type=ChatRequest)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"That is not a gateway's request: {error}") from error
        deltas = local_engine(gateway, asked.model).stream(asked)
        first = await anext(deltas)
        return await stream_response(_frames(first, deltas), _failed, {"cache-control": "no-store"})


async def _frames(first: Delta, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(deltas):
        yield b""
        yield _frame(first)
        async for delta in deltas:
            yield _frame(delta)


def _frame(delta: Delta) -> bytes:
    return b"data: " + msgspec.json.encode(delta) + b"\n\n"


def _failed(error: AppError) -> bytes:
    return b"data: " + msgspec.json.encode(error.openai()) + b"\n\n"
