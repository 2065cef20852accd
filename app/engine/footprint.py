"""What a model will take before anything of it is loaded, and what it needs even while it sleeps."""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from app.engine.architecture import DecoderSpec, read_spec
from app.engine.checksums import verify_folder
from app.engine.config import EngineConfig
from app.engine.device import open_device
from app.engine.kv_cache import page_dtype
from app.engine.laps import Laps
from app.engine.lora_files import adapter_bytes
from app.engine.model import device_of
from app.engine.parallel.layout import Layout
from app.engine.runner import pool_shape, resolve_dtype, resolve_folder
from app.engine.tokenizer import Tokenizer, has_tokenizer

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Prepared:
    """num_bytes: of weights and KV pool, see footprint()."""

    folder: Path
    tokenizer: Tokenizer | None
    num_bytes: int


def prepare(config: EngineConfig, laps: Laps) -> Prepared:
    """Find the model and check it, without loading it. Raises ValueError or OSError where it cannot be served."""
    folder = resolve_folder(config.model, config.revision)
    laps.lap("find")
    verify_folder(folder, config.checksums)
    laps.lap("verify")
    num_bytes = footprint(config, folder)
    laps.lap("config")
    tokenizer = Tokenizer(folder) if has_tokenizer(folder) else None
    laps.lap("tokenizer")
    return Prepared(folder, tokenizer, num_bytes)


def footprint(config: EngineConfig, folder: Path) -> int:
    """Bytes of weights and KV pool, draft model and adapters included; of dummy weights none, they are counted when
    they are there.

    Exact for plain weights; packed ones may take a little more once a device's kernels have laid them out. Of several
    ranks all that they take together.
    """
    device, layout = open_device(device_of(config, 0)), Layout.of(config)
    spec, dtype = read_spec(folder), resolve_dtype(config.dtype, device.torch)
    draft = resolve_folder(config.draft_model) if config.draft_model and config.max_draft_tokens else None
    part = layout.part(spec).spec
    num_blocks, _ = pool_shape(config, part, dtype, draft)
    tokens = num_blocks * config.block_size
    pages = page_dtype(config.kv_cache_dtype, dtype)
    total = layout.num_ranks * tokens * part.kv_bytes_per_token(pages)
    total += 0 if config.load_format == "dummy" else _weight_bytes(folder, spec, dtype)
    total += adapter_bytes(config.adapters, spec, dtype)
    if draft is not None:
        small = read_spec(draft)
        total += tokens * small.kv_bytes_per_token(pages) + _weight_bytes(draft, small, dtype)
    return total


def _weight_bytes(folder: Path, spec: DecoderSpec, dtype: torch.dtype) -> int:
    """By the headers of the files. Floating weights are kept in `dtype`, what is packed as it is stored."""
    total = 0
    for path in folder.glob("*.safetensors"):
        for name, tensor in _header(path).items():
            if name == "__metadata__" or (name == "lm_head.weight" and spec.tied):
                continue
            kind = tensor["dtype"]
            total += prod(tensor["shape"]) * (dtype.itemsize if kind in _FLOATING else _BYTES.get(kind, 1))
    return total


def _header(path: Path) -> dict[str, Any]:
    """Of a safetensors file: its length as eight bytes, little-endian, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
    return found
