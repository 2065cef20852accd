"""What a load test found: figures, a table, a picture, and whether it is good enough."""

from collections import Counter
from pathlib import Path
from typing import Any

from rich.table import Table

from app.load.generator import Limits, Scenario, Stage, percentile

REFUSALS = ("429", "503")


def figures(stage: Stage, limits: Limits) -> dict[str, Any]:
    """attainment: the share of accepted requests that were good. goodput: good answers a second."""
    refused = [outcome for outcome in stage.outcomes if outcome.status in REFUSALS]
    accepted = [outcome for outcome in stage.outcomes if outcome.status not in REFUSALS]
    answered = [outcome for outcome in accepted if outcome.status == "ok"]
    good = sum(outcome.good(limits) for outcome in answered)
    return {
        "stage": stage.name,
        "rate": round(stage.rate, 3),
        "seconds": stage.seconds,
        "sent": len(stage.outcomes),
        "answered": len(answered),
        "refused": len(refused),
        "errors": dict(Counter(outcome.status for outcome in accepted if outcome.status != "ok")),
        "attainment": round(good / len(accepted), 4) if accepted else None,
        "goodput": round(good / stage.seconds, 3),
        "ttft_ms": {p: round(percentile([o.ttft_ms for o in answered], s), 1) for p, s in PERCENTILES.items()},
        "itl_ms": {p: round(percentile([o.itl_ms for o in answered], s), 1) for p, s in PERCENTILES.items()},
        "refusal_p95_ms": round(percentile([o.total_ms for o in refused], 0.95), 1),
        "refused_without_retry_after": sum(not o.retry_after for o in refused),
        "most_at_once": stage.most_at_once,
        "kv_blocks_leaked": stage.kv_leaked,
    }


PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def verdicts(stages: list[dict[str, Any]], scenario: Scenario) -> list[str]:
    """What is not good enough; empty: all of it is. The first stage is 1x."""
    found = []
    first, last = stages[0], stages[-1]
    for stage in stages:
        name = stage["stage"]
        if stage["attainment"] is not None and stage["attainment"] < scenario.attainment:
            found.append(
                f"{name}: {stage['attainment']:.0%} of accepted requests were in time, not {scenario.attainment:.0%}"
            )
        if stage["errors"]:
            found.append(f"{name}: errors {stage['errors']}")
        if stage["refusal_p95_ms"] > scenario.refusal_ms:
            found.append(f"{name}: refusals took {stage['refusal_p95_ms']:.0f} ms (p95)")
        if stage["refused_without_retry_after"]:
            found.append(f"{name}: {stage['refused_without_retry_after']} refusals without Retry-After")
        if stage["kv_blocks_leaked"]:
            found.append(f"{name}: {stage['kv_blocks_leaked']} KV blocks were not given back")
    if last["goodput"] < scenario.goodput_kept * first["goodput"]:
        share = last["goodput"] / first["goodput"] if first["goodput"] else 0.0
        found.append(f"goodput at {last['stage']} is {share:.0%} of that at {first['stage']}")
    return found


def table(stages: list[dict[str, Any]], limits: Limits) -> Table:
    made = Table(
        "rate", "sent", "answered", "refused", "errors", "in time", "goodput/s", "TTFT p50/p95/p99 ms",
        "ITL p50/p95/p99 ms", "refusal p95 ms", "at once",
        title=f"in time: first token in {limits.ttft_ms:.0f} ms, none later than {limits.itl_ms:.0f} ms after another",
    )  # fmt: skip
    for stage in stages:
        made.add_row(
            f"{stage['stage']} ({stage['rate']:.2f}/s)", str(stage["sent"]), str(stage["answered"]),
            str(stage["refused"]), str(sum(stage["errors"].values())),
            "–" if stage["attainment"] is None else f"{stage['attainment']:.0%}", f"{stage['goodput']:.2f}",
            " / ".join(f"{value:.0f}" for value in stage["ttft_ms"].values()),
            " / ".join(f"{value:.0f}" for value in stage["itl_ms"].values()),
            f"{stage['refusal_p95_ms']:.0f}", str(stage["most_at_once"]),
        )  # fmt: skip
    return made


def picture(stages: list[dict[str, Any]], limits: Limits, path: Path) -> None:
    """Goodput, refusals and the first token's 95th percentile over the rate. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [stage["rate"] for stage in stages]
    left.plot(rates, [stage["goodput"] for stage in stages], marker="o", color="#273691", label="good answers/s")
    refused = [stage["refused"] / stage["seconds"] for stage in stages]
    left.plot(rates, refused, marker="s", color="#663208", label="refused/s")
    left.plot(rates, rates, color="#8a93a1", linewidth=0.8, linestyle=":", label="offered/s")
    right.plot(rates, [stage["ttft_ms"]["p95"] for stage in stages], marker="o", color="#273691", label="TTFT p95")
    right.axhline(limits.ttft_ms, color="#b3261e", linewidth=0.8, linestyle="--", label="limit")
    for axes, unit in ((left, "per second"), (right, "ms")):
        axes.set_xlabel("requests offered per second")
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
