"""The merge of partial results, empty pieces among them."""

import pytest
import torch

from app.kernels.merge_lse import merge_partials, merge_partials_reference
from tests.kernels.sweep import DTYPES, TOLERANCE


@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (5, 96), (32, 128)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_equals_the_definition(heads: int, dim: int, dtype: str, device: torch.device) -> None:
    partial, lse = torch.randn(9, heads, dim, device=device), 5 * torch.randn(9, heads, device=device)
    lse[3] = lse[7:] = float("-inf")  # an empty piece beside others, and a token with nothing but empty ones
    partial[3] = 0
    merges = torch.tensor([[1, 0, 2], [0, 2, 5], [3, 7, 2], [2, 0, 9]], dtype=torch.int32, device=device)
    out = torch.full((4, heads + 1, dim), 7.0, dtype=DTYPES[dtype], device=device)[:, 1:]
    wanted = out.clone()
    merge_partials(out, partial, lse, merges, torch.tensor([3], dtype=torch.int32, device=device))
    merge_partials_reference(wanted, partial, lse, merges[:3])
    torch.testing.assert_close(out, wanted, **TOLERANCE[out.dtype])
    assert (out[3] == 0).all()
    assert (out[2] == 7).all()  # beyond num_merges
