"""The ranks that share each layer, as a decoder sees them. One rank alone has nobody to ask; see also tensor.py."""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Group(Protocol):
    """Every rank of a group asks for the same in the same order."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        """Rows [T, hidden] of the vocabulary's embeddings, of which `table` is this rank's part."""

    def sum(self, x: Tensor) -> Tensor:
        """Over all ranks, in place; x must be contiguous."""

    def gather(self, logits: Tensor) -> Tensor:
        """[n, vocab] of the parts [n, rows of the vocabulary], on the first rank; elsewhere the part itself."""


class Alone:
    """A group of one rank."""

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        return F.embedding(token_ids, table)

    def sum(self, x: Tensor) -> Tensor:
        return x

    def gather(self, logits: Tensor) -> Tensor:
        return logits
