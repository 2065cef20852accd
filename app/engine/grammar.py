"""Output that must follow a schema, a pattern or a list of choices. No torch.

llguidance compiles the grammar at admission, in the caller's thread: what cannot compile is refused there. While a
request runs, the mask for its next token is computed in a thread of its own, beside the model's forward pass (the
library releases the interpreter lock), and is waited for only when the next token is sampled.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest

if TYPE_CHECKING:
    from app.engine.tokenizer import Tokenizer

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]
MAX_GRAMMAR_BYTES = 65_536
MAX_COMPILED = 64  # the most recently used are kept
_PARAM = "response_format"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Grammar:
    """value: a JSON schema, a regular expression, a tuple of strings, or a grammar in llguidance's dialect of Lark;
    nothing for json_object."""

    kind: GrammarKind
    value: Any = None


class Grammars:
    """Of one tokenizer. The library is loaded with the first grammar; a model without one never pays."""

    def __init__(self, tokenizer: "Tokenizer | None", vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos = list(eos_token_ids)
        self._library: Any = None
        self._vocabulary: Any = None
        self._threads: ThreadPoolExecutor | None = None
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = Lock()  # admission and the engine thread

    def check(self, grammar: Grammar) -> None:
        """Raises InvalidRequest where the grammar cannot be compiled; otherwise it is, for start()."""
        with self._lock:
            self._compile(grammar)

    def start(self, grammar: Grammar) -> "GrammarState":
        """For one output. Raises InvalidRequest as check()."""
        with self._lock:
            matcher = self._compile(grammar).deep_copy()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        return GrammarState(matcher, self._vocab_size, self._eos, self._threads)

    def _compile(self, grammar: Grammar) -> Any:
        self._load()
        text = self._text(grammar)
        if text not in self._compiled:
            matcher = self._library.LLMatcher(self._vocabulary, text)
            if matcher.is_error():
                reason = " ".join(matcher.get_error().split())[:300]
                raise InvalidRequest(f"The {grammar.kind} cannot be compiled: {reason}", param=_PARAM)
            self._compiled[text] = matcher
        self._compiled.move_to_end(text)
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return self._compiled[text]

    def _text(self, grammar: Grammar) -> str:
        """The library's own form of the grammar."""
        matcher, value = self._library.LLMatcher, grammar.value
        if grammar.kind == "json_object":
            value = {"type": "object"}
        if len(json.dumps(value, default=str)) > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(f"The {grammar.kind} is longer than {MAX_GRAMMAR_BYTES} bytes.", param=_PARAM)
        if grammar.kind == "choice":
            if not value or not all(isinstance(choice, str) and choice for choice in value):
                raise InvalidRequest("choice must be a list of at least one string, none empty.", param=_PARAM)
            return str(matcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, value))))
        if grammar.kind == "regex":
            return str(matcher.grammar_from_regex(str(value)))
        if grammar.kind == "lark":
            return str(value)
        if not isinstance(value, dict):
            raise InvalidRequest("json_schema must be an object.", param=_PARAM)
        # Compact: a model that is unsure could write white space for ever.
        return str(matcher.grammar_from_json_schema(value, defaults={"whitespace_flexible": False}))

    def _load(self) -> None:
        if self._vocabulary is not None:
            return
        if self._tokenizer is None or not self._eos:
            reason = "tokenizer" if self._tokenizer is None else "end token"
            raise InvalidRequest(f"Structured output needs a model with a {reason}.", param=_PARAM)
        try:
            self._library = import_module("llguidance")
        except ModuleNotFoundError as error:
            raise InvalidRequest("Structured output needs the package llguidance.", param=_PARAM) from error
        text = self._tokenizer.to_json()
        self._vocabulary = self._library.LLTokenizer(text, n_vocab=self._vocab_size, eos_token=self._eos)


class GrammarState:
    """Where one output stands in its grammar. impossible(), then advance() with the token that was sampled."""

    def __init__(self, matcher: Any, vocab_size: int, eos_token_ids: list[int], threads: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = eos_token_ids
        self._threads = threads
        self._next: Future[Mask] = threads.submit(self._mask)
        self._ahead: Future[list[Mask]] | None = None

    def advance(self, token: int) -> None:
        self._next = self._threads.submit(self._consume, token)

    def look_ahead(self, tokens: Sequence[int]) -> int:
        """How many of these tokens could come next; the masks behind each are computed while the model runs."""
        possible = self._threads.submit(self._possible, list(tokens)).result()
        self._ahead = self._threads.submit(self._masks, list(tokens[:possible])) if possible else None
        return possible

    def impossible(self, ahead: int = 0) -> list[Mask]:
        """Each [vocab], true for the tokens that must not come next, and behind the first `ahead` looked at."""
        found = [self._next.result()]
        return found + (self._ahead.result()[:ahead] if ahead and self._ahead is not None else [])

    def _possible(self, tokens: list[int]) -> int:
        return int(self._matcher.validate_tokens(tokens))

    def _masks(self, tokens: list[int]) -> list[Mask]:
        masks = []
        for done, token in enumerate(tokens, 1):
            self._matcher.consume_token(token)
            masks.append(self._mask())
            if self._matcher.is_stopped():
                masks += [masks[-1]] * (len(tokens) - done)
                break
        self._matcher.rollback(done)
        return masks

    def _consume(self, token: int) -> Mask:
        self._matcher.consume_token(token)
        return self._mask()

    def _mask(self) -> Mask:
        """At the end of the grammar, or where it failed, only the end tokens are left."""
        if not self._matcher.is_stopped() and not self._matcher.is_error():
            bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            impossible = np.equal(np.unpackbits(bits, count=self._vocab_size, bitorder="little"), 0)
            if not impossible.all():
                return impossible
        impossible = np.ones(self._vocab_size, dtype=bool)
        impossible[self._eos] = False
        return impossible
