"""Keys and values in 8 bits: twice as many in the same memory, the same whatever happens around a request."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from safetensors.torch import load_file, save_file

from app.config import REPOSITORY
from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment
from app.engine.architecture import read_spec
from app.engine.footprint import footprint
from app.engine.parallel.layout import Layout
from app.engine.quant.kv_scales import stored_scales
from app.engine.reader import Reader
from app.engine.shards import Shards
from app.engine.tokenizer import Tokenizer
from app.kernels import dispatch
from app.kernels.dispatch import Switches, choose
from app.kernels.fp8 import E4M3
from app.kernels.tasks import Tiles
from app.kernels.tuning import Tuning
from tests import HAS_GPU
from tests.engine.conftest import config, make_model, prompts
from tests.kernels.interpreted import dot_row_by_row

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, logprobs=0)
TILES = Tiles(split=16, shared_split=16, narrow=8, block_n=16, block_wide=16, block_shared=16)


def asked(*lengths: int) -> list[list[int]]:
    common = prompts(50, seed=5)[0]
    return [common + tail for tail in prompts(*lengths, seed=6)]


def tokens_of(engine: LLMEngine, wanted: list[list[int]], sampling: SamplingParams = GREEDY) -> list[list[int]]:
    return [output.token_ids for output in engine.generate(wanted, sampling)]


def test_the_same_bytes_hold_twice_as_many_blocks(llama: Path) -> None:
    few = config(llama, dtype="bfloat16", kv_cache_bytes=64 * 1024)
    plain, small = (LLMEngine(replace(few, kv_cache_dtype=kind)) for kind in ("auto", "fp8"))
    assert small.runner.num_blocks == 2 * plain.runner.num_blocks > 0
    assert {pages.dtype for pages in (*small.runner.cache.keys, *small.runner.cache.values)} == {E4M3}
    pools = [footprint(replace(few, num_blocks=8, kv_cache_dtype=kind), llama) for kind in ("auto", "fp8")]
    spec = read_spec(llama)
    assert pools[0] - pools[1] == 8 * 16 * spec.kv_bytes_per_token(E4M3)


def test_another_dtype_is_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match=r"^kv_cache_dtype must be one of \('auto', 'fp8'\), not 'fp4'$"):
        config(llama, kv_cache_dtype="fp4")


def test_a_gpu_that_has_no_fp8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    target = SimpleNamespace(backend="cuda", arch=80)
    active = SimpleNamespace(get_current_target=lambda: target)
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=active))
    shape: dict[str, Any] = {"group": 4, "head_dim": 64, "dtype": torch.bfloat16}
    choose("triton", torch.device("cuda"), "", **shape)
    with pytest.raises(ValueError, match=r"^kv_cache_dtype='fp8' needs compute capability 8.9 \(Ada\), cuda has 8.0"):
        choose("triton", torch.device("cuda"), "", **shape, switches=Switches(fp8_pages=True))


@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_nothing_around_a_request_changes_its_tokens(
    family: str, checkpoint: Callable[[str], tuple[Path, Any]]
) -> None:  # fmt: skip
    """Each token's codes depend on itself alone, and what a chunk has just computed is read as it was stored."""
    folder = checkpoint(family)[0]
    made = config(folder, kv_cache_dtype="fp8", max_draft_tokens=0)
    mine = asked(7, 20, 33, 1)
    alone = [tokens_of(LLMEngine(made), [one])[0] for one in mine]
    assert alone != tokens_of(LLMEngine(replace(made, kv_cache_dtype="auto")), mine), "it is not the same as plain"
    warm = LLMEngine(made)
    assert tokens_of(warm, mine) == alone and tokens_of(warm, mine) == alone
    assert warm.stats().prefix_hit_tokens > 0
    chunked = LLMEngine(replace(made, max_num_batched_tokens=13))
    assert tokens_of(chunked, mine) == alone
    tight = LLMEngine(replace(made, num_blocks=8, max_num_seqs=8))
    assert tokens_of(tight, mine) == alone and tight.stats().preemptions > 0
    drafting = LLMEngine(replace(made, max_draft_tokens=8))
    requests = [
        Request(str(i), (TokenSegment(one),), GREEDY, draft_token_ids=tuple(alone[i])) for i, one in enumerate(mine)
    ]
    assert [output.token_ids for output in drafting.generate_requests(requests)] == alone
    assert drafting.stats().draft_tokens_accepted > 0


def test_the_error_is_bounded_and_grows_with_a_scale_that_does_not_fit() -> None:
    """Of the demo model, over every token of a contract's beginning."""
    folder = REPOSITORY / "demo" / "model"
    text = (REPOSITORY / "demo" / "sources" / "meridian-loan.md").read_text()
    tokens = Tokenizer(folder).encode(text)[:256]
    reader = Reader(folder, torch.float32, 256)
    plain = reader.logits(tokens).log_softmax(-1)
    reader.keep_in_8_bits()

    def divergence() -> float:
        return float((plain.exp() * (plain - reader.logits(tokens).log_softmax(-1))).sum(-1).mean())

    error = divergence()
    assert 0 < error < 0.1, error
    reader._cache.scales = [(k * 2.0**-12, v * 2.0**-12) for k, v in reader._cache.scales or []]
    assert divergence() > 5 * error, "negative control: all is cut to a largest number that is far too small"


