"""The pages that keys and values live in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.architecture import DecoderSpec
from app.kernels.fp8 import E4M3
from app.kernels.pages import KVPages, Scales, raw

KV_DTYPES = {"fp8": E4M3}


def page_dtype(kv_cache_dtype: str, dtype: torch.dtype) -> torch.dtype:
    """Of the pages of a model that computes in `dtype`, by EngineConfig.kv_cache_dtype."""
    return KV_DTYPES.get(kv_cache_dtype, dtype)


@dataclass(slots=True)
class KVCache:
    """Pages of every layer: keys and values, each [num_blocks, kv_heads, block_size, head_dim].

    scales: of every layer, where pages are e4m3 codes; fixed, so that whatever was written stays readable.
    """

    keys: list[Tensor]
    values: list[Tensor]
    scales: list[Scales] | None = None

    @classmethod
    def allocate(
        cls, spec: DecoderSpec, num_blocks: int, block_size: int, dtype: torch.dtype,
        device: torch.device | None = None, scales: list[Scales] | None = None,
    ) -> "KVCache":  # fmt: skip
        shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
        pages = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2 * spec.num_layers)]
        if dtype is E4M3 and scales is None:
            one = torch.ones(spec.num_kv_heads, device=device)
            scales = [(one, one)] * spec.num_layers
        return cls(pages[: spec.num_layers], pages[spec.num_layers :], scales)

    def layer(self, i: int) -> KVPages:
        return KVPages(self.keys[i], self.values[i], None if self.scales is None else self.scales[i])

    def clear(self, block_ids: list[int]) -> None:
        """Zero these pages: what a former owner left there, NaN perhaps, must not reach sums it has no weight in."""
        if block_ids:
            where = torch.tensor(block_ids, device=self.keys[0].device)
            for pages in (*self.keys, *self.values):
                raw(pages).index_fill_(0, where, 0)
