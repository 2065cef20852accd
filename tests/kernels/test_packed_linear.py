"""Products with weights of 4 and 8 bits against their definition in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from app.kernels.packed import Activations, Int4Weight, PackedWeight, ScaledWeight
from app.kernels.packed_linear import packed_linear, suits
from tests.kernels.sweep import DTYPES, TOLERANCE, full, name, pairwise

PARAMETERS = {
    "rows": [1, 16, 17, 70],
    "depth": [64, 192, 320],
    "columns": [16, 72],
    "kind": ["int8", "int4 of 32", "int4 of 64", "int4 in another order"],
    "dtype": list(DTYPES),
    "strided": [False, True],
}


def weight_of(case: dict[str, Any], device: torch.device) -> PackedWeight:
    columns, depth = case["columns"], case["depth"]
    if case["kind"] == "int8":
        codes = torch.randint(-128, 128, (columns, depth), device=device).to(torch.int8)
        return ScaledWeight(codes, torch.rand(columns, 1, device=device) / depth)
    group = 64 if case["kind"] == "int4 of 64" else 32
    codes = torch.randint(0, 16, (columns, depth), device=device)
    zeros = torch.randint(0, 16, (columns, depth // group), device=device)
    scales = (torch.rand(zeros.shape, device=device) / depth**0.5).half()
    order = torch.randperm(depth, device=device) if case["kind"].endswith("order") else None
    return Int4Weight.of(codes, scales, zeros, order)


def check(case: dict[str, Any], device: torch.device) -> None:
    dtype, depth = DTYPES[case["dtype"]], case["depth"]
    x = torch.randn(case["rows"], depth + 16, device=device).to(dtype)[:, :depth]
    x, weight = x if case["strided"] else x.contiguous(), weight_of(case, device)
    assert suits(weight)
    wanted = (x.double() @ weight.dequantized(torch.float64).T).float()
    tolerance = {key: 4 * value for key, value in TOLERANCE[dtype].items()}  # int4 codes are scaled in x's dtype
    torch.testing.assert_close(packed_linear(x, weight).float(), wanted, **tolerance)


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=name)
def test_equals_the_definition(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


@pytest.mark.slow
@pytest.mark.parametrize("case", full(PARAMETERS, tuple(PARAMETERS)), ids=name)
def test_in_every_shape(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


def test_halves_of_a_byte_in_the_other_order_are_noticed(device: torch.device) -> None:
    """Negative control."""
    case = {"rows": 3, "depth": 64, "columns": 16, "kind": "int4 of 32"}
    weight = weight_of(case, device)
    assert isinstance(weight, Int4Weight)
    swapped = Int4Weight(weight.packed << 4 | weight.packed >> 4, weight.scales, weight.zeros)
    x = torch.randn(3, 64, device=device)
    wanted: Tensor = x @ weight.dequantized(torch.float32).T
    assert not torch.allclose(packed_linear(x, swapped), wanted, atol=1e-2)


def test_what_rounds_its_inputs_is_left_to_the_reference(device: torch.device) -> None:
    codes, scales = torch.zeros(16, 64, dtype=torch.int8, device=device), torch.ones(16, 1, device=device)
    assert suits(ScaledWeight(codes, scales))
    assert not suits(ScaledWeight(codes, scales, Activations()))
    assert not suits(ScaledWeight(codes.to(torch.float8_e4m3fn), scales))
    with pytest.raises(ValueError, match="no kernel here"):
        packed_linear(torch.zeros(1, 64, device=device), ScaledWeight(codes, scales, Activations()))
