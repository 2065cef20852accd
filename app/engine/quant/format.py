"""What every checkpoint format answers: which layers are stored in it, and how one is read."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from app.kernels.packed import PackedWeight

Json = dict[str, Any]
Part = Mapping[str, Tensor]


class Format(Protocol):
    """One quantization_config."""

    def covers(self, names: frozenset[str]) -> bool:
        """Whether a linear layer with tensors of these names ("qweight", "scales", ...) is stored in this format."""

    def read(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        """part: tensor by name within the layer.  shape: [N, K].

        Raises KeyError naming a tensor that is missing, ValueError for what does not fit the shape.
        """


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the config says {shape}")


def unpack(words: Tensor, bits: int, dim: int, places: tuple[int, ...] | None = None) -> Tensor:
    """uint8 codes of int32 words, lowest bits first, along `dim`.

    places: which code of its word stands at each place; None: in order.
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
    if places is not None:
        shifts = shifts[list(places)]
    shape = [1] * words.dim()
    codes = words.unsqueeze(dim + 1) >> shifts.view(*shape[: dim + 1], -1, *shape[dim + 1 :]) & (1 << bits) - 1
    return codes.to(torch.uint8).flatten(dim, dim + 1)
