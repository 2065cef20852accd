"""A checkpoint written file by file, so that no more than one file of it is in memory."""

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_FILE_BYTES = 1 << 30


class CheckpointWriter:
    """Files get their final names in close(), when their number is known."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: list[list[str]] = []
        self._open: dict[str, Tensor] = {}
        self._bytes = self._total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        self._open[name] = tensor.contiguous()
        self._bytes += tensor.nbytes
        self._total += tensor.nbytes
        if self._bytes >= _FILE_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if len(self._files) == 1:
            self._temporary(0).rename(self._folder / "model.safetensors")
            return
        homes: dict[str, str] = {}
        for i, names in enumerate(self._files):
            final = f"model-{i + 1:05}-of-{len(self._files):05}.safetensors"
            self._temporary(i).rename(self._folder / final)
            homes |= dict.fromkeys(names, final)
        index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(homes.items()))}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    def _flush(self) -> None:
        if self._open:
            save_file(self._open, self._temporary(len(self._files)), metadata={"format": "pt"})
            self._files.append(list(self._open))
            self._open, self._bytes = {}, 0

    def _temporary(self, i: int) -> Path:
        return self._folder / f"part-{i}.writing"
