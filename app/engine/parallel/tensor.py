"""Tensor parallelism: every rank has a part of each layer, of the vocabulary's embeddings and of the head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.parallel.peers import Peers


class TensorGroup:
    """vocab_rows: how many rows of the vocabulary each rank holds."""

    def __init__(self, peers: Peers, vocab_rows: list[int]) -> None:
        self._peers, self._rows = peers, vocab_rows
        self._first_row = sum(vocab_rows[: peers.rank])

    def embed(self, token_ids: Tensor, table: Tensor) -> Tensor:
        places = token_ids - self._first_row
        here = (places >= 0) & (places < len(table))
        return self.sum(F.embedding(places.where(here, 0), table).masked_fill_(~here.unsqueeze(1), 0))

    def sum(self, x: Tensor) -> Tensor:
        return self._peers.sum(x)

    def gather(self, logits: Tensor) -> Tensor:
        if self._peers.rank != 0:
            self._peers.send(logits, 0)
            return logits
        others = list(enumerate(self._rows))[1:]
        parts = [self._peers.receive(logits.new_empty(len(logits), rows), rank) for rank, rows in others]
        return torch.cat([logits, *parts], 1)
