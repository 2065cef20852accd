"""Every kernel variant compiles for an H200 (sm_90), which needs no GPU, and comes out as it was meant to."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

SHARED_BYTES = 227 * 1024  # of a multiprocessor


def compiled(*options: str) -> list[dict[str, Any]]:
    """In a process of its own, since Triton cannot both interpret and compile in one."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.kernels.compile_for_gpu", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows: list[dict[str, Any]]) -> None:
    kernels = {
        "paged_attention_kernel",
        "merge_partials_kernel",
        "store_kv_kernel",
        "rms_norm_kernel",
        "rejection_kernel",
        "linear_kernel",
        "int4_linear_kernel",
        "int8_linear_kernel",
        "quantize_rows_kernel",
    }
    assert {row["kernel"] for row in rows} == kernels
    for row in rows:
        assert row["shared_bytes"] <= SHARED_BYTES, row
        if row["kernel"] != "paged_attention_kernel":
            continue
        assert row["async_copies"] > 0, row
        if row["dtype"] != "float32":
            padded = row["shape"][2] & (row["shape"][2] - 1)  # head sizes in between are padded, and may spill a little
            widened = row["pages"] == "fp8"  # takes registers of its own: 8 bytes are spilled in one shape
            assert row["stack"] <= (128 if padded else 8 if widened else 0), f"registers are spilled: {row}"
            tall = int(row["variant"].rpartition(" ")[2]) >= 64
            assert (row["wgmma"] > 0) == tall, row


def test_kernels_compile_for_an_h200() -> None:
    check(compiled("--quick", "--dtypes", "bfloat16"))


@pytest.mark.slow
def test_kernels_compile_for_an_h200_in_every_shape() -> None:
    check(compiled("--dtypes", "bfloat16", "float32"))
