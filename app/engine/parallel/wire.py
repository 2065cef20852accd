"""What rank 0 tells the others and what they answer, by a pipe to each: pickles between a process and its child."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from app.engine.architecture import DecoderSpec
from app.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Task:
    """The first message. spec: of the whole model.  max_model_len: as far as positions are encoded.

    store: the file through which ranks find each other.
    """

    rank: int
    config: EngineConfig
    folder: Path
    spec: DecoderSpec
    dtype: torch.dtype
    max_model_len: int
    store: Path


@dataclass(frozen=True, slots=True)
class Pool:
    """The second, once everybody is there: how many blocks to hold pages for. After that come steps' batches."""

    num_blocks: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Zero the pages of these blocks."""

    block_ids: list[int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The answer to a Task: the weights are there, the others may be met."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A rank's last word. lost: only since it lost another one."""

    reason: str
    lost: bool


class _Pickler(pickle.Pickler):
    """Tensors as arrays. torch pickles each as a file of its own, or into shared memory."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def dumps(message: object) -> bytes:
    """Tensors must be on the CPU."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getvalue()


def read(pipe: IO[bytes]) -> Any:
    """The next message. Raises EOFError where the other end is closed."""
    return pickle.load(pipe)
