"""`precedent quantize` writes what others load, and `precedent eval quantization` refuses what is broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.cli import main
from app.engine.architecture import read_spec
from app.engine.checksums import verify, write_sums
from app.engine.quant.format import Json
from app.engine.quant.quality import Limits, compare
from app.engine.quant.smoothing import smooth
from app.engine.quant.writing import AwqWriter
from app.engine.reader import Reader
from app.errors import InvalidRequest
from app.quantization import REPORT, SUMS, evaluate, quantize, read_pieces
from tests.engine.conftest import make_model, prompts

ROOT = Path(__file__).parent.parent.parent
MODEL, SOURCES = ROOT / "demo/model", sorted((ROOT / "demo/sources").glob("*.md"))
LIMITS = Limits(tokens=64)
Quantized = Callable[[str], Path]


def quiet(done: int, total: int) -> None:
    assert done <= total


def lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lines(tmp_path_factory.mktemp("texts") / "calibration.jsonl", [SOURCES[0].read_text()[:12000]])


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [source.read_text()[:600] for source in SOURCES[2:6]]
    return lines(tmp_path_factory.mktemp("texts") / "held_out.jsonl", texts)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, calibration: Path) -> Quantized:
    known: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in known:
            known[name] = tmp_path_factory.mktemp("quantized") / name
            quantize(MODEL, known[name], name, calibration, quiet)
        return known[name]

    return get


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_transformers_loads_it_and_reads_the_same(name: str, quantized: Quantized) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(quantized(name), dtype=torch.float32)
    [tokens] = prompts(40)
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0]
    found = Reader(quantized(name), torch.float32, 64).logits(tokens)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["int8", "fp8", "awq"])
def test_it_is_complete_listed_and_close_to_the_original(name: str, quantized: Quantized) -> None:
    folder = quantized(name)
    verify(folder, folder / SUMS)
    assert (folder / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()
    [tokens] = prompts(40)
    first, second = (Reader(f, torch.float32, 64).logits(tokens).log_softmax(-1) for f in (MODEL, folder))
    assert 0 < float((first.exp() * (first - second)).sum(-1).mean()) < {"int8": 0.005, "fp8": 0.1, "awq": 0.5}[name]
    size = {"int8": 0.75, "fp8": 0.75, "awq": 0.55}[name]  # the embedding stays as it is
    assert (folder / "model.safetensors").stat().st_size < size * (MODEL / "model.safetensors").stat().st_size


class Unrounded(AwqWriter):
    """Errors that are as large in every column, so that scales pay."""

    def rounded(self, weight: Tensor) -> Tensor:
        return weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) / 100


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_smoothing_alone_changes_nothing(family: str, tmp_path: Path) -> None:
    make_model(family, hidden_size=64).save_pretrained(tmp_path / "before")
    reader, texts = Reader(tmp_path / "before", torch.float32, 64), prompts(60, 50)
    inputs, spec = reader.linear_inputs(texts), read_spec(tmp_path / "before")
    tensors = load_file(tmp_path / "before/model.safetensors")
    for i in range(spec.num_layers):
        prefix = f"model.layers.{i}."
        layer = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        before = {name: tensor.clone() for name, tensor in layer.items()}
        uneven = {name: x * torch.linspace(0.1, 10, x.shape[1]) for name, x in inputs[i].items()}
        smooth(layer, uneven, spec, Unrounded({}, 32))
        for name in (
            "self_attn.v_proj.weight",
            "self_attn.o_proj.weight",
            "mlp.up_proj.weight",
            "input_layernorm.weight",
        ):
            assert not torch.equal(layer[name], before[name]), name
    (tmp_path / "after").mkdir()
    save_file(tensors, tmp_path / "after/model.safetensors")
    (tmp_path / "after/config.json").write_text((tmp_path / "before/config.json").read_text())
    after = Reader(tmp_path / "after", torch.float32, 64)
    torch.testing.assert_close(after.logits(texts[0]), reader.logits(texts[0]), atol=1e-3, rtol=1e-3)


def test_smoothing_helps_a_layer_that_meets_large_inputs(tmp_path: Path) -> None:
    """An input channel 50 times the others: rounded as it is, its weights' errors are what one hears."""
    torch.manual_seed(0)
    make_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    spec, writer = read_spec(tmp_path), AwqWriter({}, 32)
    tensors = load_file(tmp_path / "model.safetensors")
    layer = {n.removeprefix("model.layers.0."): t for n, t in tensors.items() if n.startswith("model.layers.0.")}
    inputs = {name: torch.randn(100, k) for name, k in (("qkv", 64), ("output", 64), ("gate_up", 64), ("down", 128))}
    inputs["down"][:, 5] *= 50
    weight = layer["mlp.down_proj.weight"].clone()
    plain = inputs["down"] @ (writer.rounded(weight) - weight).T
    smooth(layer, inputs, spec, writer)
    scaled = layer["mlp.down_proj.weight"]
    rest = inputs["down"] @ ((writer.rounded(scaled) - scaled) * (weight / scaled)).T
    assert rest.square().mean() < plain.square().mean() / 2


