"""What another tenant learns from the shared cache, and what labels cost in hits."""

import random
from collections.abc import Callable

import pytest

from app.engine import LLMEngine, Request, SamplingParams, TokenSegment
from benchmarks.serving import auc
from benchmarks.simulate import ESTIMATED_COST, Engine, Fleet, simulate
from tests.engine.conftest import VOCAB

VICTIM, ATTACKER = frozenset({"victim"}), frozenset({"attacker"})
ONE = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


def probe_auc(engine: LLMEngine, label: frozenset[str], probes: int) -> float:
    """The victim asks with a fresh secret before each probe, half of which guess it. What the attacker sees is the
    work until the first token: tokens computed, and steps."""
    rng = random.Random(3)
    policy = [rng.randrange(VOCAB) for _ in range(20)]

    def ask(secret: list[int], who: frozenset[str]) -> float:
        segments = (TokenSegment(policy), TokenSegment(secret, who), TokenSegment([rng.randrange(VOCAB)], who))
        before = engine.stats()
        engine.generate_requests([Request("r", segments, ONE)])
        after = engine.stats()
        return after.prefill_tokens_computed - before.prefill_tokens_computed + 100.0 * (after.steps - before.steps)

    work: dict[bool, list[float]] = {True: [], False: []}
    for i in range(probes):
        secret, other = ([rng.randrange(VOCAB) for _ in range(rng.randint(40, 70))] for _ in range(2))
        ask(secret, VICTIM)
        guess = secret if i % 2 else other
        work[bool(i % 2)].append(ask(guess, label))
    return auc(work[False], work[True])


@pytest.mark.parametrize("probes", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_another_tenant_cannot_tell_what_was_asked(engine: Callable[..., LLMEngine], probes: int) -> None:
    made = engine(max_num_batched_tokens=32, num_blocks=400)
    spread = 0.05 if probes == 2000 else 0.2  # lengths are random, so that the figure is, too
    assert abs(probe_auc(made, ATTACKER, probes) - 0.5) <= spread
    assert probe_auc(made, VICTIM, probes) > 0.99, "with the victim's own label every right guess shows"


def test_labels_keep_most_hits_of_a_cache_without_them() -> None:
    """20 tenants with 5 matters each, whose documents are the same text to a quarter."""
    mix = {"users": 200, "seconds": 60.0, "think": 10.0, "common_tokens": 256}
    labelled, bare = (
        simulate(Fleet(**mix, labelled=on), ESTIMATED_COST, jobs=1)[0]  # type: ignore[arg-type]
        for on in (True, False)
    )
    shares = [found.hit_tokens / found.prompt_tokens for found in (labelled, bare)]
    assert 0.8 <= shares[0] / shares[1] < 1, shares


def test_simulated_tenants_are_told_apart() -> None:
    engine = Engine(Fleet(users=100, seconds=20, think=5), ESTIMATED_COST, seed=1)
    engine.run()
    labels = engine.scheduler.labels.snapshot()
    assert len(labels) > 60 and frozenset() in labels
