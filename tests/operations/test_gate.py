"""The quality gate: what is shown to be worse is refused, what is not passes, and either is in the audit log."""

import asyncio
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from app.cli import main
from app.config import EngineSettings
from app.db import Database
from app.engine.checksums import write_sums
from app.engine.quant.report import REPORT
from app.errors import InvalidRequest
from app.gateway import catalog
from app.operations import machine
from app.operations.findings import State
from app.operations.gate import compare, objection
from app.rag.evaluation.answer_metrics import AnswerResult, EvalQuestion, GoldSpan, answer_rows, summarise_answers
from app.rag.evaluation.retrieval_metrics import RetrievalQuery, Snippet, retrieval_rows, summarise
from app.tenants import audit
from app.tenants.models import AuditEntry
from app.tenants.sealing import Sealer
from tests.rag.test_evaluation import passage

QUESTIONS = 200


def answered(hits: float, seed: int = 1) -> dict[str, Any]:
    """A report in which about the share `hits` of answers is right; the same seed is right about the same ones."""
    rng = Random(seed)
    asked = [
        EvalQuestion("lease", "rent", f"Question {n}?", (GoldSpan("nine hundred crowns"),)) for n in range(QUESTIONS)
    ]
    texts = ["nine hundred crowns" if rng.random() < hits else "the moon" for _ in asked]
    results = [AnswerResult(text, False) for text in texts]
    return summarise_answers(asked, results) | {"rows": answer_rows(asked, results)}


def worse(baseline: dict[str, Any], candidate: dict[str, Any]) -> set[str]:
    return {one.measure for one in compare(baseline, candidate) if one.worse}


def bare(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "rows"}


def test_rows_and_summary_say_the_same() -> None:
    report = answered(0.7)
    hits = [row["measures"]["answerable_hit_rate"] for row in report["rows"]]
    assert sum(hits) / len(hits) == report["answerable_hit_rate"]


def test_rows_of_retrieval_say_the_same_as_their_summary() -> None:
    asked = [RetrievalQuery(f"q{n}", "c", (Snippet("a", 0, 10),)) for n in range(3)]
    found = [[passage("b", 0, 10), passage("a", 0, 10 - n)] for n in range(3)]
    rows, summary = retrieval_rows(asked, found), summarise(asked, found)
    for measure, expected in (
        ("recall@8", summary["k"]["8"]["recall"]),
        ("precision@1", summary["k"]["1"]["precision"]),
        ("wrong_document_rate", summary["wrong_document_rate"]),
    ):
        assert sum(row["measures"][measure] for row in rows) / 3 == pytest.approx(expected)


def test_what_is_shown_to_be_worse_is_refused() -> None:
    assert worse(answered(0.8), answered(0.7)) == {"answerable_hit_rate", "span_f1"}
    assert worse(answered(0.7), answered(0.8)) == set()
    assert worse(answered(0.8), answered(0.8)) == set()


def test_pairs_see_what_two_shares_do_not() -> None:
    """The same few questions lost: noise to who knows the means alone."""
    first, second = answered(0.8), answered(0.76)
    assert "answerable_hit_rate" in worse(first, second)
    assert worse(bare(first), bare(second)) == set()
    assert "answerable_hit_rate" in worse(bare(first), bare(answered(0.5)))


def test_of_some_measures_less_is_better() -> None:
    rows = [{"question": str(n), "measures": {"wrong_document_rate": n % 4 / 8}} for n in range(100)]
    more = [{"question": str(n), "measures": {"wrong_document_rate": n % 4 / 8 + 0.1}} for n in range(100)]
    assert worse({"rows": rows}, {"rows": more}) == {"wrong_document_rate"}
    assert worse({"rows": more}, {"rows": rows}) == set()


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(InvalidRequest, match="different questions"):
        compare(answered(0.8), {"rows": answered(0.8)["rows"][:-1]})
    with pytest.raises(InvalidRequest, match="no measure in common"):
        compare({"n": 5, "a": 0.5}, {"n": 5, "b": 0.5})


async def test_the_command_ends_with_a_status_and_an_audit_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, hits in (("good", 0.9), ("bad", 0.6)):
        Path(f"{name}.json").write_text(json.dumps(answered(hits)))

    async def gate(baseline: str, candidate: str) -> Result:
        arguments = ["eval", "gate", "--baseline", f"{baseline}.json", "--candidate", f"{candidate}.json"]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments)

    await asyncio.to_thread(CliRunner().invoke, main, ["migrate"])
    assert (await gate("good", "bad")).exit_code == 1
    assert (await gate("bad", "good")).exit_code == 0
    Path("none.json").write_text("[]")
    assert "no report" in (await gate("good", "none")).output
    database = Database("sqlite+aiosqlite:///var/precedent.db")
    async with database.session() as session:
        rows = await session.scalars(select(AuditEntry).where(AuditEntry.action == "evaluation.gate"))
        assert [row.detail["verdict"] for row in rows] == ["refused", "passed"]
        await audit.verify(session)
    await database.close()


