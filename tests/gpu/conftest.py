"""What only a GPU can show. On a machine with one, tests/kernels and tests/engine/test_paged_forward.py run compiled
on it as well: there TRITON_INTERPRET is not set, and their `device` is the GPU."""

import pytest

from tests import HAS_GPU


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    for item in items:
        if item.nodeid.startswith("tests/gpu/"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU on this machine (/dev/nvidia0 is missing)"))
