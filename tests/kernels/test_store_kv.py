"""Rotary embedding and page write in one kernel, against its reference."""

from typing import Any

import pytest
import torch

from app.kernels.fp8 import E4M3, LARGEST
from app.kernels.pages import KVPages
from app.kernels.store_kv import store_kv, store_kv_reference
from tests.kernels.sweep import DTYPES, TOLERANCE, full, name, pairwise

PARAMETERS = {
    "group": [1, 2, 3, 4, 5, 6, 7, 8],
    "kv_heads": [1, 2],
    "dim": [64, 96, 128],
    "page": [16, 32],
    "tokens": [1, 5],
    "norms": [False, True],
    "dtype": list(DTYPES),
    "strided": [False, True],
}


def tables(dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.outer(torch.arange(100.0), 0.3 ** torch.arange(dim // 2)).to(device)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)


def check(case: dict[str, Any], device: torch.device) -> None:
    dtype, dim, tokens, kv_heads, page = (
        DTYPES[case["dtype"]],
        *(case[x] for x in ("dim", "tokens", "kv_heads", "page")),
    )
    rows = (case["group"] + 2) * kv_heads
    qkv = torch.randn(tokens, rows + 1, dim, device=device).to(dtype)[:, :-1]
    qkv = qkv if case["strided"] else qkv.contiguous()
    cos, sin = tables(dim, device)
    positions = torch.randint(0, 100, (tokens,), dtype=torch.int32, device=device)
    slots = torch.randperm(4 * page, device=device)[:tokens]
    norms = tuple(torch.rand(2, dim, device=device).to(dtype)) if case["norms"] else None
    pages = torch.full((4, 2, kv_heads, page, dim), float("nan"), dtype=dtype, device=device)
    wanted = pages.clone()
    q = store_kv(qkv, positions, slots, cos, sin, KVPages(pages[:, 0], pages[:, 1]), norms, 1e-6)
    k, v = wanted[:, 0].float(), wanted[:, 1].float()
    wide = tuple(x.float() for x in norms) if norms else None
    wanted_q = store_kv_reference(qkv.float(), positions, slots, cos, sin, KVPages(k, v), wide, 1e-6)
    torch.testing.assert_close(q.float(), wanted_q, **TOLERANCE[dtype])
    torch.testing.assert_close(pages[:, 0].float(), k, equal_nan=True, **TOLERANCE[dtype])
    assert torch.equal(pages[:, 1].nan_to_num(9), v.to(dtype).nan_to_num(9)), "values are copied as they are"


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_pages_in_8_bits_get_codes_by_head(dtype: str, norms: bool, device: torch.device) -> None:
    """Codes may differ by one step where sums are rounded otherwise; none may be NaN."""
    tokens, group, kv_heads, dim, page = 5, 4, 2, 64, 16
    qkv = (torch.randn(tokens, (group + 2) * kv_heads, dim, device=device) * 3).to(DTYPES[dtype])
    qkv[:, -1, :4] = 5000.0  # beyond what any code stands for
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    slots = torch.randperm(4 * page, device=device)[:tokens]
    scales = (torch.tensor([0.25, 0.01], device=device), torch.tensor([3.0, 0.125], device=device))
    ones = torch.ones(dim, device=device, dtype=qkv.dtype) * 1.5
    both = [(torch.zeros(4, kv_heads, page, dim, device=device).to(E4M3)) for _ in range(4)]
    made, wanted = KVPages(both[0], both[1], scales), KVPages(both[2], both[3], scales)
    given = qkv, positions, slots, *tables(dim, device)
    store_kv(*given, made, (ones, ones) if norms else None, 1e-6)
    store_kv_reference(*(x.float() if x.is_floating_point() else x for x in given), wanted,
                       (ones.float(), ones.float()) if norms else None, 1e-6)  # fmt: skip
    for ours, theirs in ((made.keys, wanted.keys), (made.values, wanted.values)):
        assert not ours.float().isnan().any() and bool(ours.float().any())
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0.13, atol=2**-8)
        assert float((ours.float() != theirs.float()).float().mean()) < 0.01
    assert torch.equal(made.values.float().amax((0, 2, 3)), wanted.values.float().amax((0, 2, 3)))
    assert float(made.values.float().max()) == LARGEST


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=name)
def test_equals_the_reference(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


@pytest.mark.slow
@pytest.mark.parametrize("case", full(PARAMETERS, ("group", "kv_heads", "dim", "page", "dtype")), ids=name)
def test_equals_the_reference_in_every_shape(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)
