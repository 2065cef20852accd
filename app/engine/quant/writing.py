"""A linear layer's weight to the tensors of a format that vLLM, transformers and this engine load."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from app.engine.quant.format import Json
from app.engine.quant.int4 import AWQ_PLACES

GROUPS = (128, 64, 32)
_ROW = {"num_bits": 8, "strategy": "channel", "symmetric": True, "dynamic": False}
_BY_TOKEN = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True}


class Writer(Protocol):
    @property
    def config(self) -> Json:
        """The checkpoint's quantization_config."""

    def write(self, weight: Tensor) -> dict[str, Tensor]:
        """weight: [N, K]. The layer's tensors by name."""

    def rounded(self, weight: Tensor) -> Tensor:
        """float32 [N, K], what the written tensors will stand for."""


def _compressed(format_name: str, weights: Json, inputs: Json | None) -> Json:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": format_name, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


def _scales(weight: Tensor, top: float) -> Tensor:
    """[N, 1] in the weight's dtype, rounded before the weight is divided by them."""
    largest = weight.float().abs().amax(1, keepdim=True)
    return (largest / top).clamp(min=torch.finfo(torch.float16).tiny).to(weight.dtype)


def pack_words(codes: Tensor, bits: int, places: tuple[int, ...] | None = None) -> Tensor:
    """int32 [n, m * bits / 32] of codes [n, m], lowest bits first; places: see format.unpack."""
    count = 32 // bits
    shifts = torch.arange(0, 32, bits, dtype=torch.int64)
    shifts = shifts if places is None else shifts[list(places)]
    words = (codes.long().reshape(len(codes), -1, count) << shifts).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


@dataclass(frozen=True, slots=True)
class Int8Writer:
    """Weights alone, a scale for each row."""

    config: Json = field(default_factory=lambda: _compressed("pack-quantized", _ROW | {"type": "int"}, None))

    def write(self, weight: Tensor) -> dict[str, Tensor]:
        if weight.shape[1] % 4:
            raise ValueError(f"{weight.shape[1]} columns do not fall into words of four")
        codes, scales = self._codes(weight)
        shape = torch.tensor(weight.shape)
        return {"weight_packed": pack_words(codes + 128, 8), "weight_scale": scales, "weight_shape": shape}

    def rounded(self, weight: Tensor) -> Tensor:
        codes, scales = self._codes(weight)
        return codes * scales.float()

    def _codes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        scales = _scales(weight, 127)
        return (weight.float() / scales.float()).round().clamp(-128, 127), scales


@dataclass(frozen=True, slots=True)
class Fp8Writer:
    """e4m3 with a scale for each row; inputs are rounded row by row as they come."""

    config: Json = field(
        default_factory=lambda: _compressed("float-quantized", _ROW | {"type": "float"}, _BY_TOKEN | {"type": "float"})
    )

    def write(self, weight: Tensor) -> dict[str, Tensor]:
        scales = _scales(weight, 448)
        codes = (weight.float() / scales.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": codes, "weight_scale": scales}

    def rounded(self, weight: Tensor) -> Tensor:
        written = self.write(weight)
        return written["weight"].float() * written["weight_scale"].float()


@dataclass(frozen=True, slots=True)
class AwqWriter:
    """int4 with zero points, in AutoAWQ's "gemm" layout."""

    config: Json
    group: int

    @classmethod
    def of(cls, columns: set[int]) -> "AwqWriter":
        """columns: of all layers. Raises ValueError where no size of group divides them."""
        group = next((size for size in GROUPS if all(count % size == 0 for count in columns)), None)
        if group is None:
            raise ValueError(f"rows of {sorted(columns)} columns do not fall into groups of {GROUPS}")
        config = {
            "quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": ["lm_head"],
        }  # fmt: skip
        return cls(config, group)

    def write(self, weight: Tensor) -> dict[str, Tensor]:
        if len(weight) % 8:
            raise ValueError(f"{len(weight)} rows do not fall into words of eight")
        codes, scales, zeros = self._codes(weight)
        return {
            "qweight": pack_words(codes.flatten(1).T, 4, AWQ_PLACES),
            "qzeros": pack_words(zeros.T, 4, AWQ_PLACES),
            "scales": scales.T.contiguous(),
        }

    def rounded(self, weight: Tensor) -> Tensor:
        codes, scales, zeros = self._codes(weight)
        return ((codes - zeros[..., None]) * scales.float()[..., None]).flatten(1)

    def _codes(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes 0 to 15 [N, G, K / G], scales float16 and zeros [N, G]."""
        grouped = weight.float().view(len(weight), -1, self.group)
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scales = ((high - low) / 15).clamp(min=1e-5).half()
        zeros = (-low / scales.float()).round().clamp(0, 15)
        codes = (grouped / scales.float()[..., None]).round().add_(zeros[..., None]).clamp_(0, 15)
        return codes, scales, zeros
