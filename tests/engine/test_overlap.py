"""Overlapped steps give what steps one by one give: the same tokens, ends, logprobs, blocks and hits."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.engine import AsyncEngine, EngineError, LLMEngine, Request, SamplingParams, TokenSegment
from app.engine.request import StepOutput
from tests.engine.conftest import prompts
from tests.engine.test_async_engine import collect, request, run, until

Make = Callable[..., LLMEngine]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "one token": {"max_tokens": 1},
    "sampled": {"temperature": 0.9, "top_p": 0.9, "seed": 5},
    "logprobs": {"temperature": 0.9, "seed": 5, "logprobs": 2},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    "end tokens": {"temperature": 1.5, "seed": 1, "ignore_eos": False, "stop_token_ids": tuple(range(0, 199, 9))},
    "least tokens": {"stop_token_ids": tuple(range(100)), "min_tokens": 5},
}


def pair(make: Make, **settings: Any) -> tuple[LLMEngine, LLMEngine]:
    base = {
        "num_blocks": 60,
        "block_size": 8,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 24,
        "max_draft_tokens": 0,
    } | settings
    return make(**base), make(**base, overlap=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_blocks", [60, 13])
def test_same_outputs(case: str, num_blocks: int, engine: Make) -> None:
    plain, overlapped = pair(engine, num_blocks=num_blocks)
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True} | CASES[case])
    asked = prompts(20, 30, 7, 25, 12, 40)
    for one, other in zip(plain.generate(asked, sampling), overlapped.generate(asked, sampling), strict=True):
        assert other.token_ids == one.token_ids
        assert other.finish_reason == one.finish_reason
        assert other.logprobs == pytest.approx(one.logprobs, abs=1e-4)  # other rows beside it, other rounding
        assert ids(other.top_logprobs) == ids(one.top_logprobs)
    assert overlapped.stats().output_tokens == plain.stats().output_tokens
    if num_blocks == 13 and case == "greedy":
        assert overlapped.stats().preemptions > 0
    assert overlapped.pool.used == 0


def ids(top: list[Any] | None) -> list[list[int]] | None:
    return None if top is None else [[token for token, _ in alternatives] for alternatives in top]


def test_penalized_rows_beside_others(engine: Make) -> None:
    plain, overlapped = pair(engine)
    params = [GREEDY, SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, repetition_penalty=1.5), GREEDY]
    asked = prompts(20, 30, 7)
    assert tokens(overlapped, asked, params) == tokens(plain, asked, params)


def tokens(engine: LLMEngine, asked: list[list[int]], sampling: Any) -> list[list[int]]:
    return [output.token_ids for output in engine.generate(asked, sampling)]


def test_blocks_are_found_again_by_what_was_really_said(engine: Make) -> None:
    plain, overlapped = pair(engine)
    first = tokens(overlapped, prompts(20), GREEDY)
    again = [prompts(20)[0] + first[0]]
    wanted = tokens(plain, again, GREEDY)
    assert tokens(overlapped, again, GREEDY) == wanted
    assert overlapped.stats().prefix_hit_tokens == (20 + len(first[0]) - 1) // 8 * 8


def test_the_host_is_one_step_behind(engine: Make) -> None:
    _, overlapped = pair(engine)
    overlapped.add_request(Request("a", (TokenSegment([1, 2, 3]),), GREEDY))
    assert overlapped.step() == []
    assert overlapped._sequences["a"].tokens[-1] < 0
    assert [len(output.token_ids) for output in overlapped.step()] == [1]
    assert overlapped._sequences["a"].tokens[-2] >= 0


def gather(engine: LLMEngine, outputs: list[StepOutput], said: dict[str, list[int]]) -> None:
    for output in outputs:
        said.setdefault(output.request_id, []).extend(output.token_ids)


@pytest.mark.parametrize("steps", range(1, 8))
def test_an_abort_at_any_step_leaves_the_others_as_they_are(steps: int, engine: Make) -> None:
    plain, overlapped = pair(engine)
    asked = prompts(9, 10, 11)
    wanted = tokens(plain, asked, GREEDY)
    for i, prompt in enumerate(asked):
        overlapped.add_request(Request(str(i), (TokenSegment(prompt),), GREEDY))
    said: dict[str, list[int]] = {}
    for _ in range(steps):
        gather(overlapped, overlapped.step(), said)
    overlapped.abort("1")
    overlapped.add_request(Request("again", (TokenSegment(asked[1]),), GREEDY))
    while overlapped.has_work:
        gather(overlapped, overlapped.step(), said)
    assert [said["0"], said["again"], said["2"]] == wanted
    assert said.get("1", []) == wanted[1][: len(said.get("1", []))]
    assert overlapped.pool.used == 0


def test_an_abort_in_the_last_step_ends_quietly(engine: Make) -> None:
    _, overlapped = pair(engine)
    overlapped.add_request(Request("a", (TokenSegment([1, 2, 3]),), GREEDY))
    overlapped.step()
    overlapped.step()
    assert overlapped.abort("a") is not None
    assert not overlapped.has_work
    assert overlapped.step() == []
    assert tokens(overlapped, [[1, 2, 3]], GREEDY) == tokens(pair(engine)[0], [[1, 2, 3]], GREEDY)


class _Lost:
    """A launched step whose results never come: what a CUDA error looks like from the host."""

    def wait(self) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_device_error_fails_every_waiter_and_gives_memory_back(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(collect(engine.generate(request(p, max_tokens=400)))) for p in prompts(9, 30)]
        await until(lambda: engine.stats().running == 2)
        failed = engine.engine
        failed.runner.launch = lambda schedule: _Lost()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, EngineError) and r.retryable and "CUDA error" in str(r) for r in results)
        assert not engine.healthy
        assert failed.pool.used == 0
        assert failed.pool.is_consistent()
        await until(lambda: engine.healthy)
        assert len(await collect(engine.generate(request([1, 2], max_tokens=3)))) == 3

    run(llama, scenario, restart_backoff_s=0.2, overlap=True, max_draft_tokens=0)
