"""A network between an application and a server, that can be cut: packets vanish, connections stay open."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from urllib.parse import urlsplit, urlunsplit


class Cable:
    """`url`: the server's, by way of this cable."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname and parts.port
        self._far = parts.hostname, parts.port
        self._parts = parts
        self._whole = asyncio.Event()
        self._whole.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self.url = ""

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Nothing that is sent arrives until it is whole again; then what TCP sends again does."""
        self._whole.clear()
        try:
            yield
        finally:
            self._whole.set()

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._whole.wait()
        far_reader, far_writer = await asyncio.open_connection(*self._far)
        self._ends |= {writer, far_writer}
        try:
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        except ConnectionError:
            pass  # one side has gone, as sides do
        finally:
            for end in (writer, far_writer):
                end.close()
                self._ends.discard(end)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        writer.close()


@asynccontextmanager
async def laid(url: str, host: str = "127.0.0.1") -> AsyncIterator[Cable]:
    """To the server at `url`, from this machine's address `host`."""
    cable = Cable(url)
    server = await asyncio.start_server(cable._joined, host, 0)
    port = server.sockets[0].getsockname()[1]
    user = f"{cable._parts.username}@" if cable._parts.username else ""
    cable.url = urlunsplit(cable._parts._replace(netloc=f"{user}{host}:{port}"))
    try:
        yield cable
    finally:
        server.close()
        for end in list(cable._ends):
            end.close()
