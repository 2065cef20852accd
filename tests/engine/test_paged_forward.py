"""The engine on our own kernels says what it says on the reference kernels: with graphs, shared prefixes, preemption.

Without a GPU the kernels are interpreted and a graph is its step run again on the same buffers, which is all that a
captured graph may rely on.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment, runner
from app.engine import graphs as graphs_module
from app.engine.device import CpuDevice, Memory
from app.engine.forward import PagedForward
from app.engine.graphs import buckets
from app.engine.paged_batch import BlockTables
from app.engine.request import Sequence
from app.engine.spec.drafts import Drafter
from app.engine.spec.length import Acceptance
from app.kernels import dispatch
from app.kernels.tasks import Tiles
from app.kernels.tuning import Tuning
from app.kernels.variants import Variant
from tests import HAS_GPU
from tests.engine.conftest import config, make_model, prompts
from tests.kernels.interpreted import dot_row_by_row

DEVICE = "cuda" if HAS_GPU else "cpu"
TILES = Tiles(split=16, shared_split=16, narrow=8, block_n=16, block_wide=16, block_shared=16)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints with heads of 16, the smallest that a matrix unit takes."""

    def get(family: str) -> Path:
        folder = tmp_path_factory.getbasetemp() / f"paged-{family}"
        if not folder.exists():
            make_model(family, head_dim=16, num_hidden_layers=2).save_pretrained(folder)
        return folder

    return get


