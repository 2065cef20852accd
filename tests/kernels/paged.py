"""Pages, page tables and the definition of attention over them in float64, for tests of the kernels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from app.kernels.fp8 import encoded
from app.kernels.pages import KVPages
from app.kernels.shared_prefix import SharedRun
from app.kernels.tasks import PagedRows


@dataclass
class Paged:
    """Rows with their pages; what no row owns, or owns and has not written, is NaN.

    k, v: the numbers; pages: the same as kernels take them.
    """

    rows: PagedRows
    k: Tensor
    v: Tensor
    shared: list[SharedRun]
    codes: KVPages | None = None

    @property
    def pages(self) -> KVPages:
        return self.codes or KVPages(self.k, self.v)

    @property
    def lengths(self) -> list[int]:
        return (self.rows.starts + self.rows.counts).tolist()


def make_pages(
    starts: list[int], counts: list[int], *, kv_heads: int, dim: int, size: int, dtype: torch.dtype,
    device: torch.device, runs: list[tuple[list[int], int]] | None = None, strided: bool = False,
) -> Paged:  # fmt: skip
    """runs: (rows, keys) whose first `keys` keys lie in common pages; an inner run follows the one around it."""
    lengths = np.add(starts, counts)
    places = int(-(-lengths.max() // size)) + 1
    ids = np.random.default_rng(0).permutation(len(starts) * places + 3)
    table = ids[: len(starts) * places].reshape(len(starts), places).astype(np.int32)
    shared, first = [], dict.fromkeys(range(len(starts)), 0)
    for members, keys in runs or []:
        table[members, : keys // size] = table[members[0], : keys // size]
        shared.append(SharedRun(np.array(members, dtype=np.int32), first[members[0]], keys))
        first.update(dict.fromkeys(members, keys))
    k, v = (torch.full((len(ids), kv_heads, size, dim), float("nan"), dtype=dtype, device=device) for _ in range(2))
    for row, length in enumerate(lengths.tolist()):
        for pages in (k, v):
            new = torch.randn(length, kv_heads, dim, device=device).to(dtype)
            write(pages, torch.from_numpy(table[row].astype(np.int64)).to(device), new)
    if strided:  # keys and values of a page beside each other, as one tensor
        both = torch.stack([k, v], 1)
        k, v = both[:, 0], both[:, 1]
    rows = PagedRows(np.array(starts, dtype=np.int32), np.array(counts, dtype=np.int32), table)
    return Paged(rows, k, v, shared)


def in_8_bits(paged: Paged) -> Paged:
    """With a scale of its own for each head, of keys and of values."""
    heads = paged.k.shape[1]
    scales = tuple(torch.rand(2, heads, device=paged.k.device) + 0.5)
    by_head = [scale[:, None, None] for scale in scales]
    codes = [encoded(x, scale) for x, scale in zip((paged.k, paged.v), by_head, strict=True)]
    k, v = (x.float() * scale for x, scale in zip(codes, by_head, strict=True))
    return Paged(paged.rows, k, v, paged.shared, KVPages(*codes, (scales[0], scales[1])))


def write(pages: Tensor, table: Tensor, new: Tensor) -> None:
    """new [L, K, D] into a row's pages, but what is written already stays."""
    place = torch.arange(len(new), device=new.device)
    where = table[place // pages.shape[2]], slice(None), place % pages.shape[2]
    pages[where] = torch.where(pages[where].isnan(), new, pages[where])


def definition(q: Tensor, paged: Paged, scale: float, window: int | None = None) -> Tensor:
    """float64 [T, H, D], row by row and with no thought of speed."""
    out, at = [], 0
    group = q.shape[1] // paged.k.shape[1]
    for i, (start, count) in enumerate(zip(paged.rows.starts.tolist(), paged.rows.counts.tolist(), strict=True)):
        table = torch.from_numpy(paged.rows.table[i].astype(np.int64)).to(q.device)
        k, v = (p[table].transpose(1, 2).flatten(0, 1)[: start + count].double() for p in (paged.k, paged.v))
        ages = torch.arange(start, start + count)[:, None] - torch.arange(start + count)
        seen = (ages >= 0) & (ages < (window or start + count + 1))
        scores = torch.einsum("qhd,lhd->hql", q[at : at + count].double() * scale, k.repeat_interleave(group, 1))
        weights = scores.masked_fill(~seen.to(q.device), float("-inf")).softmax(-1)
        out.append(torch.einsum("hql,lhd->qhd", weights, v.repeat_interleave(group, 1)))
        at += count
    return torch.cat(out)
