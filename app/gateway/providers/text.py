"""For upstreams that continue plain text: a transcript as prompt, and stop strings cut from what comes back."""

from app.gateway.schemas import ChatRequest, Message

SPEAKERS = {"user": "User", "assistant": "Assistant"}


def prompt_text(request: ChatRequest) -> str:
    """The prompt of a raw request as it is; of a chat, a transcript that ends where the assistant speaks.

    An upstream's own chat template is applied by its OpenAI route only: where the model needs it, use that.
    """
    if request.raw:
        return request.messages[0].text
    return "\n\n".join([*(_turn(message) for message in request.messages), "Assistant:"])


def stops(request: ChatRequest) -> tuple[str, ...]:
    """The caller's stop strings; in a transcript also the user's next turn, which is not the model's to write."""
    return request.sampling.stop if request.raw else (*request.sampling.stop, "\n\nUser:")


def _turn(message: Message) -> str:
    speaker = SPEAKERS.get(message.role)
    return f"{speaker}: {message.text}" if speaker else message.text


class StopFilter:
    """Passes text on up to the first stop string. What may be the beginning of one is held back."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.met: str | None = None

    def feed(self, text: str) -> str:
        """What may be shown now; after a stop string was met (`met`), nothing."""
        if self.met is not None:
            return ""
        text = self._held + text
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            position, self.met = min(found)
            self._held = ""
            return text[:position]
        keep = self._could_begin(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back and turned out to be text."""
        held, self._held = self._held, ""
        return held

    def _could_begin(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop string begins."""
        longest = max((len(stop) for stop in self._stop), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
