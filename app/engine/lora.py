"""Low-rank adapters beside the base model's linear layers (LoRA, arXiv:2106.09685): one of its own for each request.

The base layer is computed once for the whole batch, whatever its weights are; then the rows of each adapter in it get
their own product of two small matrices added (the idea of Punica, arXiv:2310.18547, and S-LoRA, arXiv:2311.03285). No
kernel of our own: a loop over the adapters that a step has, which is cheap where these are few.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.schedule import Schedule


@dataclass(frozen=True, slots=True)
class LowRank:
    """What one adapter adds to one fused layer [N, K].

    a: [R, K], one below the other those of the layer's parts that are adapted.  parts: of each its first output row in
    the fused layer and b [rows, rank], with the scale in it.
    """

    a: Tensor
    parts: list[tuple[int, Tensor]]

    def add(self, y: Tensor, x: Tensor, tokens: Tensor) -> None:
        """Into y [T, N], in place, for these of its tokens. x: [T, K], what the layer was given."""
        inner = x.index_select(0, tokens) @ self.a.T
        at = 0
        for first, b in self.parts:
            rows, rank = b.shape
            y[:, first : first + rows].index_add_(0, tokens, inner[:, at : at + rank] @ b.T)
            at += rank


Layers = list[dict[str, LowRank]]  # of every layer, by attribute of LayerWeights


@dataclass(frozen=True, slots=True)
class AdapterBatch:
    """The adapters of one step, each with the tokens (int32 [n], flat) of the rows that use it."""

    members: list[tuple[Layers, Tensor]]

    def add(self, y: Tensor, x: Tensor, layer: int, name: str) -> Tensor:
        """y, to which every adapter has added what it makes of x in this linear layer."""
        for layers, tokens in self.members:
            if (low_rank := layers[layer].get(name)) is not None:
                low_rank.add(y, x, tokens)
        return y


@dataclass(frozen=True, slots=True)
class Adapters:
    """Those of one engine by name."""

    layers: dict[str, Layers]

    def batch(self, schedule: Schedule, upload: Callable[[Tensor], Tensor]) -> AdapterBatch | None:
        """None where no row of the step has an adapter. upload: brings one int32 tensor to the device."""
        tokens: dict[str, list[int]] = defaultdict(list)
        at = 0
        for row in schedule.rows:
            if row.seq.adapter is not None:
                tokens[row.seq.adapter] += range(at, at + row.num_tokens)
            at += row.num_tokens
        if not tokens:
            return None
        every = ((self.layers[name], torch.tensor(flat, dtype=torch.int32)) for name, flat in tokens.items())
        return AdapterBatch([(layers, upload(flat)) for layers, flat in every])
