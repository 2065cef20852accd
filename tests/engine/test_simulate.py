"""benchmarks/simulate.py: the scheduler at scale, and TTFT predictions under a load that one engine can carry."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.simulate import ESTIMATED_COST, Engine, Fleet, plot, report


def test_predictions_hold_and_sharing_pays(tmp_path: Path) -> None:
    fleet = Fleet(users=400, seconds=100, think=20)
    engine = Engine(fleet, ESTIMATED_COST, seed=3)
    result = engine.run()
    found = report(fleet, [result])
    assert found["prediction_median_error"] < 0.15  # type: ignore[operator]
    assert 0.88 <= found["prediction_90_covers"] <= 0.92  # type: ignore[operator]
    assert found["prefix_hit_share"] > 0.9  # type: ignore[operator]
    assert engine.pool.is_consistent()
    plot(tmp_path / "ttft.png", replace(fleet, seconds=10), ESTIMATED_COST, "estimated", [result], jobs=1)
    assert (tmp_path / "ttft.png").stat().st_size > 1000


def test_simulating_needs_no_torch() -> None:
    code = "import sys, benchmarks.simulate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
