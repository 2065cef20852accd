"""bitsandbytes' 4-bit weights, NF4 and FP4 (Dettmers and others, arXiv:2305.14314), their scales quantized or not."""

import json
import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from app.engine.quant.format import Json, Part, check_shape, require
from app.kernels.packed import CodebookWeight, PackedWeight

_STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")


@dataclass(frozen=True, slots=True)
class BitsAndBytes:
    @classmethod
    def of(cls, config: Json) -> Self:
        require(bool(config.get("load_in_4bit")), "bitsandbytes of 8 bits is not supported; supported are 4")
        return cls()

    def covers(self, names: frozenset[str]) -> bool:
        return any(state in names for state in _STATES)

    def read(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        stored = next(part[name] for name in _STATES if name in part)
        state: dict[str, Any] = json.loads(bytes(stored.tolist()))
        require(tuple(state["shape"]) == shape, f"the layer has shape {state['shape']}, the config says {shape}")
        require(shape[1] % 2 == 0, f"{shape[1]} columns do not fall into pairs")
        packed = part["weight"].view(torch.uint8).flatten()
        check_shape("weight", packed, (shape[0] * shape[1] // 2,))
        table = part["weight.quant_map"].float()
        absmax = _per_row(_absmax(part, state), state["blocksize"], shape)
        return CodebookWeight(packed.view(shape[0], -1).clone(), table, absmax)


def _absmax(part: Part, state: dict[str, Any]) -> Tensor:
    absmax = part["weight.absmax"]
    if "weight.nested_absmax" not in part:
        return absmax.float()
    values = part["weight.nested_quant_map"].float()[absmax.long()]
    scales = part["weight.nested_absmax"].float().repeat_interleave(state["nested_blocksize"])[: len(values)]
    return values * scales + float(state["nested_offset"])


def _per_row(absmax: Tensor, block: int, shape: tuple[int, int]) -> Tensor:
    """[N, G]. Blocks run on over the ends of rows; pieces of their common divisor with a row's length never do."""
    rows, columns = shape
    piece = math.gcd(block, columns)
    pieces = absmax.repeat_interleave(block // piece)[: rows * columns // piece]
    return pieces.view(rows, columns // piece).contiguous()
