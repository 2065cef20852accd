"""/v1/messages and /v1/messages/count_tokens in the Anthropic dialect."""

from typing import Any

from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from app.errors import AppError
from app.gateway.headers import answer_headers
from app.gateway.hints import with_headers
from app.gateway.providers.tee_anthropic import ANTHROPIC
from app.gateway.service import Gateway
from app.gateway.stream import ChatStream
from app.gateway.streaming import Frames, stream_response
from app.gateway.wire_anthropic import CountTokensRequest, MessagesRequest, to_request
from app.gateway.wire_anthropic_out import MessageEvents, event, whole
from app.telemetry import Stages
from app.tenants.auth import requires_scope
from app.tenants.principal import Principal, Scope


class MessagesController(Controller):
    path = "/v1/messages"
    tags = ("anthropic",)
    guards = (requires_scope(Scope.CHAT),)

    @post(status_code=200, summary="A message, plain or streamed")
    async def create(
        self,
        data: JSONBody[MessagesRequest],
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
    ) -> Response[Any]:
        asked = to_request(data, principal.access_atoms(principal.labels))
        asked = with_headers(asked, request.headers, relay=ANTHROPIC)
        stream = await gateway.open(principal, asked, Stages())
        if data.stream:
            frames = _frames(stream, MessageEvents(data.model))
            return await stream_response(frames, error_frame, answer_headers(stream, "anthropic"))
        async with stream:
            deltas = [delta async for delta in stream]
        if deltas and deltas[0].raw is not None:
            headers = answer_headers(stream, "anthropic")
            return Response(deltas[0].raw, media_type="application/json", headers=headers)
        body = whole(data.model, deltas, stream.finish_reason, stream.stop_sequence, stream.usage)
        return Response(body, headers=answer_headers(stream, "anthropic"))

    @post("/count_tokens", status_code=200, summary="Count the tokens of a prompt")
    async def count_tokens(
        self,
        data: JSONBody[CountTokensRequest],
        request: Request[Any, Any, Any],
        principal: NamedDependency[Principal],
        gateway: NamedDependency[Gateway],
    ) -> Response[dict[str, int]]:
        """Exact where the first able target has a tokenizer here (the in-process engine). For others an estimate: one
        token for every four bytes of text, four for each message, 1,500 for an image. The header
        `x-precedent-token-count` says which.
        """
        asked = to_request(data, principal.access_atoms(principal.labels))
        tokens, exact = await gateway.count_tokens(principal, with_headers(asked, request.headers))
        return Response({"input_tokens": tokens}, headers={"x-precedent-token-count": "exact" if exact else "estimate"})


def error_frame(error: AppError) -> bytes:
    return event(error.anthropic())


async def _frames(stream: ChatStream, events: MessageEvents) -> Frames:
    async with stream:
        yield b""
        started = False
        relayed = False
        async for delta in stream:
            if delta.raw is not None:
                relayed = True
                yield delta.raw
                continue
            if not started:
                started = True
                yield b"".join(map(event, events.start(stream.usage)))
            if made := events.delta(delta):
                yield b"".join(map(event, made))
    if not relayed:
        yield b"".join(map(event, events.end(stream.finish_reason, stream.stop_sequence, stream.usage)))
