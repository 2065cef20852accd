"""benchmarks.kernels runs end to end without a GPU, and what it tunes is what dispatch reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.kernels.shared_prefix import Cutover
from app.kernels.tuning import load_tuning


@pytest.mark.slow
def test_runs_interpreted_and_writes_a_table(tmp_path: Path) -> None:
    table, report = tmp_path / "tuning.json", tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks.kernels", "--device", "cpu", "--tune", "--table", str(table)]
    subprocess.run([*command, "--json", str(report)], check=True, capture_output=True)
    found = json.loads(report.read_text())
    assert found["interpreted"] is True
    assert {row["case"].split()[0] for row in found["rows"]} >= {
        "decode",
        "verify",
        "prefill",
        "rms_norm",
        "rope",
        "draft",
        "layer",
        "matrix",
    }
    assert len(found["shared_prefix"]) == 4
    tuning = load_tuning(found["device"], 2, 64, torch.float32, table)
    assert isinstance(tuning.use_shared, Cutover)
    assert len(tuning.use_shared.points) == 4


def test_says_what_to_do_without_a_gpu() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("--device cpu runs the same at toy size, interpreted")
