"""What `precedent eval quantization` filed with a checkpoint, and whether it speaks for serving it. No torch."""

import json
from pathlib import Path
from typing import Any

REPORT = "quantization_report.json"


def objection(folder: Path) -> str | None:
    """Why a quantized checkpoint should not be served; None where its report has passed, or nothing is quantized.

    The report is read as it lies there: whether it belongs to these weights is what SHA256SUMS is for. Raises
    ValueError where the config or the report is no JSON object.
    """
    config = folder / "config.json"
    if not config.is_file() or not _object(config).get("quantization_config"):
        return None
    path = folder / REPORT
    if not path.is_file():
        return f"{folder} is quantized and has no {REPORT}: nothing says what that costs in quality"
    report = _object(path)
    if report.get("passed") is True:
        return None
    measures = report.get("measures", {})
    broken = [name for name, measure in measures.items() if not measure.get("kept")]
    return f"{folder} is quantized and does not keep its limits of quality: {', '.join(broken) or 'none was measured'}"


def _object(path: Path) -> dict[str, Any]:
    found: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object")
    return found
