"""A Hugging Face tokenizer folder: text to ids, ids to text, and chat templates that content cannot break out of.

Special tokens are recognised in the template's own text and nowhere else: what a user or a document says is
tokenised apart, with special tokens spelled out as ordinary characters.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from app.engine.quote_lock import TokenBytes
from app.errors import InvalidRequest

Message = dict[str, Any]


class ChatPiece(NamedTuple):
    """A run of a rendered chat: the template's own text (message_index None), or one message's content."""

    text: str
    is_template: bool
    message_index: int | None


def has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    return folder.is_dir() and any((folder / name).is_file() for name in names)


class Tokenizer:
    """Raises ValueError where the folder has no tokenizer that the tokenizers library can run."""

    def __init__(self, folder: Path) -> None:
        self._hf: Any = AutoTokenizer.from_pretrained(str(folder))
        backend = getattr(self._hf, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{folder} has no fast tokenizer (tokenizer.json)")
        self._template: FastTokenizer = FastTokenizer.from_str(backend.to_str())
        self._content: FastTokenizer = FastTokenizer.from_str(backend.to_str())
        self._content.encode_special_tokens = True
        for tokenizer in (self._template, self._content):
            tokenizer.no_truncation()
            tokenizer.no_padding()

    @property
    def vocab_size(self) -> int:
        return int(self._template.get_vocab_size(with_added_tokens=True))

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's own; the engine's end tokens are DecoderSpec.eos_token_ids."""
        eos: int | None = self._hf.eos_token_id
        return eos

    @cached_property
    def vocabulary(self) -> TokenBytes:
        """Every token as the bytes it stands for; control tokens have none. About a second for 150,000 tokens."""
        spec = json.loads(self._template.to_str())
        control = {token["id"] for token in spec["added_tokens"] if token["special"]}
        byte_level = "ByteLevel" in json.dumps(spec["decoder"])
        as_bytes = _byte_level if byte_level else _sentencepiece
        names = (self._template.id_to_token(i) for i in range(self.vocab_size))
        return TokenBytes([None if i in control or name is None else as_bytes(name) for i, name in enumerate(names)])

    def to_json(self) -> str:
        """The tokenizers library's own form, for a grammar library that reads it."""
        return str(self._template.to_str())

    @property
    def chat_template(self) -> str:
        """Its source, the one for tools where there are several; empty where the model has none."""
        template = self._hf.chat_template or ""
        return str(template.get("tool_use") or template.get("default", "") if isinstance(template, dict) else template)

    def bytes_of(self, token_id: int) -> bytes | None:
        """What a token stands for; None for a control token."""
        return self.vocabulary.of[token_id] if token_id < len(self.vocabulary.of) else None

    @cached_property
    def control_tokens(self) -> tuple[str, ...]:
        """How the tokens that content must never become are spelled."""
        added = json.loads(self._template.to_str())["added_tokens"]
        return tuple(token["content"] for token in added if token["special"])

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; "<|eos|>" in it becomes characters, never the control token."""
        return list(self._content.encode(text, add_special_tokens=False).ids)

    def encode_template(self, text: str) -> list[int]:
        """Ids of text that we wrote: special tokens are recognised."""
        return list(self._template.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self._template.decode(list(token_ids), skip_special_tokens=True))

    def encode_pieces(self, pieces: Sequence[ChatPiece]) -> list[list[int]]:
        """Ids per piece, template and contents each by its own rule."""
        return [(self.encode_template if piece.is_template else self.encode)(piece.text) for piece in pieces]

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] = (),
    ) -> list[ChatPiece]:
        """The chat as the model was trained on it, cut where content begins and ends.

        The template is rendered with unguessable marks in place of the contents. What else it writes of messages
        and tools (in OpenAI's shape) becomes the template's own text. Raises InvalidRequest where
        the model has no chat template, its template refuses these messages, or such text spells a control token.
        """
        if not self.chat_template:
            raise InvalidRequest("This model has no chat template; send a plain prompt instead.", param="messages")
        self._check_inlined(messages, tools)
        nonce = secrets.token_hex(8)
        marked = [dict(message, content=f"[{nonce}:{i}]") for i, message in enumerate(messages)]
        try:
            rendered: str = self._hf.apply_chat_template(
                marked, tokenize=False, add_generation_prompt=add_generation_prompt, tools=list(tools) or None
            )
        except Exception as error:  # whatever a template raises is about the messages, e.g. their order of roles
            raise InvalidRequest(f"The model's chat template refuses this: {error}", param="messages") from error
        return _cut(rendered, nonce, messages)

    def _check_inlined(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """What is written into the template beside the contents cannot be tokenized apart."""
        inlined = [{k: v for k, v in message.items() if k not in ("role", "content")} for message in messages]
        for text in _strings([inlined, tools]):
            for token in self.control_tokens:
                if token in text:
                    raise InvalidRequest(f"Tools and tool calls must not contain {token!r}.", param="tools")


def _strings(value: Any) -> Iterator[str]:
    """Every string in nested lists and dictionaries, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (*_strings(key), *_strings(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes: printable ones as they are, the others from U+0100 on
    (Radford et al. 2019, the GPT-2 encoder)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    return bytes(_ALPHABET[c] for c in token) if all(c in _ALPHABET for c in token) else token.encode()


def _sentencepiece(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _cut(rendered: str, nonce: str, messages: Sequence[Message]) -> list[ChatPiece]:
    pieces: list[ChatPiece] = []
    for number, run in enumerate(re.split(rf"\[{nonce}:(\d+)\]", rendered)):
        if number % 2:
            pieces.append(ChatPiece(messages[int(run)]["content"], False, int(run)))
        elif run:
            pieces.append(ChatPiece(run, True, None))
    return [piece for piece in pieces if piece.text]
