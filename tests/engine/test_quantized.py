"""Quantized checkpoints say what transformers says of the numbers that they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.engine import LLMEngine, SamplingParams
from app.engine.architecture import read_spec
from app.engine.loader import load_weights
from app.kernels.packed import Int4Weight, ScaledWeight, SideBySide
from app.kernels.packed_cpu import CpuInt4Weight
from tests.engine.conftest import config, prompts
from tests.engine.quantized_checkpoints import Case, awq, bnb, compressed, fp8, gptq, make_checkpoint
from tests.engine.test_paged_forward import asked_late
from tests.engine.test_parity import reference

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}
BY_TOKEN = {"strategy": "token", "dynamic": True, "symmetric": True}
STATIC = {"strategy": "tensor", "dynamic": False, "symmetric": True}
Json = dict[str, Any]


def of_compressed(found: str, weights: Json, inputs: Json | None = None, **more: Any) -> Case:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    settings = {"quant_method": "compressed-tensors", "format": found, "config_groups": {"group_0": group}}
    return Case(settings | {"ignore": ["lm_head"]}, compressed(weights, inputs, found == "pack-quantized"), **more)


def of_awq(group: int, **more: Any) -> Case:
    return Case({"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}, awq(group), **more)


def of_gptq(group: int, sym: bool, v2: bool = False, act_order: str = "", **more: Any) -> Case:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": group, "sym": sym, "desc_act": bool(act_order)}
    settings |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    return Case(settings, gptq(group, sym, act_order, v2), **more)


def of_bnb(kind: str, nested: bool, **more: Any) -> Case:
    return Case({"quant_method": "bitsandbytes", "load_in_4bit": True}, bnb(kind, nested), **more)


FP8: Json = {"quant_method": "fp8"}
CASES = {
    "awq 128": of_awq(128),
    "awq 64, qwen2": of_awq(64, family="qwen2"),
    "gptq sym": of_gptq(128, True),
    "gptq asym, qwen2": of_gptq(64, False, family="qwen2"),
    "gptq act-order": of_gptq(64, False, act_order="shared"),
    "gptq act-order, each its own": of_gptq(64, True, act_order="apart"),
    "gptq v2": of_gptq(64, False, v2=True),
    "int8 packed": of_compressed("pack-quantized", INT8),
    "int8, qwen2": of_compressed("int-quantized", INT8, family="qwen2"),
    "w8a8 dynamic": of_compressed("int-quantized", INT8, INT8 | BY_TOKEN),
    "w8a8 static": of_compressed("int-quantized", INT8, INT8 | STATIC),
    "fp8 channel, dynamic": of_compressed("float-quantized", FLOAT8, FLOAT8 | BY_TOKEN),
    "fp8 tensor, static": of_compressed("float-quantized", FLOAT8 | {"strategy": "tensor"}, FLOAT8 | STATIC),
    "int4 packed": of_compressed("pack-quantized", INT4),
    "int4 packed, asymmetric": of_compressed("pack-quantized", INT4 | {"symmetric": False}),
    "fp8 blocks": Case(FP8 | {"weight_block_size": [32, 32]}, fp8("weight_scale_inv", block=32)),
    "fp8 by AutoFP8, static": Case(FP8 | {"activation_scheme": "static"}, fp8("weight_scale", static=True)),
    "fbgemm": Case(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 2.0}, fp8("weight_scale", per_row=True, bound=2.0)
    ),
    "nf4": of_bnb("nf4", False),
    "nf4 nested, rows of odd blocks": of_bnb("nf4", True, changes={"hidden_size": 96, "intermediate_size": 160}),
    "fp4, qwen3": of_bnb("fp4", False, family="qwen3"),
}
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
Made = Callable[[str], tuple[Path, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    known: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in known:
            folder = tmp_path_factory.mktemp("quantized")
            known[name] = folder, make_checkpoint(folder, CASES[name])
        return known[name]

    return get


def logprobs_of(model: Any, prompt: list[int], tokens: list[int]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1).tolist()


@pytest.mark.parametrize("name", CASES)
def test_says_what_transformers_says_of_the_dequantized_numbers(name: str, made: Made) -> None:
    folder, model = made(name)
    [prompt] = prompts(30)
    [output] = LLMEngine(config(folder, num_blocks=64)).generate([prompt], GREEDY)
    assert output.token_ids == reference(model, prompt, 12)
    assert output.logprobs == pytest.approx(logprobs_of(model, prompt, output.token_ids), abs=1e-3)


@pytest.mark.parametrize("name", ["awq 64, qwen2", "gptq act-order", "int8, qwen2", "w8a8 dynamic"])
def test_in_bfloat16_follows_it_on_torchs_packed_products(name: str, made: Made) -> None:
    folder, model = made(name)
    [prompt] = prompts(30)
    [output] = LLMEngine(config(folder, num_blocks=64, dtype="bfloat16")).generate([prompt], GREEDY)
    assert output.logprobs is not None
    wanted = logprobs_of(model, prompt, output.token_ids)
    assert sum(abs(a - b) for a, b in zip(output.logprobs, wanted, strict=True)) / 12 < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq 64, qwen2", "gptq act-order, each its own", "int8 packed", "w8a8 dynamic"])
def test_our_kernels_say_the_same(name: str, made: Made) -> None:
    folder, model = made(name)
    [prompt] = prompts(20)
    short = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=0)
    engine = LLMEngine(config(folder, num_blocks=64, max_model_len=64, max_num_seqs=4, kernels="triton"))
    [output] = engine.generate([prompt], short)
    assert output.token_ids == reference(model, prompt, 4)
    assert output.logprobs == pytest.approx(logprobs_of(model, prompt, output.token_ids), abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq 128", "gptq act-order, each its own", "int8 packed"])
def test_serving_asks_for_no_kernel_that_was_not_compiled_ahead(name: str, made: Made) -> None:
    assert asked_late(made(name)[0], "--quantized") == []


def test_the_deterministic_mode_refuses_quantized_weights(made: Made) -> None:
    with pytest.raises(ValueError, match="runs plain weights only"):
        LLMEngine(config(made("int8 packed")[0], num_blocks=64, kernels="triton", deterministic=True))


def test_layers_are_fused_where_their_parts_are_alike(made: Made) -> None:
    def qkv(name: str, dtype: torch.dtype = torch.float32) -> Any:
        folder = made(name)[0]
        return load_weights(folder, read_spec(folder), dtype).layers[0].qkv

    assert isinstance(qkv("gptq act-order"), Int4Weight)
    assert isinstance(qkv("gptq act-order, each its own"), SideBySide)
    assert isinstance(qkv("int8 packed"), ScaledWeight)
    assert isinstance(qkv("awq 128", torch.bfloat16), CpuInt4Weight)


def test_weights_are_smaller(made: Made) -> None:
    folder, model = made("awq 128")
    layer = load_weights(folder, read_spec(folder), torch.float32).layers[0]
    plain = model.model.layers[0].mlp.down_proj.weight.nbytes
    assert not isinstance(layer.down, torch.Tensor) and layer.down.nbytes() < plain / 7


def test_codes_in_another_order_are_noticed(made: Made, tmp_path: Path) -> None:
    """Negative control: the same words, read as if GPTQ's order were AWQ's."""
    folder, model = made("awq 128")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("qweight")]:
        tensors[name] = (tensors[name] & 0x00FFFFFF) | (tensors[name] << 4 & 0x7F000000)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    [prompt] = prompts(30)
    [output] = LLMEngine(config(tmp_path, num_blocks=64)).generate([prompt], GREEDY)
    assert output.token_ids != reference(model, prompt, 12)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq' is not supported"),
        ({"bits": 3}, "AWQ of 3 bits"),
        ({"version": "gemv"}, "AWQ version 'gemv'"),
        ({"quant_method": "gptq", "bits": 8}, "GPTQ of 8 bits"),
        ({"group_size": 32}, "scales has shape"),
    ],
)
def test_what_is_not_supported_is_refused_in_a_sentence(
    change: Json, sentence: str, made: Made, tmp_path: Path
) -> None:
    folder = made("awq 128")[0]
    found = json.loads((folder / "config.json").read_text())
    found["quantization_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(found))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(ValueError, match=sentence):
        load_weights(tmp_path, read_spec(tmp_path), torch.float32)


def test_a_missing_scale_is_named(made: Made, tmp_path: Path) -> None:
    folder = made("awq 128")[0]
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.scales"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.scales"):
        load_weights(tmp_path, read_spec(tmp_path), torch.float32)
