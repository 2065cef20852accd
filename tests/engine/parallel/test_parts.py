"""The parts that ranks load are the model: side by side they give the whole again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.engine.architecture import DecoderSpec, read_spec
from app.engine.loader import DecoderWeights, LayerWeights, dummy_weights, load_weights
from app.engine.parallel.layout import Layout, Part
from tests.engine.conftest import FAMILIES, make_model
from tests.engine.quantized_checkpoints import make_checkpoint
from tests.engine.test_quantized import CASES

Checkpoint = Callable[[str], tuple[Path, Any]]
LAYOUTS = [Layout(2), Layout(1, 2), Layout(2, 2), Layout(4)]


def full(weight: Any) -> Tensor:
    return weight if isinstance(weight, Tensor) else weight.dequantized(torch.float32)


def by_projection(layer: LayerWeights, spec: DecoderSpec) -> dict[str, Tensor]:
    """[N, K] by name; the fused ones taken apart."""
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    q, k, v = full(layer.qkv).split([queries, keys, keys])
    gate, up = full(layer.gate_up).chunk(2)
    found = {"q": q, "k": k, "v": v, "gate": gate, "up": up, "o": full(layer.output), "down": full(layer.down)}
    if layer.qkv_bias is not None and layer.gate_up_bias is not None:
        found |= dict(zip(("q bias", "k bias", "v bias"), layer.qkv_bias.split([queries, keys, keys]), strict=True))
        found |= dict(zip(("gate bias", "up bias"), layer.gate_up_bias.chunk(2), strict=True))
    return found


def place_of(name: str, part: Part) -> tuple[slice, ...]:
    """Where a projection's part lies in the whole."""
    dim = part.whole.head_dim
    heads, kv = ((held.start * dim, held.stop * dim) for held in (part.heads, part.kv_heads))
    inner = part.inner.start, part.inner.stop
    rows = {"q": heads, "k": kv, "v": kv, "gate": inner, "up": inner}
    columns = {"o": heads, "down": inner}
    if name in columns:
        return slice(None), slice(*columns[name])
    return (slice(*rows[name.split()[0]]),)


def assert_parts_of(whole: DecoderWeights, part: Part, held: DecoderWeights) -> None:
    assert len(held.layers) == len(part.layers)
    for i, layer in zip(part.layers, held.layers, strict=True):
        wanted, found = by_projection(whole.layers[i], part.whole), by_projection(layer, part.spec)
        assert wanted.keys() == found.keys()
        for name, tensor in found.items():
            assert torch.equal(tensor, wanted[name][place_of(name, part)]), name
        assert torch.equal(layer.input_norm, whole.layers[i].input_norm)
        for name in ("output_bias", "down_bias"):
            bias, given = getattr(layer, name), getattr(whole.layers[i], name)
            assert (bias is not None) == (part.adds_bias and given is not None)
            assert bias is None or torch.equal(bias, given)
    rows = slice(part.vocab.start, part.vocab.stop)
    assert torch.equal(held.embedding, whole.embedding[rows if part.embedding_rows else slice(0)])
    if part.whole.tied:
        assert held.head is held.embedding
    else:
        assert torch.equal(full(held.head), full(whole.head)[rows if part.head_rows else slice(0)])


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_a_checkpoint_are_the_checkpoint(family: str, checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint(family)
    spec = read_spec(folder)
    whole = load_weights(folder, spec, torch.float32)
    for layout in LAYOUTS:
        for rank in range(layout.num_ranks):
            part = layout.part(spec, rank)
            assert_parts_of(whole, part, load_weights(folder, spec, torch.float32, part))


def test_biases_and_odd_sizes(tmp_path: Path) -> None:
    odd = {"attention_bias": True, "mlp_bias": True, "intermediate_size": 97, "num_key_value_heads": 1}
    make_model("llama", **odd).save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    whole = load_weights(tmp_path, spec, torch.float32)
    for rank in range(4):
        part = Layout(4).part(spec, rank)
        assert_parts_of(whole, part, load_weights(tmp_path, spec, torch.float32, part))


def test_random_weights_are_those_of_one_model(llama: Path) -> None:
    spec = read_spec(llama)
    whole = dummy_weights(spec, torch.float32, 3)
    for rank in range(4):
        part = Layout(2, 2).part(spec, rank)
        assert_parts_of(whole, part, dummy_weights(spec, torch.float32, 3, part))
    assert not torch.equal(whole.layers[0].down, dummy_weights(spec, torch.float32, 4).layers[0].down)


def test_a_tensor_of_another_size_is_refused_though_the_part_would_fit(llama: Path, tmp_path: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = torch.cat([tensors[name], tensors[name]], 1)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    spec = read_spec(tmp_path)
    with pytest.raises(ValueError, match=r"down_proj.weight has shape \(48, 192\), the config says 96 in dimension 1"):
        load_weights(tmp_path, spec, torch.float32, Layout(2).part(spec))


REFUSED = {
    "gptq act-order": "o_proj: columns in an order of their own",
    "gptq act-order, each its own": "o_proj: columns in an order of their own",
    "nf4 nested, rows of odd blocks": "down_proj: columns 0 to 80 of 160 are not whole groups of 32",
}


@pytest.mark.parametrize("name", CASES)
def test_parts_of_quantized_weights(name: str, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, CASES[name])
    spec = read_spec(tmp_path)
    whole = load_weights(tmp_path, spec, torch.float32)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            load_weights(tmp_path, spec, torch.float32, Layout(2).part(spec))
        return
    for rank in range(2):
        for layout in (Layout(2), Layout(1, 2)):
            part = layout.part(spec, rank)
            held = load_weights(tmp_path, spec, torch.float32, part)
            assert len(held.packed()) == len(whole.packed()) * len(part.layers) // spec.num_layers, "still packed"
            assert_parts_of(whole, part, held)
