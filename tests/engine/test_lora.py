"""LoRA adapters: the tokens of merged weights, in one batch with others, and blocks that nobody else finds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine import AsyncEngine, EngineConfig, LLMEngine, Request, SamplingParams, TokenSegment, memory
from app.engine.footprint import footprint
from app.errors import InvalidRequest
from tests.engine.adapters import EVERY, merged, write_adapter
from tests.engine.conftest import config, make_model, prompts
from tests.engine.quantized_checkpoints import make_checkpoint
from tests.engine.test_paged_forward import DEVICE
from tests.engine.test_parity import reference
from tests.engine.test_quantized import CASES
from tests.engine.test_speculation import always, drafting  # noqa: F401  # a fixture

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
Checkpoint = Callable[[str], tuple[Path, Any]]
Outputs = list[list[int]]
LAYERS = "base_model.model.model.layers"
# What PEFT 0.21 writes beside what an adapter is, and some that was set for its training alone.
WRITTEN: dict[str, Any] = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "base_model_name_or_path": "firm/base", "corda_config": None,
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"}, "ensure_weight_tying": False, "fan_in_fan_out": False,
    "eva_config": {"rho": 2.0}, "exclude_modules": ["lm_head"], "inference_mode": True, "init_lora_weights": "gaussian",
    "layers_to_transform": None, "loftq_config": {}, "lora_bias": False, "lora_dropout": 0.05, "modules_to_save": None,
    "megatron_core": "megatron.core", "peft_version": "0.21.2", "qalora_group_size": 16, "rank_pattern": {},
    "task_type": "CAUSAL_LM", "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def adapters(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the tiny Llama."""
    folder, model = tmp_path_factory.mktemp("adapters"), checkpoint("llama")[1]
    few = ("q_proj", "v_proj", "up_proj")
    return {
        "every": write_adapter(folder / "every", model, seed=1),
        "few": write_adapter(folder / "few", model, few, rank=3, seed=2, use_rslora=True),
    }


def request(prompt: list[int], adapter: str | None, name: str = "x", **said: Any) -> Request:
    return Request(name, (TokenSegment(prompt),), replace(GREEDY, **said), adapter=adapter)


def run(engine: LLMEngine, *asked: tuple[list[int], str | None], **said: Any) -> Outputs:
    requests = [request(prompt, adapter, str(i), **said) for i, (prompt, adapter) in enumerate(asked)]
    return [output.token_ids for output in engine.generate_requests(requests)]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (EVERY, WRITTEN),
        (("k_proj", "down_proj"), {"use_rslora": True}),
        (("o_proj", "gate_proj"), {"target_modules": ".*"}),
    ],
    ids=["every", "k and down", "o and gate"],
)
def test_tokens_are_those_of_merged_weights(
    checkpoint: Checkpoint, tmp_path: Path, family: str, targets: tuple[str, ...], said: dict[str, Any]
) -> None:
    folder, model = checkpoint(family)
    adapter = write_adapter(tmp_path / "adapter", model, targets, **said)
    both, plain = merged(model, adapter), prompts(40, 9)
    expected = [reference(both, prompt, GREEDY.max_tokens) for prompt in plain]
    engine = LLMEngine(config(folder, adapters={"own": adapter}))
    assert run(engine, *((prompt, "own") for prompt in plain)) == expected
    without = run(engine, *((prompt, None) for prompt in plain))
    assert without == [reference(model, prompt, GREEDY.max_tokens) for prompt in plain]
    assert without != expected, "the adapter changes what is said"


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 24}, {"num_blocks": 24}], ids=str)
@pytest.mark.usefixtures("always")
def test_each_row_of_a_mixed_batch_has_its_own_adapter(
    checkpoint: Checkpoint, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch, settings: dict[str, int]
) -> None:
    """Over chunked prefill, preemption and drafts, which are what one of the adapters says. Prompts begin alike."""
    folder, model = checkpoint("llama")
    start, *ends = prompts(32, 3, 20, 9)
    asked = [(start + end, adapter) for end in ends for adapter in ("every", None, "few")]
    models = {None: model} | {name: merged(model, path) for name, path in adapters.items()}
    expected = [reference(models[adapter], prompt, GREEDY.max_tokens) for prompt, adapter in asked]
    said = zip(asked, expected, strict=True)
    drafting(monkeypatch, {tuple(p): out for (p, adapter), out in said if adapter == "every"}, lambda at: at % 5 == 4)
    engine = LLMEngine(config(folder, adapters=adapters, **settings))
    assert run(engine, *asked) == expected
    stats = engine.stats()
    assert 0 < stats.draft_tokens_accepted < stats.draft_tokens
    assert (stats.preemptions > 0) == ("num_blocks" in settings)
    assert run(engine, *reversed(asked)) == expected[::-1], "also from the cache"
    assert engine.pool.is_consistent()


