"""Where drafts come from, in the order in which they are asked. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.engine.spec.suffix import SEPARATOR, SuffixIndex

Source = Literal["answer", "suffix", "model"]
CONTEXT = 32  # tokens of context that a source is given


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next. match: how many tokens of context stand behind them; more are surer."""

    tokens: list[int]
    match: int
    source: Source = "suffix"


class AnswerDrafts:
    """An earlier verified answer to a like question: followed for as long as the output says the same."""

    def __init__(self, answer: Sequence[int]) -> None:
        self.tokens = list(answer)
        self._agreed = 0  # leading tokens that the output has too; -1 once it has left

    def wrote(self, tokens: Sequence[int]) -> None:
        if self._agreed < 0:
            return
        end = self._agreed + len(tokens)
        self._agreed = end if self.tokens[self._agreed : end] == list(tokens) else -1

    def draft(self, most: int) -> Draft | None:
        found = self.tokens[self._agreed : self._agreed + most] if self._agreed >= 0 else []
        return Draft(found, self._agreed, "answer") if found else None


class Drafter:
    """Of one request: its earlier answer, then whatever in its own prompt and output went on like this before."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer = AnswerDrafts(answer)
        self._index: SuffixIndex | None = None  # built when first asked, so that no first token waits for it

    def wrote(self, tokens: Sequence[int]) -> None:
        """The output goes on with these tokens."""
        self._answer.wrote(tokens)
        if self._index is not None:
            self._index.extend(tokens)

    def drafts(self, tokens: Sequence[int], most: int, at_least: int) -> list[Draft]:
        """What may follow `tokens`, prompt and output so far, best first. at_least: tokens that must match."""
        if found := self._answer.draft(most):
            return [found]
        if self._index is None:
            self._index = SuffixIndex([*self._answer.tokens, SEPARATOR, *tokens])
        return [Draft(*found) for found in self._index.continuations(tokens[-CONTEXT:], most, at_least)]
