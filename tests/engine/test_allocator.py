"""What a reader of weights no longer needs is given back, however it lies between what is kept."""

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
    for mib in (24, *range(2, 24)):  # each too large for the holes that smaller ones left
        scratch = torch.ones(mib << 18)
        kept.append(torch.ones(3 << 17))
        del scratch
print(peak() - before)
"""


def peak_mib(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_peak_is_what_is_kept_and_one_scratch() -> None:
    assert peak_mib("returning") < 80, "35 MiB are kept, the largest scratch has 24"
    assert peak_mib("as it is") > 150, "negative control"
