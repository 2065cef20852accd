"""Draft verification against its reference, and its losslessness by chi-square with a negative control."""

import pytest
import torch
from torch import Tensor

from app.kernels.rejection import rejection_sample, rejection_sample_reference

CRITICAL = 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def drafts(rows: int, most: int, vocab: int, device: torch.device) -> dict[str, Tensor]:
    counts = torch.randint(0, most + 1, (rows,), dtype=torch.int32)
    firsts = (torch.cumsum(counts + 1, 0) - counts - 1).int()
    likely = torch.randn(vocab).mul(6)
    target = (likely + torch.randn(int((counts + 1).sum()), vocab)).softmax(-1)
    draft = (likely + torch.randn(rows, most, vocab)).softmax(-1)
    made = {
        "target": target,
        "firsts": firsts,
        "draft_tokens": draft.flatten(0, 1).multinomial(1).view(rows, most),
        "counts": counts,
        "draft": draft,
        "accept_uniform": torch.rand(rows, most, dtype=torch.float64),
        "draw_uniform": torch.rand(rows, dtype=torch.float64),
    }
    return {key: value.to(device) for key, value in made.items()}


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("vocab", [10, 1024, 2500])
@pytest.mark.parametrize("drawn", [False, True])
def test_equals_the_reference(most: int, vocab: int, drawn: bool, device: torch.device) -> None:
    case = drafts(12, most, vocab, device)
    chosen = case | ({} if drawn else {"draft": None})
    tokens, accepted = rejection_sample(**chosen)
    wanted, wanted_accepted = rejection_sample_reference(
        **{k: v.cpu() if v is not None else v for k, v in chosen.items()}
    )
    assert torch.equal(tokens.cpu(), wanted)
    assert torch.equal(accepted.cpu(), wanted_accepted)
    if most > 2:
        assert accepted.any()
        assert (accepted < case["counts"]).any()


def test_a_draft_that_is_certain_is_kept_and_an_impossible_one_never(device: torch.device) -> None:
    case = drafts(2, 2, 10, device)
    case["counts"][:] = 2
    case["firsts"][1] = 3
    target = torch.zeros(6, 10, device=device)
    target[:3].scatter_(1, torch.tensor([[4], [5], [6]], device=device), 1.0)
    target[3:, 7] = 1.0
    case |= {"target": target, "draft_tokens": torch.tensor([[4, 5], [4, 5]], device=device)}
    tokens, accepted = rejection_sample(**case | {"draft": None})
    assert tokens.tolist() == [[4, 5, 6], [7, -1, -1]]
    assert accepted.tolist() == [2, 0]


def frequencies(num: int, acceptance: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Counts of the first token over `num` rows, and what the target says. acceptance scales u: 1 is right."""
    p, q = torch.randn(5).softmax(-1), torch.randn(5).softmax(-1)
    tokens, _ = rejection_sample(
        p.expand(num * 2, 5).contiguous().to(device),
        (2 * torch.arange(num, dtype=torch.int32)).to(device),
        q.multinomial(num, replacement=True).view(num, 1).to(device),
        torch.ones(num, dtype=torch.int32, device=device),
        q.expand(num, 1, 5).contiguous().to(device),
        torch.rand(num, 1, dtype=torch.float64).mul(acceptance).to(device),
        torch.rand(num, dtype=torch.float64).to(device),
    )
    return torch.bincount(tokens[:, 0].cpu(), minlength=5).double(), p.double()


@pytest.mark.parametrize(("acceptance", "lossless"), [(1.0, True), (0.4, False)])
def test_first_tokens_follow_the_target(acceptance: float, lossless: bool, device: torch.device) -> None:
    num = 400
    found, p = frequencies(num, acceptance, device)
    chi_square = float(((found - num * p) ** 2 / (num * p)).sum())
    assert (chi_square < CRITICAL) == lossless
