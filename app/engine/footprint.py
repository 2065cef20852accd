"""What a model will take before anything of it is loaded, and what it needs even while it sleeps."""

import json
import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from app.engine.architecture import read_spec
from app.engine.checksums import verify_folder
from app.engine.config import EngineConfig
from app.engine.device import open_device
from app.engine.kv_cache import page_dtype
from app.engine.laps import Laps
from app.engine.lora_files import adapter_bytes
from app.engine.model import device_of
from app.engine.parallel.layout import Layout, Part
from app.engine.runner import pool_shape, resolve_dtype, resolve_folder
from app.engine.tokenizer import Tokenizer, has_tokenizer

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Prepared:
    """num_bytes: of weights and KV pool on each of its devices, see footprint()."""

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
    """Bytes on each device that the model is on: all ranks' on a CPU, on GPUs those of the largest rank."""
    ranks = rank_bytes(config, folder)
    return max(ranks) if config.device.startswith("cuda") else sum(ranks)


def rank_bytes(config: EngineConfig, folder: Path) -> list[int]:
    """Of weights and KV pool of every rank, draft model and adapters included (they are the first one's); of dummy
    weights none, they are counted when they are there.

    Exact for plain weights; packed ones may take a little more once a device's kernels have laid them out.
    """
    device, layout = open_device(device_of(config, 0)), Layout.of(config)
    spec, dtype = read_spec(folder), resolve_dtype(config.dtype, device.torch)
    draft = resolve_folder(config.draft_model) if config.draft_model and config.max_draft_tokens else None
    parts = [layout.part(spec, rank) for rank in range(layout.num_ranks)]
    num_blocks, _ = pool_shape(config, parts[0].spec, dtype, draft)
    tokens = num_blocks * config.block_size
    pages = page_dtype(config.kv_cache_dtype, dtype)
    found = [tokens * part.spec.kv_bytes_per_token(pages) for part in parts]
    if config.load_format != "dummy":
        found = [num_bytes + _weight_bytes(folder, part, dtype) for num_bytes, part in zip(found, parts, strict=True)]
    found[0] += adapter_bytes(config.adapters, spec, dtype)
    if draft is not None:
        small = read_spec(draft)
        found[0] += tokens * small.kv_bytes_per_token(pages) + _weight_bytes(draft, Layout().part(small), dtype)
    return found


def _weight_bytes(folder: Path, part: Part, dtype: torch.dtype) -> int:
    """By the headers of the files. Floating weights are kept in `dtype`, what is packed as it is stored."""
    total = 0
    for path in folder.glob("*.safetensors"):
        for name, tensor in _header(path).items():
            if name == "__metadata__" or (name == "lm_head.weight" and part.whole.tied):
                continue
            kind = tensor["dtype"]
            size = prod(tensor["shape"]) * (dtype.itemsize if kind in _FLOATING else _BYTES.get(kind, 1))
            held, of = _share(name, part)
            total += size * held // of
    return total


def _share(name: str, part: Part) -> tuple[int, int]:
    """How much of a tensor a rank holds, as a fraction. Scales and zeros of packed weights are cut as these are."""
    layer, (module, _, kind) = _LAYER.search(name), name.rpartition(".")
    rows = {"embed_tokens": part.embedding_rows, "lm_head": part.head_rows}
    elsewhere = layer is not None and int(layer[1]) not in part.layers
    if elsewhere or rows.get(module.rpartition(".")[2]) == 0:
        return 0, 1
    cut = part.cut(f"{module}.{'bias' if kind == 'bias' else 'weight'}")
    return (1, 1) if cut is None else (len(cut.held), cut.total)


def _header(path: Path) -> dict[str, Any]:
    """Of a safetensors file: its length as eight bytes, little-endian, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found: dict[str, Any] = json.loads(file.read(length))
    return found
