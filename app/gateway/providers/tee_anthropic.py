"""Handing an Anthropic stream through as bytes, as `tee` does with OpenAI's: read off are usage, finish and errors."""

from collections.abc import Callable
from typing import Any

from app.gateway.providers.tee import EventTee

Json = dict[str, Any]
ANTHROPIC = "anthropic"
# Events that say nothing but a piece of the answer; all others are decoded.
ORDINARY = (b'"type":"content_block_delta"', b'"type": "content_block_delta"')


class MessageTee(EventTee):
    """The tee of Anthropic's dialect. read: takes each event that was decoded, and may raise. `last` begins with
    message_delta."""

    def __init__(self, decode: Callable[[bytes], Json], read: Callable[[Json], object]) -> None:
        super().__init__(decode)
        self._read = read

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
