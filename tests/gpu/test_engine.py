"""The engine on a GPU: no compilation while serving, graphs that say what eager steps say, memory that is sized."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine import EngineConfig, LLMEngine, SamplingParams
from app.engine.device import CudaDevice
from tests.engine.conftest import make_model, prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpu-model")
    make_model("qwen3", head_dim=64, hidden_size=128).save_pretrained(path)
    return path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the kernels that Triton compiles (or loads from its disk cache: also work that serving must not do)."""
    import triton

    names: list[str] = []

    def compiled(*, fn: Any, **ignored: Any) -> None:
        names.append(fn.name)

    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", compiled)
    yield names


def settings(folder: Path, **changes: Any) -> EngineConfig:
    base: dict[str, Any] = {"model": folder, "dtype": "float32", "device": "cuda", "max_num_seqs": 8, "num_blocks": 300}
    return EngineConfig(**base | changes)


@pytest.mark.parametrize("graphs", [False, True])
def test_nothing_is_compiled_after_the_start(folder: Path, graphs: bool, compilations: list[str]) -> None:
    engine = LLMEngine(settings(folder, cuda_graphs=graphs))
    assert compilations
    compilations.clear()
    asked = prompts(1, 2, 17, 33, 100, 200)
    engine.generate(asked, SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    engine.generate(asked[:1], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert compilations == []


@pytest.mark.parametrize("graphs", [False, True])
def test_tokens_equal_the_cpus(folder: Path, graphs: bool) -> None:
    asked = prompts(5, 50, 120, 9, seed=1)
    sampling = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    wanted = LLMEngine(settings(folder, device="cpu", threads=1)).generate(asked, sampling)
    ours = LLMEngine(settings(folder, cuda_graphs=graphs)).generate(asked, sampling)
    assert [output.token_ids for output in ours] == [output.token_ids for output in wanted]


def test_the_pool_is_sized_by_utilization(folder: Path) -> None:
    total = torch.cuda.mem_get_info()[1]
    engine = LLMEngine(settings(folder, num_blocks=None, gpu_memory_utilization=0.3, max_num_seqs=100_000))
    pool = sum(pages.nbytes for pages in (*engine.runner.cache.keys, *engine.runner.cache.values))
    assert 0.2 * total < pool < 0.3 * total


def test_a_pool_that_cannot_fit_is_refused_with_numbers(folder: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold a KV cache"):
        LLMEngine(settings(folder, num_blocks=None, gpu_memory_utilization=0.0001))


def test_downloads_and_captures() -> None:
    device = CudaDevice()
    source = torch.arange(4, device=device.torch)
    replay = device.capture(lambda: source * 2)
    device.refill(source, torch.tensor([5, 6]))
    assert device.download(replay()).wait().tolist() == [10, 12, 4, 6]
