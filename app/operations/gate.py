"""`precedent eval gate`: whether a change (model, quantization, prompt, retrieval) may be deployed.

It may not where the same questions show that it is worse: the whole interval of the difference lies on the wrong side
of 0. What is too small to be shown passes, so ask enough questions.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import Settings
from app.engine.checksums import verify_folder
from app.engine.quant.report import REPORT
from app.engine.quant.report import objection as quantization_objection
from app.errors import InvalidRequest
from app.rag.evaluation.comparison import LEVEL, interval
from app.tenants import audit

ACTION = "evaluation.gate"  # in the audit log
Z = 1.96  # of a normal distribution, for LEVEL
LOWER_IS_BETTER = ("wrong_document_rate", "answerable_refused_rate")
NO_SCORES = ("n", "queries", "seconds")


@dataclass(frozen=True)
class Verdict:
    """Of one measure. `low` and `high`: interval of candidate − baseline. `paired`: question by question."""

    measure: str
    baseline: float
    candidate: float
    low: float
    high: float
    paired: bool

    @property
    def worse(self) -> bool:
        return self.low > 0 if self.measure in LOWER_IS_BETTER else self.high < 0


def compare(baseline: dict[str, Any], candidate: dict[str, Any]) -> list[Verdict]:
    """One verdict for each measure that both reports have. Raises InvalidRequest where nothing can be compared."""
    if "rows" in baseline and "rows" in candidate:
        verdicts = _paired(_by_question(baseline["rows"]), _by_question(candidate["rows"]))
    else:
        verdicts = _unpaired(baseline, candidate)
    if not verdicts:
        raise InvalidRequest("The reports have no measure in common; both must be of the same command.")
    return verdicts


def _by_question(rows: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    return {row["question"]: row["measures"] for row in rows}


def _paired(baseline: dict[str, Any], candidate: dict[str, Any]) -> list[Verdict]:
    if baseline.keys() != candidate.keys():
        raise InvalidRequest("The reports are about different questions; ask both the same.")
    verdicts = []
    for measure in {name: None for row in baseline.values() for name in row}:
        pairs = [(row.get(measure), candidate[question].get(measure)) for question, row in baseline.items()]
        both = np.asarray([pair for pair in pairs if None not in pair], dtype=np.float64)
        if not len(both):
            continue
        low, high = interval(both[:, 1] - both[:, 0])
        means = both.mean(axis=0)
        verdicts.append(Verdict(measure, float(means[0]), float(means[1]), low, high, paired=True))
    return verdicts


def _unpaired(baseline: dict[str, Any], candidate: dict[str, Any]) -> list[Verdict]:
    """Of shares without their questions: the normal approximation of two independent ones, which is wider."""
    counts = [report.get("n") or report.get("queries") or 0 for report in (baseline, candidate)]
    if not all(counts):
        return []
    verdicts = []
    for measure, first in baseline.items():
        second = candidate.get(measure, "")
        if measure in NO_SCORES or not _is_share(first) or not _is_share(second):
            continue
        errors = (share * (1 - share) / count for share, count in zip((first, second), counts, strict=True))
        margin = Z * math.sqrt(sum(errors))
        verdicts.append(Verdict(measure, first, second, second - first - margin, second - first + margin, paired=False))
    return verdicts


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} is no report of `precedent eval`.") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{path} is no report of `precedent eval`.")
    return found


def local_checkpoint(settings: Settings, target: str) -> Path | None:
    """The folder that a target of this process is served from; None for any other target, and for a hub's name."""
    engine = settings.local_models.get(target)
    folder = Path(engine.model_source) if engine is not None else None
    return folder if folder is not None and folder.is_dir() else None


def objection(checkpoint: Path | None) -> str | None:
    """What speaks against a quantized checkpoint: its own report, missing, failed, or of other weights than it has."""
    if checkpoint is None:
        return None
    try:
        found = quantization_objection(checkpoint)
        if found is None and (checkpoint / REPORT).is_file():
            verify_folder(checkpoint, None)
    except ValueError as error:
        return str(error)
    return found


@dataclass(frozen=True)
class Decision:
    """objection: to the candidate's checkpoint. forced: why it may pass all the same; what is worse never does."""

    verdicts: list[Verdict]
    objection: str | None = None
    forced: str = ""

    @property
    def refused(self) -> bool:
        return any(one.worse for one in self.verdicts) or (self.objection is not None and not self.forced)


async def record(session: AsyncSession, baseline: Path, candidate: Path, decision: Decision, target: str = "") -> None:
    """Into the audit log, with the files' hashes: which scores let a change pass, or did not.

    target: of which the candidate's report is; `promotion` looks for it.
    """
    detail = {
        "verdict": "refused" if decision.refused else "passed",
        "worse": [one.measure for one in decision.verdicts if one.worse],
        "target": target,
        "checkpoint": decision.objection,
        "forced": decision.forced,
        "scores": {one.measure: [one.baseline, one.candidate, one.low, one.high] for one in decision.verdicts},
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (baseline, candidate)},
    }
    await audit.append(session, audit.CLI, ACTION, f"report:{candidate.name}", None, detail)
    await session.commit()


def table(verdicts: list[Verdict]) -> Table:
    made = Table("measure", "baseline", "candidate", f"difference, {LEVEL:.0%} interval", "")
    for one in verdicts:
        between = f"{one.candidate - one.baseline:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
        state = "[red]worse[/red]" if one.worse else "[green]passes[/green]"
        made.add_row(one.measure, f"{one.baseline:.3f}", f"{one.candidate:.3f}", between, state)
    return made