@pytest.fixture
def shared_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tokens, keys) of the prefixes that were read once; tiles are small, so that short prompts meet every case."""
    seen: list[tuple[int, int]] = []

    def use_shared(tokens: int, keys: int) -> bool:
        seen.append((tokens, keys))
        return True

    monkeypatch.setattr(dispatch, "load_tuning", lambda *args: Tuning(TILES, use_shared))
    return seen


def settings(folder: Path, **changes: Any) -> EngineConfig:
    base = config(folder, num_blocks=40, block_size=8, max_num_seqs=4, max_num_batched_tokens=24, max_model_len=96)
    return replace(base, **changes)


def tokens_of(engine: LLMEngine, asked: list[list[int]], sampling: SamplingParams) -> list[list[int]]:
    return [output.token_ids for output in engine.generate(asked, sampling)]


def check_family(folder: Path, graphs: bool, fused: bool) -> None:
    common, *rest = prompts(17, 3, 8, 22)
    asked = [common + tail for tail in rest[:2]] + [rest[2]]
    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    wanted = tokens_of(LLMEngine(settings(folder)), asked, sampling)
    ours = settings(
        folder, device=DEVICE, kernels="triton", shared_prefix_kernel=True, cuda_graphs=graphs, fused_kernels=fused
    )
    assert tokens_of(LLMEngine(ours), asked, sampling) == wanted


@pytest.mark.parametrize(("family", "graphs", "fused"), [("qwen3", True, True), ("mistral", False, False)])
def test_same_tokens_as_the_reference(
    family: str, graphs: bool, fused: bool, model: Callable[[str], Path], shared_runs: list[tuple[int, int]]
) -> None:
    check_family(model(family), graphs, fused)
    assert bool(shared_runs) == (family != "mistral"), "all its layers have a window"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_same_tokens_in_every_family(
    family: str, graphs: bool, fused: bool, model: Callable[[str], Path], shared_runs: list[tuple[int, int]]
) -> None:
    check_family(model(family), graphs, fused)


def test_preempted_and_sampled_rows_too(model: Callable[[str], Path], shared_runs: list[tuple[int, int]]) -> None:
    asked = prompts(20, 30, 25, 12)
    sampling = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=8, ignore_eos=True, logprobs=1)
    tight = settings(model("qwen3"), num_blocks=12)
    reference = LLMEngine(tight)
    wanted = tokens_of(reference, asked, sampling)
    engine = LLMEngine(replace(tight, device=DEVICE, kernels="triton", cuda_graphs=True, fused_kernels=False))
    assert tokens_of(engine, asked, sampling) == wanted
    assert engine.stats().preemptions == reference.stats().preemptions > 0


def test_padding_changes_nothing_but_the_dummys_page(
    model: Callable[[str], Path], shared_runs: list[tuple[int, int]]
) -> None:
    base = settings(model("llama"), max_num_seqs=8)
    engine = LLMEngine(replace(base, device=DEVICE, kernels="triton", cuda_graphs=True, fused_kernels=False))
    for pages in (*engine.runner.cache.keys, *engine.runner.cache.values):
        pages.fill_(float("nan"))
    engine.generate(prompts(5, 6, 7), SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    written = (~engine.runner.cache.keys[0].isnan()).flatten(1).any(1)
    assert len(written) == 41
    assert written[-1]
    assert int(written[:-1].sum()) <= 6


def asked_late(folder: Path, *options: str) -> list[str]:
    """Variants that serving asks for and that were not compiled ahead."""
    command = [sys.executable, "-m", "tests.kernels.record_variants", str(folder), *options]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(case["serving"] for case in found)
    return [late for case in found for late in case["late"]]


def test_serving_asks_for_no_kernel_that_was_not_compiled_ahead(model: Callable[[str], Path]) -> None:
    assert asked_late(model("qwen3"), "--quick") == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_nor_with_any_switch_and_dtype(family: str, model: Callable[[str], Path]) -> None:
    assert asked_late(model(family)) == []


class _Sized(CpuDevice):
    """A CPU that claims the memory of a GPU: 1 MiB held, 64 KiB more in the profile."""

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total, self.released = total, 0

    def memory(self) -> Memory:
        return Memory(total=self.total, free=1 << 30, ours=1 << 20, peak=(1 << 20) + (64 << 10))

    def release(self) -> None:
        self.released += 1


@pytest.mark.skipif(HAS_GPU, reason="tests/gpu: a GPU has memory of its own")
def test_the_pool_takes_what_the_profile_leaves(
    model: Callable[[str], Path], shared_runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    per_block = 2 * 2 * 2 * 16 * 4 * 8  # keys and values, layers, heads, size, bytes, tokens
    device = _Sized(int(((1 << 20) + (64 << 10) + 30.5 * per_block) / 0.9))
    monkeypatch.setattr(runner, "open_device", lambda name: device)
    ours = settings(model("llama"), num_blocks=None, kernels="triton", cuda_graphs=True, fused_kernels=False)
    assert LLMEngine(ours).runner.num_blocks == 30
    assert device.released == 2
    with pytest.raises(ValueError, match="cannot hold a KV cache"):
        LLMEngine(replace(ours, gpu_memory_utilization=0.5))


def test_a_block_table_row_follows_its_sequence() -> None:
    tables = BlockTables(4)
    a, b = (Sequence(Request(name, (TokenSegment([1]),)), 0, 1) for name in "ab")
    a.block_ids, b.block_ids = [5, 6], [7]
    assert tables.rows([a, b])[:, 0].tolist() == [5, 7]
    a.block_ids.append(8)
    assert tables.rows([a])[0, :3].tolist() == [5, 6, 8]
    a.block_ids = [9]  # preempted and started again
    assert tables.rows([b, a])[:, 0].tolist() == [7, 9]
    tables.discard(a)
    c = Sequence(Request("c", (TokenSegment([1]),)), 0, 1)
    c.block_ids = [3]
    assert tables.rows([c, b])[:, 0].tolist() == [3, 7]


def test_buckets_are_largest_first() -> None:
    assert buckets(1) == [1]
    assert buckets(8) == [8, 4, 2, 1]
    assert buckets(100) == [100, 64, 32, 16, 8, 4, 2, 1]


def test_a_step_that_no_graph_holds_runs_without_one(
    model: Callable[[str], Path], shared_runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MAX_SLOT_BYTES", 0)  # one partial result per token
    base = settings(model("llama"))
    engine = LLMEngine(replace(base, device=DEVICE, kernels="triton", cuda_graphs=True, fused_kernels=False))
    forward = engine.runner._forward
    assert isinstance(forward, PagedForward)
    steps = []
    eager = forward._eager
    monkeypatch.setattr(forward, "_eager", lambda host, *more: steps.append(host.num_tokens) or eager(host, *more))
    asked, sampling = prompts(14, 15), SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    assert tokens_of(engine, asked, sampling) == tokens_of(LLMEngine(base), asked, sampling)
    assert steps == [24, 6, 2, 1]  # prompts in chunks, a step in a graph, then two that read more than 16 keys


def test_graphs_for_several_tokens_per_row_take_what_those_for_one_do_not(
    model: Callable[[str], Path], shared_runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As draft verification asks for: rows of up to three tokens, here the ends of prompts."""
    base = settings(model("llama"))
    engine = LLMEngine(replace(base, device=DEVICE, kernels="triton", fused_kernels=False))
    forward = engine.runner._forward
    assert isinstance(forward, PagedForward)
    forward.capture()
    forward.capture(tokens_per_row=3)
    steps: list[int] = []
    eager = forward._eager
    monkeypatch.setattr(forward, "_eager", lambda host, *more: steps.append(host.num_tokens) or eager(host, *more))
    asked, sampling = prompts(3, 24, 2), SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    assert tokens_of(engine, asked, sampling) == tokens_of(LLMEngine(base), asked, sampling)
    assert steps == [24]


