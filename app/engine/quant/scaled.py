"""Weights of 8 bits times scales: compressed-tensors, "fp8" (per tensor, per channel, in blocks) and fbgemm_fp8."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from app.engine.quant.format import Json, Part, check_shape, require, unpack
from app.kernels.packed import Activations, Int4Weight, PackedWeight, ScaledWeight

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_BITS = {"int": (4, 8), "float": (8,)}


def per_row(scales: Tensor, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Tensor:
    """float32 [N, G] of one scale, or one per row, per row and group of columns, or per block of both."""
    rows, columns = shape
    scales = scales.float()
    if block is not None:
        check_shape("the weight's scale", scales, (math.ceil(rows / block[0]), math.ceil(columns / block[1])))
        require(columns % block[1] == 0, f"{columns} columns are not blocks of {block[1]}")
        return scales.repeat_interleave(block[0], 0)[:rows].contiguous()
    if scales.numel() == 1:
        return scales.reshape(1, 1).repeat(rows, 1)
    scales = scales.reshape(rows, -1)
    require(columns % scales.shape[1] == 0, f"{columns} columns do not fall into {scales.shape[1]} groups")
    return scales.contiguous()


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """One group of layers, quantized alike. `inputs`: None: not at all, "dynamic": row by row, "static"."""

    kind: str
    bits: int
    symmetric: bool
    block: tuple[int, int] | None
    inputs: str | None
    actorder: bool

    @classmethod
    def of(cls, config: Json) -> Self:
        groups = list(config["config_groups"].values())
        require(len(groups) == 1, f"{len(groups)} config_groups are not supported; supported is one")
        weights, found = groups[0]["weights"], groups[0].get("format") or config.get("format")
        require(found in _FORMATS, f"format {found!r} is not supported; supported are {', '.join(_FORMATS)}")
        require(config.get("sparsity_config", {}).get("format", "dense") == "dense", "sparse weights are not supported")
        kind, bits, symmetric = weights["type"], weights["num_bits"], weights.get("symmetric", True)
        require(bits in _BITS.get(kind, ()), f"weights of {bits} {kind} bits are not supported")
        require(symmetric or bits == 4, "asymmetric weights of 8 bits are not supported")
        block = weights.get("block_structure")
        inputs = _inputs(groups[0].get("input_activations"), kind, bits)
        actorder = bool(weights.get("actorder"))
        return cls(kind, bits, symmetric, None if block is None else (block[0], block[1]), inputs, actorder)

    def covers(self, names: frozenset[str]) -> bool:
        return "weight_scale" in names

    def read(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        if self.bits == 4:
            return self._int4(part, shape)
        if "weight_packed" in part:
            # Words of four codes, lowest bits first, are bytes as they lie there. Taken apart by shifts they would be
            # eight times their size for a moment, and what the allocator keeps of that outlasts the loading.
            words = part["weight_packed"].contiguous().view(torch.uint8)
            codes = (words[:, : shape[1]] ^ 128).view(torch.int8)
        else:
            codes = part["weight"]
        check_shape("weight", codes, shape)
        return ScaledWeight(
            codes.clone(memory_format=torch.contiguous_format),
            per_row(part["weight_scale"], shape, self.block),
            self._activations(part),
        )

    def _activations(self, part: Part) -> Activations | None:
        if self.inputs is None:
            return None
        group = self.block[1] if self.block is not None else None
        return Activations(part["input_scale"].float() if self.inputs == "static" else None, group=group)

    def _int4(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        codes = unpack(part["weight_packed"], 4, 1)[:, : shape[1]]
        check_shape("weight_packed", codes, shape)
        scales = part["weight_scale"]
        zeros = torch.full_like(scales, 8)
        if not self.symmetric:
            zeros = unpack(part["weight_zero_point"], 4, 0)[: shape[0]].to(scales.dtype)
        require("weight_g_idx" not in part, "pack-quantized weights with act-order are not supported")
        return Int4Weight.of(codes, scales, zeros)


def _inputs(activations: Json | None, kind: str, bits: int) -> str | None:
    if activations is None:
        return None
    same = (activations["type"], activations["num_bits"]) == (kind, bits) and bits == 8
    require(same, f"inputs of {activations['num_bits']} bits beside weights of {bits} are not supported")
    require(activations.get("symmetric", True), "asymmetric inputs are not supported")
    if not activations.get("dynamic", False):
        require(activations.get("strategy") == "tensor", "static inputs need strategy tensor")
        return "static"
    known = ("token", "tensor", "group")
    require(activations.get("strategy") in known, f"dynamic inputs need a strategy of {', '.join(known)}")
    return "dynamic"


@dataclass(frozen=True, slots=True)
class Fp8:
    """quant_method "fp8" and "fbgemm_fp8"."""

    static: bool
    block: tuple[int, int] | None
    bound: float | None

    @classmethod
    def of(cls, config: Json) -> Self:
        scheme, block = config.get("activation_scheme", "dynamic"), config.get("weight_block_size")
        require(scheme in ("static", "dynamic"), f"activation_scheme {scheme!r} is not supported")
        bound = config.get("activation_scale_ub")
        return cls(scheme == "static", None if block is None else (block[0], block[1]), bound)

    def covers(self, names: frozenset[str]) -> bool:
        return "weight_scale" in names or "weight_scale_inv" in names

    def read(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        codes = part["weight"]
        check_shape("weight", codes, shape)
        require(codes.dtype is torch.float8_e4m3fn, f"weights of {codes.dtype} are not supported")
        scales = part["weight_scale"] if "weight_scale" in part else part["weight_scale_inv"]
        scale = part["input_scale"].float() if self.static else None
        group = self.block[1] if self.block is not None else None
        return ScaledWeight(
            codes.clone(memory_format=torch.contiguous_format),
            per_row(scales, shape, self.block),
            Activations(scale, self.bound, group),
        )
