"""Streams to callers: cleanup that surely runs, and one error frame."""

import asyncio
import gc
from collections.abc import AsyncGenerator

from app.errors import AppError, UpstreamError
from app.gateway.streaming import stream_response


def render(error: AppError) -> bytes:
    return f"error {error.code}".encode()


async def test_a_response_that_nobody_reads_is_cleaned_up() -> None:
    closed = asyncio.Event()

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            yield b""
            yield b"never"
        finally:
            closed.set()

    response = await stream_response(frames(), render, {})
    assert not closed.is_set()
    del response
    gc.collect()
    async with asyncio.timeout(30):
        await closed.wait()


async def collected(frames: AsyncGenerator[bytes, None]) -> list[bytes]:
    response = await stream_response(frames, render, {})
    return [frame async for frame in response.iterator]  # type: ignore[union-attr]


async def test_a_failure_is_one_last_frame() -> None:
    async def frames(error: Exception) -> AsyncGenerator[bytes, None]:
        yield b""
        yield b"text"
        raise error

    assert await collected(frames(UpstreamError("x"))) == [b"text", b"error upstream_error"]
    assert await collected(frames(ValueError("a mistake of ours"))) == [b"text", b"error internal_error"]
