"""What fewer bits bring on a CPU: `python -m benchmarks.quantization [--rounds N] [--json F]`.

A random Llama of 0.57 thousand million parameters, written in bfloat16 and then quantized by the functions behind
`precedent quantize` (awq without calibration: the numbers are random). Decoding at batch 1 takes turns within each
round, ratios are medians over rounds of one run. Memory is a process's own: its peak, from before the model is loaded
to after a first answer, less what it held before.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from app.engine import EngineConfig, LLMEngine, SamplingParams
from app.engine.architecture import read_spec
from app.engine.loader import dummy_weights
from app.engine.quant.saving import CheckpointWriter
from app.quantization import FORMATS, write_quantized, writer_of

SHAPE = {
    "model_type": "llama", "vocab_size": 6144, "hidden_size": 1536, "intermediate_size": 6144,
    "num_hidden_layers": 16, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 128,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "eos_token_id": None,
}  # fmt: skip
PROMPT = list(range(100, 116))
LONG_PROMPT = list(range(100, 356))
MIB = 1 << 20


def write_original(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    spec, writer = read_spec(folder), CheckpointWriter(folder)
    weights = dummy_weights(spec, torch.bfloat16, 0)
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    writer.add("model.embed_tokens.weight", weights.embedding)
    writer.add("model.norm.weight", weights.norm)
    writer.add("lm_head.weight", _plain(weights.head))
    for i, layer in enumerate(weights.layers):
        q, k, v = (part.clone() for part in torch.split(_plain(layer.qkv), [queries, keys, keys]))
        gate, up = (part.clone() for part in _plain(layer.gate_up).chunk(2))
        named = {
            "self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": layer.output,
            "mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": layer.down,
            "input_layernorm": layer.input_norm, "post_attention_layernorm": layer.post_norm,
        }  # fmt: skip
        for name, tensor in named.items():
            writer.add(f"model.layers.{i}.{name}.weight", _plain(tensor))
    writer.close()


def _plain(weight: object) -> torch.Tensor:
    assert isinstance(weight, torch.Tensor)
    return weight


def open_engine(folder: Path) -> LLMEngine:
    return LLMEngine(
        EngineConfig(folder, dtype="bfloat16", num_blocks=32, max_draft_tokens=0, enable_prefix_cache=False)
    )


def decode_seconds(engine: LLMEngine, tokens: int) -> float:
    """Of one token, after the prompt."""
    [output] = engine.generate([PROMPT], SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True))
    return output.metrics.decode_ms / 1000 / (tokens - 1)


def prefill_seconds(engine: LLMEngine) -> float:
    began = time.perf_counter()
    engine.generate([LONG_PROMPT], SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
    return (time.perf_counter() - began) / len(LONG_PROMPT)


def peak_bytes() -> int:
    """VmHWM of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def print_peak(folder: Path) -> None:
    """In a process of its own."""
    before = peak_bytes()
    decode_seconds(open_engine(folder), 2)
    print(peak_bytes() - before)


def measure(rounds: int, tokens: int, console: Console) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="precedent-quantization-") as place:
        folders = {"bf16": Path(place) / "bf16"}
        write_original(folders["bf16"])
        for name in FORMATS:
            console.log(f"quantizing to {name}")
            folders[name] = Path(place) / name
            writer = writer_of(name, read_spec(folders["bf16"]))
            write_quantized(folders["bf16"], folders[name], writer, None, lambda done, total: None)
        rows = {name: {"file_mib": _size(folder) / MIB} for name, folder in folders.items()}
        for name, folder in folders.items():
            command = [sys.executable, "-m", "benchmarks.quantization", "--peak", str(folder)]
            found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows[name]["peak_mib"] = int(found.split()[-1]) / MIB
        engines = {name: open_engine(folder) for name, folder in folders.items()}
        times: dict[str, list[float]] = {name: [] for name in engines}
        prefills: dict[str, list[float]] = {name: [] for name in engines}
        for i in range(rounds + 1):
            for name, engine in engines.items():
                decoding, prefill = decode_seconds(engine, tokens), prefill_seconds(engine)
                if i:  # the first round warms up
                    times[name].append(decoding)
                    prefills[name].append(prefill)
        for name in rows:
            rows[name] |= _speeds(name, times, "decode") | _speeds(name, prefills, "prefill")
    return {"rounds": rounds, "tokens": tokens, "threads": torch.get_num_threads(), "rows": rows}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _speeds(name: str, times: dict[str, list[float]], what: str) -> dict[str, float]:
    ratios = [plain / own for plain, own in zip(times["bf16"], times[name], strict=True)]
    return {f"{what}_per_second": 1 / statistics.median(times[name]), f"{what}_ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(args.peak)
        return
    console = Console()
    report = measure(args.rounds, args.tokens, console)
    columns = list(report["rows"]["bf16"])
    table = Table("weights", *columns)
    for name, row in report["rows"].items():
        table.add_row(name, *(f"{row[column]:.2f}" for column in columns))
    console.print(table)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
