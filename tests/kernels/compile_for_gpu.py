"""Compile every kernel variant for an H200 without one, and print what came out as JSON lines:

    TRITON_INTERPRET=0 python -m tests.kernels.compile_for_gpu [--quick] [--dtypes bfloat16]

Triton's compiler needs no GPU, only its launcher does. So launches are replaced by compilation for sm_90, with the
argument types and alignments that the launch would have had.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from app.kernels import paged_attention, rejection, store_kv
from app.kernels.dispatch import TritonKernels
from app.kernels.packed import Activations, Int4Weight, PackedWeight, ScaledWeight
from app.kernels.tasks import Tiles
from app.kernels.tuning import Tuning
from app.kernels.variants import KernelShape, Variant

SHAPES = [(32, 8, 128), (16, 8, 128), (21, 3, 96), (8, 8, 64)]  # query heads, key heads, head size
HOPPER = GPUTarget("cuda", 90, 32)
_TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64",
    torch.float8_e4m3fn: "*fp8e4nv", torch.uint8: "*u8", torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip


def compile_instead(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """In place of JITFunction.run."""
    named = dict(zip(kernel.arg_names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in kernel.arg_names}
    options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = named[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
            continue
        signature[parameter.name] = _type(value)
        aligned = isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0)
        if aligned and not parameter.do_not_specialize:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=HOPPER, options=options)
    compiled_kernels.append((kernel.__name__, compiled))


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


compiled_kernels: list[tuple[str, Any]] = []
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack, which is where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_CUOBJDUMP), "--dump-resource-usage", file.name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key.lower(): int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", found)}


def describe(compiled: Any) -> dict[str, int]:
    """wgmma, mma: matrix instructions of Hopper and of older chips.  async_copies: loads that overlap arithmetic."""
    ir = compiled.asm["ttgir"]
    counts = {"wgmma": "ttng.warp_group_dot ", "mma": "tt.dot ", "async_copies": "async_copy_global_to_local"}
    found = {name: ir.count(operation) for name, operation in counts.items()}
    return found | {"shared_bytes": compiled.metadata.shared} | resources(compiled.asm["cubin"])


def packed_weights() -> list[PackedWeight]:
    """Of 4 and 8 bits, in groups of both kinds."""
    codes, row = torch.zeros(64, 256, dtype=torch.int8), torch.ones(64, 1)
    grouped = [torch.ones(64, 256 // group, dtype=torch.float16) for group in (32, 128)]
    by_row = ScaledWeight(codes.to(torch.float8_e4m3fn), row, Activations())
    static = ScaledWeight(by_row.codes, row, Activations(torch.tensor(1.0)))
    return [by_row, static, ScaledWeight(codes, row), *(Int4Weight.of(codes, scales, scales) for scales in grouped)]


def main(dtypes: list[str], shapes: list[tuple[int, int, int]]) -> None:
    JITFunction.run = compile_instead
    for dtype, (heads, kv_heads, dim) in itertools.product(dtypes, shapes):
        shape = KernelShape(heads, kv_heads, dim, 16, heads * dim, getattr(torch, dtype), torch.device("cpu"))
        kernels = TritonKernels(Tuning(Tiles.of(shape.dtype)), deterministic=True)
        found = kernels.variants(shape, has_norm=False, weights=packed_weights()) + store_kv.variants(shape, True)
        report(found + rejection.variants(shape, 32_000, 4), shape, "plain")
        in_8_bits = replace(shape, page_dtype=torch.float8_e4m3fn)
        report(
            store_kv.variants(in_8_bits, False) + paged_attention.variants(in_8_bits, kernels.tuning.tiles),
            in_8_bits,
            "fp8",
        )


def report(variants: list[Variant], shape: KernelShape, pages: str) -> None:
    heads = [shape.num_heads, shape.num_kv_heads, shape.head_dim]
    for variant in variants:
        compiled_kernels.clear()
        variant.launch()
        for name, compiled in compiled_kernels:
            row = {
                "kernel": name,
                "variant": variant.name,
                "shape": heads,
                "dtype": str(shape.dtype)[6:],
                "pages": pages,
            }
            print(json.dumps(row | describe(compiled)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--quick", action="store_true", help="only the heads of Llama-3.1-8B")
    args = parser.parse_args()
    main(args.dtypes, SHAPES[:1] if args.quick else SHAPES)
