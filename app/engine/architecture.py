"""A decoder described by data, read from a Hugging Face config.json (transformers 4 and 5 spellings)."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What tells one decoder from another. windows: per layer, keys a token sees including itself; None: all."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position: int
    rope: Json
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    windows: tuple[int | None, ...]
    eos_token_ids: tuple[int, ...]

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def read_spec(folder: Path) -> DecoderSpec:
    """Raises ValueError for a family, activation or rope type that this decoder does not know."""
    path = folder if folder.is_file() else folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: it is not a Hugging Face model folder")
    config: Json = json.loads(path.read_text())
    family = config.get("model_type", "")
    if family not in FAMILIES:
        raise ValueError(f"model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {config['hidden_act']!r} is not supported; supported is silu")
    heads = config["num_attention_heads"]
    bias = bool(config.get("attention_bias", False))
    return DecoderSpec(
        family=family,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
        max_position=config.get("max_position_embeddings", 2048),
        rope=_rope(config),
        qkv_bias=bias or family == "qwen2",
        output_bias=bias and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        tied=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(config),
        eos_token_ids=_eos(config, path.parent),
    )


def _rope(config: Json) -> Json:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if rope["rope_type"] not in ROPE_TYPES:
        raise ValueError(f"rope type {rope['rope_type']!r} is not supported; supported are {', '.join(ROPE_TYPES)}")
    rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings", 2048))
    return rope


def _windows(config: Json) -> tuple[int | None, ...]:
    """Mistral's window holds in every layer; Qwen's only with use_sliding_window, by layer_types or from a layer on."""
    num_layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if config["model_type"].startswith("qwen") and not config.get("use_sliding_window", False):
        window = None
    if window is None or window >= config.get("max_position_embeddings", 2048):
        return (None,) * num_layers
    if types := config.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = config.get("max_window_layers", 0) if config["model_type"].startswith("qwen") else 0
    return tuple(window if i >= first else None for i in range(num_layers))


def _eos(config: Json, folder: Path) -> tuple[int, ...]:
    """generation_config.json knows best (chat models end on more than one token), then config.json."""
    path = folder / "generation_config.json"
    generation: Json = json.loads(path.read_text()) if path.is_file() else {}
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def rope_table(spec: DecoderSpec, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [length, head_dim] for app.kernels.reference.rotate: sin is negated in its first half."""
    frequencies = _inverse_frequencies(spec)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    cos = torch.cat([angles.cos(), angles.cos()], -1)
    sin = torch.cat([-angles.sin(), angles.sin()], -1)
    scale = _yarn_scale(spec.rope) if spec.rope["rope_type"] == "yarn" else 1.0
    return (cos * scale).to(dtype), (sin * scale).to(dtype)


def _yarn_scale(rope: Json) -> float:
    """What yarn multiplies queries and keys by, each."""
    if (given := rope.get("attention_factor")) is not None:
        return float(given)

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(max(1.0, float(rope["factor"]))) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def _yarn_frequencies(rope: Json, inverse: Tensor, dim: int) -> Tensor:
    """arXiv 2309.00071 as implemented in transformers: slow dimensions are stretched, fast ones are not."""

    def place(turns: float) -> float:
        """The dimension that turns so often over the original context."""
        original = float(rope["original_max_position_embeddings"])
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(float(rope["rope_theta"])))

    low, high = place(float(rope.get("beta_fast") or 32)), place(float(rope.get("beta_slow") or 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretched = ramp.clamp(0, 1)
    mixed: Tensor = inverse / float(rope["factor"]) * stretched + inverse * (1 - stretched)
    return mixed


def _inverse_frequencies(spec: DecoderSpec) -> Tensor:
    """float32 [head_dim / 2]; llama3: arXiv 2407.21783 as implemented in transformers modeling_rope_utils."""
    rope, dim = spec.rope, spec.head_dim
    inverse: Tensor = 1.0 / float(rope["rope_theta"]) ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if rope["rope_type"] == "linear":
        return inverse / float(rope["factor"])
    if rope["rope_type"] == "yarn":
        return _yarn_frequencies(rope, inverse, dim)
    if rope["rope_type"] != "llama3":
        return inverse
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    wavelength = 2 * math.pi / inverse
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    mixed: Tensor = (1 - smooth) * inverse / float(rope["factor"]) + smooth * inverse
    return mixed