@pytest.mark.parametrize("graphs", [False, True])
def test_drafts_are_verified_in_one_step(
    graphs: bool, model: Callable[[str], Path], shared_runs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier answer as draft, right at first and wrong from its seventh token on."""
    monkeypatch.setattr("app.engine.spec.speculator.MIN_STEPS", 0)
    monkeypatch.setattr("app.engine.spec.speculator.Speculator._least", lambda *_: (0.1, 0.0))
    base = settings(model("llama"), max_draft_tokens=3)
    asked, sampling = prompts(9, 14), SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    wanted = tokens_of(LLMEngine(base), asked, sampling)
    engine = LLMEngine(replace(base, device=DEVICE, kernels="triton", cuda_graphs=graphs, fused_kernels=False))
    requests = [
        Request(str(i), (TokenSegment(prompt),), sampling, draft_token_ids=(*answer[:6], *[198] * 4))
        for i, (prompt, answer) in enumerate(zip(asked, wanted, strict=True))
    ]
    assert [output.token_ids for output in engine.generate_requests(requests)] == wanted
    assert 0 < engine.speculator.totals.accepted < engine.speculator.totals.drafted


@pytest.mark.parametrize("graphs", [False, True])
def test_overlapped_steps_find_pending_tokens_on_the_device(
    graphs: bool, model: Callable[[str], Path], shared_runs: list[tuple[int, int]]
) -> None:
    base = settings(model("llama"), max_draft_tokens=0)
    asked, sampling = prompts(9, 14, 3), SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    ours = replace(base, device=DEVICE, kernels="triton", cuda_graphs=graphs, fused_kernels=False, overlap=True)
    assert tokens_of(LLMEngine(ours), asked, sampling) == tokens_of(LLMEngine(base), asked, sampling)


def test_a_kernel_that_a_device_cannot_run_is_one_sentence(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("out of resource: shared memory, Required: 132096, Hardware limit: 101376")

    monkeypatch.setattr(dispatch.TritonKernels, "variants", lambda *args, **kwargs: [Variant("attention", refuse)])
    with pytest.raises(ValueError, match=r"^kernel attention does not run on .*Required: 132096.*; use device='cpu'$"):
        LLMEngine(settings(model("llama"), device=DEVICE, kernels="triton"))


def with_logprobs(folder: Path, asked: list[list[int]], **changes: Any) -> tuple[list[int], list[float]]:
    """Tokens of the first of these prompts, and their log probabilities to the bit."""
    engine = LLMEngine(settings(folder, device=DEVICE, kernels="triton", **changes))
    sampling = SamplingParams(temperature=0.7, top_p=0.9, seed=5, max_tokens=6, ignore_eos=True, logprobs=0)
    first = engine.generate(asked, sampling)[0]
    assert first.logprobs is not None
    return first.token_ids, first.logprobs


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_deterministic_numbers_are_the_same_to_the_bit_in_any_company_and_chunking(
    family: str, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dot_row_by_row(monkeypatch)
    folder, (asked, *others) = model(family), prompts(37, 5, 21, 11)
    alone = with_logprobs(folder, [asked], deterministic=True)
    assert with_logprobs(folder, [asked, *others], deterministic=True, max_num_batched_tokens=10) == alone
    assert with_logprobs(folder, [asked, *others], deterministic=True, max_draft_tokens=0) == alone
    assert with_logprobs(folder, [asked, asked, *others], deterministic=True, num_blocks=16) == alone


@pytest.mark.slow
def test_without_the_mode_company_does_change_bits(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dot_row_by_row(monkeypatch)
    asked, *others = prompts(37, 5, 21, 11)
    alone = with_logprobs(model("qwen3"), [asked])
    together = with_logprobs(model("qwen3"), [asked, *others], max_num_batched_tokens=10)
    assert alone[1] != together[1]


def test_deterministic_numbers_are_the_same_beside_another_request(
    model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    dot_row_by_row(monkeypatch)
    asked, other = prompts(9, 14)
    alone = with_logprobs(model("qwen3"), [asked], deterministic=True)
    assert with_logprobs(model("qwen3"), [asked, other], deterministic=True) == alone


def test_deterministic_on_the_reference_kernels_says_what_it_needs(model: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="deterministic=True needs our own kernels"):
        LLMEngine(settings(model("qwen3"), deterministic=True))


@pytest.mark.parametrize("graphs", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_draft_model_runs_on_the_same_kernels(
    graphs: bool, model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the model itself, so that every guess is right, as long as both read their own pages rightly."""
    monkeypatch.setattr(Drafter, "drafts", lambda *_: [])
    monkeypatch.setattr(Acceptance, "length", lambda self, kind, available, least: available)
    monkeypatch.setattr("app.engine.spec.speculator.MIN_STEPS", 0)
    monkeypatch.setattr("app.engine.spec.speculator.Speculator._least", lambda *_: (0.5, 0.0))
    sampling = SamplingParams(temperature=0, max_tokens=7, ignore_eos=True)
    base = settings(model("qwen3"), max_draft_tokens=3)
    wanted = tokens_of(LLMEngine(replace(base, max_draft_tokens=0)), prompts(17, 9), sampling)
    ours = replace(base, device=DEVICE, kernels="triton", cuda_graphs=graphs, draft_model=model("qwen3"))
    engine = LLMEngine(ours)
    assert tokens_of(engine, prompts(17, 9), sampling) == wanted
    drafts = engine.speculator.totals
    assert drafts.accepted == drafts.drafted > 0
