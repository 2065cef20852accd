"""What was measured on a GPU, by its name: tile sizes, and from where on a shared prefix is worth reading once.

tuning.json is written by `python -m benchmarks.kernels --tune` and read once at start. A GPU that is not in it gets
the default tiles, and reads no prefix for several rows at once.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from app.kernels.shared_prefix import Cutover, UseShared, never
from app.kernels.tasks import Tiles

TABLE = Path(__file__).with_name("tuning.json")


@dataclass(frozen=True, slots=True)
class Tuning:
    """For one GPU and shape of attention."""

    tiles: Tiles
    use_shared: UseShared = never


def shape_key(group: int, head_dim: int, dtype: torch.dtype) -> str:
    return f"group {group}, head {head_dim}, {str(dtype).removeprefix('torch.')}"


def load_tuning(gpu: str, group: int, head_dim: int, dtype: torch.dtype, path: Path = TABLE) -> Tuning:
    """Of this GPU and shape, or the defaults."""
    table: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    found = table.get(gpu, {}).get("shapes", {}).get(shape_key(group, head_dim, dtype))
    if found is None:
        return Tuning(Tiles.of(dtype))
    points = {(tokens, keys): gain for tokens, keys, gain in found["shared"]}
    return Tuning(Tiles(**found["tiles"]), Cutover(points))


def save_tuning(
    gpu: str, about: dict[str, str], group: int, head_dim: int, dtype: torch.dtype, tiles: Tiles,
    shared: list[tuple[int, int, float]], path: Path = TABLE,
) -> None:  # fmt: skip
    """Replace this GPU's entry for this shape; the others stay. about: date and versions of the measurement."""
    table: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    entry = table.setdefault(gpu, {"shapes": {}})
    entry |= about
    entry["shapes"][shape_key(group, head_dim, dtype)] = {"tiles": asdict(tiles), "shared": shared}
    path.write_text(json.dumps(table, indent=1) + "\n")
