"""Greedy tokens of several ranks equal those of one, in float32, whatever the scheduler does meanwhile.

Sums over ranks are rounded in another order, so log probabilities differ in their last digits (1e-5 here) and a near
tie could fall the other way. None does on these models. A pipeline adds nothing in another order, but which drafts are
tried depends on the clock, and last digits on the batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engine import LLMEngine, Request, RequestOutput, SamplingParams, TokenSegment
from tests.engine.conftest import FAMILIES, config, make_model, prompts
from tests.engine.quantized_checkpoints import make_checkpoint
from tests.engine.test_quantized import CASES

Checkpoint = Callable[[str], tuple[Path, Any]]
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=2)
TENSOR, PIPELINE, BOTH = (
    {"tensor_parallel_size": tensor, "pipeline_parallel_size": stages} for tensor, stages in ((2, 1), (1, 2), (2, 2))
)
BUSY: dict[str, Any] = {"num_blocks": 16, "max_num_batched_tokens": 48}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no cache": {"enable_prefix_cache": False},
    "busy": BUSY,
    "no drafts": {"max_draft_tokens": 0},
    "blocks of 8": {"block_size": 8, "max_num_batched_tokens": 100, "max_num_seqs": 2},
}


@contextmanager
def ranks(folder: Path, **settings: Any) -> Iterator[LLMEngine]:
    engine = LLMEngine(config(folder, **settings))
    try:
        yield engine
    finally:
        engine.runner.release()


def mixed_prompts() -> list[list[int]]:
    made = prompts(3, 17, 40, 100, 65)
    return [*made, [*made[3][:64], 5, 6, 7], made[1] * 4]


def assert_equal(found: list[RequestOutput], wanted: list[RequestOutput], difference: float) -> None:
    assert [output.token_ids for output in found] == [output.token_ids for output in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=difference)


@pytest.mark.parametrize("layout", [TENSOR, PIPELINE], ids=["tensor", "pipeline"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, layout: dict[str, int], checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint(family)
    wanted = LLMEngine(config(folder)).generate(mixed_prompts(), GREEDY)
    with ranks(folder, **layout) as engine:
        found = engine.generate(mixed_prompts(), GREEDY)
    assert_equal(found, wanted, 1e-4 if layout is TENSOR else 1e-5)


def test_chunks_preemptions_cached_prefixes_and_drafts(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("mistral")
    long = replace(GREEDY, max_tokens=48)
    wanted = LLMEngine(config(folder)).generate(mixed_prompts(), long)
    again = [
        Request(f"again-{i}", (TokenSegment(prompt),), long, draft_token_ids=tuple(output.token_ids))
        for i, (prompt, output) in enumerate(zip(mixed_prompts(), wanted, strict=True))
    ]
    with ranks(folder, **BOTH, **BUSY) as engine:
        assert_equal(engine.generate(mixed_prompts(), long), wanted, 1e-4)
        stats = engine.stats()
        assert stats.preemptions and stats.prefix_hit_tokens
        assert_equal(engine.generate_requests(again), wanted, 1e-4)
        assert engine.stats().draft_tokens_accepted and engine.stats().prefix_hit_tokens > stats.prefix_hit_tokens
        assert engine.pool.is_consistent() and engine.stats().used_blocks == 0


def test_one_kv_head_for_both_ranks_biases_and_odd_sizes(tmp_path: Path) -> None:
    odd = {"attention_bias": True, "mlp_bias": True, "intermediate_size": 97, "num_key_value_heads": 1}
    make_model("llama", **odd).save_pretrained(tmp_path)
    wanted = LLMEngine(config(tmp_path)).generate(mixed_prompts(), GREEDY)
    with ranks(tmp_path, **TENSOR) as engine:
        assert_equal(engine.generate(mixed_prompts(), GREEDY), wanted, 1e-4)
        one_head = engine.runner.cache.keys[0]
        assert one_head.shape[1] == 1, "replicated"


def test_the_pool_is_sized_by_what_a_rank_holds(llama: Path) -> None:
    alone = LLMEngine(config(llama, num_blocks=50)).runner
    size = sum(pages.nbytes for pages in (*alone.cache.keys, *alone.cache.values))
    with ranks(llama, **BOTH, kv_cache_bytes=size) as engine:
        mine = engine.runner
        assert mine.num_blocks == 150, "one of two KV heads, two of three layers"
        assert sum(pages.nbytes for pages in (*mine.cache.keys, *mine.cache.values)) == size


def test_a_draft_model_lies_whole_on_the_first_rank(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("qwen3")
    wanted = LLMEngine(config(folder)).generate(mixed_prompts(), GREEDY)
    with ranks(folder, **PIPELINE, draft_model=folder) as engine:
        assert_equal(engine.generate(mixed_prompts(), GREEDY), wanted, 1e-5)
        stats = engine.stats()
        assert stats.draft_tokens_accepted > 0.9 * stats.draft_tokens > 0, "it guesses for itself"


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("layout", [TENSOR, PIPELINE, BOTH], ids=["tensor", "pipeline", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_under_every_setting(
    family: str, layout: dict[str, int], settings: dict[str, Any], checkpoint: Checkpoint
) -> None:
    folder, _ = checkpoint(family)
    wanted = LLMEngine(config(folder)).generate(mixed_prompts(), GREEDY)
    with ranks(folder, **layout, **settings) as engine:
        for _ in range(2):
            assert_equal(engine.generate(mixed_prompts(), GREEDY), wanted, 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{"tensor_parallel_size": 4}, {"pipeline_parallel_size": 3}], ids=["four", "three"])
def test_more_ranks(layout: dict[str, int], checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("qwen2")
    wanted = LLMEngine(config(folder)).generate(mixed_prompts(), GREEDY)
    with ranks(folder, **layout) as engine:
        assert_equal(engine.generate(mixed_prompts(), GREEDY), wanted, 1e-4)


PACKED = ("awq 64, qwen2", "int8 packed", "fp4, qwen3")
ROUNDED = ("w8a8 dynamic", "fp8 blocks")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout"), [*((name, TENSOR) for name in PACKED), *((n, PIPELINE) for n in ROUNDED)])
def test_quantized_weights(name: str, layout: dict[str, int], tmp_path: Path) -> None:
    """Where inputs are rounded, a sum that differs in its last digit may be rounded elsewhere: not over TP."""
    make_checkpoint(tmp_path, CASES[name])
    few = mixed_prompts()[:3]
    wanted = LLMEngine(config(tmp_path, num_blocks=64)).generate(few, GREEDY)
    with ranks(tmp_path, **layout, num_blocks=64) as engine:
        assert_equal(engine.generate(few, GREEDY), wanted, 1e-3)


@pytest.mark.slow
def test_bfloat16_follows_until_a_near_tie(llama: Path) -> None:
    """Sums of rounded parts: the first tokens' log probabilities are close, not equal."""
    first = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, logprobs=0)
    wanted = LLMEngine(config(llama, dtype="bfloat16")).generate(mixed_prompts(), first)
    with ranks(llama, **TENSOR, dtype="bfloat16") as engine:
        found = engine.generate(mixed_prompts(), first)
    for one, other in zip(found, wanted, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=0.3)


OWN_KERNELS: dict[str, Any] = {"kernels": "triton", "max_model_len": 64, "max_num_seqs": 4, "num_blocks": 32}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [TENSOR, BOTH], ids=["tensor", "both"])
def test_our_own_kernels(layout: dict[str, int], checkpoint: Checkpoint) -> None:
    """Interpreted: the path of a GPU, with gloo in place of NCCL."""
    folder, _ = checkpoint("qwen3")
    few, short = prompts(5, 20), replace(GREEDY, max_tokens=4)
    wanted = LLMEngine(config(folder)).generate(few, short)
    with ranks(folder, **layout, **OWN_KERNELS) as engine:
        assert_equal(engine.generate(few, short), wanted, 1e-4)


@pytest.mark.slow
def test_a_deterministic_pipeline_gives_the_bits_of_one_rank(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("qwen3")
    few, short = prompts(5, 20), replace(GREEDY, max_tokens=4)
    wanted = LLMEngine(config(folder, **OWN_KERNELS, deterministic=True)).generate(few, short)
    with ranks(folder, **PIPELINE, **OWN_KERNELS, deterministic=True) as engine:
        assert_equal(engine.generate(few, short), wanted, 0.0)
