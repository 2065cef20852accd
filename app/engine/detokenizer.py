"""Tokens to text while they stream: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Protocol

from app.engine.request import Request

_UNFINISHED = "\ufffd"  # what a tokenizer makes of bytes that are not (yet) a character
_CONTEXT = 4  # tokens of a prompt that its continuation is decoded after
_MAX_HELD_TOKENS = 8  # a UTF-8 character has at most four bytes; more held tokens are really invalid bytes


class Decodes(Protocol):
    def decode(self, token_ids: Sequence[int]) -> str: ...


class TextStream:
    """The text of one request. Runs outside the engine thread.

    Text is decoded from a few tokens before the new ones, because some tokenizers write a token's leading space
    only after another token. Characters split over tokens are held until whole; text that could be the start
    of a stop string is held until it is not.
    """

    def __init__(self, tokenizer: Decodes | None, stop: Sequence[str] = (), after: Sequence[int] = ()) -> None:
        """after: the prompt's last tokens where the output continues its text: a SentencePiece tokenizer drops the
        space of the first token that it decodes."""
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens = list(after)
        self._context = 0  # tokens before this one are no longer needed for decoding
        self._read = len(self._tokens)  # tokens before this one are in the text already
        self._held = ""
        self.stopped = False
        self.num_tokens = 0

    def push(self, token_ids: Sequence[int], *, last: bool = False, drop_last_token: bool = False) -> str:
        """New text that is safe to show. Afterwards `stopped` says whether a stop string was completed, and
        `num_tokens` how many tokens of all were read: none behind the stop string.

        last: nothing follows, so give out everything.  drop_last_token: it is the end token, not text.
        """
        if not self._stop:
            return self._read_on(token_ids, last, drop_last_token)
        text, count = "", len(token_ids)
        for i, token in enumerate(token_ids, 1):
            text += self._read_on([token], last and i == count, drop_last_token and i == count)
        return text if token_ids else self._read_on([], last, False)

    def _read_on(self, token_ids: Sequence[int], last: bool, drop_last_token: bool) -> str:
        if self.stopped:
            return ""
        self.num_tokens += len(token_ids)
        if self._tokenizer is None:
            return ""
        self._tokens += token_ids[: len(token_ids) - drop_last_token]
        return self._release(self._held + self._decode_new(last), last)

    def _decode_new(self, last: bool) -> str:
        assert self._tokenizer is not None
        before = self._tokenizer.decode(self._tokens[self._context : self._read])
        now = self._tokenizer.decode(self._tokens[self._context :])
        waiting = len(self._tokens) - self._read
        if now.endswith(_UNFINISHED) and not last and waiting < _MAX_HELD_TOKENS:
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return now[len(before) :]

    def _release(self, text: str, last: bool) -> str:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def text_stream(tokenizer: Decodes | None, request: Request) -> TextStream:
    after = request.prompt_token_ids[-_CONTEXT:] if request.continues_text else ()
    return TextStream(tokenizer, request.sampling.stop, after)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a proper beginning of stop."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
