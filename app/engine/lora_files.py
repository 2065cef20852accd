"""An adapter in PEFT's format, adapter_config.json and adapter_model.safetensors, into the decoder's fused layout.

Whatever would make the adapter compute something else than PEFT does is refused by name, and so is a field of a later
PEFT that nobody here knows. The scale is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (arXiv:2312.03732).
"""

import json
from collections.abc import Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from app.engine.architecture import DecoderSpec
from app.engine.checksums import verify_folder
from app.engine.lora import Adapters, Layers, LowRank
from app.engine.memory import tensors
from app.engine.quant.layers import linear_layers

MAX_RANK = 64
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias", "init_lora_weights")
_NO_MATTER = (  # where it came from, how it was trained, and which layers have tensors: those of the file are counted
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
)  # fmt: skip
_INITS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")  # the others change the base model's weights
_DTYPES = ("F64", "F32", "F16", "BF16")
_PREFIX = "base_model.model.model.layers."


class AdapterFiles:
    """Checked against the base model's shapes before anything is loaded. Raises ValueError naming what does not fit."""

    def __init__(self, folder: Path, spec: DecoderSpec) -> None:
        verify_folder(folder)
        self.folder, self._spec = folder, spec
        self._path = folder / "adapter_model.safetensors"
        config = _read_config(folder)
        self._rank, self._scale = _rank_and_scale(folder, config)
        self._shapes = self._stored_shapes()
        self._targets = self._adapted(config["target_modules"])
        self._check_shapes()

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Of what load() returns."""
        return sum(prod(shape) for shape in self._shapes.values()) * dtype.itemsize

    def load(self, dtype: torch.dtype) -> Layers:
        """On torch's default device. Raises ValueError where a weight is not finite: answers would be noise."""
        device = torch.get_default_device()
        with safe_open(self._path, framework="pt") as file:
            stored = {name: file.get_tensor(name).to(device) for name in self._shapes}
        loaded = [self._layer(i, stored, dtype) for i in self._layers]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors(loaded)):
            raise ValueError(f"{self.folder}: not every weight is a finite number")
        return loaded

    def _layer(self, index: int, stored: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, LowRank]:
        fused: dict[str, LowRank] = {}
        for attribute, parts in linear_layers(self._spec).items():
            downs: list[Tensor] = []
            ups: list[tuple[int, Tensor]] = []
            first = 0
            for name, (rows, _) in parts.items():
                if _module(name) in self._targets:
                    downs.append(stored[_tensor(index, name, "A")].to(dtype))
                    ups.append((first, (stored[_tensor(index, name, "B")].float() * self._scale).to(dtype)))
                first += rows
            if downs:
                fused[attribute] = LowRank(torch.cat(downs), ups)
        return fused

    def _stored_shapes(self) -> dict[str, tuple[int, ...]]:
        if not self._path.is_file():
            raise ValueError(f"{self.folder} has no {self._path.name}")
        try:
            with safe_open(self._path, framework="pt") as file:
                found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except SafetensorError as error:
            raise ValueError(f"{self._path} cannot be read: {error}") from error
        for name, one in found.items():
            if one.get_dtype() not in _DTYPES:
                raise ValueError(f"{self.folder}: {name} has dtype {one.get_dtype()}, which is none of {_DTYPES}")
        return {name: tuple(one.get_shape()) for name, one in found.items()}

    def _adapted(self, said: list[str] | str) -> set[str]:
        """What the config lists; where that is a pattern, whatever the file has."""
        known = {_module(name): name for parts in linear_layers(self._spec).values() for name in parts}
        possible = {_tensor(i, name, "A"): module for module, name in known.items() for i in self._layers}
        found = {possible[name] for name in self._shapes if name in possible}
        targets = found if isinstance(said, str) else {_module(name) for name in said}
        if unknown := sorted(targets - known.keys()):
            raise ValueError(f"{self.folder}: target module {unknown[0]!r} is none of {', '.join(known)}")
        if not targets:
            raise ValueError(f"{self.folder}: no layer is adapted")
        return targets

    @property
    def _layers(self) -> range:
        return range(self._spec.num_layers)

    def _check_shapes(self) -> None:
        expected: dict[str, tuple[int, ...]] = {}
        for name, (rows, columns) in ((n, s) for parts in linear_layers(self._spec).values() for n, s in parts.items()):
            if _module(name) in self._targets:
                expected |= {_tensor(i, name, "A"): (self._rank, columns) for i in self._layers}
                expected |= {_tensor(i, name, "B"): (rows, self._rank) for i in self._layers}
        if unknown := sorted(self._shapes.keys() - expected.keys()):
            raise ValueError(f"{self.folder}: tensor {unknown[0]} is not of a layer that adapter and base model share")
        if missing := sorted(expected.keys() - self._shapes.keys()):
            raise ValueError(f"{self.folder} lacks {len(missing)} tensors, among them {missing[0]}")
        for name, shape in expected.items():
            if self._shapes[name] != shape:
                raise ValueError(f"{self.folder}: {name} has shape {self._shapes[name]}, the base model needs {shape}")


def load_adapters(folders: Mapping[str, Path], spec: DecoderSpec, dtype: torch.dtype) -> Adapters | None:
    """By name; None where there are none. Raises ValueError as AdapterFiles()."""
    loaded = {name: AdapterFiles(Path(folder), spec).load(dtype) for name, folder in folders.items()}
    return Adapters(loaded) if loaded else None


def adapter_bytes(folders: Mapping[str, Path], spec: DecoderSpec, dtype: torch.dtype) -> int:
    """That load_adapters() will take. Raises ValueError as AdapterFiles()."""
    return sum(AdapterFiles(Path(folder), spec).num_bytes(dtype) for folder in folders.values())


def _module(name: str) -> str:
    return name.rpartition(".")[2]


def _tensor(layer: int, name: str, half: str) -> str:
    return f"{_PREFIX}{layer}.{name}.lora_{half}.weight"


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no adapter_config.json: no adapter in PEFT's format")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no object")
    _check_config(path, config)
    return config


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    for name in ("r", "lora_alpha", "target_modules"):
        if not config.get(name):
            raise ValueError(f"{path} says nothing of {name}")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type {config.get('peft_type')!r} is not LORA")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias={config['bias']!r} is not supported, only 'none'")
    for name, value in config.items():
        if value and name not in _READ + _NO_MATTER:
            raise ValueError(f"{path}: {name} is not supported")
    init = config.get("init_lora_weights", True)
    if str(init).lower() not in _INITS:
        raise ValueError(f"{path}: init_lora_weights={init!r} changes the base model's weights")
    targets = config["target_modules"]
    names = targets if isinstance(targets, list) else [targets]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: target_modules must be names or a pattern, not {targets!r}")


def _rank_and_scale(folder: Path, config: Mapping[str, Any]) -> tuple[int, float]:
    rank, alpha = config["r"], config["lora_alpha"]
    if not isinstance(rank, int) or not 1 <= rank <= MAX_RANK:
        raise ValueError(f"{folder}: rank r must be between 1 and {MAX_RANK}, not {rank!r}")
    if not isinstance(alpha, int | float):
        raise ValueError(f"{folder}: lora_alpha must be a number, not {alpha!r}")
    return rank, alpha / (sqrt(rank) if config.get("use_rslora") else rank)
