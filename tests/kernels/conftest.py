"""Kernels run on the GPU where there is one, else on the CPU through Triton's interpreter (see tests/__init__.py).

Interpreted bfloat16: kernels widen it to float32 before they compute, and the
interpreter's casts back cut instead of rounding, so its tolerance below is twice what rounding would need.
"""

import pytest
import torch

from tests import HAS_GPU


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
