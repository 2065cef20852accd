"""Every part of a model is held, by the ranks that should hold it."""

from dataclasses import replace

import pytest

from app.engine.architecture import DecoderSpec
from app.engine.config import EngineConfig
from app.engine.parallel.layout import Cut, Layout

SPEC = DecoderSpec(
    family="llama", vocab_size=199, hidden_size=48, intermediate_size=97, num_layers=7, num_heads=12, num_kv_heads=4,
    head_dim=16, rms_norm_eps=1e-6, max_position=512, rope={}, qkv_bias=True, output_bias=True, mlp_bias=True,
    qk_norm=False, tied=False, windows=(None, 8, None, 8, None, 8, None), eos_token_ids=(),
)  # fmt: skip


def cuts(layout: Layout, name: str, spec: DecoderSpec = SPEC) -> list[Cut]:
    found = [layout.part(spec, rank).cut(name) for rank in range(layout.tensor)]
    assert all(cut is not None for cut in found)
    return [cut for cut in found if cut is not None]


@pytest.mark.parametrize("tensor", [2, 3, 4])
def test_what_is_cut_is_held_once(tensor: int) -> None:
    spec = replace(SPEC, num_kv_heads=12)
    sizes = {
        "self_attn.q_proj": (0, 192), "self_attn.k_proj": (0, 192), "self_attn.v_proj": (0, 192),
        "self_attn.o_proj": (1, 192), "mlp.gate_proj": (0, 97), "mlp.up_proj": (0, 97), "mlp.down_proj": (1, 97),
    }  # fmt: skip
    names = {f"model.layers.3.{name}.weight": size for name, size in sizes.items()}
    names |= {"model.embed_tokens.weight": (0, 199), "lm_head.weight": (0, 199)}
    for name, (dim, total) in names.items():
        found = cuts(Layout(tensor), name, spec)
        assert {(cut.dim, cut.total) for cut in found} == {(dim, total)}
        assert [i for cut in found for i in cut.held] == list(range(total)), name
        lengths = [len(cut.held) for cut in found]
        assert max(lengths) - min(lengths) <= 1, "as even as can be"


def test_what_is_added_or_normed_is_held_whole_and_a_row_parallel_bias_is_added_once() -> None:
    parts = [Layout(2).part(SPEC, rank) for rank in range(2)]
    for name in ("input_layernorm.weight", "self_attn.q_norm.weight", "self_attn.o_proj.bias", "mlp.down_proj.bias"):
        assert all(part.cut(f"model.layers.0.{name}") is None for part in parts)
    assert [part.adds_bias for part in parts] == [True, False]
    assert len({len(part.cut("model.layers.0.self_attn.q_proj.bias").held) for part in parts}) == 1  # type: ignore[union-attr]


def test_query_heads_lie_with_the_kv_head_that_they_read() -> None:
    """SPEC has three query heads to a KV head; with six ranks a KV head is held by two of them in part."""
    for tensor in (1, 2, 4, 12):
        for rank in range(tensor):
            part = Layout(tensor).part(SPEC, rank)
            assert {head // 3 for head in part.heads} == set(part.kv_heads)
            group = part.spec.num_heads // part.spec.num_kv_heads
            assert all(part.heads[i] // 3 == part.kv_heads[i // group] for i in range(len(part.heads)))


def test_layers_and_their_windows_are_split_in_order() -> None:
    parts = [Layout(1, 3).part(SPEC, rank) for rank in range(3)]
    assert [list(part.layers) for part in parts] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [part.spec.windows for part in parts] == [(None, 8, None), (8, None), (8, None)]
    assert [part.embeds for part in parts] == [True, False, False]
    assert [part.predicts for part in parts] == [False, False, True]
    assert [(part.embedding_rows, part.head_rows) for part in parts] == [(199, 0), (0, 0), (0, 199)]
    tied = [Layout(1, 3).part(replace(SPEC, tied=True), rank).embedding_rows for rank in range(3)]
    assert tied == [199, 0, 199], "the head of the last is the embedding"


def test_both_at_once() -> None:
    layout = Layout(2, 2)
    places = [(list(layout.part(SPEC, r).layers), list(layout.part(SPEC, r).heads)) for r in range(4)]
    first, second, low, high = [0, 1, 2, 3], [4, 5, 6], [*range(6)], [*range(6, 12)]
    assert places == [(first, low), (first, high), (second, low), (second, high)]


def test_one_rank_holds_everything() -> None:
    part = Layout().part(SPEC)
    assert part.spec == SPEC and part.cut("lm_head.weight") is None
    assert part.embeds and part.predicts and part.adds_bias


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (Layout(5), {}, "tensor_parallel_size=5 does not divide the model's 12 heads"),
        (Layout(3), {}, "tensor_parallel_size=3 neither divides the model's 4 KV heads nor is a multiple"),
        (Layout(1, 8), {}, "pipeline_parallel_size=8 is more than the model's 7 layers"),
    ],
)
def test_a_model_that_does_not_fall_into_so_many_parts_is_refused(
    layout: Layout, changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        layout.part(replace(SPEC, **changes))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be at least 1"),
        ({"pipeline_parallel_size": -1}, "pipeline_parallel_size must be at least 1"),
        ({"tensor_parallel_size": 2, "overlap": True, "max_draft_tokens": 0}, "overlap=True runs on one rank"),
        ({"pipeline_parallel_size": 2, "cuda_graphs": True}, "cuda_graphs=True runs on one rank"),
        ({"tensor_parallel_size": 2, "deterministic": True}, "deterministic=True needs tensor_parallel_size=1"),
        ({"tensor_parallel_size": 2, "device": "cuda:1"}, "device must be 'cuda', not 'cuda:1'"),
        ({"tensor_parallel_size": 2, "device": "cuda"}, "several ranks on GPUs need kv_cache_bytes"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig("model", **settings)  # type: ignore[arg-type]


def test_settings_that_go_together() -> None:
    assert EngineConfig("model", tensor_parallel_size=2, pipeline_parallel_size=3).num_ranks == 6
    assert EngineConfig("model", device="cuda", kv_cache_bytes=1 << 30, tensor_parallel_size=2).num_ranks == 2
    assert EngineConfig("model", deterministic=True, pipeline_parallel_size=2).num_ranks == 2
