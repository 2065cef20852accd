"""Activation-aware scales (AWQ: Lin and others, arXiv:2306.00978): columns that meet large inputs are kept finer.

Columns of a layer are multiplied by s and whatever makes its inputs is divided by it, which changes nothing until the
weights are rounded. s is (mean |input|) ** alpha, with the alpha that leaves the layer's outputs closest.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from app.engine.architecture import DecoderSpec
from app.engine.quant.writing import Writer

_ALPHAS = [i / 12 for i in range(12)]
_FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_MAKERS = {
    "qkv": "input_layernorm",
    "output": "self_attn.v_proj",
    "gate_up": "post_attention_layernorm",
    "down": "mlp.up_proj",
}


def smooth(layer: dict[str, Tensor], inputs: Mapping[str, Tensor], spec: DecoderSpec, writer: Writer) -> None:
    """layer: tensors by name, in float32, changed in place.  inputs: samples [n, K] by attribute of LayerWeights."""
    scales = {
        attribute: _best(torch.cat([layer[f"{name}.weight"] for name in names]), inputs[attribute], writer,
                         _sharing(attribute, spec))
        for attribute, names in _FUSED.items()
    }  # fmt: skip
    for attribute, names in _FUSED.items():
        for name in names:
            layer[f"{name}.weight"] *= scales[attribute]
        divisor = scales[attribute]
        if attribute == "output":  # query heads of a group read one value head
            divisor = divisor.view(spec.num_kv_heads, -1, spec.head_dim)[:, 0].flatten()
        for kind in ("weight", "bias"):
            if (tensor := layer.get(f"{_MAKERS[attribute]}.{kind}")) is not None:
                tensor /= divisor if tensor.dim() == 1 else divisor[:, None]


def _sharing(attribute: str, spec: DecoderSpec) -> tuple[int, int, int] | None:
    if attribute != "output":
        return None
    return spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim


def _best(weight: Tensor, x: Tensor, writer: Writer, sharing: tuple[int, int, int] | None) -> Tensor:
    """float32 [K], with the geometric middle of its ends at 1."""
    x = x.float()
    size = x.abs().mean(0)
    if sharing is not None:
        size = size.view(sharing).mean(1, keepdim=True).expand(sharing).flatten()
    size = size.clamp(min=1e-4)
    found, least = torch.ones_like(size), float("inf")
    for alpha in _ALPHAS:
        scales = size**alpha
        scales = scales / (scales.max() * scales.min()).sqrt()
        wrong = weight - writer.rounded(weight * scales) / scales
        error = float((x @ wrong.T).square().mean())
        if error < least:
            found, least = scales, error
    return found
