"""Every benchmark that needs neither a GPU nor a peer runs end to end, at toy size: a figure that nobody can measure
again is none. What they measure here says nothing.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.config import REPOSITORY
from tests.rag.conftest import make_pdf

pytestmark = pytest.mark.slow
QUICK = {
    "engine": ["--quick"],
    "models": ["turns", "--model", "demo/model", "--rounds", "1", "--requests", "2"],
    "parallel": ["--rounds", "1", "--tokens", "2"],
    "retrieval": ["--points", "2000", "--tenants", "2", "--optimize"],
    "serving": ["--rows", "prefix"],
    "speculation": ["--limit", "4", "--rounds", "1", "--batches", "1", "--least", "2", "--warm-up", "2"],
}
PRINTING = {
    "gateway": ["--seconds", "0.5"],
    "pages": ["--rounds", "1", "--pieces", "2"],
    "telemetry": ["--rounds", "1", "--seconds", "0.5"],
}


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout


def numbers(found: Any) -> Iterator[float]:
    if isinstance(found, dict | list):
        for one in found.values() if isinstance(found, dict) else found:
            yield from numbers(one)
    elif isinstance(found, int | float):
        yield found


@pytest.mark.parametrize("name", QUICK)
def test_a_report_is_written(name: str, tmp_path: Path) -> None:
    run(name, *QUICK[name], "--json", str(tmp_path / "report.json"))
    found = list(numbers(json.loads((tmp_path / "report.json").read_text())))
    assert found and all(map(math.isfinite, found))


@pytest.mark.parametrize("name", PRINTING)
def test_a_table_is_printed(name: str) -> None:
    assert any(character.isdigit() for character in run(name, *PRINTING[name]))


def test_documents_are_filed(tmp_path: Path) -> None:
    lines = ["1. Rent. The monthly rent of Mill House is EUR 4,200.", "2. Term. The term is five years."]
    for number in range(2):
        (tmp_path / f"{number}.pdf").write_bytes(make_pdf([lines, [f"This is lease {number}."]]))
    report = tmp_path / "report.json"
    run("ingestion", "--documents", str(tmp_path), "--json", str(report))
    found = json.loads(report.read_text())
    assert (found["documents"], found["pages"]) == (2, 4) and 0 < found["forward_share"] < 1
    assert found["idle_ms"]["p50"] > 0 and found["answers_meanwhile"] > 0
