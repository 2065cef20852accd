"""What a check of `precedent doctor` says."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rich.markup import escape
from rich.table import Table


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, and something will go wrong
    FAILED = "failed"  # it does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """`detail`: what was found. `advice`: one sentence of what to do; empty where nothing is to be done."""

    check: str
    state: State
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, State.OK, detail)


def warning(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, State.WARNING, detail, advice)


def failed(check: str, detail: str, advice: str) -> Finding:
    return Finding(check, State.FAILED, detail, advice)


def healthy(findings: Iterable[Finding]) -> bool:
    return all(finding.state != State.FAILED for finding in findings)


_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "red"}


def table(findings: Iterable[Finding]) -> Table:
    made = Table("check", "", "found", "what to do")
    for one in findings:
        state = f"[{_COLOURS[one.state]}]{one.state}[/]"
        made.add_row(one.check, state, escape(one.detail), escape(one.advice))
    return made
