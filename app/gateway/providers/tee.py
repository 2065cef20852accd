"""Handing an OpenAI stream through as bytes, while reading off what must be known: finish, usage, errors.

JSON is decoded only where an event says something that matters; ordinary pieces of text pass as they are. Nothing is
handed through before the first piece of an answer has come, so that another target may still be tried until then.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import msgspec

from app.errors import AppError, UpstreamError
from app.gateway.schemas import Usage

Json = dict[str, Any]
OPENAI = "openai"
MAX_EVENT_BYTES = 16 * 2**20
CHOICES = (b'"choices":[{', b'"choices": [{')
# Anything that these bytes may announce is decoded: better once too often.
TELLING = (b'"error"', b'"usage":{', b'"usage": {', b'"finish_reason":"', b'"finish_reason": "')
NULL_USAGE = (b',"usage":null', b', "usage": null')


class EventTee(ABC):
    """Feed it what comes, hand on what it gives back. What an event means is the dialect's to say in `_event`."""

    def __init__(self, decode: Callable[[bytes], Json]) -> None:
        self._decode = decode
        self._pending = b""
        self._held: list[bytes] = []
        self._begun = False
        self.done = False
        self.failure: AppError | None = None
        self.last = b""
        """What came with or after the finish: handed on when the stream has ended well."""

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

    @abstractmethod
    def _event(self, event: bytes, given: list[bytes]) -> None:
        """Appends to `given` what may be handed on, to `_held` what waits for the first piece of an answer."""


class Tee(EventTee):
    """The tee of OpenAI's dialect."""

    def __init__(self, decode: Callable[[bytes], Json], *, include_usage: bool) -> None:
        super().__init__(decode)
        self._include_usage = include_usage
        self.finish: str | None = None
        self.usage: Usage | None = None

    def _event(self, event: bytes, given: list[bytes]) -> None:
        if not event.startswith(b"data:"):
            event = b"\n".join(line for line in event.split(b"\n") if line.startswith(b"data:"))
            if not event:
                return  # a comment, or nothing
        data = event[5:].lstrip()
        if data == b"[DONE]":
            self.done = True
            self.finish = self.finish or ("stop" if self._begun else None)
        elif self._begun and data[:1] == b"{" and data[-1:] == b"}" and _ordinary(data):
            given.append(self._frame(data))
        else:
            self._read(data, given)

    def _read(self, data: bytes, given: list[bytes]) -> None:
        """An event that says more than a piece of text, or comes before any."""
        said = self._decode(data)
        usage = usage_of(said.get("usage"))
        self.usage = usage or self.usage
        choices = [choice for choice in said.get("choices") or [] if isinstance(choice, dict)]
        if not choices:
            if usage and self._include_usage:
                self.last += self._frame(data)
            return  # an annotation, or usage that nobody asked for
        finish = next((choice["finish_reason"] for choice in choices if choice.get("finish_reason")), None)
        self.finish = finish or self.finish
        says = any(_says_something(choice) for choice in choices)
        self._begun = self._begun or says
        if finish and not says:
            self.last += self._frame(data)
        elif self._begun:
            given.append(self._frame(data))
        else:
            self._held.append(self._frame(data))

    def _frame(self, data: bytes) -> bytes:
        """Where nobody asked for usage, no chunk speaks of it."""
        if not self._include_usage:
            for words in NULL_USAGE:
                data = data.replace(words, b"")
        return b"data: " + data + b"\n\n"


def _ordinary(data: bytes) -> bool:
    return any(words in data for words in CHOICES) and not any(words in data for words in TELLING)


def _says_something(choice: Json) -> bool:
    delta = choice.get("delta") or {}
    return bool(delta.get("content") or delta.get("refusal") or delta.get("tool_calls") or choice.get("text"))


def text_of(handed: bytes) -> str:
    """The text in events, of either dialect, that were handed through: for what is billed where the upstream never
    said."""
    texts: list[str] = []
    for event in handed.split(b"\n\n"):
        if event:
            said = msgspec.json.decode(event[event.index(b"data:") + 5 :])
            deltas = [choice.get("delta") for choice in said.get("choices") or [said]]
            texts += [str(delta.get("content") or delta.get("text") or "") for delta in deltas if delta]
    return "".join(texts)


def usage_of(usage: Json | None) -> Usage | None:
    if not usage:
        return None
    details = usage.get("prompt_tokens_details") or {}
    return Usage(
        usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0, details.get("cached_tokens") or 0
    )
