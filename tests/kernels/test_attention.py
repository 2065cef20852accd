"""Attention over pages against a float64 reference that knows no parts: mixed rows, shared prefixes, windows."""

import itertools

import pytest
import torch

from app.engine.batch import build_batch
from app.engine.prefix import prefix_groups
from app.engine.request import Request, Sequence, TokenSegment
from app.engine.schedule import Schedule, ScheduledRow
from app.kernels.fp8 import E4M3, LARGEST, encoded, widened
from app.kernels.pages import KVPages
from app.kernels.reference import attend, dense_attention, merge_lse, paged_attention, rotate, store_kv

SIZE = 4
# (context length, tokens of this step, leading blocks taken from the shared ones)
ROWS = [(41, 1, 8), (0, 1, 0), (33, 1, 8), (47, 1, 0), (36, 9, 8), (0, 23, 0), (18, 40, 4), (5, 3, 0), (32, 2, 8),
        (37, 4, 8), (3, 5, 0), (33, 6, 8), (8, 7, 0), (40, 8, 8)]  # fmt: skip


def make_rows(scattered: bool) -> tuple[list[ScheduledRow], int]:
    """Sequences over the first blocks of the pool, or over every fifth one."""
    ids = itertools.count(0, 5 if scattered else 1)
    shared = [next(ids) for _ in range(8)]
    rows = []
    for context, count, leading in sorted(ROWS, key=lambda row: row[1] > 1):
        seq = Sequence(Request("", (TokenSegment([1] * (context + count)),)), 0, 1)
        blocks = -(-(context + count) // SIZE)
        seq.block_ids = shared[:leading] + [next(ids) for _ in range(blocks - leading)]
        rows.append(ScheduledRow(seq, context, count))
    return rows, next(ids)


def naive(q: torch.Tensor, pages: tuple[torch.Tensor, torch.Tensor], rows: list[ScheduledRow], window: int | None,
          scale: float) -> torch.Tensor:  # fmt: skip
    out, at = torch.empty_like(q, dtype=torch.float64), 0
    group = q.shape[1] // pages[0].shape[1]
    for row in rows:
        keys, values = (p[row.seq.block_ids].transpose(1, 2).flatten(0, 1).double() for p in pages)
        for position in range(row.start, row.start + row.num_tokens):
            low = 0 if window is None else max(0, position - window + 1)
            k, v = (x[low : position + 1].repeat_interleave(group, 1) for x in (keys, values))
            weights = torch.einsum("hd,lhd->hl", q[at].double() * scale, k).softmax(-1)
            out[at] = torch.einsum("hl,lhd->hd", weights, v)
            at += 1
    return out


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(4, 4, 8), (4, 2, 16), (8, 1, 64), (3, 1, 24), (6, 2, 96), (4, 1, 128)]
)
@pytest.mark.parametrize("window", [None, 6, 30])
@pytest.mark.parametrize("scattered", [False, True])
def test_paged_attention_equals_the_definition(
    heads: int, kv_heads: int, dim: int, window: int | None, scattered: bool
) -> None:
    torch.manual_seed(0)
    rows, num_blocks = make_rows(scattered)
    groups, covered = prefix_groups([row.seq.block_ids[: row.start // SIZE] for row in rows])
    assert len(groups) >= 2
    batch = build_batch(Schedule(rows, groups, covered), block_size=SIZE, num_kv_heads=kv_heads, windows={window})
    used = sorted({block for row in rows for block in row.seq.block_ids})
    pages = tuple(torch.full((num_blocks, kv_heads, SIZE, dim), float("nan")) for _ in range(2))
    for page in pages:  # pages of nobody stay NaN: they must not be looked at
        page[used] = torch.randn(len(used), kv_heads, SIZE, dim)
    tokens = sum(row.num_tokens for row in rows)
    q, k, v = torch.randn(tokens, heads, dim), torch.randn(tokens, kv_heads, dim), torch.randn(tokens, kv_heads, dim)
    store_kv(k, v, *pages, batch.kv_rows)
    out = paged_attention(q, k, v, *pages, batch.plans[window], dim**-0.5)
    torch.testing.assert_close(out.double(), naive(q, pages, rows, window, dim**-0.5), atol=2e-6, rtol=2e-5)
    if window is not None:  # negative control: one key more or less would be seen
        assert not torch.allclose(out.double(), naive(q, pages, rows, window + 1, dim**-0.5), atol=2e-6, rtol=2e-5)


def test_merged_parts_equal_the_whole_and_an_empty_part_changes_nothing() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 8), torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    whole, whole_lse = dense_attention(q, k, v)
    out, lse = dense_attention(q[:, :, :], k[:, :7], v[:, :7])
    rest, rest_lse = dense_attention(q, k[:, 7:], v[:, 7:])
    none = torch.zeros(2, 1, 12, dtype=torch.bool)
    empty, empty_lse = dense_attention(q, k, v, lambda start, stop: (none, (0, 12)))
    out, lse, everything = out.transpose(0, 1).contiguous(), lse.T.contiguous(), torch.arange(5)
    merge_lse(out, lse, everything, rest.transpose(0, 1), rest_lse.T)
    merge_lse(out, lse, everything, empty.transpose(0, 1), empty_lse.T)
    torch.testing.assert_close(out, whole.transpose(0, 1))
    torch.testing.assert_close(lse, whole_lse.T)


def test_rotate_turns_pairs_of_halves() -> None:
    x, angle = torch.randn(3, 2, 8), torch.randn(3, 1, 4)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, -1)
    wanted = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    torch.testing.assert_close(rotate(x, torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)), wanted)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_in_8_bits_are_the_numbers_that_their_codes_stand_for(dtype: torch.dtype, window: int | None) -> None:
    torch.manual_seed(0)
    heads, kv_heads, dim = 4, 2, 16
    rows, num_blocks = make_rows(scattered=True)
    groups, covered = prefix_groups([row.seq.block_ids[: row.start // SIZE] for row in rows])
    batch = build_batch(Schedule(rows, groups, covered), block_size=SIZE, num_kv_heads=kv_heads, windows={window})
    used = sorted({block for row in rows for block in row.seq.block_ids})
    scales = torch.tensor([0.5, 2.0]), torch.tensor([0.125, 1.0])
    codes = torch.zeros(2, num_blocks, kv_heads, SIZE, dim).to(E4M3)
    codes.view(torch.uint8)[:, used] = torch.randn(2, len(used), kv_heads, SIZE, dim).to(E4M3).view(torch.uint8)
    tokens = sum(row.num_tokens for row in rows)
    q, k, v = (torch.randn(tokens, n, dim).to(dtype) for n in (heads, kv_heads, kv_heads))
    pages = KVPages(codes[0], codes[1], scales)
    out = attend(q, k, v, pages, batch.kv_rows, batch.plans[window], dim**-0.5)
    numbers = tuple(x.float() * scale[:, None, None] for x, scale in zip(codes, scales, strict=True))
    tolerance = {"atol": 2e-6, "rtol": 2e-5} if dtype is torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    wanted = naive(q.float(), numbers, rows, window, dim**-0.5)  # with this step's own keys and values as stored
    torch.testing.assert_close(out.double(), wanted, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code_is_widened_exactly(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)
    known = ~codes.float().isnan()
    assert int(known.sum()) == 254
    assert torch.equal(widened(codes, dtype)[known], codes.to(dtype)[known])
    assert torch.equal(encoded(widened(codes, torch.float32)[known], torch.tensor(1.0)).float(), codes.float()[known])
    assert float(encoded(torch.tensor(1e9), torch.tensor(1.0))) == LARGEST
