"""Our kernels one by one, each beside what the device can do at most, in one run.

    python -m benchmarks.kernels --json kernels.json            on a GPU, at the sizes of the mission
    python -m benchmarks.kernels --tune                         also writes app/kernels/tuning.json for this GPU
    python -m benchmarks.kernels --device cpu                   interpreted, at toy size: that it runs, not how fast

The ceilings (copy bandwidth, matmul rate) are measured first, in the same run. Times are medians; on a GPU the cache
is flushed before each call. Paged attention's bytes are the keys and values of every row, so a shared prefix that is
read once can exceed the ceiling, which is its point.
"""

import argparse
import functools
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "cpu" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import numpy as np
import torch
import torch.nn.functional as F
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from app.engine.device import open_device
from app.kernels.linear import linear
from app.kernels.paged_attention import paged_attention
from app.kernels.paged_plan import DevicePlan, build_plan, pack, sections, to_device
from app.kernels.pages import KVPages
from app.kernels.rejection import rejection_sample
from app.kernels.rms_norm import add_rms_norm, add_rms_norm_reference
from app.kernels.shared_prefix import SharedRun, never
from app.kernels.store_kv import store_kv, store_kv_reference
from app.kernels.tasks import PagedRows, Tiles
from app.kernels.tuning import TABLE, load_tuning, save_tuning

PAGE = 16


@dataclass(frozen=True, slots=True)
class Model:
    """Attention of a model."""

    name: str
    heads: int
    kv_heads: int
    dim: int
    hidden: int

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured. Shared prefixes: every number of rows with every length, each row with `private` keys more."""

    models: tuple[Model, ...]
    dtype: torch.dtype
    decode: tuple[tuple[int, int], ...]
    verify: tuple[int, int, int]
    prefill: tuple[int, ...]
    rows: tuple[int, ...]
    prefixes: tuple[int, ...]
    private: int
    tokens: int
    layer_tokens: tuple[int, ...]
    vocab: int
    copied_bytes: int
    matmul: int
    heights: tuple[int, ...]
    decode_tiles: tuple[dict[str, int], ...]


QWEN = Model("Qwen3-0.6B", 16, 8, 128, 1024)
LLAMA = Model("Llama-3.1-8B", 32, 8, 128, 4096)
GPU = Sizes(
    (QWEN, LLAMA), torch.bfloat16, decode=((1, 3072), (32, 3072), (256, 3072)), verify=(64, 5, 3072),
    prefill=(2048, 8192), rows=(2, 4, 8, 16, 32, 64, 128, 256, 500), prefixes=(256, 512, 1024, 2048, 4096),
    private=1024, tokens=4096, layer_tokens=(1, 64, 512), vocab=151_936, copied_bytes=4 * 1024**3, matmul=8192,
    heights=(64, 128),
    decode_tiles=tuple(
        {"split": split, "shared_split": split, "block_n": keys}
        for split, keys in itertools.product((256, 512, 1024), (32, 64, 128))
    ),
)  # fmt: skip
TOY = Sizes(
    (Model("toy", 4, 2, 64, 64),), torch.float32, decode=((2, 48),), verify=(2, 3, 40), prefill=(40,), rows=(2, 4),
    prefixes=(32, 64), private=16, tokens=4, layer_tokens=(2,), vocab=100, copied_bytes=1 << 20, matmul=128,
    heights=(16, 32),
    decode_tiles=({"split": 32, "shared_split": 32, "block_n": 16}, {"split": 64, "shared_split": 64, "block_n": 32}),
)  # fmt: skip


class Bench:
    """Times on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.name = torch.cuda.get_device_name() if device == "cuda" else "cpu, interpreted"
        # For torch.compile, which on a CPU writes C++.
        self.compiles = device == "cuda" or shutil.which("g++") is not None

    def seconds(self, step: Callable[[], object]) -> float:
        """Median of one call."""
        if self.device.type == "cuda":
            found: float = triton.testing.do_bench(step, warmup=25, rep=100, return_mode="median")
            return found * 1e-3
        times = []
        for _ in range(2):
            began = time.perf_counter()
            step()
            times.append(time.perf_counter() - began)
        return statistics.median(times)

    def randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """bytes_per_s: read plus written by a copy.  flops: of a square matmul."""

    bytes_per_s: float
    flops: float


