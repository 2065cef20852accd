"""Inputs rounded to e4m3 by a kernel and multiplied by torch, against their definition in packed.py."""

import pytest
import torch

from app.kernels.fp8 import E4M3
from app.kernels.launch import is_interpreted
from app.kernels.packed import Activations, ScaledWeight
from app.kernels.scaled_linear import quantize_rows, scaled_linear, suits
from tests.kernels.sweep import DTYPES

KINDS = {
    "by row": Activations(),
    "bounded": Activations(bound=0.7),
    "static": Activations(scale=torch.tensor(0.013)),
}


def inputs(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As the middle of a wider tensor, with rows of very different size."""
    wide = torch.randn(rows, columns + 8, device=device) * 10.0 ** torch.arange(-3, rows - 3, device=device)[:, None]
    return wide.to(dtype)[:, :columns]


def on(device: torch.device, kind: str) -> Activations:
    found = KINDS[kind]
    return Activations(None if found.scale is None else found.scale.to(device), found.bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [48, 4096 + 16])
def test_inputs_get_the_codes_of_the_reference(kind: str, dtype: str, columns: int, device: torch.device) -> None:
    x = inputs(5, columns, DTYPES[dtype], device)
    codes, scales = quantize_rows(x, on(device, kind))
    wanted, by = on(device, kind).quantize(x, E4M3)
    assert codes.dtype is E4M3 and codes.shape == x.shape
    assert torch.equal(scales, by.view(-1, 1).expand(5, 1))
    assert torch.equal(codes.float(), wanted.float())


def test_a_row_of_zeros_is_zeros(device: torch.device) -> None:
    codes, scales = quantize_rows(torch.zeros(2, 32, device=device), Activations())
    assert not codes.float().any() and bool((scales > 0).all())


def weight(rows: int, columns: int, kind: str, device: torch.device, per_tensor: bool = False) -> ScaledWeight:
    codes = (torch.randn(rows, columns, device=device) * 60).to(E4M3)
    scales = torch.full((rows, 1), 0.01) if per_tensor else torch.rand(rows, 1) / 50
    return ScaledWeight(codes, scales.to(device), on(device, kind))


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 17])
def test_products_equal_the_definition(kind: str, rows: int, per_tensor: bool, device: torch.device) -> None:
    made = weight(48, 64, kind, device, per_tensor)
    x = torch.randn(rows, 64, device=device).to(torch.bfloat16)
    assert suits(made, x.dtype)
    out = scaled_linear(x, made)
    codes, by = on(device, kind).quantize(x, E4M3)
    wanted = (codes.double() * by.view(-1, 1)) @ made.dequantized(torch.float32).double().T
    assert out.dtype is torch.bfloat16
    torch.testing.assert_close(out.double(), wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))


def test_what_the_unit_does_not_take_is_left_to_the_reference(device: torch.device) -> None:
    plain = weight(32, 32, "by row", device)
    assert suits(plain, torch.bfloat16)
    assert not suits(plain, torch.float32), "it gives bfloat16"
    assert not suits(weight(24, 32, "by row", device), torch.bfloat16), "widths are multiples of 16"
    blocks = ScaledWeight(plain.codes, torch.ones(32, 2, device=device), Activations(group=16))
    assert not suits(blocks, torch.bfloat16), "blocks have several scales in a row"
    ints = ScaledWeight(torch.ones(32, 32, dtype=torch.int8, device=device), plain.scales, Activations())
    assert not suits(ints, torch.bfloat16)
    assert not suits(ScaledWeight(plain.codes, plain.scales), torch.bfloat16), "weights alone: inputs are not rounded"


@pytest.mark.skipif(not is_interpreted(), reason="the reference is the CPU's")
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("rows", [1, 9])
def test_the_cpu_path_equals_the_weight_written_out(dtype: str, rows: int) -> None:
    made = weight(700, 2048, "by row", torch.device("cpu"))  # more than one tile
    x = torch.randn(rows, 2048).to(DTYPES[dtype])
    wanted = Activations().rounded(x, E4M3).double() @ made.dequantized(torch.float32).double().T
    tolerance = 1e-2 if dtype == "bf16" else 1e-5
    torch.testing.assert_close(
        made.matmul(x).double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max())
    )
