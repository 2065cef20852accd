"""The last token of every sequence, on the device, so that a step need not wait until the host has seen the last one's.

On the host a token that is still on its way is a negative number that says where in the pool it will be.
"""

import torch
from torch import Tensor

from app.engine.device import Device
from app.engine.request import Sequence


class TokenPool:
    """A place for each sequence while it has a token pending: at most those of two steps at once."""

    def __init__(self, max_seqs: int, device: Device) -> None:
        self._device = device
        self._tokens = torch.zeros(2 * max_seqs, dtype=torch.int64, device=device.torch)
        self._free = list(range(2 * max_seqs))
        self._places: dict[Sequence, int] = {}

    def pending(self, seq: Sequence) -> int:
        """What stands for the sequence's next token until keep() has brought it and the host has seen it."""
        if seq not in self._places:
            self._places[seq] = self._free.pop()
        return -1 - self._places[seq]

    def resolve(self, token_ids: Tensor) -> Tensor:
        """Integers [T] with every pending token in place, without the host."""
        places = (-1 - token_ids).clamp(min=0).long()
        return torch.where(token_ids < 0, self._tokens[places], token_ids.long())

    def keep(self, seqs: list[Sequence], tokens: Tensor) -> None:
        """The tokens int64 [n] that these sequences have just sampled."""
        places = torch.tensor([-1 - self.pending(seq) for seq in seqs])
        self._tokens.index_copy_(0, self._device.upload(places), tokens)

    def discard(self, seq: Sequence) -> None:
        """Nothing of it is pending any more. A later launch may use the place, since it is later on the device too."""
        place = self._places.pop(seq, None)
        if place is not None:
            self._free.append(place)
