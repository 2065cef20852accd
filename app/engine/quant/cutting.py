"""One rank's part of a quantized weight: some of its rows, or those columns whose inputs the rank has."""

from dataclasses import replace

from torch import Tensor

from app.engine.parallel.layout import Cut
from app.kernels.packed import CodebookWeight, Int4Weight, ScaledWeight, Weight


def cut_weight(weight: Weight, cut: Cut) -> Weight:
    """A copy, so that the whole can be let go. Raises ValueError where groups of columns would be torn apart."""
    if isinstance(weight, Tensor):
        return weight[cut.index].clone()
    if isinstance(weight, ScaledWeight):
        return _cut_scaled(weight, cut)
    if isinstance(weight, Int4Weight):
        return _cut_int4(weight, cut)
    if isinstance(weight, CodebookWeight):
        packed, absmax = _cut_codes(weight.packed, cut, 2), _cut_groups(weight.absmax, cut)
        return CodebookWeight(packed, weight.table, absmax)
    raise ValueError(f"{type(weight).__name__} cannot be split over ranks; use tensor_parallel_size=1")


def _cut_scaled(weight: ScaledWeight, cut: Cut) -> ScaledWeight:
    activations = weight.activations
    if cut.dim == 1 and activations is not None and activations.group is not None:
        _require_whole_groups(cut, activations.group)
    return replace(weight, codes=_cut_codes(weight.codes, cut, 1), scales=_cut_groups(weight.scales, cut))


def _cut_int4(weight: Int4Weight, cut: Cut) -> Int4Weight:
    if cut.dim == 1 and weight.order is not None:
        raise ValueError("columns in an order of their own (act-order) cannot be split over ranks")
    scales, zeros = _cut_groups(weight.scales, cut), _cut_groups(weight.zeros, cut)
    return Int4Weight(_cut_codes(weight.packed, cut, 2), scales, zeros, weight.order)


def _cut_codes(codes: Tensor, cut: Cut, per_byte: int) -> Tensor:
    """codes [N, K / per_byte]"""
    if cut.dim == 0:
        return codes[cut.index].clone()
    _require_whole_groups(cut, per_byte)
    return codes[:, cut.held.start // per_byte : cut.held.stop // per_byte].clone()


def _cut_groups(scales: Tensor, cut: Cut) -> Tensor:
    """scales [N, G], each for K / G columns"""
    if cut.dim == 0:
        return scales[cut.index].clone()
    if scales.shape[1] == 1:
        return scales
    group = cut.total // scales.shape[1]
    _require_whole_groups(cut, group)
    return scales[:, cut.held.start // group : cut.held.stop // group].clone()


def _require_whole_groups(cut: Cut, group: int) -> None:
    if cut.held.start % group or cut.held.stop % group:
        raise ValueError(
            f"columns {cut.held.start} to {cut.held.stop} of {cut.total} are not whole groups of {group}; "
            f"use another tensor_parallel_size"
        )
