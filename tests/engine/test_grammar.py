"""Structured output: what a hot, random sample writes still parses; what cannot compile is refused at admission."""

import asyncio
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from app.config import REPOSITORY
from app.engine import AsyncEngine, EngineConfig, Grammar, LLMEngine, Request, SamplingParams, TokenSegment
from app.errors import InvalidRequest

SCHEMA = {
    "type": "object",
    "properties": {
        "party": {"enum": ["landlord", "tenant"]},
        "months": {"type": "integer", "minimum": 1, "maximum": 24},
        "notice": {"type": "boolean"},
    },
    "required": ["party", "months", "notice"],
    "additionalProperties": False,
}
CONFIG = EngineConfig(REPOSITORY / "demo" / "model", dtype="float32", threads=1, max_model_len=512, num_blocks=256)


@pytest.fixture(scope="module")
def demo() -> LLMEngine:
    return LLMEngine(CONFIG)


def ask(engine: LLMEngine, grammar: Grammar | None, seed: int = 0, **more: Any) -> Request:
    assert engine.tokenizer is not None
    prompt = TokenSegment(engine.tokenizer.encode("Who may end the lease?"))
    sampling = SamplingParams(**{"temperature": 3.0, "max_tokens": 200, "seed": seed} | more)
    return Request(f"{grammar}/{seed}/{more}", (prompt,), sampling, grammar=grammar)


def fits(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return set(value) == set(SCHEMA["required"]) and value["party"] in ("landlord", "tenant") and value["months"] > 0


def test_output_follows_the_schema_in_any_company(demo: LLMEngine) -> None:
    schema = Grammar("json_schema", SCHEMA)
    free = [ask(demo, None, seed) for seed in range(3)]
    outputs = demo.generate_requests([*free, *(ask(demo, schema, seed) for seed in range(6))])
    assert all(output.finish_reason == "stop" and fits(output.text) for output in outputs[3:])
    assert not any(fits(output.text) for output in outputs[:3]), "negative control: without it they do not"
    alone = [demo.generate_requests([ask(demo, schema, seed)])[0].token_ids for seed in range(6)]
    assert [output.token_ids for output in outputs[3:]] == alone
    small = LLMEngine(
        EngineConfig(CONFIG.model, dtype="float32", threads=1, max_model_len=80, num_blocks=6, max_num_batched_tokens=8)
    )
    assert [o.token_ids for o in small.generate_requests([ask(small, schema, seed) for seed in range(6)])] == alone
    assert small.stats().preemptions > 0


def test_choice_regex_and_json_object(demo: LLMEngine) -> None:
    choice, regex = Grammar("choice", ('say "yes"', "no")), Grammar("regex", r"[A-Z]{3}-\d{2,4}")
    outputs = demo.generate_requests([ask(demo, g, seed) for g in (choice, regex) for seed in range(3)])
    assert {output.text for output in outputs[:3]} <= {'say "yes"', "no"}
    assert all(re.fullmatch(r"[A-Z]{3}-\d{2,4}", output.text) for output in outputs[3:])
    [output] = demo.generate_requests([ask(demo, Grammar("json_object"), temperature=0.0, max_tokens=300)])
    assert output.text.startswith("{")
    assert output.finish_reason == "length" or isinstance(json.loads(output.text), dict)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar("json_schema", {"type": "strin"}), "cannot be compiled"),
        (Grammar("json_schema", "text"), "must be an object"),
        (Grammar("regex", "(yes"), "cannot be compiled"),
        (Grammar("choice", ()), "at least one string"),
        (Grammar("regex", "a" * 70_000), "longer than 65536 bytes"),
    ],
)
def test_bad_grammar_is_refused_at_admission_and_hurts_nobody(demo: LLMEngine, grammar: Grammar, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        demo.generate_requests([ask(demo, None), ask(demo, grammar)])
    assert refused.value.param == "response_format" and not demo.has_work
    for more in ({"ignore_eos": True}, {"min_tokens": 3}):
        with pytest.raises(InvalidRequest, match="cannot be combined"):
            demo.generate_requests([ask(demo, Grammar("json_object"), **more)])


def test_grammar_streams_and_is_checked_before_the_stream() -> None:
    async def main() -> None:
        engine = AsyncEngine(CONFIG)
        await engine.start()
        try:
            with pytest.raises(InvalidRequest):
                engine.generate(ask(engine.engine, Grammar("regex", "(")))
            text = ""
            async for delta in engine.generate(ask(engine.engine, Grammar("json_schema", SCHEMA))):
                text += delta.text
            assert fits(text) and engine.healthy
        finally:
            await engine.stop()

    asyncio.run(main())


def test_grammar_and_quote_lock_together_allow_what_both_allow(demo: LLMEngine) -> None:
    request = ask(demo, Grammar("regex", r'It says "[a-z ]+"\.'))
    [output] = demo.generate_requests([replace(request, quote_sources=("the rent is due",))])
    quoted = output.text.partition('"')[2].partition('"')[0]
    assert quoted and quoted in "the rent is due"
