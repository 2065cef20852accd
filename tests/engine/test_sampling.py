"""Sampling against a reference distribution; seeds that do not see the batch; ends."""

from typing import Any

import pytest
import torch

from app.engine import Request, SamplingParams, TokenSegment
from app.engine.request import Sequence
from app.engine.sampler import Filters, _pick, _ranked, sample
from app.engine.sampling_batch import SamplingBatches
from tests.engine.conftest import prompts

DRAWS = 20_000


def reference(
    logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> torch.Tensor:
    """float64, one token at a time, as the definition reads."""
    probs = (logits.double() / temperature).softmax(-1)
    kept, mass = torch.zeros_like(probs), 0.0
    ranked = probs.argsort(descending=True)[: top_k or None]
    ranked = ranked[probs[ranked] >= min_p * probs.max()]
    total = float(probs[ranked].sum())
    for token in ranked:
        if mass / total >= top_p:
            break
        kept[token] = probs[token]
        mass += float(probs[token])
    return kept / kept.sum()


def draw(logits: torch.Tensor, **params: Any) -> torch.Tensor:
    sampling = SamplingParams(**params)
    seqs = [
        Sequence(Request(str(i), (TokenSegment([1]),), sampling), seed=i * 7919, max_tokens=9) for i in range(DRAWS)
    ]
    batch = SamplingBatches(logits.shape[-1], ()).batch(seqs)
    tokens = sample(logits.expand(DRAWS, -1).clone(), batch).tokens
    return torch.bincount(tokens, minlength=logits.shape[-1]).double()


def chi_square(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """In deviations from its mean: about 0 +- 1 when counts are drawn from probs."""
    assert not counts[probs == 0].any()
    expected = (probs * DRAWS)[probs > 0]
    value = float(((counts[probs > 0] - expected) ** 2 / expected).sum())
    freedom = max(1, len(expected) - 1)
    return (value - freedom) / (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 9, "top_p": 0.6},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.2, "min_p": 0.1},
        {"temperature": 1.0, "min_p": 0.05, "top_k": 12, "top_p": 0.9},
    ],
    ids=str,
)
def test_draws_follow_the_reference_distribution(params: dict[str, Any]) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(5)) * 1.5
    wanted = reference(logits, **params)
    counts = draw(logits, **params)
    assert chi_square(counts, wanted) < 5
    if int((wanted > 0).sum()) > 1:  # negative control: a slightly different distribution is noticed
        assert chi_square(counts, reference(logits, params["temperature"] * 1.15, 0, 1.0) * 0.98 + 0.02 / 30) > 5


def test_seed_gives_the_same_tokens_whatever_else_is_in_the_batch(engine) -> None:  # type: ignore[no-untyped-def]
    [mine] = prompts(40)
    seeded = SamplingParams(temperature=1.0, top_p=0.95, seed=11, max_tokens=24, ignore_eos=True)
    noise = SamplingParams(temperature=1.5, max_tokens=30, ignore_eos=True)
    alone = engine().generate([mine], seeded)[0].token_ids
    others = prompts(5, 80, 33, seed=9)
    crowded = engine(max_num_batched_tokens=32, num_blocks=14)
    assert crowded.generate([*others, mine], [noise, noise, noise, seeded])[3].token_ids == alone
    assert crowded.stats().preemptions > 0
    other_seed = SamplingParams(temperature=1.0, top_p=0.95, seed=12, max_tokens=24, ignore_eos=True)
    assert engine().generate([mine], other_seed)[0].token_ids != alone


def test_unseeded_requests_differ(engine) -> None:  # type: ignore[no-untyped-def]
    hot = SamplingParams(temperature=1.5, max_tokens=16, ignore_eos=True)
    one, two = engine().generate(prompts(9) * 2, hot)
    assert one.token_ids != two.token_ids


def test_stop_ids_end_the_output_but_not_before_min_tokens(engine) -> None:  # type: ignore[no-untyped-def]
    [prompt] = prompts(12)
    free = engine().generate([prompt], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))[0]
    end = free.token_ids[3]
    at = free.token_ids.index(end)
    stopped = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, stop_token_ids=(end,))
    [output] = engine().generate([prompt], stopped)
    assert output.token_ids == free.token_ids[: at + 1] and output.finish_reason == "stop"
    late = SamplingParams(temperature=0, max_tokens=20, min_tokens=15, stop_token_ids=(end,))
    [output] = engine().generate([prompt], late)
    assert len(output.token_ids) >= 15 and end not in output.token_ids[:14]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0), ("top_p", 1.1),
        ("max_tokens", 0), ("min_tokens", 999), ("stop", ("",)), ("stop_token_ids", (-1,)), ("seed", -1),
        ("logprobs", 21), ("min_p", 1.5), ("presence_penalty", 2.1), ("frequency_penalty", float("nan")),
        ("repetition_penalty", 0), ("logit_bias", {3: 101}), ("logit_bias", {-1: 1}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ],
)  # fmt: skip
def test_bad_parameters_are_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field.split("_")[0]):
        SamplingParams(**{field: value})


def test_large_vocabulary_ranks_only_what_matters_and_still_follows_the_reference() -> None:
    sharp = torch.randn(600, generator=torch.Generator().manual_seed(1)) * 4
    counts = draw(sharp, temperature=1.0, top_p=0.9)  # within the ranked candidates
    assert chi_square(counts, reference(sharp, 1.0, 0, 0.9)) < 5
    flat = sharp / 40  # beyond them: the whole vocabulary is ranked
    assert chi_square(draw(flat, temperature=1.0, top_p=0.9), reference(flat, 1.0, 0, 0.9)) < 5
    assert chi_square(draw(flat, temperature=1.0, min_p=0.8), reference(flat, 1.0, min_p=0.8)) < 5


def test_filtered_and_free_rows_mix() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2))
    both = [SamplingParams(temperature=1, top_k=1), SamplingParams(temperature=1), SamplingParams(temperature=0)] * 200
    seqs = [Sequence(Request("", (TokenSegment([1]),), p), seed=i, max_tokens=9) for i, p in enumerate(both)]
    tokens = sample(logits.expand(600, -1).clone(), SamplingBatches(40, ()).batch(seqs)).tokens
    best = int(logits.argmax())
    assert set(tokens[0::3].tolist()) == set(tokens[2::3].tolist()) == {best}
    assert len(set(tokens[1::3].tolist())) > 20


@pytest.mark.parametrize("vocab_size", [200, 600])
def test_ranking_everything_as_a_gpu_does_draws_the_same(vocab_size: int) -> None:
    """On a GPU nothing is read back to find out how far a row reaches; only the order of the sums differs."""
    params = [
        SamplingParams(temperature=1.3, top_p=0.97), SamplingParams(temperature=0.7, top_k=9, min_p=0.02),
        SamplingParams(temperature=1.0, min_p=0.3), SamplingParams(temperature=1.0, top_k=300, top_p=0.8),
    ] * 50  # fmt: skip
    seqs = [Sequence(Request("", (TokenSegment([1]),), p), seed=i, max_tokens=9) for i, p in enumerate(params)]
    logits = torch.randn(200, vocab_size, generator=torch.Generator().manual_seed(3)) * 2
    batch = SamplingBatches(vocab_size, ()).batch(seqs)
    by = Filters(batch.top_k, batch.top_p, batch.min_p, batch.uniform, logits.logsumexp(-1))
    assert torch.equal(_pick(*logits.sort(-1, descending=True), by), _ranked(logits, by))
