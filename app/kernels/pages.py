"""The pages of one layer, as kernels take them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.fp8 import E4M3, encoded, widened

Scales = tuple[Tensor, Tensor]  # of keys and of values, float32 [K]


@dataclass(frozen=True, slots=True)
class KVPages:
    """keys, values: [N, K, S, D], in the model's dtype, or as e4m3 codes that are to be multiplied by `scales`."""

    keys: Tensor
    values: Tensor
    scales: Scales | None = None

    def stored(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v [T, K, D] as they lie in the pages."""
        if self.scales is None:
            return k, v
        return encoded(k, self.scales[0][:, None]), encoded(v, self.scales[1][:, None])


def numbers(pages: Tensor, dtype: torch.dtype) -> Tensor:
    """What pages hold, without its scale."""
    return widened(pages, dtype) if pages.dtype is E4M3 else pages


def raw(pages: Tensor) -> Tensor:
    """The same memory in a dtype that torch has every operation for."""
    return pages.view(torch.uint8) if pages.dtype is E4M3 else pages
