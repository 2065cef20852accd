"""The nouns of a step's attention work, and the index arithmetic on them. numpy, no loops over rows.

A task is a tile of query tokens against a range of keys of one block table row:
  own tasks     a run of a row's tokens against the keys the row reads by itself. Rows of few tokens (decoding,
                draft verification) split their keys into pieces of a fixed size, so that neither the batch nor the
                number of multiprocessors changes the order of the sums; longer chunks fill the device unsplit.
  shared tasks  the tokens of all rows of a group, packed together, against keys that their pages have in common.
A token with one task gets its result written at once; one with several has a slot for each partial result, and
a merge joins them by their log-sum-exp.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int32]
DIRECT = -1  # instead of a slot: the task's result is the token's result
TASK_FIELDS = 6  # first entry, number of entries, block table row, first key, end of unmasked keys, end of keys


@dataclass(frozen=True, slots=True)
class Tiles:
    """Sizes that fix the order of sums and the shape of tiles, in tokens and keys; tuning.py keeps measured ones.

    split: keys of one piece of a decoding row.  shared_split: the same for a shared prefix.
    narrow: query rows (tokens times query heads per key head) up to which a row counts as decoding.
    block_n: keys per inner step.  block_wide, block_shared: query rows of a tile of a chunk or a shared prefix.
    """

    split: int = 512
    shared_split: int = 512
    narrow: int = 64
    block_n: int = 64
    block_wide: int = 128
    block_shared: int = 64

    def __post_init__(self) -> None:
        for name in ("block_n", "block_wide", "block_shared"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1):
                raise ValueError(f"{name} must be a power of two of at least 16, not {value}")
        for name in ("split", "shared_split"):
            if getattr(self, name) % self.block_n:
                raise ValueError(f"{name}={getattr(self, name)} must be a multiple of block_n={self.block_n}")

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Tiles":
        """Defaults that fit into a multiprocessor's shared memory; float32 takes twice the room."""
        return cls() if dtype.itemsize == 2 else cls(block_wide=64, block_n=32)


@dataclass(frozen=True, slots=True)
class PagedRows:
    """The rows of a step. Row i computes tokens starts[i] .. starts[i] + counts[i] of its sequence.

    starts, counts: int32 [R].  table: int32 [R, P], page ids; places beyond a row's length are never read.
    """

    starts: Ints
    counts: Ints
    table: Ints

    @property
    def offsets(self) -> Ints:
        return starts_of(self.counts)


@dataclass(frozen=True, slots=True)
class TaskList:
    """Tasks int32 [n, 6] and entries int32 [e, 2] (token, slot) for one launch with tiles of block_m query rows."""

    tasks: Ints
    entries: Ints
    block_m: int


@dataclass(slots=True)
class Slots:
    """Partial results per token: where its slots begin, how many it has, and how many are given out."""

    counts: Ints
    firsts: Ints = field(init=False)
    used: Ints = field(init=False)

    def __post_init__(self) -> None:
        self.firsts = starts_of(np.where(self.counts > 1, self.counts, 0).astype(np.int32))
        self.used = np.zeros_like(self.counts)

    def take(self, tokens: Ints, place: Ints) -> Ints:
        """The slot of each token's piece number `place` of the run that is being written."""
        slots = self.firsts[tokens] + self.used[tokens] + place
        return np.where(self.counts[tokens] > 1, slots, DIRECT).astype(np.int32)

    def merges(self) -> Ints:
        tokens = np.flatnonzero(self.counts > 1)
        return np.stack([tokens, self.firsts[tokens], self.counts[tokens]], 1).astype(np.int32)


def starts_of(counts: Ints) -> Ints:
    return (np.cumsum(counts) - counts).astype(np.int32)


def tile_height(query_rows: int, group: int) -> int:
    """The smallest tile that a matrix unit takes and that holds all query heads of a key head."""
    return max(16, 1 << (max(query_rows, group) - 1).bit_length())


def pieces_of(length: int, split: int) -> int:
    return -(-length // split)


def spread(firsts: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """firsts[i] .. firsts[i] + counts[i] for all i one after the other, the i of each, and its place within."""
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    within = (np.arange(len(owner)) - np.repeat(starts_of(counts), counts)).astype(np.int32)
    return (firsts[owner] + within).astype(np.int32), owner, within
