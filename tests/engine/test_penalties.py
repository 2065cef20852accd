"""What is done to the logits before a token is chosen, against transformers and the definitions in float64."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine import LLMEngine, Request, SamplingParams, TokenSegment, choices
from app.engine.admission import split_choices
from app.errors import InvalidRequest
from tests.engine.conftest import VOCAB, config, prompts

Checkpoint = Callable[[str], tuple[Path, Any]]
ASKED: dict[str, dict[str, Any]] = {
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8},
    "negative frequency": {"frequency_penalty": -0.5},
    "repetition": {"repetition_penalty": 1.4},
    "bias": {"logit_bias": {3: 4.0, 9: -100.0, 50: 2.5}},
    "min_tokens": {"min_tokens": 20, "stop_token_ids": tuple(range(0, VOCAB, 2)), "ignore_eos": False},
    "all": {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2, "logit_bias": {5: 3.0}},
}
CIRCUMSTANCES: dict[str, dict[str, Any]] = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 24},
    "preempting": {"num_blocks": 12, "max_num_batched_tokens": 48},
    "no cache": {"enable_prefix_cache": False},
}


def greedy(**asked: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "max_tokens": 32, "ignore_eos": True} | asked)


def adjusted(logits: torch.Tensor, prompt: list[int], output: list[int], params: SamplingParams) -> torch.Tensor:
    """One token at a time, in float64, as the docstring of SamplingParams reads."""
    logits = logits.double().clone()
    for token in {*prompt, *output}:
        r = params.repetition_penalty
        logits[token] = logits[token] / r if logits[token] > 0 else logits[token] * r
    for token in set(output):
        logits[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if len(output) < params.min_tokens:
        logits[[*params.stop_token_ids, 7]] = float("-inf")
    return logits


@torch.no_grad()
def expected(model: Any, prompt: list[int], params: SamplingParams, late: int = 0) -> list[int]:
    """Greedy by transformers' forward; late: tokens of the output that the penalties have not seen yet."""
    output: list[int] = []
    while len(output) < params.max_tokens:
        logits = model(torch.tensor([prompt + output])).logits[0, -1]
        seen = output[: len(output) - late]
        token = int(adjusted(logits, prompt, seen, params).argmax())
        output.append(token)
        if token in params.stop_token_ids or (token == 7 and not params.ignore_eos):
            break
    return output


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED.keys())
def test_greedy_with_penalties_equals_the_definition(asked: dict[str, Any], checkpoint: Checkpoint) -> None:
    folder, model = checkpoint("llama")
    params = greedy(**asked)
    many = prompts(30, 12, 50)
    engine = LLMEngine(config(folder))
    outputs = [output.token_ids for output in engine.generate(many, params)]
    wanted = [expected(model, prompt, params) for prompt in many]
    assert outputs == wanted
    assert outputs != [output.token_ids for output in engine.generate(many, greedy())], "they make a difference"


@pytest.mark.parametrize("name", ["presence", "frequency", "negative frequency", "repetition"])
def test_penalties_see_the_token_of_the_step_before(name: str, checkpoint: Checkpoint) -> None:
    folder, model = checkpoint("llama")
    favoured = {3: 12.0, 9: 12.0, 50: 12.0}  # so that tokens come again soon
    params, many = greedy(logit_bias=favoured, **ASKED[name]), prompts(30, 12, 50)
    outputs = [output.token_ids for output in LLMEngine(config(folder)).generate(many, params)]
    assert outputs == [expected(model, prompt, params) for prompt in many]
    assert outputs != [expected(model, prompt, params, late=1) for prompt in many], "a step late would be noticed"


def test_different_wishes_in_one_batch_change_nothing_in_any_circumstances(llama: Path) -> None:
    wishes = [greedy(logprobs=3), *(greedy(logprobs=2, **asked) for asked in ASKED.values())]
    sampled = [SamplingParams(seed=5, max_tokens=32, ignore_eos=True, min_p=0.02, top_p=0.95, presence_penalty=1.0)]
    [prompt] = prompts(40)
    params = [*wishes, *sampled]
    alone = [LLMEngine(config(llama)).generate([prompt], p)[0] for p in params]
    assert len({tuple(output.token_ids) for output in alone}) == len(alone), "different parameters, different tokens"
    for name, settings in CIRCUMSTANCES.items():
        engine = LLMEngine(config(llama, **settings))
        order = random.Random(name).sample(range(len(params)), len(params))
        for i, output in zip(order, engine.generate([prompt] * len(params), [params[i] for i in order]), strict=True):
            assert output.token_ids == alone[i].token_ids, (name, i)
            assert output.logprobs == (
                None if alone[i].logprobs is None else pytest.approx(alone[i].logprobs, abs=1e-4)
            )
        assert (engine.stats().preemptions > 0) == (name == "preempting")
        assert not engine.runner.sampling._tokens._places, "what was counted for a request goes with it"


def test_top_logprobs_equal_transformers(checkpoint: Checkpoint) -> None:
    folder, model = checkpoint("qwen2")
    one, two = prompts(30, 21)
    asked = [greedy(logprobs=5, max_tokens=6, presence_penalty=1.0), greedy(logprobs=1, max_tokens=6)]
    outputs = LLMEngine(config(folder)).generate([one, two], asked)
    for prompt, params, output in zip([one, two], asked, outputs, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + output.token_ids])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).topk(params.logprobs or 0)
        assert output.top_logprobs is not None and len(output.top_logprobs) == 6
        for got, ids, values in zip(output.top_logprobs, wanted.indices.tolist(), wanted.values.tolist(), strict=True):
            assert [token for token, _ in got] == ids
            assert [value for _, value in got] == pytest.approx(values, abs=1e-3)
    plain = LLMEngine(config(folder)).generate([one], greedy(logprobs=0))[0]
    assert plain.logprobs is not None and plain.top_logprobs is None


def test_choices_share_the_prompt_and_differ_reproducibly(llama: Path) -> None:
    [prompt] = prompts(64)
    hot = SamplingParams(temperature=1.2, seed=4, max_tokens=12, ignore_eos=True)
    request = Request("r", (TokenSegment(prompt),), hot)

    def answers() -> tuple[list[list[int]], LLMEngine]:
        engine = LLMEngine(config(llama))
        return [output.token_ids for output in engine.generate_requests(choices(request, 4))], engine

    first, engine = answers()
    assert len({tuple(tokens) for tokens in first}) == 4
    assert answers()[0] == first
    assert first[0] == LLMEngine(config(llama)).generate([prompt], hot)[0].token_ids, "the first is what n=1 gives"
    assert engine.stats().prefill_tokens_computed == 64 + 3 * 16, "three whole blocks are computed once"
    for count in (0, 65):
        with pytest.raises(InvalidRequest, match="n must be between 1 and 64"):
            split_choices(request, count, engine.limits)


@pytest.mark.parametrize(
    ("asked", "field", "limit"),
    [
        ({"stop_token_ids": (VOCAB,)}, "stop_token_ids", str(VOCAB - 1)),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias", str(VOCAB - 1)),
        ({"min_tokens": 30, "max_tokens": 40}, "min_tokens", "only 24 fit"),
    ],
)
def test_impossible_wishes_name_field_and_limit(llama: Path, asked: Any, field: str, limit: str) -> None:
    engine = LLMEngine(config(llama, max_model_len=64))
    with pytest.raises(InvalidRequest, match=limit) as refused:
        engine.generate(prompts(40), SamplingParams(**asked))
    assert refused.value.param == field and not engine.has_work
