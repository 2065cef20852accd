"""Matrix products against their definition, and each row alone against the row in company."""

from typing import Any

import pytest
import torch

from app.kernels.linear import linear
from tests.kernels.interpreted import dot_row_by_row
from tests.kernels.sweep import DTYPES, TOLERANCE, full, name, pairwise

PARAMETERS = {
    "rows": [1, 31, 33],
    "depth": [16, 64, 80],
    "columns": [16, 70],
    "bias": [False, True],
    "dtype": list(DTYPES),
    "strided": [False, True],
}


@pytest.fixture(autouse=True)
def dots(monkeypatch: pytest.MonkeyPatch) -> None:
    dot_row_by_row(monkeypatch)


def operands(case: dict[str, Any], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    dtype, depth = DTYPES[case["dtype"]], case["depth"]
    x = torch.randn(case["rows"], depth + 16, device=device).to(dtype)[:, :depth]
    weight = (torch.randn(case["columns"], depth, device=device) / depth**0.5).to(dtype)
    bias = torch.randn(case["columns"], device=device).to(dtype) if case["bias"] else None
    return x if case["strided"] else x.contiguous(), weight, bias


def check(case: dict[str, Any], device: torch.device) -> None:
    x, weight, bias = operands(case, device)
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = linear(x, weight, bias)
    torch.testing.assert_close(found.float(), wanted.float(), **TOLERANCE[x.dtype])
    for row in {0, len(x) // 2, len(x) - 1}:
        assert torch.equal(linear(x[row : row + 1], weight, bias)[0], found[row]), "company changes no bit"


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=name)
def test_equals_the_definition_and_every_row_is_as_alone(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


@pytest.mark.slow
@pytest.mark.parametrize("case", full(PARAMETERS, tuple(PARAMETERS)), ids=name)
def test_in_every_shape(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


def test_operands_of_two_dtypes_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="operands of one dtype"):
        linear(torch.zeros(1, 16, device=device), torch.zeros(16, 16, dtype=torch.float16, device=device))