def test_our_kernels_say_the_same(tmp_path: Path) -> None:
    """Rows with an adapter and one without, over pages."""
    model = make_model("qwen3", head_dim=16, num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    adapter = write_adapter(tmp_path / "adapter", model)
    small = config(tmp_path, adapters={"own": adapter}, num_blocks=40, max_num_seqs=4, max_model_len=64)
    asked = [(prompt, name) for prompt in prompts(19, 3) for name in ("own", None)]
    wanted = run(LLMEngine(small), *asked, max_tokens=3)
    assert wanted[0] != wanted[1]
    assert run(LLMEngine(replace(small, device=DEVICE, kernels="triton")), *asked, max_tokens=3) == wanted


def test_a_draft_model_is_verified_with_the_adapter(
    checkpoint: Checkpoint, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder, model = checkpoint("llama")
    make_model("llama", num_hidden_layers=1).save_pretrained(tmp_path)
    [prompt] = prompts(40)
    engine = LLMEngine(config(folder, adapters=adapters, draft_model=tmp_path))
    expected = reference(merged(model, adapters["every"]), prompt, GREEDY.max_tokens)
    assert run(engine, (prompt, "every"), (prompt, None))[0] == expected


def test_nobody_finds_the_blocks_of_another_adapter(llama: Path, adapters: dict[str, Path]) -> None:
    engine = LLMEngine(config(llama, adapters=adapters))
    [prompt] = prompts(64)
    segments = [TokenSegment(prompt)]

    def hit(adapter: str | None) -> int:
        predicted = engine.forecast.match(engine.forecast.keys(segments, adapter))[0]
        [output] = engine.generate_requests([request(prompt, adapter)])
        assert min(predicted, 48) == output.metrics.num_cached_tokens, "what is forecast is what is found"
        return output.metrics.num_cached_tokens

    every = (None, "every", "few")
    assert [hit(adapter) for adapter in every] == [0, 0, 0]
    assert [hit(adapter) for adapter in every] == [48, 48, 48]
    assert engine.pin(segments) == 64 and engine.load().pinned_blocks == 4, "pins are of the base model"


def test_labels_and_forgetting_hold_with_an_adapter_too(llama: Path, adapters: dict[str, Path]) -> None:
    engine = LLMEngine(config(llama, adapters=adapters))
    [prompt] = prompts(64)

    def hit(adapter: str | None, label: str, source: str = "") -> int:
        segment = TokenSegment(prompt, frozenset({label}), frozenset({source} if source else ()))
        [output] = engine.generate_requests([Request("x", (segment,), GREEDY, adapter=adapter)])
        return output.metrics.num_cached_tokens

    assert [hit("every", "a", "d1"), hit("every", "b"), hit("few", "a")] == [0, 0, 0]
    assert [hit("every", "a"), hit("every", "b"), hit("few", "a")] == [48, 48, 48]
    engine.forget({"d1"})
    assert [hit("every", "b"), hit("few", "a"), hit("every", "a")] == [48, 48, 0], "what was read is gone, no more"


def test_what_overflows_in_an_adapter_stays_in_its_own_rows(llama: Path, adapters: dict[str, Path]) -> None:
    """Beside the others, and in blocks that they use later."""
    engine = LLMEngine(config(llama, adapters=adapters, num_blocks=24))
    plain = prompts(40, 37, 21, 9)
    wanted = run(engine, *((prompt, None) for prompt in plain))
    runner = engine.runner
    for tensor in memory.tensors(runner.decoder.adapters):
        tensor.fill_(1e30)
    found = run(engine, *((prompt, name) for prompt in plain for name in ("every", None)), logprobs=1)
    assert found[1::2] == wanted != found[::2]
    run(engine, *((prompt, "few") for prompt in prompts(50, 41, 33)))
    engine.pool.forget_all()
    assert run(engine, *((prompt, None) for prompt in plain)) == wanted


def test_an_unknown_adapter_is_refused(llama: Path, adapters: dict[str, Path]) -> None:
    engine = LLMEngine(config(llama, adapters=adapters))
    with pytest.raises(InvalidRequest, match="no adapter 'other'"):
        engine.add_request(request([1, 2], "other"))


def test_a_quantized_base_has_adapters_too(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path, CASES["int8 packed"])
    adapter = write_adapter(tmp_path / "adapter", model)
    [prompt] = prompts(20)
    engine = LLMEngine(config(tmp_path, num_blocks=64, adapters={"own": adapter}))
    assert run(engine, (prompt, "own"))[0] == reference(merged(model, adapter), prompt, GREEDY.max_tokens)


async def test_adapters_are_counted_and_loaded_again(llama: Path, adapters: dict[str, Path]) -> None:
    """What is predicted of the memory is what is there; after a stop nothing is, and the next start reads them anew."""
    given = config(llama, adapters=adapters, num_blocks=8)
    plain = footprint(config(llama, num_blocks=8), llama)
    stored = sum(memory.num_bytes(load_file(path / "adapter_model.safetensors")) for path in adapters.values())
    assert footprint(given, llama) == plain + stored
    engine, answers = AsyncEngine(given), []
    for _ in range(2):
        await engine.start()
        runner = engine.engine.runner
        assert runner.num_bytes() >= plain + stored
        answers.append([token async for d in engine.generate(request([1, 2, 3], "every")) for token in d.token_ids])
        await engine.stop()
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias='all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is not supported"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is not supported"),
        ({"init_lora_weights": "pissa_niter_16"}, "changes the base model's weights"),
        ({"init_lora_weights": "lora_ga"}, "changes the base model's weights"),
        ({"init_lora_weights": "OLoRA"}, "changes the base model's weights"),
        ({"use_bdlora": {"nblocks": 1}}, "use_bdlora is not supported"),
        ({"of_a_later_version": 1}, "of_a_later_version is not supported"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not LORA"),
        ({"target_modules": ["q_proj", 1]}, "target_modules must be names or a pattern"),
        ({"target_modules": 1}, "target_modules must be names or a pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target module 'lm_head' is none of q_proj"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "target module 'embed_tokens'"),
        ({"target_modules": ["q_proj", "k_proj"]}, "lacks 6 tensors, among them .*k_proj"),
        ({"r": 65}, "rank r must be between 1 and 64, not 65"),
        ({"r": 8}, r"has shape \(4, 48\), the base model needs \(8, 48\)"),
        ({"lora_alpha": None}, "says nothing of lora_alpha"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_named(
    checkpoint: Checkpoint, tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    folder, model = checkpoint("llama")
    adapter = write_adapter(tmp_path, model, ("q_proj",), **said)
    with pytest.raises(ValueError, match=message):
        LLMEngine(config(folder, adapters={"own": adapter}))
    with pytest.raises(ValueError, match=message):
        footprint(config(folder, adapters={"own": adapter}), folder)


def _without_a_layer(stored: dict[str, torch.Tensor]) -> None:
    for name in [name for name in stored if ".layers.1." in name]:
        del stored[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_a_layer, "lacks 2 tensors, among them .*layers.1.self_attn.q_proj.lora_A"),
        (lambda s: s.update({"base_model.model.lm_head.weight": torch.zeros(1)}), "lm_head.weight is not of a layer"),
        (lambda s: s.update({f"{LAYERS}.9.self_attn.q_proj.lora_A.weight": torch.zeros(1)}), "layers.9.* is not of a"),
        (lambda s: s.update({name: tensor.to(torch.int8) for name, tensor in s.items()}), "has dtype I8"),
        (lambda s: s[f"{LAYERS}.1.self_attn.q_proj.lora_B.weight"][3, 1:2].fill_(torch.nan), "not every weight is"),
    ],
    ids=["layers_to_transform", "lm_head", "a layer too many", "integers", "not a number"],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(
    checkpoint: Checkpoint, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    folder, model = checkpoint("llama")
    path = write_adapter(tmp_path, model, ("q_proj",)) / "adapter_model.safetensors"
    stored = load_file(path)
    change(stored)
    save_file(stored, path)
    with pytest.raises(ValueError, match=message):
        LLMEngine(config(folder, adapters={"own": tmp_path}))


def test_another_models_adapter_and_no_adapter_are_named(llama: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", make_model("llama", hidden_size=64), ("q_proj",))
    for folder, message in ((other, r"has shape \(4, 64\), the base"), (tmp_path, "no adapter_config.json")):
        with pytest.raises(ValueError, match=message):
            LLMEngine(config(llama, adapters={"own": folder}))
    (other / "SHA256SUMS").write_text(f"{'0' * 64}  adapter_config.json\n")
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        LLMEngine(config(llama, adapters={"own": other}))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("adapter_config.json", json.dumps({"peft_type": "LORA"})[:-1].encode(), r"adapter_config\.json: Expecting"),
        ("adapter_config.json", b"\xff\xfe", r"adapter_config\.json: 'utf-8' codec"),
        ("adapter_config.json", b"[]", "holds no object"),
        ("adapter_model.safetensors", None, "has no adapter_model.safetensors"),
        ("adapter_model.safetensors", b"\0" * 40, "cannot be read"),
        ("adapter_model.safetensors", (2**62).to_bytes(8, "little") + b"{}", "cannot be read"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(
    checkpoint: Checkpoint, tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder, model = checkpoint("llama")
    path = write_adapter(tmp_path, model, ("q_proj",)) / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        LLMEngine(config(folder, adapters={"own": tmp_path}))


@pytest.mark.parametrize(
    "settings",
    [{"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}, {"cuda_graphs": True}, {"deterministic": True}],
    ids=str,
)
def test_where_adapters_do_not_run(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="adapters run on one rank, without cuda_graphs and deterministic"):
        EngineConfig("model", adapters={"own": Path("adapter")}, **settings)
