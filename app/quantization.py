"""`precedent quantize` and `precedent eval quantization`: a smaller checkpoint, and what it costs in quality."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.engine.architecture import DecoderSpec, read_spec
from app.engine.checksums import verify, write_sums
from app.engine.quant.layers import linear_layers
from app.engine.quant.quality import Limits, compare
from app.engine.quant.reading import read_format
from app.engine.quant.report import REPORT
from app.engine.quant.saving import CheckpointWriter
from app.engine.quant.smoothing import smooth
from app.engine.quant.writing import AwqWriter, Fp8Writer, Int8Writer, Writer
from app.engine.reader import Reader
from app.engine.shards import Shards
from app.engine.tokenizer import Tokenizer
from app.errors import InvalidRequest
from app.quantization_answers import compare_answers, read_cases

FORMATS = ("int8", "fp8", "awq")
SUMS = "SHA256SUMS"
_CALIBRATION_TOKENS = 512  # of one piece
_CALIBRATION_PIECES = 32
_NOT_COPIED = {"config.json", "model.safetensors.index.json", SUMS, REPORT}
Progress = Callable[[int, int], None]


def quantize(folder: Path, out: Path, format_name: str, calibration: Path | None, progress: Progress) -> None:
    """Write the model of `folder` to `out` with its linear layers quantized, and SHA256SUMS beside it.

    int8 and fp8 are compressed-tensors (scales per row; fp8 rounds inputs as they come), awq is AutoAWQ's layout and
    needs calibration: text like the model will read. Embedding, norms and the output layer stay as they are. Raises
    InvalidRequest, or ValueError naming what does not fit the format.
    """
    if out.exists() and any(out.iterdir()):
        raise InvalidRequest(f"{out} is not empty.")
    if read_format(folder) is not None:
        raise InvalidRequest(f"{folder} is quantized already; start from the original.")
    writer = writer_of(format_name, read_spec(folder))
    inputs = _linear_inputs(folder, calibration) if isinstance(writer, AwqWriter) else None
    write_quantized(folder, out, writer, inputs, progress)


def write_quantized(
    folder: Path, out: Path, writer: Writer, inputs: list[dict[str, Tensor]] | None, progress: Progress
) -> None:
    """inputs: of each layer, by attribute of LayerWeights, to smooth it by before it is rounded; None: it is not."""
    out.mkdir(parents=True, exist_ok=True)
    spec = read_spec(folder)
    checkpoint, shards = CheckpointWriter(out), Shards(folder)
    layers = [[name for name in shards if name.startswith(f"model.layers.{i}.")] for i in range(spec.num_layers)]
    for i, names in enumerate(layers):
        layer = dict(shards.tensors(names))
        if inputs is not None:
            layer = _smoothed(layer, inputs[i], spec, writer)
        for name, tensor in _written(layer, spec, writer):
            checkpoint.add(name, tensor)
        progress(i + 1, spec.num_layers)
    for name, tensor in shards.tensors(set(shards) - {name for names in layers for name in names}):
        checkpoint.add(name, tensor)
    checkpoint.close()
    _copy_the_rest(folder, out, writer)
    write_sums(out, out / SUMS)


def writer_of(format_name: str, spec: DecoderSpec) -> Writer:
    if format_name == "awq":
        shapes = [shape for parts in linear_layers(spec).values() for shape in parts.values()]
        return AwqWriter.of({columns for _, columns in shapes})
    return Int8Writer() if format_name == "int8" else Fp8Writer()


def _linear_inputs(folder: Path, calibration: Path | None) -> list[dict[str, Tensor]]:
    if calibration is None:
        raise InvalidRequest("awq needs --calibration: a text like those that the model will read.")
    pieces = read_pieces(calibration, Tokenizer(folder), _CALIBRATION_TOKENS)[:_CALIBRATION_PIECES]
    return Reader(folder, torch.float32, _CALIBRATION_TOKENS).linear_inputs(pieces)


def _smoothed(
    layer: dict[str, Tensor], inputs: dict[str, Tensor], spec: DecoderSpec, writer: Writer
) -> dict[str, Tensor]:
    prefix = ".".join(next(iter(layer)).split(".")[:3]) + "."  # model.layers.7.
    dtypes = {name: tensor.dtype for name, tensor in layer.items()}
    inner = {name.removeprefix(prefix): tensor.float() for name, tensor in layer.items()}
    smooth(inner, inputs, spec, writer)
    return {prefix + name: tensor.to(dtypes[prefix + name]) for name, tensor in inner.items()}


def _written(layer: dict[str, Tensor], spec: DecoderSpec, writer: Writer) -> list[tuple[str, Tensor]]:
    linears = tuple(f".{name}.weight" for parts in linear_layers(spec).values() for name in parts)
    found = []
    for name, tensor in layer.items():
        if name.endswith(linears):
            stem = name.removesuffix("weight")
            found += [(stem + part, value) for part, value in writer.write(tensor).items()]
        else:
            found.append((name, tensor))
    return found


def _copy_the_rest(folder: Path, out: Path, writer: Writer) -> None:
    for path in folder.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name not in _NOT_COPIED:
            shutil.copy2(path, out / path.name)
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"quantization_config": writer.config}, indent=2))


def read_pieces(path: Path, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """A text file, or JSON Lines of {"text"}, in pieces of at most `length` tokens; no piece spans two texts."""
    content = path.read_text(encoding="utf-8")
    texts = [content]
    if path.suffix == ".jsonl":
        texts = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    encoded = [tokenizer.encode(text) for text in texts]
    pieces = [tokens[at : at + length] for tokens in encoded for at in range(0, len(tokens), length)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise InvalidRequest(f"{path} has no text.")
    return pieces


def evaluate(
    original: Path, quantized: Path, texts: Path, limits: Limits, progress: Progress, questions: Path | None = None
) -> dict[str, Any]:
    """Compare the two on `texts`, and on `questions` (quantization_answers.py) where given.

    The report is filed with the quantized checkpoint, in its SHA256SUMS too; report["passed"] says whether every
    measure keeps its limit. Raises ValueError where the checkpoint was changed after it was written, or the two have
    different vocabularies.
    """
    if (quantized / SUMS).is_file():
        verify(quantized, quantized / SUMS)
    tokenizer = Tokenizer(original)
    pieces = read_pieces(texts, tokenizer, limits.tokens)
    first, second = (Reader(folder, torch.float32, 2 * limits.tokens + 1) for folder in (original, quantized))
    if first.spec.vocab_size != second.spec.vocab_size:
        raise ValueError(f"{original} has {first.spec.vocab_size} tokens, {quantized} has {second.spec.vocab_size}")
    cases = read_cases(questions) if questions is not None else []
    measured = compare(first.logits, second.logits, pieces, tokenizer.decode, limits, progress)
    answers = compare_answers(original, quantized, cases, limits.answers) if cases else {}
    measured["measures"] |= answers
    measured["passed"] = measured["passed"] and all(measure["kept"] for measure in answers.values())
    without = "" if answers else "the model has no chat template" if cases else "no questions were given"
    config = json.loads((quantized / "config.json").read_text())
    report = {
        "quantization": config.get("quantization_config"), "texts": texts.name, "limits": asdict(limits), **measured,
        "answers_not_compared": without,
    }  # fmt: skip
    (quantized / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    write_sums(quantized, quantized / SUMS)
    return report
