"""Handing an Anthropic stream through as bytes, as `tee` does with OpenAI's: read off are usage, finish and errors."""

from collections.abc import Callable
from typing import Any

from app.errors import AppError, UpstreamError
from app.gateway.providers.tee import MAX_EVENT_BYTES

Json = dict[str, Any]
ANTHROPIC = "anthropic"
# Events that say nothing but a piece of the answer; all others are decoded.
ORDINARY = (b'"type":"content_block_delta"', b'"type": "content_block_delta"')


class MessageTee:
    """Feed it what comes, hand on what it gives back. read: takes each event that was decoded, and may raise."""

    def __init__(self, decode: Callable[[bytes], Json], read: Callable[[Json], object]) -> None:
        self._decode = decode
        self._read = read
        self._pending = b""
        self._held: list[bytes] = []
        self._begun = False
        self.done = False
        self.failure: AppError | None = None
        self.last = b""
        """From message_delta on: handed on when the stream has ended well."""

    def feed(self, chunk: bytes) -> bytes:
        """The events that are complete. What was wrong with one is in `failure`: those before it are good."""
        *events, self._pending = (self._pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._pending) > MAX_EVENT_BYTES:
            raise UpstreamError("An upstream sent an event without end.")
        given: list[bytes] = []
        try:
            for event in events:
                if self.done:
                    break
                self._event(event, given)
        except AppError as error:
            self.failure = error
        if given and self._held:
            given, self._held = [*self._held, *given], []
        return b"".join(given)

    def _event(self, event: bytes, given: list[bytes]) -> None:
        data = b"\n".join(line[5:].lstrip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return  # a comment, or nothing
        frame = event + b"\n\n"
        if self._begun and any(words in data for words in ORDINARY) and data[-1:] == b"}":
            given.append(frame)
            return
        said = self._decode(data)
        self._read(said)
        match said.get("type"):
            case "message_delta":
                self.last += frame
            case "message_stop":
                self.last += frame
                self.done = True
            case _:
                self._begun = self._begun or _says_something(said)
                (given if self._begun else self._held).append(frame)


def _says_something(said: Json) -> bool:
    block, delta = said.get("content_block") or {}, said.get("delta") or {}
    return bool(block.get("text") or block.get("type") == "tool_use" or delta.get("text") or delta.get("partial_json"))
