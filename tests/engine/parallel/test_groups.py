"""What ranks exchange, between threads of one process: a group belongs to nobody's default."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F

from app.engine.parallel.group import Alone
from app.engine.parallel.layout import Layout
from app.engine.parallel.peers import Peers
from app.engine.parallel.tensor import TensorGroup
from app.engine.parallel.wire import Clear, dumps, read

T = TypeVar("T")
CPU = torch.device("cpu")


class NobodyThere(Exception):
    pass


def peers(store: Path, rank: int, size: int, timeout_s: float = 20.0) -> Peers:
    return Peers(store, "test", rank, size, CPU, timeout_s, lambda error: NobodyThere(str(error)))


def everywhere(store: Path, size: int, do: Callable[[Peers], T]) -> list[T]:
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: do(peers(store, rank, size)), range(size)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_equal_bits_on_every_rank(tmp_path: Path, dtype: torch.dtype) -> None:
    parts = [torch.randn(7, 33, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)]
    found = everywhere(tmp_path / "store", 3, lambda us: us.sum(parts[us.rank].clone()))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert torch.allclose(
        found[0].float(), sum(part.float() for part in parts), atol=1e-5 if dtype.itemsize > 2 else 0.1
    )


@pytest.mark.parametrize("size", [2, 3])
def test_a_split_vocabulary_embeds_and_predicts_as_a_whole_one(tmp_path: Path, size: int) -> None:
    table, tokens, x = torch.randn(11, 4), torch.tensor([0, 10, 3, 5, 6, 0]), torch.randn(2, 4)
    rows = Layout(size).vocab_rows(11)
    starts = [sum(rows[:rank]) for rank in range(size)]
    assert max(rows) - min(rows) == 1, "uneven"

    def ask(us: Peers) -> tuple[torch.Tensor, torch.Tensor]:
        group, mine = TensorGroup(us, rows), table[starts[us.rank] : starts[us.rank] + rows[us.rank]]
        return group.embed(tokens, mine), group.gather(F.linear(x, mine))

    found = everywhere(tmp_path / "store", size, ask)
    alone = Alone()
    assert all(torch.equal(embedded, alone.embed(tokens, table)) for embedded, _ in found)
    assert torch.allclose(found[0][1], alone.gather(F.linear(x, table)))


def test_a_rank_that_never_comes_is_said(tmp_path: Path) -> None:
    with pytest.raises(NobodyThere):
        peers(tmp_path / "store", 0, 2, timeout_s=0.3)


def test_a_rank_that_is_silent_is_said(tmp_path: Path) -> None:
    def ask(us: Peers) -> str:
        if us.rank == 1:
            return "silent"
        with pytest.raises(NobodyThere, match=r"(?i)timed out"):
            us.receive(torch.empty(3), 1)
        return "said"

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda rank: peers(tmp_path / "store", rank, 2, timeout_s=0.5), range(2)))
    assert [ask(us) for us in both] == ["said", "silent"]


def test_messages_arrive_as_they_were_sent(tmp_path: Path) -> None:
    pages = torch.arange(24, dtype=torch.int32).view(4, 6)[:, ::2]
    path = tmp_path / "pipe"
    path.write_bytes(dumps({"pages": pages, "mask": torch.tensor([True, False])}) + dumps(Clear([3, 1])))
    with path.open("rb") as pipe:
        first = read(pipe)
        assert torch.equal(first["pages"], pages) and first["pages"].dtype is torch.int32
        assert torch.equal(first["mask"], torch.tensor([True, False]))
        assert read(pipe) == Clear([3, 1])
        with pytest.raises(EOFError):
            read(pipe)
