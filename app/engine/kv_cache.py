"""The pages that keys and values live in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.architecture import DecoderSpec


@dataclass(slots=True)
class KVCache:
    """Pages of every layer: keys and values, each [num_blocks, kv_heads, block_size, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(
        cls, spec: DecoderSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> "KVCache":
        shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
        pages = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * spec.num_layers)]
        return cls(pages[: spec.num_layers], pages[spec.num_layers :])

    def clear(self, block_ids: list[int]) -> None:
        """Zero these pages: what a former owner left there, NaN perhaps, must not reach sums it has no weight in."""
        if block_ids:
            where = torch.tensor(block_ids, device=self.keys[0].device)
            for pages in (*self.keys, *self.values):
                pages.index_fill_(0, where, 0)