def ceilings(bench: Bench, sizes: Sizes) -> Ceilings:
    source = torch.zeros(sizes.copied_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copied = 2 * sizes.copied_bytes / bench.seconds(lambda: target.copy_(source))
    a, b = (bench.randn(sizes.matmul, sizes.matmul, dtype=sizes.dtype) for _ in range(2))
    return Ceilings(copied, 2 * sizes.matmul**3 / bench.seconds(lambda: a @ b))


@dataclass(slots=True)
class Step:
    """Attention of one step, ready to run."""

    q: Tensor
    k: Tensor
    v: Tensor
    rows: PagedRows
    shared: list[SharedRun]

    def plan(self, model: Model, tiles: Tiles, *, shared: bool = False) -> DevicePlan:
        use = (lambda tokens, keys: True) if shared else never
        plan = build_plan(self.rows, group=model.group, tiles=tiles, shared=self.shared, use_shared=use)
        return to_device(plan, lambda x: x.to(self.q.device))

    def run(self, model: Model, tiles: Tiles, *, shared: bool = False) -> Callable[[], Tensor]:
        plan = self.plan(model, tiles, shared=shared)
        return lambda: paged_attention(self.q, KVPages(self.k, self.v), plan, model.dim**-0.5, tiles)


def make_step(
    bench: Bench, sizes: Sizes, model: Model, rows: int, keys: int, *, queries: int = 1, prefix: int = 0
) -> Step:
    """Rows of `keys` keys, the last `queries` of them of this step; the first `prefix` keys in common pages."""
    places, common = -(-keys // PAGE), prefix // PAGE
    ids = np.random.default_rng(0).permutation(rows * (places - common) + common).astype(np.int32)
    own = ids[common:].reshape(rows, places - common)
    table = np.concatenate([np.tile(ids[:common], (rows, 1)), own], 1)
    k, v = (bench.randn(len(ids), model.kv_heads, PAGE, model.dim, dtype=sizes.dtype) for _ in range(2))
    q = bench.randn(rows * queries, model.heads, model.dim, dtype=sizes.dtype)
    starts, counts = np.full(rows, keys - queries, np.int32), np.full(rows, queries, np.int32)
    shared = [SharedRun(np.arange(rows, dtype=np.int32), 0, prefix)] if prefix else []
    return Step(q, k, v, PagedRows(starts, counts, table), shared)


def kv_bytes(sizes: Sizes, model: Model, keys: int) -> int:
    return 2 * model.kv_heads * model.dim * sizes.dtype.itemsize * keys


Row = dict[str, Any]


def attention_rows(bench: Bench, sizes: Sizes, model: Model, tiles: Tiles, most: Ceilings) -> list[Row]:
    found = []
    verify_rows, queries, verify_keys = sizes.verify
    cases = [("decode", rows, keys, 1) for rows, keys in sizes.decode]
    for kind, rows, keys, count in [*cases, ("verify", verify_rows, verify_keys, queries)]:
        step = make_step(bench, sizes, model, rows, keys, queries=count)
        seconds = bench.seconds(step.run(model, tiles))
        rate = kv_bytes(sizes, model, rows * keys) / seconds
        name = f"{kind} {rows} x {keys}" + (f", {count} tokens" if count > 1 else "")
        found.append(row(model, name, seconds, rate / 1e9, "GB/s", rate / most.bytes_per_s))
    for length in sizes.prefill:
        found += prefill_rows(bench, sizes, model, tiles, most, length)
    return found


def prefill_rows(bench: Bench, sizes: Sizes, model: Model, tiles: Tiles, most: Ceilings, length: int) -> list[Row]:
    """Ours over pages, torch's own over contiguous tensors; only the visible half of the scores counts."""
    flops = 2 * 2 * model.heads * model.dim * length * (length + 1) / 2
    step = make_step(bench, sizes, model, 1, length, queries=length)
    q = step.q.transpose(0, 1)[None].contiguous()
    k, v = (bench.randn(1, model.kv_heads, length, model.dim, dtype=sizes.dtype) for _ in range(2))
    times = [
        ("ours", bench.seconds(step.run(model, tiles))),
        (
            "torch SDPA, contiguous",
            bench.seconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)),
        ),
    ]
    if bench.compiles:
        times.append(("FlexAttention, contiguous", bench.seconds(flex(q, k, v))))
    return [
        row(
            model, f"prefill {length}, {name}", seconds, flops / seconds / 1e12, "TFLOP/s", flops / seconds / most.flops
        )
        for name, seconds in times
    ]


