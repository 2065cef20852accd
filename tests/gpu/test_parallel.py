"""Several GPUs, by NCCL. Never run so far: see docs/parallel.md."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from app.engine import EngineError, LLMEngine, SamplingParams
from tests import HAS_GPU
from tests.engine.conftest import prompts
from tests.gpu.test_engine import folder, settings

__all__ = ["folder"]

pytestmark = pytest.mark.skipif(not HAS_GPU or torch.cuda.device_count() < 2, reason="fewer than two GPUs here")
TENSOR, PIPELINE = {"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}
GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


@pytest.mark.parametrize("layout", [TENSOR, PIPELINE], ids=["tensor", "pipeline"])
def test_tokens_equal_the_cpus(folder: Path, layout: dict[str, int]) -> None:
    asked = prompts(5, 50, 120, 9, seed=1)
    wanted = LLMEngine(settings(folder, device="cpu", threads=1)).generate(asked, GREEDY)
    engine = LLMEngine(settings(folder, **layout))
    found = engine.generate(asked, GREEDY)
    engine.runner.release()
    assert [output.token_ids for output in found] == [output.token_ids for output in wanted]


def test_a_killed_rank_is_said_within_seconds(folder: Path) -> None:
    engine = LLMEngine(settings(folder, **TENSOR))
    engine.generate(prompts(5), GREEDY)
    os.kill(engine.runner.ranks._children[0].process.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(EngineError, match="rank 1 was ended by SIGKILL"):
        engine.generate(prompts(5), GREEDY)
    assert time.monotonic() - began < 10
    engine.runner.release()
