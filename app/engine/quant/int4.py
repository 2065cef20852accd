"""AWQ and GPTQ: int4 in groups of columns, packed in int32 words of eight.

AWQ (Lin and others, arXiv:2306.00978) in AutoAWQ's "gemm" layout; GPTQ (Frantar and others, arXiv:2210.17323) in
AutoGPTQ's, where zero points are stored less one unless checkpoint_format is "gptq_v2".
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from app.engine.quant.format import Json, Part, check_shape, require, unpack
from app.kernels.packed import Int4Weight, PackedWeight

AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where in its word AutoAWQ puts columns 0 to 7


@dataclass(frozen=True, slots=True)
class Awq:
    group: int

    @classmethod
    def of(cls, config: Json) -> Self:
        bits, version = config.get("bits", config.get("w_bit", 4)), config.get("version", "gemm")
        require(bits == 4, f"AWQ of {bits} bits is not supported; supported are 4")
        require(str(version).lower() == "gemm", f"AWQ version {version!r} is not supported; supported is gemm")
        return cls(int(config.get("group_size") or config["q_group_size"]))

    def covers(self, names: frozenset[str]) -> bool:
        return "qweight" in names

    def read(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        rows, columns = shape
        group = columns if self.group == -1 else self.group
        check_shape("qweight", part["qweight"], (columns, rows // 8))
        check_shape("scales", part["scales"], (columns // group, rows))
        codes = unpack(part["qweight"], 4, 1, AWQ_PLACES).T
        scales = part["scales"].T.contiguous()
        zeros = unpack(part["qzeros"], 4, 1, AWQ_PLACES).T if "qzeros" in part else torch.full_like(scales, 8)
        return Int4Weight.of(codes, scales, zeros)


@dataclass(frozen=True, slots=True)
class Gptq:
    group: int
    zero_offset: int

    @classmethod
    def of(cls, config: Json) -> Self:
        require(config.get("bits") == 4, f"GPTQ of {config.get('bits')} bits is not supported; supported are 4")
        version = config.get("checkpoint_format", "gptq")
        require(version in ("gptq", "gptq_v2"), f"checkpoint_format {version!r} is not supported")
        return cls(config["group_size"], 1 if version == "gptq" else 0)

    def covers(self, names: frozenset[str]) -> bool:
        return "qweight" in names

    def read(self, part: Part, shape: tuple[int, int]) -> PackedWeight:
        rows, columns = shape
        group = columns if self.group == -1 else self.group
        check_shape("qweight", part["qweight"], (columns // 8, rows))
        check_shape("scales", part["scales"], (columns // group, rows))
        codes = unpack(part["qweight"], 4, 0).T
        zeros = (unpack(part["qzeros"], 4, 1).T + self.zero_offset) & 15
        order = _order(part.get("g_idx"), group)
        if order is not None:
            codes = codes[:, order]
        return Int4Weight.of(codes, part["scales"].T.contiguous(), zeros, order)


def _order(groups: Tensor | None, group: int) -> Tensor | None:
    """Columns sorted by their group (act-order), so that groups lie together; None where they do."""
    if groups is None or bool((groups == torch.arange(len(groups), device=groups.device) // group).all()):
        return None
    sizes = groups.bincount()
    require(bool((sizes == group).all()), f"g_idx has groups of {sorted(set(sizes.tolist()))} columns, not of {group}")
    return groups.argsort(stable=True)
