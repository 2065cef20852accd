"""Sizing of the KV pool from numbers that a GPU gives, and devices that are not there."""

import dataclasses
from typing import Any

import pytest
import torch

from app.engine import EngineConfig, Request, SamplingParams, TokenSegment
from app.engine.device import GIB, CpuDevice, Memory, kv_budget, open_device, upload_all
from app.engine.request import Sequence
from app.engine.sampling_batch import SamplingBatches
from tests import HAS_GPU

H200 = Memory(total=140 * GIB, free=120 * GIB, ours=18 * GIB, peak=20 * GIB)


def test_the_pool_gets_what_utilization_leaves_after_the_peak() -> None:
    assert kv_budget(H200, 0.9, GIB) == int(140 * GIB * 0.9) - 20 * GIB


def test_other_processes_are_not_counted_as_ours_but_take_room() -> None:
    some = Memory(total=140 * GIB, free=110 * GIB, ours=18 * GIB, peak=20 * GIB)
    assert kv_budget(some, 0.9, GIB) == kv_budget(H200, 0.9, GIB)
    many = Memory(total=140 * GIB, free=30 * GIB, ours=18 * GIB, peak=20 * GIB)
    assert 27 * GIB < kv_budget(many, 0.9, GIB) < 28 * GIB


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    small = Memory(total=24 * GIB, free=3 * GIB, ours=17 * GIB, peak=19 * GIB)
    with pytest.raises(ValueError, match="cannot hold a KV cache") as refused:
        kv_budget(small, 0.9, 2 * GIB)
    for number in ("24.0 GiB", "use 21.6", "take 19.0", "processes 4.0", "2.00 are needed", "0.75 are left"):
        assert number in str(refused.value)


@pytest.mark.skipif(HAS_GPU, reason="tests/gpu: there is a GPU")
def test_a_missing_gpu_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^device='cuda' found no CUDA device that torch can use; use device='cpu'$"):
        open_device("cuda")


def test_auto_is_the_cpu_until_a_gpu_has_verified_the_other() -> None:
    assert isinstance(open_device("auto"), CpuDevice)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "tpu"}, "device must be 'auto', 'cpu', 'cuda' or 'cuda:1', not 'tpu'"),
        ({"device": "cuda:x"}, "device must be"),
        ({"overlap": True}, "overlap=True needs max_draft_tokens=0"),
        ({"kernels": "fast"}, "kernels must be one of"),
        ({"gpu_memory_utilization": 1.2}, r"gpu_memory_utilization must be in \(0, 1\], not 1.2"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EngineConfig("model", **changes)  # type: ignore[arg-type]


class _Elsewhere(CpuDevice):
    """Uploads to a device that is not the CPU."""

    def __init__(self) -> None:
        self.torch, self.name = torch.device("meta"), "meta"

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        return host.to("meta")


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [found for field in dataclasses.fields(value) for found in tensors(getattr(value, field.name))]
    return [found for part in value for found in tensors(part)] if isinstance(value, tuple) else []


def test_everything_that_sampling_needs_is_uploaded() -> None:
    asked = SamplingParams(
        temperature=0.5, top_k=3, repetition_penalty=1.2, logit_bias={3: 1.0}, min_tokens=2, logprobs=1
    )
    seq = Sequence(Request("a", (TokenSegment([1, 2]),), asked), 7, 10)
    batch = SamplingBatches(50, [4]).batch([seq])
    moved = tensors(upload_all(batch, _Elsewhere()))
    assert len(moved) == len(tensors(batch)) > 10
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert upload_all(batch, CpuDevice()) is batch


def test_a_refill_touches_only_the_start() -> None:
    target = torch.zeros(4, dtype=torch.int32)
    CpuDevice().refill(target, torch.tensor([1, 2], dtype=torch.int32))
    assert target.tolist() == [1, 2, 0, 0]
