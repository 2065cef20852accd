"""A folder's safetensors by tensor name. A file is mapped only while something of it is read."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from app.engine.parallel.layout import Cut

_READ_AT_ONCE = 8  # tensors of one mapping: what was read of it counts as this process's memory until it is closed
_LINEAR = re.compile(r"(.+_proj|lm_head)\.(.+)")


class Shards:
    """Raises ValueError where there are none or the index names one that does not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._home: dict[str, Path] = {}
        for path in _files(folder):
            with safe_open(path, framework="pt") as shard:
                self._home |= dict.fromkeys(shard.keys(), path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def linears(self) -> dict[str, frozenset[str]]:
        """Every linear layer of the checkpoint and the names of its tensors within it."""
        found: dict[str, set[str]] = defaultdict(set)
        for name in self._home:
            if matched := _LINEAR.fullmatch(name):
                found[matched[1]].add(matched[2])
        return {layer: frozenset(names) for layer, names in found.items()}

    def tensors(
        self, names: Iterable[str] | None = None, cuts: Mapping[str, Cut] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Of these names, file by file, on torch's default device; None: all. Of those in `cuts`, what is held alone.

        A tensor on the CPU is a view of its file: who keeps it copies it, or the file stays mapped.
        """
        wanted = set(self._home if names is None else names)
        device, cuts = torch.get_default_device(), cuts or {}
        for path in dict.fromkeys(self._home.values()):
            here = [name for name in self._home if name in wanted and self._home[name] == path]
            for start in range(0, len(here), _READ_AT_ONCE):
                with safe_open(path, framework="pt") as shard:
                    for name in here[start : start + _READ_AT_ONCE]:
                        yield name, _held(name, shard.get_tensor(name), cuts.get(name)).to(device)


def _held(name: str, tensor: Tensor, cut: Cut | None) -> Tensor:
    """A view: whoever keeps it copies what is held and no more."""
    if cut is None:
        return tensor
    if tensor.dim() <= cut.dim or tensor.shape[cut.dim] != cut.total:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the config says {cut.total} in dimension {cut.dim}")
    return tensor[cut.index]


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no *.safetensors; other weight formats are not read")
    for path in files:
        if not path.is_file():
            raise ValueError(f"{path} is named in the index but does not exist")
    return files
