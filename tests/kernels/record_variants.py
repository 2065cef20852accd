"""Does an engine ask for a kernel variant that was not compiled ahead? Shown without a GPU, in a process of its own:

    TRITON_INTERPRET=0 python -m tests.kernels.record_variants MODEL_FOLDER [--quick | --quantized]

Launches are recorded instead of run, by what Triton specialises on; so the engine says nonsense, at full speed. Prints
which variants were recorded at its start and which while serving, as JSON.
"""

import itertools
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from app.engine import EngineConfig, LLMEngine, SamplingParams
from app.engine.config import KVCacheDtype
from app.kernels import dispatch
from app.kernels.tasks import Tiles
from app.kernels.tuning import Tuning


def specialisation(kernel: JITFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Constants, argument types, alignment to 16 and being 1: what decides whether Triton compiles anew."""
    named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    kinds = {parameter.name: parameter for parameter in kernel.params}
    key = {name: _kind(value, kinds.get(name)) for name, value in named.items()}
    return json.dumps({"kernel": kernel.__name__} | key, sort_keys=True)


def _kind(value: Any, parameter: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.data_ptr() % 16 == 0
    if parameter is None or parameter.is_constexpr:
        return value
    if isinstance(value, int) and not parameter.do_not_specialize:
        return "int", value == 1, value % 16 == 0, value >= 2**31
    return type(value).__name__


recorded: set[str] = set()


def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """In place of JITFunction.run."""
    recorded.add(specialisation(kernel, args, kwargs))


def serve(
    folder: Path, dtype: str, graphs: bool, fused: bool, deterministic: bool = False, pages: KVCacheDtype = "auto"
) -> dict[str, list[str]]:
    """Prompts and contexts of all kinds, with and without a shared prefix."""
    recorded.clear()
    settings = EngineConfig(
        folder, dtype=dtype, kernels="triton", num_blocks=200, max_num_seqs=6, max_num_batched_tokens=64, threads=1,
        cuda_graphs=graphs, fused_kernels=fused, shared_prefix_kernel=not deterministic, max_model_len=400,
        deterministic=deterministic, kv_cache_dtype=pages,
    )  # fmt: skip
    engine = LLMEngine(settings)
    ahead = set(recorded)
    recorded.clear()
    shapes = itertools.product((0, 48), (1, 2, 16, 70))
    prompts = [[1] * shared + [i + 2] * own for i, (shared, own) in enumerate(shapes)]
    for chosen in (prompts, prompts[:1], prompts[-2:]):
        engine.generate(chosen, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    return {"ahead": sorted(ahead), "serving": sorted(recorded), "late": sorted(recorded - ahead)}


def main(folder: Path, cases: Iterable[tuple[Any, ...]]) -> None:
    """cases: what serve() takes."""
    JITFunction.run = record
    dispatch._require_triton = lambda device, capability: None
    tiles = Tiles(split=32, shared_split=32, narrow=16, block_n=16, block_wide=32, block_shared=16)
    dispatch.load_tuning = lambda *args: Tuning(tiles, lambda tokens, keys: True)
    for case in cases:
        print(json.dumps({"case": case} | serve(folder, *case)), flush=True)


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    every = itertools.product(("float32", "bfloat16"), (False, True), (False, True))
    special = [("bfloat16", False, True, True), ("bfloat16", True, True, False, "fp8")]
    cases = [("bfloat16", True, True), *special] if quick else [*every, *special]
    if "--quantized" in sys.argv:  # the deterministic mode runs plain weights only
        cases = [("bfloat16", True, True)]
    main(Path(sys.argv[1]), cases)
