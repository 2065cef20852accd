"""Whatever happens around a request, its tokens stay: {preemption, chunking, company, prefix cache, speculation} in
every combination, with penalties, logprobs, seeds and schemas, in float32. Different parameters must differ, and each
circumstance must really have happened, or these tests would prove nothing."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.config import REPOSITORY
from app.engine import EngineConfig, Grammar, LLMEngine, Request, RequestOutput, SamplingParams, TokenSegment
from tests.engine.conftest import config, prompts
from tests.engine.test_speculation import SPOIL, always, drafting

__all__ = ["always"]
WISHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalty": {"presence_penalty": 1.2, "frequency_penalty": 0.4, "repetition_penalty": 1.3},
    "logprobs": {"logprobs": 2, "logit_bias": {11: 3.0, 90: 2.0}},
    "seeded": {"temperature": 0.9, "top_p": 0.95, "seed": 17, "logprobs": 0},
}
EVERY = list(itertools.product([False, True], repeat=5))
CIRCUMSTANCES = ("preempted", "chunked", "company", "cached", "drafted")
OTHERS = SamplingParams(temperature=1.3, seed=1, max_tokens=40, ignore_eos=True)


def asked(name: str) -> Request:
    """Three blocks are the same for all of them."""
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 28, "ignore_eos": True} | WISHES[name])
    return Request(name, (TokenSegment([*prompts(50)[0], list(WISHES).index(name)]),), sampling)


def circumstances(*, preempted: bool, chunked: bool, cached: bool, drafted: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"enable_prefix_cache": cached, "max_num_seqs": 8, "max_draft_tokens": 8 if drafted else 0}
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


def check(
    engine: LLMEngine, mine: list[Request], others: list[Request], alone: dict[str, RequestOutput],
    happened: dict[str, bool], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    known = {tuple(one.prompt_token_ids): alone[one.request_id].token_ids for one in mine}
    drafting(monkeypatch, known, SPOIL["mixed"])
    for _ in range(2):  # the second time the prompt is in the cache, where there is one
        outputs = {output.request_id: output for output in engine.generate_requests([*others, *mine])}
        for name, wanted in alone.items():
            assert same(outputs[name], wanted), name
    stats = engine.stats()
    found = {"preempted": stats.preemptions, "cached": stats.prefix_hit_tokens, "drafted": stats.draft_tokens_accepted}
    assert {name: count > 0 for name, count in found.items()} == {name: happened[name] for name in found}
    assert engine.pool.used == 0 and engine.pool.is_consistent()


@pytest.mark.parametrize(CIRCUMSTANCES, EVERY)
@pytest.mark.usefixtures("always")
def test_tokens_are_the_same_in_every_combination(
    preempted: bool, chunked: bool, company: bool, cached: bool, drafted: bool,
    llama: Path, alone: dict[str, RequestOutput], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    happened = {"preempted": preempted, "chunked": chunked, "cached": cached, "drafted": drafted}
    engine = LLMEngine(config(llama, **circumstances(**happened)))
    others = [Request(f"other {i}", (TokenSegment(p),), OTHERS) for i, p in enumerate(prompts(9, 33, 60, seed=4))]
    mine = [asked(name) for name in WISHES]
    check(engine, mine, others if company else [], alone, happened, monkeypatch)


DEMO = EngineConfig(REPOSITORY / "demo" / "model", dtype="float32", threads=1, max_model_len=128, num_blocks=256)
SCHEMAS: dict[str, dict[str, Any]] = {
    "party": {"party": {"enum": ["landlord", "tenant"]}, "months": {"type": "integer", "minimum": 1, "maximum": 24}},
    "sum": {"sum": {"type": "integer", "minimum": 100, "maximum": 999}, "paid": {"type": "boolean"}},
    "names": {"names": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 2, "maxItems": 2}},
}


def structured(engine: LLMEngine, name: str) -> Request:
    """Hot, so that without the schema it would not be followed (test_grammar.py)."""
    assert engine.tokenizer is not None
    prompt = engine.tokenizer.encode("Who may end the lease, and when? Say it in JSON. " * 3 + name)
    fields = SCHEMAS[name]
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    sampling = SamplingParams(temperature=2.0, seed=5, max_tokens=56, logprobs=0)
    return Request(name, (TokenSegment(prompt),), sampling, grammar=Grammar("json_schema", schema))


@pytest.fixture(scope="module")
def structured_alone() -> dict[str, RequestOutput]:
    engine = LLMEngine(DEMO)
    found = {name: engine.generate_requests([structured(engine, name)])[0] for name in SCHEMAS}
    assert len({tuple(o.token_ids) for o in found.values()}) == len(SCHEMAS), "different schemas, other tokens"
    return found


@pytest.mark.parametrize(
    CIRCUMSTANCES, [pytest.param(*one, marks=() if sum(one) in (0, 1, 5) else pytest.mark.slow) for one in EVERY]
)
@pytest.mark.usefixtures("always")
def test_structured_output_is_the_same_in_every_combination(
    preempted: bool, chunked: bool, company: bool, cached: bool, drafted: bool,
    structured_alone: dict[str, RequestOutput], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    happened = {"preempted": preempted, "chunked": chunked, "cached": cached, "drafted": drafted}
    engine = LLMEngine(replace(DEMO, **{"num_blocks": 256} | circumstances(**happened)))
    others = [Request(f"other {i}", (TokenSegment(p),), OTHERS) for i, p in enumerate(prompts(9, 33, 60, seed=4))]
    mine = [structured(engine, name) for name in SCHEMAS]
    check(engine, mine, others if company else [], structured_alone, happened, monkeypatch)
