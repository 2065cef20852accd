"""An upstream on a real socket that does what a script says: answers, hangs, breaks off, or sees its caller leave.

It runs in a thread of its own: the test client blocks the test's loop while it waits.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from app import migrate
from app.config import Settings, TargetSettings
from app.db import Database
from app.gateway.providers.http import HttpProvider
from app.gateway.schemas import ChatRequest, Delta, Message, Sampling, Segment
from app.tenants import service
from app.tenants.principal import Scope


@dataclass
class Exchange:
    """A request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Wire:
    """The response side of one connection, down to cutting it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.cut = False

    async def head(self, status: int = 200, content_type: str = "text/event-stream", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self._writer.drain()

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            await self._writer.drain()
            await asyncio.sleep(0)

    async def end(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    async def answer(self, *pieces: bytes, content_type: str = "text/event-stream") -> None:
        """A whole successful stream."""
        await self.head(content_type=content_type)
        await self.send(*pieces)
        await self.end()

    async def fail(self, status: int, body: Any, **headers: str) -> None:
        """A whole JSON response."""
        await self.head(status, "application/json", **headers)
        await self.send(json.dumps(body).encode())
        await self.end()

    def die(self) -> None:
        """Reset the connection: what was sent may be lost."""
        self.cut = True
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """End the connection in the middle of the body: what was sent arrives."""
        self.cut = True
        self._writer.close()

    async def until_left(self) -> None:
        """Raises ConnectionError when the caller has closed the connection."""
        while await self._reader.read(1024):
            pass
        raise ConnectionResetError


Script = Callable[[Exchange, Wire], Awaitable[None]]


@dataclass
class Upstream:
    script: Script
    url: str = ""
    connections: int = 0
    exchanges: list[Exchange] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    """Set when a caller closed its connection while the script was still answering."""

    @property
    def asked(self) -> dict[str, Any]:
        """The body of the last request."""
        return self.exchanges[-1].json

    async def seen_leaving(self) -> bool:
        return await asyncio.to_thread(self.left.wait, 5)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.connections += 1
        try:
            while (exchange := await _read(reader)) and not wire.cut:
                self.exchanges.append(exchange)
                await self.script(exchange, wire)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Exchange | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *rest = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Exchange(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Upstream]:
    running = Upstream(script)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.run_coroutine_threadsafe(asyncio.start_server(running.serve, "127.0.0.1", 0), loop)
    server = await asyncio.wrap_future(starting)
    running.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield running
    finally:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_stop(server), loop))
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def answering(*pieces: bytes, content_type: str = "text/event-stream") -> Script:
    async def script(_: Exchange, wire: Wire) -> None:
        await wire.answer(*pieces, content_type=content_type)

    return script


def failing(status: int, body: Any, **headers: str) -> Script:
    async def script(_: Exchange, wire: Wire) -> None:
        await wire.fail(status, body, **headers)

    return script


def chat(
    text: str = "Hello", *, system: str = "", fields: dict[str, Any] | None = None, **sampling: Any
) -> ChatRequest:
    messages = [Message("system", (Segment(system),))] if system else []
    messages.append(Message("user", (Segment(text),)))
    return ChatRequest("m", tuple(messages), Sampling(**sampling), fields or {}, tenant="tenant-1")


def raw(text: str, **sampling: Any) -> ChatRequest:
    return ChatRequest("m", (Message("user", (Segment(text),)),), Sampling(**sampling), raw=True)


@asynccontextmanager
async def provider_at(kind: type[HttpProvider], url: str, **settings: Any) -> AsyncIterator[HttpProvider]:
    target = TargetSettings(**{"name": "t", "base_url": url, "allow_private": True, "timeout_seconds": 2.0, **settings})
    provider = kind(target)
    await provider.start()
    try:
        yield provider
    finally:
        await provider.close()


async def ask(provider: HttpProvider, request: ChatRequest) -> list[Delta]:
    async with aclosing(provider.stream(request)) as deltas:
        return [delta async for delta in deltas]


async def exchange(
    kind: type[HttpProvider], script: Script, request: ChatRequest, path: str = "", **settings: Any
) -> tuple[list[Delta], Upstream]:
    """One request through one provider to one upstream."""
    async with upstream(script) as running, provider_at(kind, running.url + path, **settings) as provider:
        return await ask(provider, request), running


async def prepared(settings: Settings, *scopes: Scope) -> str:
    """Migrates the database and makes the tenant `firm`; returns a key of it."""
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "firm")
        key = await service.create_key(session, tenant.id, "k", scopes=frozenset(scopes))
    await database.close()
    return key.secret


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)
