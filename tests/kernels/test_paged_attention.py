"""Paged attention against its definition: one kernel for prefill, decoding and verification, with shared prefixes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from app.kernels.paged_attention import paged_attention
from app.kernels.paged_plan import PagedPlan, build_plan, to_device
from app.kernels.shared_prefix import Cutover, never
from app.kernels.tasks import DIRECT, PagedRows, Tiles
from tests.kernels.paged import Paged, definition, in_8_bits, make_pages
from tests.kernels.sweep import DTYPES, TOLERANCE, full, name, pairwise

SPLIT = 32
TILES = Tiles(split=SPLIT, shared_split=SPLIT, narrow=64, block_n=16, block_wide=64, block_shared=32)
LONG = 41
PARAMETERS: dict[str, list[Any]] = {
    "group": [1, 2, 3, 4, 5, 6, 7, 8],
    "dim": [64, 96, 128],
    "page": [16, 32],
    "q_len": [1, 2, 3, 4, 5, 6, 7, 8, LONG],
    "keys": [LONG, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT, 2 * SPLIT + 1],
    "sharing": ["none", "one group", "nested groups"],
    "dtype": list(DTYPES),
    "window": [None, 12, 40],
    "strided": [False, True],
    "pages": ["plain", "fp8"],
}
CROSSED = ("group", "dim", "q_len")
RUNS: dict[str, list[tuple[list[int], int]]] = {
    "none": [],
    "one group": [([0, 1, 2], SPLIT)],
    "nested groups": [([0, 1, 2], SPLIT), ([1, 2], 2 * SPLIT), ([3, 4], SPLIT)],
}


def always(tokens: int, keys: int) -> bool:
    return True


def run(paged: Paged, q: Tensor, *, window: int | None = None, tiles: Tiles = TILES, shared: Any = always) -> Tensor:
    group = q.shape[1] // paged.k.shape[1]
    plan = build_plan(paged.rows, group=group, tiles=tiles, window=window, shared=paged.shared, use_shared=shared)
    return paged_attention(q, paged.pages, to_device(plan, lambda x: x.to(q.device)), q.shape[2] ** -0.5, tiles)


def queries(paged: Paged, group: int, strided: bool = False) -> Tensor:
    """As the middle of a wider tensor where strided."""
    tokens, heads = int(paged.rows.counts.sum()), group * paged.k.shape[1]
    wide = torch.randn(tokens, heads + 2, paged.k.shape[3], device=paged.k.device).to(paged.k.dtype)
    return wide[:, 1:-1] if strided else wide[:, 1:-1].contiguous()


def check(case: dict[str, Any], device: torch.device) -> None:
    """Row 0 has the case's number of keys; others differ, some share, one is a chunk whatever the case says."""
    count, keys = case["q_len"], case["keys"]
    sharing = RUNS[case["sharing"]]
    least = [max([keys for members, keys in sharing if i in members], default=0) for i in range(6)]
    lengths = [
        max(keys, least[0] + count),
        *(max(k, low + count) for k, low in zip((67, 90, 35, 70), least[1:], strict=False)),
    ]
    counts = [count] * 5 + [19]
    starts = [max(0, length - count) for length in lengths] + [7]
    dtype = DTYPES[case["dtype"]]
    paged = make_pages(
        starts, counts, kv_heads=1 if case["group"] > 4 else 2, dim=case["dim"], size=case["page"], dtype=dtype,
        device=device, runs=sharing, strided=case["strided"],
    )  # fmt: skip
    q = queries(paged, case["group"], case["strided"])
    if case["pages"] == "fp8":
        paged = in_8_bits(paged)
    out = run(paged, q, window=case["window"])
    wanted = definition(q, paged, case["dim"] ** -0.5, case["window"])
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), wanted, **TOLERANCE[dtype])


