"""Rotary embedding and page write in one kernel, against its reference."""

from typing import Any

import pytest
import torch

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


def check(case: dict[str, Any], device: torch.device) -> None:
    dtype, dim, tokens, kv_heads, page = (
        DTYPES[case["dtype"]],
        *(case[x] for x in ("dim", "tokens", "kv_heads", "page")),
    )
    rows = (case["group"] + 2) * kv_heads
    qkv = torch.randn(tokens, rows + 1, dim, device=device).to(dtype)[:, :-1]
    qkv = qkv if case["strided"] else qkv.contiguous()
    angles = torch.outer(torch.arange(100.0), 0.3 ** torch.arange(dim // 2)).to(device)
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1)
    positions = torch.randint(0, 100, (tokens,), dtype=torch.int32, device=device)
    slots = torch.randperm(4 * page, device=device)[:tokens]
    norms = tuple(torch.rand(2, dim, device=device).to(dtype)) if case["norms"] else None
    pages = torch.full((4, 2, kv_heads, page, dim), float("nan"), dtype=dtype, device=device)
    wanted = pages.clone()
    q = store_kv(qkv, positions, slots, cos, sin, pages[:, 0], pages[:, 1], norms, 1e-6)
    wanted_q = store_kv_reference(
        qkv.float(), positions, slots, cos, sin, (k := wanted[:, 0].float()), (v := wanted[:, 1].float()),
        tuple(x.float() for x in norms) if norms else None, 1e-6,
    )  # fmt: skip
    torch.testing.assert_close(q.float(), wanted_q, **TOLERANCE[dtype])
    torch.testing.assert_close(pages[:, 0].float(), k, equal_nan=True, **TOLERANCE[dtype])
    assert torch.equal(pages[:, 1].nan_to_num(9), v.to(dtype).nan_to_num(9)), "values are copied as they are"


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=name)
def test_equals_the_reference(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


@pytest.mark.slow
@pytest.mark.parametrize("case", full(PARAMETERS, ("group", "kv_heads", "dim", "page", "dtype")), ids=name)
def test_equals_the_reference_in_every_shape(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)
