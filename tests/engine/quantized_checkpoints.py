"""Tiny quantized checkpoints: by the format's own library where it runs on a CPU, else by its specification, written
with plain loops and without any code of ours. Each writer gives a layer's tensors and what they stand for."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import (
    FloatQuantizationCompressor,
    IntQuantizationCompressor,
    PackedQuantizationCompressor,
)
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp
from safetensors.torch import save_file
from torch import Tensor

from tests.engine.conftest import make_model

Tensors = dict[str, Tensor]
Round = Callable[[Tensor], Tensor]
SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "initializer_range": 0.15}
STATIC_SCALE = {"int": 0.05, "float": 0.02}


@dataclass(frozen=True)
class Written:
    """inputs: how the layer rounds its inputs, by whoever defines that."""

    tensors: Tensors
    dequantized: Tensor
    inputs: Round | None = None


@dataclass(frozen=True)
class Case:
    """config: the checkpoint's quantization_config."""

    config: dict[str, Any]
    write: Callable[[Tensor, int], Written]
    family: str = "llama"
    changes: dict[str, Any] = field(default_factory=dict)


def make_checkpoint(folder: Path, case: Case) -> Any:
    """The folder, and transformers' model with the numbers that it stands for."""
    model = make_model(case.family, **(SIZES | case.changes))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for i, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        written = case.write(module.weight.detach(), i)
        del state[f"{name}.weight"]
        state |= {f"{name}.{key}": tensor.contiguous() for key, tensor in written.tensors.items()}
        module.weight.data = written.dequantized
        if written.inputs is not None:
            module.register_forward_pre_hook(_rounding(written.inputs))
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": case.config}))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def _rounding(inputs: Round) -> Any:
    return lambda module, given: (inputs(given[0]),)


