"""Whatever happens around a request, its tokens stay: {preemption, chunking, company, prefix cache} in every
combination, with penalties, logprobs and seeds, in float32 (schemas: test_grammar.py). Different parameters must
differ, and each circumstance must really have happened, or these tests would prove nothing."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from app.engine import LLMEngine, Request, RequestOutput, SamplingParams, TokenSegment
from tests.engine.conftest import config, prompts

WISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalty": {"presence_penalty": 1.2, "frequency_penalty": 0.4, "repetition_penalty": 1.3},
    "logprobs": {"logprobs": 2, "logit_bias": {11: 3.0, 90: 2.0}},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 17, "logprobs": 0},
}
EVERY = list(itertools.product([False, True], repeat=4))
OTHERS = SamplingParams(temperature=1.3, seed=1, max_tokens=40, ignore_eos=True)


def asked(name: str) -> Request:
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 28, "ignore_eos": True} | WISHES[name])
    return Request(name, (TokenSegment(prompts(50)[0]),), sampling)


def circumstances(*, preempted: bool, chunked: bool, cached: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"enable_prefix_cache": cached, "max_num_seqs": 8}
    if preempted:
        made["num_blocks"] = 8
    if chunked:
        made["max_num_batched_tokens"] = 17
    return made


def same(output: RequestOutput, wanted: RequestOutput) -> bool:
    logprobs = None if wanted.logprobs is None else pytest.approx(wanted.logprobs, abs=1e-4)
    return output.token_ids == wanted.token_ids and output.logprobs == logprobs


@pytest.fixture(scope="module")
def alone(llama: Path) -> dict[str, RequestOutput]:
    found = {name: LLMEngine(config(llama)).generate_requests([asked(name)])[0] for name in WISHES}
    assert len({tuple(o.token_ids) for o in found.values()}) == len(WISHES), "different parameters, other tokens"
    return found


@pytest.mark.parametrize(("preempted", "chunked", "company", "cached"), EVERY)
def test_tokens_are_the_same_in_every_combination(
    preempted: bool, chunked: bool, company: bool, cached: bool, llama: Path, alone: dict[str, RequestOutput]
) -> None:
    engine = LLMEngine(config(llama, **circumstances(preempted=preempted, chunked=chunked, cached=cached)))
    others = [Request(f"other {i}", (TokenSegment(p),), OTHERS) for i, p in enumerate(prompts(9, 33, 60, seed=4))]
    mine = [asked(name) for name in WISHES]
    for _ in range(2):  # the second time the prompt is in the cache, where there is one
        together = others + mine if company else mine
        outputs = {output.request_id: output for output in engine.generate_requests(together)}
        for name, wanted in alone.items():
            assert same(outputs[name], wanted), name
    stats = engine.stats()
    assert (stats.preemptions > 0) == preempted and (stats.prefix_hit_tokens > 0) == cached
    assert engine.pool.used == 0 and engine.pool.is_consistent()
