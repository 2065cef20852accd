"""Kernels compiled ahead of their first use: each kernel file lists what it can be asked to compile. No triton."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from app.kernels.pages import KVPages


@dataclass(frozen=True, slots=True)
class Variant:
    """One specialisation of a kernel: launch() runs it on small inputs, so that serving never compiles."""

    name: str
    launch: Callable[[], object]


@dataclass(frozen=True, slots=True)
class KernelShape:
    """What of a model and a device the kernels are specialised on. page_dtype: of keys and values; None: `dtype`."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    hidden_size: int
    dtype: torch.dtype
    device: torch.device
    page_dtype: torch.dtype | None = None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.zeros(shape, dtype=dtype or self.dtype, device=self.device)

    def pages(self) -> KVPages:
        """One page."""
        keys, values = (
            self.empty(1, self.num_kv_heads, self.page_size, self.head_dim, dtype=self.page_dtype) for _ in range(2)
        )
        plain = self.page_dtype in (None, self.dtype)
        scale = self.empty(self.num_kv_heads, dtype=torch.float32)
        return KVPages(keys, values, None if plain else (scale, scale))
