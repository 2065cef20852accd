"""Which layers of a checkpoint are quantized, read into the fused layout of the decoder."""

from collections.abc import Mapping

import torch

from app.engine.architecture import DecoderSpec
from app.engine.parallel.layout import Part
from app.engine.quant.cutting import cut_weight
from app.engine.quant.format import Format
from app.engine.shards import Shards
from app.kernels.packed import PackedWeight, Weight, fuse
from app.kernels.packed_cpu import prepared

Shapes = Mapping[str, tuple[int, int]]


def linear_layers(spec: DecoderSpec) -> dict[str, Shapes]:
    """The decoder's linear layers by attribute of LayerWeights: what each is made of, with shapes [N, K], in order."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    return {
        "qkv": {
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
        },
        "output": {"self_attn.o_proj": (hidden, queries)},
        "gate_up": {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)},
        "down": {"mlp.down_proj": (hidden, inner)},
    }


class PackedLayers:
    """Reads what is quantized of one rank's part; what is plain is left to the loader."""

    def __init__(self, shards: Shards, found: Format, part: Part, dtype: torch.dtype) -> None:
        self._shards, self._format, self._dtype = shards, found, dtype
        self._part, self._spec = part, part.whole
        self._linears = shards.linears()

    def layer(self, index: int) -> dict[str, PackedWeight]:
        """By attribute of LayerWeights. index: in the whole model."""
        prefix = f"model.layers.{index}."
        return {
            attribute: self._fused({prefix + name: shape for name, shape in parts.items()})
            for attribute, parts in linear_layers(self._spec).items()
            if any(self._covers(prefix + name) for name in parts)
        }

    def head(self) -> PackedWeight | None:
        if self._spec.tied or not self._part.predicts or not self._covers("lm_head"):
            return None
        return self._fused({"lm_head": (self._spec.vocab_size, self._spec.hidden_size)})

    def _covers(self, name: str) -> bool:
        return self._format.covers(self._linears.get(name, frozenset()))

    def _fused(self, parts: Shapes) -> PackedWeight:
        weight = fuse([self._held(name, self._read(name, shape)) for name, shape in parts.items()])
        return prepared(weight, self._dtype, torch.get_default_device())

    def _held(self, layer: str, weight: Weight) -> Weight:
        """Read whole, since what lies where in a file is the format's own affair, and cut then."""
        cut = self._part.cut(f"{layer}.weight")
        try:
            return weight if cut is None else cut_weight(weight, cut)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error

    def _read(self, layer: str, shape: tuple[int, int]) -> Weight:
        names = [f"{layer}.{name}" for name in self._linears.get(layer, ()) if name != "bias"]
        part = {name.removeprefix(f"{layer}."): tensor for name, tensor in self._shards.tensors(names)}
        try:
            return self._format.read(part, shape) if self._covers(layer) else part["weight"].to(self._dtype, copy=True)
        except KeyError as error:
            raise ValueError(f"{self._shards.folder} lacks {layer}.{error.args[0]}") from error
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error