def test_evaluation_passes_a_good_one_and_files_the_report_with_it(quantized: Quantized, held_out: Path) -> None:
    folder = quantized("int8")
    report = evaluate(MODEL, folder, held_out, LIMITS, quiet)
    assert report["passed"], report["measures"]
    assert json.loads((folder / REPORT).read_text()) == json.loads(json.dumps(report))
    verify(folder, folder / SUMS)
    ratio = report["measures"]["perplexity_ratio"]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert ratio["value"] == pytest.approx(ratio["quantized"] / ratio["original"])


def test_evaluation_refuses_a_broken_one(quantized: Quantized, held_out: Path, tmp_path: Path) -> None:
    """Negative control: one layer's scales are those of its rows in reverse."""
    for path in quantized("int8").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight_scale"
    tensors[name] = tensors[name].flip(0) * 1.5
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        evaluate(MODEL, tmp_path, held_out, LIMITS, quiet)
    write_sums(tmp_path, tmp_path / SUMS)
    report = evaluate(MODEL, tmp_path, held_out, LIMITS, quiet)
    assert not report["passed"]
    assert not report["measures"]["divergence"]["kept"]


def test_copied_numbers_and_negations_are_counted_apart() -> None:
    """Two models that copy what they read, but the second says 6 for 5, and never "not"."""
    words = ["the", "5", "shall", "not", "pay", "6"]

    def copier(changes: dict[int, int]) -> Callable[[list[int]], Tensor]:
        def read(tokens: list[int]) -> Tensor:
            half = len(tokens) // 2
            following = [tokens[(i + 1) % half] for i in range(len(tokens))]
            return torch.eye(len(words))[[changes.get(token, token) for token in following]] * 20

        return read

    limits = Limits(copying=0.0)
    found: Json = compare(
        copier({}), copier({1: 5, 3: 0}), [[0, 1, 2, 3, 4, 5]] * 3, lambda ids: words[ids[0]], limits, quiet
    )
    numbers, negations = (found["measures"][f"{kind}_copied_less"] for kind in ("numbers", "negations"))
    assert (numbers["count"], numbers["original"], numbers["quantized"], numbers["kept"]) == (6, 1.0, 0.5, False)
    assert (negations["count"], negations["original"], negations["quantized"], negations["kept"]) == (
        3,
        1.0,
        0.0,
        False,
    )


def test_what_cannot_be_quantized_is_refused(quantized: Quantized, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="not empty"):
        quantize(MODEL, quantized("int8"), "int8", None, quiet)
    with pytest.raises(InvalidRequest, match="quantized already"):
        quantize(quantized("int8"), tmp_path, "int8", None, quiet)
    with pytest.raises(InvalidRequest, match="needs --calibration"):
        quantize(MODEL, tmp_path, "awq", None, quiet)
    empty: Any = type("Nothing", (), {"encode": staticmethod(lambda text: [])})()
    with pytest.raises(InvalidRequest, match="has no text"):
        read_pieces(calibration, empty, 10)


def test_the_commands_quantize_compare_and_exit_with_1_beyond_a_limit(held_out: Path, tmp_path: Path) -> None:
    run, out = CliRunner().invoke, str(tmp_path / "out")
    assert run(main, ["quantize", str(MODEL), "--format", "int8", "--out", out]).exit_code == 0
    compared = ["eval", "quantization", str(MODEL), out, "--texts", str(held_out), "--tokens", "64"]
    good = run(main, compared)
    assert good.exit_code == 0 and "divergence" in good.output, good.output
    strict = run(main, [*compared, "--divergence", "0"])
    assert strict.exit_code == 1 and "NOT KEPT" in strict.output
    again = run(main, ["quantize", str(MODEL), "--format", "int8", "--out", out])
    assert again.exit_code == 1 and "is not empty" in again.output
