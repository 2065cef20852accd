"""Streams to callers: frames that surely run their cleanup, and one error frame where they fail."""

from collections.abc import AsyncGenerator, Callable

from litestar.response import Stream

from app.errors import AppError
from app.telemetry import logger

log = logger(__name__)
Frames = AsyncGenerator[bytes, None]


async def stream_response(frames: Frames, render: Callable[[AppError], bytes], headers: dict[str, str]) -> Stream:
    """A server-sent event response.

    `frames` must yield b"" first, from inside its `async with`: a generator that has begun runs its cleanup even when
    the caller is gone before the first byte. After a failure `render` makes the one last frame.
    """
    guarded = _with_error_frame(frames, render)
    await anext(guarded)
    return Stream(guarded, media_type="text/event-stream", headers=headers)


async def _with_error_frame(frames: Frames, render: Callable[[AppError], bytes]) -> Frames:
    try:
        async for frame in frames:
            yield frame
    except AppError as error:
        yield render(error)
    except Exception:
        log.exception("stream failed")
        yield render(AppError("The server failed while answering."))
    finally:
        await frames.aclose()
