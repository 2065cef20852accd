"""Which kernels are chosen, decided once; what cannot run is refused in one sentence that says what would."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from app.kernels import dispatch
from app.kernels.dispatch import ReferenceKernels, Switches, TritonKernels, choose
from app.kernels.paged_attention import paged_attention, variants
from app.kernels.paged_plan import build_plan, to_device
from app.kernels.pages import KVPages
from app.kernels.shared_prefix import Cutover, never
from app.kernels.store_kv import store_kv
from app.kernels.tasks import Tiles
from app.kernels.tuning import Tuning, load_tuning, save_tuning
from app.kernels.variants import KernelShape
from tests import HAS_GPU
from tests.kernels.paged import make_pages
from tests.kernels.sweep import DTYPES

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {"group": 4, "head_dim": 64, "dtype": torch.float32}


def test_a_cpu_gets_the_reference_unless_told_otherwise(device: torch.device) -> None:
    assert isinstance(choose("auto", CPU, "cpu", **SHAPE), ReferenceKernels)
    assert isinstance(choose("triton", device, "", **SHAPE), TritonKernels)


def test_the_engine_loads_no_triton() -> None:
    code = "import sys, app.engine.engine, app.kernels.dispatch; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_engine_starts_where_triton_is_absent() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import torch, app.engine.engine;"
        "from app.kernels.dispatch import choose;"
        "print(type(choose('auto', torch.device('cpu'), 'cpu', group=4, head_dim=64, dtype=torch.float32)).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ReferenceKernels", done.stderr


def test_missing_triton_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^cuda needs the package triton, .*pip install triton or device='cpu'$"):
        choose("auto", torch.device("cuda"), "", **SHAPE)


@pytest.mark.skipif(HAS_GPU, reason="tests/gpu: a GPU has a driver")
def test_a_driver_without_triton_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^Triton finds no driver that it can use for cuda .*; use device='cpu'$"):
        choose("triton", torch.device("cuda"), "", **SHAPE)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="need a CUDA device, or TRITON_INTERPRET=1"):
        choose("triton", CPU, "cpu", **SHAPE)


def test_the_reference_is_not_for_gpus() -> None:
    with pytest.raises(ValueError, match="kernels='reference' run on the CPU only, not on cuda"):
        choose("reference", torch.device("cuda"), "", **SHAPE)


def test_an_unsupported_head_size_is_refused_at_the_start_and_by_the_launcher(device: torch.device) -> None:
    sentence = "head size 80000 is not supported; supported are multiples of 16 from 16 to 256"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        choose("triton", device, "", group=4, head_dim=80000, dtype=torch.float32)
    paged = make_pages([3], [1], kv_heads=1, dim=24, size=16, dtype=torch.float32, device=device)
    plan = to_device(build_plan(paged.rows, group=2, tiles=Tiles()), lambda x: x.to(device))
    with pytest.raises(ValueError, match="head size 24 is not supported"):
        paged_attention(torch.zeros(1, 2, 24, device=device), paged.pages, plan, 1.0, Tiles())
    empty = torch.zeros(1, 4, 24, device=device)
    with pytest.raises(ValueError, match="head size 24 is not supported"):
        store_kv(empty, empty, empty, empty, empty, paged.pages)


def test_unsupported_dtypes_and_layouts_are_refused(device: torch.device) -> None:
    paged = make_pages([3], [1], kv_heads=1, dim=64, size=16, dtype=torch.float32, device=device)
    plan = to_device(build_plan(paged.rows, group=2, tiles=Tiles()), lambda x: x.to(device))
    q = torch.zeros(1, 2, 64, device=device)
    for (query, keys, values), sentence in (
        ((q.double(), paged.k.double(), paged.v.double()), "^kernels take float32, float16, bfloat16, not float64$"),
        ((q.half(), paged.k, paged.v), "^kernels take operands of one dtype, not float16, float32, float32$"),
        (
            (q.transpose(1, 2).contiguous().transpose(1, 2), paged.k, paged.v),
            "q must be contiguous in its last dimension",
        ),
        (
            (q.expand(1, 2, 64).repeat(1, 2, 1)[:, :3], paged.k.repeat(1, 2, 1, 1), paged.v),
            "3 query heads cannot share 2",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            paged_attention(query, KVPages(keys, values), plan, 1.0, Tiles())


def test_tuning_is_found_by_gpu_and_shape_alone(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tiles, points = Tiles(split=256, shared_split=1024), [(2, 512, 0.9), (2, 1024, 1.5)]
    save_tuning("GPU A", {"measured": "today"}, 4, 128, torch.bfloat16, tiles, points, path)
    save_tuning("GPU A", {"measured": "later"}, 2, 128, torch.bfloat16, Tiles(), [], path)
    found = load_tuning("GPU A", 4, 128, torch.bfloat16, path)
    assert found == Tuning(tiles, Cutover({(2, 512): 0.9, (2, 1024): 1.5}))
    assert load_tuning("GPU B", 4, 128, torch.bfloat16, path) == Tuning(Tiles(), never)
    assert load_tuning("GPU A", 4, 64, torch.bfloat16, path).use_shared is never


def test_the_shared_prefix_has_a_switch(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    measured = Tuning(Tiles(), Cutover({(2, 512): 2.0}))
    monkeypatch.setattr(dispatch, "load_tuning", lambda *args: measured)
    for on in (False, True):
        chosen = choose("triton", device, "", **SHAPE, switches=Switches(shared_prefix=on))
        assert isinstance(chosen, TritonKernels)
        assert chosen.tuning.use_shared(2, 512) is on


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_can_be_launched_ahead(dtype: str, device: torch.device) -> None:
    shape = KernelShape(6, 2, 64, 16, 96, DTYPES[dtype], device)
    kernels = TritonKernels(Tuning(Tiles.of(shape.dtype)))
    names = [variant.name for variant in kernels.variants(shape, has_norm=True)]
    assert len(names) == len(set(names)) == len(variants(shape, kernels.tuning.tiles)) + 4
    for variant in kernels.variants(shape, has_norm=True):
        variant.launch()
