"""Greedy tokens equal transformers' in float32: every family, chunked, preempted, cached and not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine import LLMEngine, SamplingParams
from tests.engine.conftest import FAMILIES, config, prompts

GREEDY = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True, logprobs=0)
Checkpoint = Callable[[str], tuple[Path, Any]]
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no cache": {"enable_prefix_cache": False},
    "chunked": {"max_num_batched_tokens": 24},
    "preempting": {"num_blocks": 16, "max_num_batched_tokens": 48},
    "blocks of 8": {"block_size": 8, "max_num_batched_tokens": 100},
    "two at once": {"max_num_seqs": 2},
}


def mixed_prompts() -> list[list[int]]:
    made = prompts(3, 17, 40, 100, 65)
    return [*made, [*made[3][:64], 5, 6, 7], [*made[3][:64], 9]]


@torch.no_grad()
def reference(model: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation by transformers' own forward, with its own cache."""
    tokens, cache, out = torch.tensor([prompt]), None, []
    for _ in range(count):
        result = model(tokens, past_key_values=cache, use_cache=True)
        cache, tokens = result.past_key_values, result.logits[:, -1:].argmax(-1)
        out.append(int(tokens))
    return out


@pytest.fixture(scope="module")
def expected(checkpoint: Checkpoint) -> Callable[[str], list[list[int]]]:
    known: dict[str, list[list[int]]] = {}

    def get(family: str) -> list[list[int]]:
        if family not in known:
            model = checkpoint(family)[1]
            known[family] = [reference(model, prompt, 64) for prompt in mixed_prompts()]
        return known[family]

    return get


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(
    family: str, settings: dict[str, Any], checkpoint: Checkpoint, expected: Callable[[str], list[list[int]]]
) -> None:
    engine = LLMEngine(config(checkpoint(family)[0], **settings))
    outputs = engine.generate(mixed_prompts(), GREEDY)
    assert [output.token_ids for output in outputs] == expected(family)
    stats = engine.stats()
    assert engine.pool.is_consistent() and stats.used_blocks == 0
    assert (stats.preemptions > 0) == ("num_blocks" in settings)
    if settings.get("enable_prefix_cache", True):
        warm = engine.generate(mixed_prompts(), GREEDY)
        assert [output.token_ids for output in warm] == expected(family)
        assert engine.stats().prefix_hit_tokens > stats.prefix_hit_tokens
    else:
        assert stats.prefix_hit_tokens == 0 == stats.cached_blocks


def test_parity_notices_another_epsilon(checkpoint: Checkpoint, expected: Any, tmp_path: Path) -> None:
    """Negative control: the same weights with another constant give other tokens."""
    shutil.copytree(checkpoint("llama")[0], tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.3}))
    outputs = LLMEngine(config(tmp_path / "other")).generate(mixed_prompts(), GREEDY)
    assert [output.token_ids for output in outputs] != expected("llama")


def test_logprobs_equal_transformers(checkpoint: Checkpoint) -> None:
    folder, model = checkpoint("qwen3")
    [prompt] = prompts(30)
    [output] = LLMEngine(config(folder, max_num_batched_tokens=8)).generate([prompt], GREEDY)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output.token_ids])).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids)[:, None]).squeeze(1)
    assert output.logprobs == pytest.approx(wanted.tolist(), abs=1e-3)


def test_bfloat16_follows_float32_until_a_near_tie(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("llama")
    [prompt] = prompts(80)
    short = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=0)
    exact, rounded = (
        LLMEngine(config(folder, dtype=dtype)).generate([prompt], short)[0] for dtype in ("float32", "bfloat16")
    )
    assert exact.logprobs is not None and rounded.logprobs is not None
    assert rounded.token_ids == exact.token_ids
    assert rounded.logprobs[0] == pytest.approx(exact.logprobs[0], abs=0.3)