def test_scales_are_those_that_the_model_needs(llama: Path) -> None:
    """Measured once per layer and head: powers of two, with room above what texts bring."""
    engine = LLMEngine(config(llama, kv_cache_dtype="fp8"))
    again = LLMEngine(config(llama, kv_cache_dtype="fp8", num_blocks=40, max_num_batched_tokens=64))
    scales, cache = engine.runner.cache.scales, engine.runner.cache
    assert scales is not None and again.runner.cache.scales is not None
    for (k, v), (other_k, other_v) in zip(scales, again.runner.cache.scales, strict=True):
        assert torch.equal(k, other_k) and torch.equal(v, other_v), "whatever the pool"
        assert k.shape == v.shape == (2,) and torch.equal(k.log2(), k.log2().round())
    engine.generate(prompts(200, 150), GREEDY)
    for pages in (*cache.keys, *cache.values):
        largest = pages.float().abs().amax((0, 2, 3))
        assert bool((largest < 448).all()) and bool((largest > 448 / 16).all()), largest


def with_scales(folder: Path, to: Path, **changes: torch.Tensor) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for i in range(3):
        for name, value in ({"k_scale": torch.tensor([0.5]), "v_scale": torch.tensor([0.25, 0.75])} | changes).items():
            tensors[f"model.layers.{i}.self_attn.{name}"] = value.clone()
    to.mkdir()
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def test_scales_of_the_checkpoint_are_taken(llama: Path, tmp_path: Path) -> None:
    folder = with_scales(llama, tmp_path / "scaled")
    engine = LLMEngine(config(folder, kv_cache_dtype="fp8"))
    assert engine.runner.cache.scales is not None
    for k, v in engine.runner.cache.scales:
        assert k.tolist() == [0.5, 0.5] and v.tolist() == [0.25, 0.75]
    parts = [Layout(tensor=2).part(read_spec(folder), rank) for rank in range(2)]
    assert [stored_scales(Shards(folder), part)[0][1].tolist() for part in parts] == [[0.25], [0.75]]  # type: ignore[index]
    plain = LLMEngine(config(folder))
    assert plain.runner.cache.scales is None


def test_scales_that_cannot_be_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"k_scale is \[0.0\]; scales must be positive"):
        LLMEngine(config(with_scales(llama, tmp_path / "zero", k_scale=torch.tensor([0.0]))))
    with pytest.raises(ValueError, match="v_scale has 3 scales for 2 KV heads"):
        LLMEngine(config(with_scales(llama, tmp_path / "three", v_scale=torch.ones(3))))


@pytest.fixture(scope="module")
def paged_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With heads of 16, the smallest that a matrix unit takes."""
    folder = tmp_path_factory.mktemp("fp8-paged")
    make_model("qwen3", head_dim=16, num_hidden_layers=2).save_pretrained(folder)
    return folder


def on_kernels(folder: Path, **changes: Any) -> EngineConfig:
    base = config(folder, num_blocks=40, block_size=8, max_num_seqs=4, max_num_batched_tokens=24, max_model_len=96)
    ours = {"device": "cuda" if HAS_GPU else "cpu", "kernels": "triton", "kv_cache_dtype": "fp8"}
    return replace(base, **ours | changes)


@pytest.mark.parametrize("fused", [True, False])
def test_our_kernels_say_what_the_reference_says(
    fused: bool, paged_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(dispatch, "load_tuning", lambda *args: Tuning(TILES, lambda tokens, keys: True))
    common, *rest = prompts(17, 3, 8, 22)
    mine = [common + tail for tail in rest[:2]] + [rest[2]]
    short = replace(GREEDY, max_tokens=3)
    ours = on_kernels(paged_model, shared_prefix_kernel=True, cuda_graphs=fused, fused_kernels=fused)
    wanted = tokens_of(LLMEngine(replace(ours, device="cpu", kernels="reference", cuda_graphs=False)), mine, short)
    assert tokens_of(LLMEngine(ours), mine, short) == wanted


@pytest.mark.skipif(HAS_GPU, reason="the interpreter's sums are made those of a matrix unit")
def test_deterministic_gives_equal_bits(paged_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dot_row_by_row(monkeypatch)
    monkeypatch.setattr(dispatch, "load_tuning", lambda *args: Tuning(TILES, lambda tokens, keys: True))
    mine = prompts(10, 5, seed=2)
    short = replace(GREEDY, max_tokens=2)

    def logprobs(wanted: list[list[int]], **changes: Any) -> list[float]:
        engine = LLMEngine(on_kernels(paged_model, deterministic=True, max_model_len=16, **changes))
        found = engine.generate(wanted, short)[0].logprobs
        assert found is not None
        return found

    assert logprobs(mine[:1]) == logprobs(mine) == logprobs(mine[:1], max_num_batched_tokens=7)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}], ids=str)
def test_ranks_measure_their_own_heads_together(
    ranks: dict[str, int], checkpoint: Callable[[str], tuple[Path, Any]]
) -> None:  # fmt: skip
    made = config(checkpoint("qwen3")[0], kv_cache_dtype="fp8")
    alone, several = LLMEngine(made), LLMEngine(replace(made, **ranks))
    try:
        assert tokens_of(several, prompts(20, 33)) == tokens_of(alone, prompts(20, 33))
    finally:
        several.runner.release()
