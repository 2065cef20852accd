"""/v1 in the OpenAI dialect: chat, legacy completions, embeddings, models."""

import asyncio
import time
from typing import Any

from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from app.errors import AppError, ModelNotFound
from app.gateway.embeddings import Embeddings
from app.gateway.headers import answer_headers
from app.gateway.hints import with_headers
from app.gateway.providers.tee import OPENAI
from app.gateway.schemas import ChatRequest, Delta, Usage
from app.gateway.service import Gateway
from app.gateway.stream import ChatStream
from app.gateway.streaming import Frames, stream_response
from app.gateway.wire import ChatCompletionRequest, Completion, Json, sse, to_request
from app.gateway.wire_anthropic_out import model_page
from app.gateway.wire_completions import (
    MAX_EMBEDDING_INPUTS,
    CompletionRequest,
    EmbeddingRequest,
    TextCompletion,
    embedding_list,
    texts,
    to_requests,
)
from app.telemetry import Stages
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope

STARTED = int(time.time())


class ChatController(Controller):
    path = "/v1"
    tags = ("openai",)
    guards = (requires_scope(Scope.CHAT),)

    @post("/chat/completions", status_code=200, summary="Chat, plain or streamed")
    async def chat(
        self,
        data: JSONBody[ChatCompletionRequest],
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
    ) -> Response[Any]:
        asked = to_request(data, principal.access_atoms(principal.labels))
        include_usage = bool(data.stream_options and data.stream_options.include_usage)
        asked = with_headers(asked, request.headers, relay=OPENAI, include_usage=include_usage)
        stream = await gateway.open(principal, asked, Stages())
        completion = Completion(data.model)
        if data.stream:
            return await _respond(_chat_frames(stream, completion, include_usage), stream)
        deltas = await _collect(stream)
        headers = answer_headers(stream, "openai")
        if deltas and deltas[0].raw is not None:
            return Response(deltas[0].raw, media_type="application/json", headers=headers)
        return Response(completion.full(deltas, stream.usage), headers=headers)

    @post("/completions", status_code=200, summary="Continue a text, plain or streamed (legacy)")
    async def complete(
        self,
        data: JSONBody[CompletionRequest],
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
    ) -> Response[Any]:
        asked = to_requests(data, principal.access_atoms(principal.labels))
        requests = [with_headers(one, request.headers) for one in asked]
        completion = TextCompletion(data.model)
        if data.stream:
            stream = await gateway.open(principal, requests[0], Stages())
            include_usage = bool(data.stream_options and data.stream_options.include_usage)
            return await _respond(_text_frames(stream, completion, include_usage), stream)
        answers = await _answer_all(gateway, principal, requests)
        return Response(completion.full(answers))

    @post("/embeddings", status_code=200, summary="Texts to vectors")
    async def embed(
        self,
        data: JSONBody[EmbeddingRequest],
        principal: NamedDependency[Principal],
        embeddings: NamedDependency[Embeddings],
    ) -> Json:
        inputs = texts(data.input, "input", MAX_EMBEDDING_INPUTS)
        vectors, tokens = await embeddings.embed(principal, data.model, inputs, data.dimensions)
        return embedding_list(data.model, vectors, tokens, packed=data.encoding_format == "base64")

    @get("/models", summary="The models this key may use")
    async def models(
        self,
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
        embeddings: NamedDependency[Embeddings],
    ) -> Json:
        """In Anthropic's shape, without embedding models, where the caller sends `anthropic-version`."""
        routes = {name: route for name, route in gateway.router.routes.items() if principal.may_use(name)}
        if "anthropic-version" in request.headers:
            return model_page(list(routes), STARTED)
        listed = [model_object(name, route.owned_by) for name, route in routes.items()]
        if embeddings.name and principal.may_use(embeddings.name):
            listed.append(model_object(embeddings.name))
        return {"object": "list", "data": listed}

    @get("/models/{model:path}", summary="One model")
    async def model(
        self,
        model: FromPath[str],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
        embeddings: NamedDependency[Embeddings],
    ) -> Json:
        name = model.lstrip("/")
        if name and name == embeddings.name and principal.may_use(name):
            return model_object(name)
        if name not in gateway.router.routes or not principal.may_use(name):
            raise ModelNotFound(name)
        return model_object(name, gateway.router.routes[name].owned_by)


def error_frame(error: AppError) -> bytes:
    return sse(error.openai())


async def _respond(frames: Frames, stream: ChatStream) -> Response[Any]:
    return await stream_response(frames, error_frame, answer_headers(stream, "openai"))


async def _collect(stream: ChatStream) -> list[Delta]:
    async with stream:
        return [delta async for delta in stream]


async def _answer_all(
    gateway: Gateway, principal: Principal, requests: list[ChatRequest]
) -> list[tuple[list[Delta], str | None, Usage]]:
    """Every prompt's answer, side by side; the first failure is the caller's."""

    async def one(request: ChatRequest) -> tuple[list[Delta], str | None, Usage]:
        stream = await gateway.open(principal, request, Stages())
        return await _collect(stream), stream.finish_reason, stream.usage

    tasks = [asyncio.ensure_future(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _chat_frames(stream: ChatStream, completion: Completion, include_usage: bool) -> Frames:
    """Chunks, the usage chunk if asked for, and [DONE]."""
    relayed = False
    async with stream:
        yield b""
        begun: set[int] = set()
        async for delta in stream:
            if delta.raw is not None:
                relayed = True
                yield delta.raw
                continue
            if delta.index not in begun:
                begun.add(delta.index)
                yield sse(_with_usage(completion.first_chunk(delta.index), include_usage))
            if delta.text or delta.tool_calls or delta.finish_reason or delta.logprobs:
                yield sse(_with_usage(completion.chunk(delta), include_usage))
    if include_usage and not relayed:
        yield sse(completion.usage_chunk(stream.usage))
    yield sse("[DONE]")


async def _text_frames(stream: ChatStream, completion: TextCompletion, include_usage: bool) -> Frames:
    async with stream:
        yield b""
        async for delta in stream:
            if delta.text or delta.finish_reason:
                yield sse(_with_usage(completion.chunk(delta), include_usage))
    if include_usage:
        yield sse(completion.usage_chunk(stream.usage))
    yield sse("[DONE]")


def _with_usage(chunk: Json, include_usage: bool) -> Json:
    """Where the usage chunk was asked for, all other chunks carry `usage: null`."""
    return chunk | {"usage": None} if include_usage else chunk


def model_object(name: str, owner: str = "precedent") -> Json:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": owner}
