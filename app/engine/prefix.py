"""The labelled hash chain over KV blocks, and the prefix groups of a step. No torch.

A block's content depends on every token before it, and so does who may share it. Its key is therefore
SHA-256(parent key, its tokens, its access label, the model), each field preceded by its length, where the first
block's parent stands for the request's adapter (lora.py), with which keys and values are others, and the
label is the union of the labels of all segments from the start of the prompt through the block's last token.
Equal tokens under different labels never share; only text with the empty label is shared by everybody.
"""

import hashlib
import struct
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

Label = frozenset[str]
ROOT = b""
MAX_LABELS = 1024
MIN_SHARED_BLOCKS = 2  # a shared run shorter than this is cheaper to read once per row


def _field(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def root(adapter: str | None) -> bytes:
    """The parent of a prompt's first block: what different adapters compute has no block in common."""
    return ROOT if adapter is None else hashlib.sha256(_field(adapter.encode())).digest()


class BlockHasher:
    """Keys of the blocks of one model."""

    def __init__(self, model_id: str, block_size: int) -> None:
        self.block_size = block_size
        self._start = hashlib.sha256(_field(model_id.encode()) + struct.pack("<Q", block_size))
        self._labels: dict[Label, bytes] = {}

    def key(self, parent: bytes, tokens: Sequence[int], label: Label) -> bytes:
        """The 32-byte key of the block holding `tokens` after the block with key `parent` (root() if first)."""
        digest = self._start.copy()
        digest.update(_field(parent) + _field(array("q", tokens).tobytes()) + self._label_bytes(label))
        return digest.digest()

    def _label_bytes(self, label: Label) -> bytes:
        if label not in self._labels:
            if len(self._labels) > 4096:
                self._labels.clear()
            atoms = sorted(atom.encode() for atom in label)
            self._labels[label] = struct.pack("<Q", len(atoms)) + b"".join(map(_field, atoms))
        return self._labels[label]


class LabelChain:
    """The running union of segment labels over token positions: segments are (number of tokens, label)."""

    def __init__(self, segments: Sequence[tuple[int, Label]]) -> None:
        self._ends: list[int] = []
        self._unions: list[Label] = []
        end, union = 0, Label()
        for length, label in segments:
            if length == 0:
                continue
            end, union = end + length, union | label
            self._ends.append(end)
            self._unions.append(union)

    def through(self, end: int) -> Label:
        """The union over all segments that have a token before position `end`; output counts as the last."""
        if not self._ends:
            return Label()
        return self._unions[min(bisect_left(self._ends, end), len(self._ends) - 1)]

    def runs(self) -> list[tuple[int, Label]]:
        """Where each segment ends, and the union up to there."""
        return list(zip(self._ends, self._unions, strict=True))


@dataclass(slots=True)
class LabelCount:
    """Requests with text under a label, its prompt tokens, and how many of those were found in the cache."""

    requests: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0


class LabelCounts:
    """A count per label, at most MAX_LABELS of them: the one not seen for longest goes."""

    def __init__(self) -> None:
        self._counts: OrderedDict[Label, LabelCount] = OrderedDict()

    def count(self, labels: LabelChain, num_cached: int) -> None:
        """One request has started with so many leading tokens found in the cache."""
        start, last = 0, None
        for end, label in labels.runs():
            count = self._counts.setdefault(label, LabelCount())
            self._counts.move_to_end(label)
            count.requests += label != last
            count.prompt_tokens += end - start
            count.hit_tokens += max(0, min(end, num_cached) - start)
            start, last = end, label
        while len(self._counts) > MAX_LABELS:
            self._counts.popitem(last=False)

    def snapshot(self) -> dict[Label, LabelCount]:
        """A copy, for any thread."""
        return {label: replace(count) for label, count in list(self._counts.items())}


def block_keys(
    hasher: BlockHasher, tokens: Sequence[int], labels: LabelChain, count: int, adapter: str | None = None
) -> list[bytes]:
    """Keys of the first `count` blocks of a prompt."""
    keys, size = [root(adapter)], hasher.block_size
    for start in range(0, count * size, size):
        keys.append(hasher.key(keys[-1], tokens[start : start + size], labels.through(start + size)))
    return keys[1:]


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows of a step that read the same run of blocks, so that a backend can read it once for all of them.

    rows: indices into the step's rows.  start: index of the run's first block in each row's block table.
    """

    rows: tuple[int, ...]
    start: int
    block_ids: tuple[int, ...]


def prefix_groups(tables: Sequence[list[int]]) -> tuple[list[PrefixGroup], list[int]]:
    """Shared runs of whole, already written blocks, and per row how many leading blocks they cover.

    Groups nest: all rows may share the firm's prompt, and some of them a matter's documents after it.
    """
    groups: list[PrefixGroup] = []
    covered = [0] * len(tables)
    rows = sorted((i for i in range(len(tables)) if tables[i]), key=lambda i: tables[i][0])
    for _, same in groupby(rows, key=lambda i: tables[i][0]):
        _split(tables, list(same), 0, groups, covered)
    return groups, covered


def _split(
    tables: Sequence[list[int]], rows: list[int], depth: int, groups: list[PrefixGroup], covered: list[int]
) -> None:
    if len(rows) < 2:
        return
    end = _common_end([tables[i] for i in rows], depth)
    deeper = [i for i in rows if len(tables[i]) > end]
    deeper.sort(key=lambda i: tables[i][end])
    branches = [list(same) for _, same in groupby(deeper, key=lambda i: tables[i][end])]
    if end - depth < MIN_SHARED_BLOCKS and all(len(branch) < 2 for branch in branches):
        return
    groups.append(PrefixGroup(tuple(rows), depth, tuple(tables[rows[0]][depth:end])))
    for i in rows:
        covered[i] = end
    for branch in branches:
        if len(branch) > 1:
            _split(tables, branch, end, groups, covered)


def _common_end(tables: Sequence[list[int]], start: int) -> int:
    """Length of the common start of all tables: that of the smallest and the largest in sorting order.

    They are known to agree up to `start`; where they part is found by bisection, since slices compare fast.
    """
    low, high = min(tables), max(tables)
    end = min(len(low), len(high))
    if low[start:end] == high[start:end]:
        return end
    while end - start > 1:
        middle = (start + end) // 2
        if low[start:middle] == high[start:middle]:
            start = middle
        else:
            end = middle
    return start