@pytest.mark.parametrize("case", pairwise(PARAMETERS), ids=name)
def test_equals_the_definition(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


@pytest.mark.slow
@pytest.mark.parametrize("case", full(PARAMETERS, CROSSED), ids=name)
def test_equals_the_definition_in_every_shape(case: dict[str, Any], device: torch.device) -> None:
    check(case, device)


def mixed(device: torch.device, dtype: torch.dtype = torch.float32, dim: int = 64) -> Paged:
    """Three rows of one group, one of none, a verification of four tokens, a chunk."""
    return make_pages(
        [70, 80, 90, 40, 64, 10], [1, 1, 1, 1, 4, 30], kv_heads=2, dim=dim, size=16, dtype=dtype, device=device,
        runs=[([0, 1, 2], 64)],
    )  # fmt: skip


def plan_of(paged: Paged, **options: Any) -> PagedPlan:
    return build_plan(paged.rows, group=4, tiles=TILES, shared=paged.shared, **options)


def test_a_row_alone_gets_the_bits_it_gets_in_company(device: torch.device) -> None:
    paged = mixed(device)
    q = queries(paged, 4)
    together = run(paged, q, shared=never)
    at = 0
    for i, count in enumerate(paged.rows.counts.tolist()):
        rows = PagedRows(*(x[i : i + 1] for x in (paged.rows.starts, paged.rows.counts, paged.rows.table)))
        alone = run(Paged(rows, paged.k, paged.v, []), q[at : at + count])
        if count * 4 > TILES.narrow or count == 1:  # verification beside decoding may take a taller tile
            assert torch.equal(alone, together[at : at + count])
        at += count


def test_shared_pages_are_read_by_shared_tasks_alone(device: torch.device) -> None:
    plan = plan_of(mixed(device), use_shared=always)
    assert plan.shared.tasks[:, 3:].tolist() == [[0, 32, 32], [32, 64, 64]]
    assert plan.shared.entries[:, 0].tolist() == [0, 1, 2] * 2
    assert sorted(begin for row, begin in plan.narrow.tasks[:, 2:4].tolist() if row < 3) == [64, 64, 64]
    assert plan.merges[:3].tolist() == [[0, 0, 3], [1, 3, 3], [2, 6, 3]]


def test_every_slot_is_written_once_and_the_others_directly(device: torch.device) -> None:
    plan = plan_of(mixed(device), use_shared=always)
    entries = np.concatenate([launch.entries for launch in plan.launches])
    slots = entries[entries[:, 1] != DIRECT, 1]
    assert sorted(slots) == list(range(plan.num_slots))
    direct = entries[entries[:, 1] == DIRECT, 0]
    assert sorted([*direct, *plan.merges[:, 0]]) == list(range(len(plan.positions)))


def test_the_kill_switch_and_a_window_leave_nothing_shared(device: torch.device) -> None:
    assert not len(plan_of(mixed(device), use_shared=never).shared.tasks)
    assert not len(plan_of(mixed(device)).shared.tasks)
    assert not len(plan_of(mixed(device), use_shared=always, window=20).shared.tasks)


def test_a_run_inside_a_rejected_one_takes_over_its_keys(device: torch.device) -> None:
    paged = make_pages(
        [99] * 4, [1] * 4, kv_heads=1, dim=64, size=16, dtype=torch.float32, device=device,
        runs=[([0, 1, 2, 3], 32), ([2, 3], 96)],
    )  # fmt: skip
    plan = plan_of(paged, use_shared=lambda tokens, keys: tokens == 2)
    assert plan.shared.tasks[:, 3:].tolist() == [[0, 32, 32], [32, 64, 64], [64, 96, 96]]
    torch.testing.assert_close(
        run(paged, q := queries(paged, 4), shared=lambda tokens, keys: tokens == 2).double(),
        definition(q, paged, 64**-0.5), **TOLERANCE[torch.float32],
    )  # fmt: skip


def test_cutover_shares_only_between_points_that_all_gained() -> None:
    cutover = Cutover({(2, 512): 0.8, (2, 2048): 1.1, (64, 512): 1.3, (64, 2048): 2.0})
    assert cutover(64, 2048)
    assert cutover(500, 9000)  # beyond the largest, the largest counts
    assert cutover(64, 1000)
    assert not cutover(32, 1000)  # one neighbour lost
    assert cutover(32, 2048)
    assert not cutover(1, 4096)
    assert not cutover(500, 511)
    assert not Cutover({})(500, 9000)


def test_page_offsets_take_64_bits(device: torch.device) -> None:
    """Untouched memory costs nothing: the last page starts beyond 2^31 values."""
    dim, size, apart = 64, 16, 1 << 27
    storage = torch.empty(17 * apart, dtype=torch.float16, device=device)
    paged = make_pages([60], [1], kv_heads=1, dim=dim, size=size, dtype=torch.float16, device=device)
    k, v = (torch.as_strided(storage, (17, 1, size, dim), (apart, 0, dim, 1), offset) for offset in (0, 4096))
    table = np.array([[3, 16, 0, 9]], dtype=np.int32)
    for far, near in ((k, paged.k), (v, paged.v)):
        far[table[0].astype(np.int64)] = near[paged.rows.table[0, :4].astype(np.int64)]
    q = queries(paged, 4)
    rows = PagedRows(paged.rows.starts, paged.rows.counts, table)
    assert torch.equal(run(Paged(rows, k, v, []), q), run(paged, q))


def test_tiles_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="block_n must be a power of two of at least 16, not 24"):
        Tiles(block_n=24)
    with pytest.raises(ValueError, match="split=40 must be a multiple of block_n=16"):
        Tiles(split=40, block_n=16)
