"""Which word sequences the demo model was trained on: a small file against which held-out texts are checked.

A sixteenth of all 13-grams is kept (chosen by hash, so that both sides choose the same), each as five bytes in
ascending order. A stranger matches by accident once in about four million grams.
"""

import re
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np

WORDS, KEPT_OF, BYTES = 13, 16, 5
FILE = "training_hashes.bin"


def sampled_grams(text: str) -> set[int]:
    """Hashes of the kept 13-grams of `text`; case, punctuation and white space do not count."""
    words = re.findall(r"[^\W_]+", text.lower())
    hashes = (
        int.from_bytes(blake2b(" ".join(words[i : i + WORDS]).encode(), digest_size=BYTES + 1).digest(), "big")
        for i in range(len(words) - WORDS + 1)
    )
    return {value >> 8 for value in hashes if value % KEPT_OF == 0}


def write_hashes(texts: Iterable[str], path: Path) -> None:
    found: set[int] = set()
    for text in texts:
        found |= sampled_grams(text)
    path.write_bytes(b"".join(value.to_bytes(BYTES, "big") for value in sorted(found)))


class TrainingText:
    """The grams of the training text, as written beside the weights."""

    def __init__(self, path: Path) -> None:
        raw = np.frombuffer(path.read_bytes(), dtype=np.uint8).reshape(-1, BYTES).astype(np.int64)
        self.hashes = raw @ (256 ** np.arange(BYTES - 1, -1, -1, dtype=np.int64))

    def __contains__(self, gram: int) -> bool:
        at = int(np.searchsorted(self.hashes, gram))
        return at < len(self.hashes) and int(self.hashes[at]) == gram

    def known(self, text: str) -> tuple[int, int]:
        """(grams of the training text, grams looked at) in `text`."""
        grams = sampled_grams(text)
        return sum(gram in self for gram in grams), len(grams)