def flex(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    """Causal, compiled; its first call compiles and is not measured."""
    length = q.shape[2]
    make_mask: Any = create_block_mask
    mask = make_mask(lambda _b, _h, i, j: i >= j, None, None, length, length, device=str(q.device))
    compiled = torch.compile(flex_attention)
    run = functools.partial(compiled, q, k, v, block_mask=mask, enable_gqa=True)
    run()
    return run


def layer_rows(bench: Bench, sizes: Sizes, model: Model) -> list[Row]:
    """A layer without its attention, which is what torch.compile could take over, as it is launched now, as a graph
    and compiled; and what matrix products that do not depend on the batch cost."""
    wide = 7 * model.hidden // 2 // 16 * 16
    norm = bench.randn(model.hidden, dtype=sizes.dtype)
    up, down = (bench.randn(*shape, dtype=sizes.dtype) for shape in ((2 * wide, model.hidden), (model.hidden, wide)))

    def layer(x: Tensor, change: Tensor) -> Tensor:
        gate, value = F.linear(add_rms_norm_reference(x, change, norm, 1e-6), up).chunk(2, -1)
        return F.linear(F.silu(gate) * value, down)

    found = []
    for tokens in sizes.layer_tokens:
        x, change = (bench.randn(tokens, model.hidden, dtype=sizes.dtype) for _ in range(2))
        steps: dict[str, Callable[[], Tensor]] = {"eager": functools.partial(layer, x, change)}
        steps["graph"] = open_device(bench.device.type).capture(steps["eager"])
        if bench.compiles:
            steps["torch.compile"] = functools.partial(torch.compile(layer), x, change)
            steps["torch.compile"]()
        name = f"layer without attention, {tokens} tokens"
        found += [row(model, f"{name}, {kind}", bench.seconds(step)) for kind, step in steps.items()]
        products = {"ours, batch-invariant": linear, "torch": F.linear}
        name = f"matrix product, {tokens} tokens"
        found += [
            row(model, f"{name}, {kind}", bench.seconds(functools.partial(product, x, up)))
            for kind, product in products.items()
        ]
    return found


def shared_rows(bench: Bench, sizes: Sizes, model: Model, tiles: Tiles) -> list[tuple[int, int, float, float]]:
    """(rows, prefix, seconds with the prefix read once, how many times as fast as without)."""
    found = []
    for rows, prefix in itertools.product(sizes.rows, sizes.prefixes):
        step = make_step(bench, sizes, model, rows, prefix + sizes.private, prefix=prefix)
        plain, together = (bench.seconds(step.run(model, tiles, shared=shared)) for shared in (False, True))
        found.append((rows, prefix, together, plain / together))
    return found


def fused_rows(bench: Bench, sizes: Sizes, model: Model) -> list[Row]:
    """The small kernels, and what PyTorch's operators take for the same."""
    tokens, dtype = sizes.tokens, sizes.dtype
    stream, change = (bench.randn(tokens, model.hidden, dtype=dtype) for _ in range(2))
    weight = bench.randn(model.hidden, dtype=dtype)
    qkv = bench.randn(tokens, model.heads + 2 * model.kv_heads, model.dim, dtype=dtype)
    positions = torch.arange(tokens, dtype=torch.int32, device=bench.device)
    table = bench.randn(tokens, model.dim, dtype=torch.float32)
    k, v = (bench.randn(-(-tokens // PAGE), model.kv_heads, PAGE, model.dim, dtype=dtype) for _ in range(2))
    stored = qkv, positions, positions.long(), table, table, KVPages(k, v)
    steps: list[tuple[str, Callable[[], object]]] = [
        ("rms_norm with residual, ours", lambda: add_rms_norm(stream, change, weight, 1e-6)),
        ("rms_norm with residual, torch", lambda: add_rms_norm_reference(stream, change, weight, 1e-6)),
        ("rope and page write, ours", lambda: store_kv(*stored)),
        ("rope and page write, torch", lambda: store_kv_reference(*stored)),
        ("draft verification of 4, ours", verification(bench, sizes)),
    ]
    return [row(model, f"{name}, {tokens} tokens", bench.seconds(step)) for name, step in steps]


def plan_row() -> Row:
    """The host's part, at the mission's size on any device: 500 rows of 3,072 keys, 2,048 of them in common."""
    table = np.random.default_rng(0).integers(0, 100_000, (500, 3072 // PAGE)).astype(np.int32)
    rows = PagedRows(np.full(500, 3071, np.int32), np.ones(500, np.int32), table)
    shared = [SharedRun(np.arange(500, dtype=np.int32), 0, 2048)]
    times = []
    for _ in range(20):
        began = time.perf_counter()
        pack(sections(build_plan(rows, group=LLAMA.group, tiles=Tiles(), shared=shared, use_shared=lambda *_: True)))
        times.append(time.perf_counter() - began)
    return row(LLAMA, "plan and pack 500 rows on the host", statistics.median(times))


def verification(bench: Bench, sizes: Sizes) -> Callable[[], object]:
    rows, most = max(1, sizes.tokens // 64), 4
    target = bench.randn(rows * (most + 1), sizes.vocab, dtype=torch.float32).softmax(-1)
    firsts = torch.arange(rows, dtype=torch.int32, device=bench.device) * (most + 1)
    drafts = target.argmax(-1).view(rows, most + 1)[:, :most].contiguous()
    counts = torch.full((rows,), most, dtype=torch.int32, device=bench.device)
    uniforms = (torch.rand(rows, most, dtype=torch.float64), torch.rand(rows, dtype=torch.float64))
    accept, draw = (x.to(bench.device) for x in uniforms)
    return lambda: rejection_sample(target, firsts, drafts, counts, None, accept, draw)


def row(
    model: Model, name: str, seconds: float, rate: float | None = None, unit: str = "", share: float | None = None
) -> Row:
    """share: of the measured ceiling."""
    return {"model": model.name, "case": name, "us": seconds * 1e6, "rate": rate, "unit": unit, "share": share}


def tune(bench: Bench, sizes: Sizes, model: Model, path: Path) -> Tiles:
    """The best tiles for decoding, then for chunks, then for shared prefixes; then where these pay. Into the table."""
    rows, prefix = sizes.rows[-1], sizes.prefixes[-1]
    decode = [make_step(bench, sizes, model, n, keys) for n, keys in sizes.decode]
    chunks = [make_step(bench, sizes, model, 1, n, queries=n) for n in sizes.prefill]
    together = [make_step(bench, sizes, model, rows, prefix + sizes.private, prefix=prefix)]
    best = Tiles.of(sizes.dtype)
    best = fastest(bench, model, decode, [replace(best, **change) for change in sizes.decode_tiles])
    best = fastest(bench, model, chunks, [replace(best, block_wide=height) for height in sizes.heights])
    best = fastest(
        bench, model, together, [replace(best, block_shared=height) for height in sizes.heights], shared=True
    )
    points = [(n, keys, round(gain, 3)) for n, keys, _, gain in shared_rows(bench, sizes, model, best)]
    save_tuning(bench.name, about(), model.group, model.dim, sizes.dtype, best, points, path)
    return best


def fastest(bench: Bench, model: Model, steps: list[Step], candidates: list[Tiles], *, shared: bool = False) -> Tiles:
    """The candidate with the least product of all steps' times, so that every step counts alike."""

    def cost(tiles: Tiles) -> float:
        try:
            return math.prod(bench.seconds(step.run(model, tiles, shared=shared)) for step in steps)
        except triton.runtime.errors.OutOfResources:  # a tile that this GPU's shared memory does not hold
            return math.inf

    return min(candidates, key=cost)


def about() -> dict[str, str]:
    return {"measured": date.today().isoformat(), "torch": torch.__version__, "triton": triton.__version__}


def measure(bench: Bench, sizes: Sizes, path: Path, with_tuning: bool) -> dict[str, Any]:
    most = ceilings(bench, sizes)
    rows, shared = [plan_row()], []
    for model in sizes.models:
        if with_tuning:
            tune(bench, sizes, model, path)
        tiles = load_tuning(bench.name, model.group, model.dim, sizes.dtype, path).tiles
        rows += attention_rows(bench, sizes, model, tiles, most) + fused_rows(bench, sizes, model)
        rows += layer_rows(bench, sizes, model)
        shared += [(model.name, *found) for found in shared_rows(bench, sizes, model, tiles)]
    return {
        "device": bench.name,
        "hardware": platform.processor() or platform.machine(),
        "interpreted": bench.device.type != "cuda",
        **about(),
        "dtype": str(sizes.dtype).removeprefix("torch."),
        "copy_gb_per_s": most.bytes_per_s / 1e9,
        "matmul_tflop_per_s": most.flops / 1e12,
        "rows": rows,
        "shared_prefix": [
            {"model": name, "rows": n, "prefix": keys, "private": sizes.private, "us": seconds * 1e6, "times": gain}
            for name, n, keys, seconds, gain in shared
        ],
    }


def tables(report: dict[str, Any]) -> list[Table]:
    copy, matmul = report["copy_gb_per_s"], report["matmul_tflop_per_s"]
    note = "interpreted on a CPU: times mean nothing" if report["interpreted"] else "share: of the measured ceiling"
    first = Table(
        title=f"{report['device']} · {report['dtype']} · copy {copy:.0f} GB/s, matmul {matmul:.1f} TFLOP/s",
        caption=note,
    )
    for column in ("model", "case", "us", "rate", "share"):
        first.add_column(column, justify="left" if column in ("model", "case") else "right")
    for found in report["rows"]:
        rate = f"{found['rate']:.1f} {found['unit']}" if found["rate"] is not None else ""
        share = f"{found['share']:.1%}" if found["share"] is not None else ""
        first.add_row(found["model"], found["case"], f"{found['us']:.1f}", rate, share)
    second = Table(title="shared prefix read once, against our own paged kernel", caption=note)
    for column in ("model", "rows", "prefix", "us", "times as fast"):
        second.add_column(column, justify="left" if column == "model" else "right")
    for found in report["shared_prefix"]:
        second.add_row(
            found["model"], str(found["rows"]), str(found["prefix"]), f"{found['us']:.1f}", f"{found['times']:.2f}"
        )
    return [first, second]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tune", action="store_true", help="choose tiles, measure cutovers, write the table")
    parser.add_argument("--table", type=Path, help=f"of tuning; default {TABLE}, on a CPU a temporary file")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device that torch can use; --device cpu runs the same at toy size, interpreted")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        path = args.table or (TABLE if args.device == "cuda" else Path(scratch) / "tuning.json")
        report = measure(Bench(args.device), GPU if args.device == "cuda" else TOY, path, args.tune)
    console = Console()
    for table in tables(report):
        console.print(table)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
