"""/v1/chat/completions and /v1/models in the OpenAI dialect."""

import time
from collections.abc import AsyncIterator
from typing import Any

from litestar import Controller, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from litestar.response import Stream

from app.errors import AppError, ModelNotFound
from app.gateway.schemas import Delta
from app.gateway.service import ChatStream, Gateway
from app.gateway.wire import ChatCompletionRequest, Completion, Json, sse, to_request
from app.telemetry import Stages, logger
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

log = logger(__name__)
STARTED = int(time.time())


class ChatController(Controller):
    path = "/v1"
    tags = ("openai",)
    guards = (requires_scope(Scope.CHAT),)

    @post("/chat/completions", status_code=200, summary="Chat, plain or streamed")
    async def chat(
        self,
        data: JSONBody[ChatCompletionRequest],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
    ) -> Response[Any]:
        request = to_request(data, principal.access_atoms(principal.labels))
        stream = await gateway.open(principal, request, Stages())
        headers = {"x-precedent-served-by": stream.served_by}
        completion = Completion(data.model)
        if data.stream:
            include_usage = bool(data.stream_options and data.stream_options.include_usage)
            return Stream(
                _frames(stream, completion, include_usage), media_type="text/event-stream", headers=headers
            )
        async with stream:
            deltas = [delta async for delta in stream]
        return Response(completion.full(deltas, stream.finish_reason, stream.usage), headers=headers)

    @get("/models", summary="The models this key may use")
    async def models(self, gateway: NamedDependency[Gateway]) -> Json:
        return {"object": "list", "data": [_model(gateway, name) for name in gateway.router.routes]}

    @get("/models/{model:path}", summary="One model")
    async def model(self, model: FromPath[str], gateway: NamedDependency[Gateway]) -> Json:
        name = model.lstrip("/")
        if name not in gateway.router.routes:
            raise ModelNotFound(name)
        return _model(gateway, name)


async def _frames(stream: ChatStream, completion: Completion, include_usage: bool) -> AsyncIterator[bytes]:
    """Chunks, the usage chunk if asked for, and [DONE]; after a failure one error frame and nothing else."""
    try:
        async with stream:
            yield sse(_with_usage(completion.first_chunk(), include_usage))
            async for delta in stream:
                if _says_something(delta):
                    yield sse(_with_usage(completion.chunk(delta), include_usage))
        if include_usage:
            yield sse(completion.usage_chunk(stream.usage))
        yield sse("[DONE]")
    except AppError as error:
        yield sse(error.openai())
    except Exception:
        log.exception("stream failed")
        yield sse(AppError("The server failed while answering.").openai())


def _says_something(delta: Delta) -> bool:
    return bool(delta.text or delta.tool_calls or delta.finish_reason)


def _with_usage(chunk: Json, include_usage: bool) -> Json:
    """Where the usage chunk was asked for, all other chunks carry `usage: null`."""
    return chunk | {"usage": None} if include_usage else chunk


def _model(gateway: Gateway, name: str) -> Json:
    owner = gateway.router.routes[name].owned_by
    return {"id": name, "object": "model", "created": STARTED, "owned_by": owner}
