"""What a reader of weights no longer needs is given back, however it lies between what is kept."""

import os
import subprocess
import sys

import pytest

CODE = """
import contextlib, sys, torch
from pathlib import Path
from app.engine.allocator import returning_memory

def peak():
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) >> 10

before, kept = peak(), []
with returning_memory() if sys.argv[1] == "returning" else contextlib.nullcontext():
    for mib in range(2, 17):  # each pair too large for the holes that smaller ones left
        scratch = torch.ones(mib << 18)
        kept.append(torch.ones(mib << 18))
        del scratch
print(peak() - before)
"""


# Where glibc takes the size limit by itself once a block of 32 MiB was freed; said, so that each run starts there.
AS_IN_A_LONG_RUN = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}


def peak_mib(how: str) -> int:
    environment = {**os.environ, **AS_IN_A_LONG_RUN}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, env=environment
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_peak_is_what_is_kept_and_one_scratch() -> None:
    assert peak_mib("returning") < 190, "135 MiB are kept, the largest scratch has 16"
    assert peak_mib("as it is") > 230, "negative control"