def checkpoint(folder: Path, report: dict[str, Any] | None, method: str | None = "awq") -> Path:
    folder.mkdir()
    config = {"model_type": "llama"} | ({"quantization_config": {"quant_method": method}} if method else {})
    (folder / "config.json").write_text(json.dumps(config))
    if report is not None:
        (folder / REPORT).write_text(json.dumps(report))
    return folder


FAILED = {"passed": False, "measures": {"divergence": {"kept": False}, "top1_agreement": {"kept": True}}}


def test_a_quantized_checkpoint_needs_a_report_that_has_passed(tmp_path: Path) -> None:
    assert objection(None) is None
    assert objection(checkpoint(tmp_path / "plain", None, method=None)) is None
    passed = checkpoint(tmp_path / "passed", {"passed": True, "measures": {}})
    assert objection(passed) is None
    assert "has no quantization_report.json" in str(objection(checkpoint(tmp_path / "none", None)))
    assert str(objection(checkpoint(tmp_path / "failed", FAILED))).endswith("limits of quality: divergence")
    write_sums(passed, passed / "SHA256SUMS")
    assert objection(passed) is None
    (passed / "config.json").write_text((passed / "config.json").read_text() + " ")
    assert "config.json" in str(objection(passed)), "the report is of another model than this"
    (passed / REPORT).write_text("[]")
    assert "no JSON object" in str(objection(passed))


async def test_the_gate_reads_the_report_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("same.json").write_text(json.dumps(answered(0.9)))
    bad, good = checkpoint(tmp_path / "bad", FAILED), checkpoint(tmp_path / "good", {"passed": True, "measures": {}})
    Path("precedent.toml").write_text(f'[engine]\nmodel = "{bad}"\n')

    async def gate(*options: str) -> Result:
        arguments = ["eval", "gate", "--baseline", "same.json", "--candidate", "same.json", *options]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments)

    await asyncio.to_thread(CliRunner().invoke, main, ["migrate"])
    assert (await gate()).exit_code == 0, "no checkpoint is named"
    assert (await gate("--checkpoint", str(good))).exit_code == 0
    refused = await gate("--checkpoint", str(bad))
    assert refused.exit_code == 1 and "refused" in refused.output
    assert (await gate("--target", "local")).exit_code == 1, "that of a local target is known"
    assert (await gate("--target", "local", "--force", "a demonstration")).exit_code == 0
    database = Database("sqlite+aiosqlite:///var/precedent.db")
    async with database.session() as session:
        [*_, last] = await session.scalars(select(AuditEntry).where(AuditEntry.action == "evaluation.gate"))
        assert last.detail["forced"] == "a demonstration" and "divergence" in last.detail["checkpoint"]
    await database.close()


def test_doctor_warns_of_such_a_model(tmp_path: Path) -> None:
    found = machine.quantization(EngineSettings(model=str(checkpoint(tmp_path / "failed", FAILED))))
    assert found.state == State.WARNING and "divergence" in found.detail
    assert machine.quantization(EngineSettings()).state == State.OK


CONFIG = """
[engine]
model = ""
[[targets]]
name = "old"
provider = "fake"
[[targets]]
name = "new"
provider = "fake"
[[routes]]
model = "house"
targets = ["old"]
strategy = "order"
[[routes]]
model = "split"
targets = ["old", "new"]
strategy = "weight"
weights = [1, 1]
"""


async def test_a_target_is_promoted_after_its_gate_or_by_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("precedent.toml").write_text(CONFIG)
    for name, hits in (("good", 0.9), ("bad", 0.6)):
        Path(f"{name}.json").write_text(json.dumps(answered(hits)))

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, list(arguments))

    async def gate(baseline: str, candidate: str, target: str) -> None:
        await run(
            "eval", "gate", "--baseline", f"{baseline}.json", "--candidate", f"{candidate}.json", "--target", target
        )

    await run("migrate")
    await gate("bad", "good", "another")
    refused = await run("route", "promote", "house", "new")
    assert refused.exit_code == 1 and "No quality gate has let 'new' through" in refused.output
    await gate("bad", "good", "new")
    await gate("good", "bad", "new")
    assert (await run("route", "promote", "house", "new")).exit_code == 1, "the latest one counts"
    await gate("bad", "good", "new")
    promoted = await run("route", "promote", "house", "new")
    assert promoted.exit_code == 0 and "new → old" in promoted.output
    forced = await run("route", "promote", "house", "old", "--force", "new is down")
    assert "old → new" in forced.output
    assert "goes by weight" in (await run("route", "promote", "split", "new")).output
    for arguments in (("none", "new"), ("house", "none")):
        assert "There is no" in (await run("route", "promote", *arguments)).output
    database = Database("sqlite+aiosqlite:///var/precedent.db")
    stored = await catalog.read_stored(database, Sealer(""))
    assert [body["targets"] for kind, name, body in stored.entries] == [["old", "new"]]
    async with database.session() as session:
        rows = list(await session.scalars(select(AuditEntry).where(AuditEntry.action == "route.promote")))
        assert [bool(row.detail["gate"]) for row in rows] == [True, False]
        assert [row.detail["forced"] for row in rows] == ["", "new is down"]
    await database.close()
