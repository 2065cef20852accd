"""Weights: safetensors of a Hugging Face folder, streamed tensor by tensor into the fused layout of decoder.py.

What is plain is read here, what is quantized by quant/.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from app.engine.allocator import returning_memory
from app.engine.architecture import DecoderSpec
from app.engine.parallel.layout import Cut, Layout, Part
from app.engine.quant.kv_scales import stored_scales
from app.engine.quant.layers import PackedLayers, linear_layers
from app.engine.quant.reading import read_format
from app.engine.shards import Shards
from app.kernels.packed import PackedWeight, Weight
from app.kernels.pages import Scales


@dataclass(slots=True)
class LayerWeights:
    """One layer. qkv: [(H + 2K) * D, hidden], query rows first.  gate_up: [2 * intermediate, hidden]."""

    input_norm: Tensor
    qkv: Weight
    output: Weight
    post_norm: Tensor
    gate_up: Weight
    down: Weight
    qkv_bias: Tensor | None = None
    output_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(slots=True)
class DecoderWeights:
    """The whole model; `head` is `embedding` where they are tied. `targets` maps checkpoint names to views.

    kv_scales: of every layer, where the checkpoint says by what keys and values in 8 bits are divided.
    """

    embedding: Tensor
    norm: Tensor
    head: Weight
    layers: list[LayerWeights]
    targets: dict[str, Tensor] = field(default_factory=dict, repr=False)
    kv_scales: list[Scales] | None = None

    def packed(self) -> list[PackedWeight]:
        """Those that are quantized."""
        linears = [weight for x in self.layers for weight in (x.qkv, x.output, x.gate_up, x.down)]
        return [weight for weight in (*linears, self.head) if not isinstance(weight, Tensor)]


def load_weights(folder: Path, spec: DecoderSpec, dtype: torch.dtype, part: Part | None = None) -> DecoderWeights:
    """Of the whole model, or of one rank's part.

    Raises ValueError naming what is missing, unexpected in shape, not supported, or not in safetensors.
    """
    with returning_memory():
        return _load(folder, spec, dtype, part or Layout().part(spec))


def _load(folder: Path, spec: DecoderSpec, dtype: torch.dtype, part: Part) -> DecoderWeights:
    shards, found = Shards(folder), read_format(folder)
    packed = None if found is None else PackedLayers(shards, found, part, dtype)
    weights = _empty(part, dtype, packed)
    missing = set(weights.targets)
    cuts = {name: cut for name in weights.targets if (cut := part.cut(name)) is not None}
    for name, tensor in shards.tensors(weights.targets, cuts):
        target = weights.targets[name]
        if target.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the config says {tuple(target.shape)}")
        target.copy_(tensor)
        missing.discard(name)
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, among them {sorted(missing)[0]}")
    weights.targets.clear()
    weights.kv_scales = stored_scales(shards, part)
    return weights


def dummy_weights(spec: DecoderSpec, dtype: torch.dtype, seed: int, part: Part | None = None) -> DecoderWeights:
    """Random weights of the right shapes: normal with deviation 0.02, norms one, biases zero.

    Each tensor has a seed of its own, so that ranks hold parts of the same model.
    """
    part = part or Layout().part(spec)
    weights = _empty(part, dtype)
    generator = torch.Generator(weights.embedding.device)
    for name, target in weights.targets.items():
        if name.endswith("norm.weight"):
            target.fill_(1.0)
        elif name.endswith("bias"):
            target.zero_()
        else:
            generator.manual_seed(seed + zlib.crc32(name.encode()))
            _fill_random(target, part.cut(name), generator)
    weights.targets.clear()
    return weights


def _fill_random(target: Tensor, cut: Cut | None, generator: torch.Generator) -> None:
    shape = list(target.shape)
    if cut is not None:
        shape[cut.dim] = cut.total
    whole = torch.randn(shape, generator=generator, device=target.device).mul_(0.02)
    target.copy_(whole if cut is None else whole[cut.index])


def _empty(part: Part, dtype: torch.dtype, packed: PackedLayers | None = None) -> DecoderWeights:
    """Room for what is plain, beside what is quantized. A rank without embedding or head has one of no rows."""
    spec = part.spec
    embedding = torch.empty(part.embedding_rows, spec.hidden_size, dtype=dtype)
    head: Weight | None = embedding if spec.tied else packed.head() if packed is not None else None
    plain_head = None
    if head is None:
        head = plain_head = torch.empty(part.head_rows, spec.hidden_size, dtype=dtype)
    layers = [_empty_layer(part, dtype, packed.layer(i) if packed else {}) for i in part.layers]
    norm = torch.empty(spec.hidden_size, dtype=dtype)
    weights = DecoderWeights(embedding, norm, head, layers)
    weights.targets = {"model.norm.weight": norm}
    if part.embedding_rows:
        weights.targets["model.embed_tokens.weight"] = embedding
    if plain_head is not None and part.head_rows:
        weights.targets["lm_head.weight"] = plain_head
    for i, layer in zip(part.layers, layers, strict=True):
        weights.targets |= {f"model.layers.{i}.{name}": view for name, view in _views(spec, layer).items()}
    return weights


def _empty_layer(part: Part, dtype: torch.dtype, packed: Mapping[str, PackedWeight]) -> LayerWeights:
    spec = part.spec

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def linear(attribute: str) -> Weight:
        if attribute in packed:
            return packed[attribute]
        shapes = linear_layers(spec)[attribute].values()
        return new(sum(rows for rows, _ in shapes), next(columns for _, columns in shapes))

    hidden, inner, dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
    all_heads = (spec.num_heads + 2 * spec.num_kv_heads) * dim
    return LayerWeights(
        input_norm=new(hidden),
        qkv=linear("qkv"),
        output=linear("output"),
        post_norm=new(hidden),
        gate_up=linear("gate_up"),
        down=linear("down"),
        qkv_bias=new(all_heads) if spec.qkv_bias else None,
        output_bias=new(hidden) if spec.output_bias and part.adds_bias else None,
        gate_up_bias=new(2 * inner) if spec.mlp_bias else None,
        down_bias=new(hidden) if spec.mlp_bias and part.adds_bias else None,
        q_norm=new(dim) if spec.qk_norm else None,
        k_norm=new(dim) if spec.qk_norm else None,
    )


def _views(spec: DecoderSpec, layer: LayerWeights) -> dict[str, Tensor]:
    """Checkpoint names of one layer and the part of our fused tensors that each fills."""
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    found: dict[str, Weight | None] = {
        "input_layernorm.weight": layer.input_norm,
        "post_attention_layernorm.weight": layer.post_norm,
        "self_attn.o_proj.weight": layer.output,
        "self_attn.o_proj.bias": layer.output_bias,
        "mlp.down_proj.weight": layer.down,
        "mlp.down_proj.bias": layer.down_bias,
        "self_attn.q_norm.weight": layer.q_norm,
        "self_attn.k_norm.weight": layer.k_norm,
    }
    for suffix, qkv, gate_up in (
        ("weight", layer.qkv, layer.gate_up),
        ("bias", layer.qkv_bias, layer.gate_up_bias),
    ):
        q, k, v = torch.split(qkv, [queries, keys, keys]) if isinstance(qkv, Tensor) else (None, None, None)
        gate, up = gate_up.chunk(2) if isinstance(gate_up, Tensor) else (None, None)
        found |= {f"self_attn.q_proj.{suffix}": q, f"self_attn.k_proj.{suffix}": k}
        found |= {f"self_attn.v_proj.{suffix}": v}
        found |= {f"mlp.gate_proj.{suffix}": gate, f"mlp.up_proj.{suffix}": up}
    return {name: view for name, view in found.items() if isinstance(view, Tensor)}