def _affine(weight: Tensor, group: int, sym: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0..15 [N, K], float16 scales [N, G], zeros [N, G]."""
    grouped = weight.reshape(len(weight), -1, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if sym:
        scales, zeros = (torch.maximum(high, -low) / 7).half(), torch.full_like(low, 8)
    else:
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (grouped / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    return codes.reshape(weight.shape).int(), scales, zeros.int()


def _words(codes: Tensor, places: list[int]) -> Tensor:
    """int32 [n, m / 8] of codes [n, m]: nibble i of a word holds the column `places[i]` of its eight."""
    rows = []
    for row in codes.tolist():
        words = []
        for start in range(0, len(row), 8):
            word = sum(row[start + column] << 4 * i for i, column in enumerate(places))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def awq(group: int, zero_point: bool = True) -> Callable[[Tensor, int], Written]:
    def write(weight: Tensor, _: int) -> Written:
        codes, scales, zeros = _affine(weight, group, not zero_point)
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map
        tensors = {
            "qweight": _words(codes.T, order), "qzeros": _words(zeros.T, order), "scales": scales.T,
        }  # fmt: skip
        spread = [tensor.repeat_interleave(group, 1) for tensor in (scales.float(), zeros)]
        return Written(tensors, (codes - spread[1]) * spread[0])

    return write


def gptq(
    group: int, sym: bool, act_order: str = "", v2: bool = False, with_index: bool = True
) -> Callable[[Tensor, int], Written]:
    def write(weight: Tensor, index: int) -> Written:
        columns = weight.shape[1]
        generator = torch.Generator().manual_seed(index if act_order == "apart" else columns)
        order = torch.randperm(columns, generator=generator) if act_order else torch.arange(columns)
        codes, scales, zeros = _affine(weight[:, order], group, sym)
        groups = torch.empty(columns, dtype=torch.int32)
        groups[order] = (torch.arange(columns) // group).int()
        codes = torch.empty_like(codes).index_copy_(1, order, codes)
        stored = zeros if v2 else (zeros - 1) & 15
        straight = list(range(8))
        tensors = {"qweight": _words(codes, straight).T, "qzeros": _words(stored.T, straight), "scales": scales.T}
        if with_index:
            tensors["g_idx"] = groups
        return Written(tensors, (codes - zeros[:, groups]) * scales.float()[:, groups])

    return write


def compressed(
    weights: dict[str, Any], inputs: dict[str, Any] | None = None, packed: bool = False
) -> Callable[[Tensor, int], Written]:
    """By the library compressed-tensors: it computes scales, packs, unpacks, and rounds inputs."""
    args = QuantizationArgs(**weights)
    input_args = None if inputs is None else QuantizationArgs(**inputs)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=input_args)
    plain = IntQuantizationCompressor if weights["type"] == "int" else FloatQuantizationCompressor
    compressor = PackedQuantizationCompressor if packed else plain

    def write(weight: Tensor, _: int) -> Written:
        dims = {"tensor": (0, 1), "channel": 1}.get(weights["strategy"])
        grouped = weight if dims is not None else weight.reshape(len(weight), -1, weights["group_size"])
        dims = 2 if dims is None else dims
        keep = weights["strategy"] == "channel"
        low, high = grouped.amin(dims, keepdim=keep), grouped.amax(dims, keepdim=keep)
        scale, zero = calculate_qparams(low, high, args)
        given = {"weight": weight, "weight_scale": scale}
        if not args.symmetric:
            given["weight_zero_point"] = zero
        tensors = compressor.compress(given, scheme)
        dequantized = compressor.decompress(dict(tensors), scheme)["weight"]
        if input_args is None:
            return Written(tensors, dequantized)
        if not input_args.dynamic:
            tensors["input_scale"] = torch.tensor([STATIC_SCALE[weights["type"]]])
        return Written(tensors, dequantized, lambda x: _library_rounding(x, input_args, tensors.get("input_scale")))

    return write


def _library_rounding(x: Tensor, args: QuantizationArgs, scale: Tensor | None) -> Tensor:
    if scale is not None:
        return fake_quantize(x, scale, torch.zeros_like(scale, dtype=args.zp_dtype), args)
    if args.type == "int":  # vLLM's range: the library's 127.5 leaves each row's largest number on an edge of rounding
        scale = x.abs().amax(-1, keepdim=True) / 127
        return (x / scale).round() * scale
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
    return fake_quantize(x, scale, zero, args)


def fp8(
    scale_name: str,
    *,
    per_row: bool = False,
    block: int | None = None,
    static: bool = False,
    bound: float | None = None,
) -> Callable[[Tensor, int], Written]:
    """The layouts of quant_method fp8 and fbgemm_fp8; inputs row by row, or by row and block, are rounded to e4m3."""

    def write(weight: Tensor, _: int) -> Written:
        if block is None:
            scale = (weight.abs().amax(1, keepdim=True) if per_row else weight.abs().max()) / 448
            spread = scale
        else:
            tiles = weight.reshape(len(weight) // block, block, -1, block)
            scale = tiles.abs().amax((1, 3)) / 448
            spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
        codes = (weight / spread).to(torch.float8_e4m3fn)
        tensors = {"weight": codes, scale_name: scale}
        if static:
            tensors["input_scale"] = torch.tensor(STATIC_SCALE["float"])
        return Written(tensors, codes.float() * spread, lambda x: _fp8_inputs(x, block, static, bound))

    return write


def _fp8_inputs(x: Tensor, block: int | None, static: bool, bound: float | None) -> Tensor:
    tiles = x.reshape(*x.shape[:-1], -1, block or x.shape[-1])
    scale = tiles.abs().amax(-1, keepdim=True)
    scale = (scale if bound is None else scale.clamp(max=bound)) / 448
    scale = torch.tensor(STATIC_SCALE["float"]) if static else scale
    return ((tiles / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale).reshape(x.shape)


def bnb(kind: str, nested: bool) -> Callable[[Tensor, int], Written]:
    """By the library bitsandbytes, on the CPU, where its dequantize_4bit is wrong for rows that are not whole blocks:
    these are written out by its own table and scales."""
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit

    def write(weight: Tensor, _: int) -> Written:
        packed, state = quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
        stored = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        if weight.shape[1] % 64 == 0:
            return Written({"weight": packed} | stored, dequantize_4bit(packed, state).float())
        absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset if nested else state.absmax
        codes = torch.tensor([half for byte in packed.flatten().tolist() for half in (byte >> 4, byte & 15)])
        dequantized = state.code[codes] * absmax.repeat_interleave(64)[: len(codes)]
        assert (dequantized - weight.flatten()).abs().max() < 0.2 * weight.abs().max()
        return Written({"weight": packed} | stored, dequantized.reshape(weight.shape))

    return write
