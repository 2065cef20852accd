"""`precedent eval cases` and `precedent forget verify`: what a running server says."""

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from app.client import Client

REPORTED = ("documents", "chunks", "points", "missing", "stale", "mislabelled", "orphans", "repaired")


def run_cases(client: Client, model: str | None, console: Console) -> dict[str, Any]:
    """Ask every saved case. `hit`: the expected document is quoted, and the expected words where some are given; a
    case without a document is a hit when it is refused.
    """
    results = [_run(client, case, model) for case in _cases(client)]
    hits = sum(one["hit"] for one in results)
    table = Table("question", "expected", "got", "", box=SIMPLE)
    for one in results:
        table.add_row(one["question"][:60], one["expected"], one["got"], "ok" if one["hit"] else "miss")
    console.print(table)
    console.print(f"{hits} of {len(results)} cases answered as expected")
    return {"cases": len(results), "hits": hits, "results": results}


def report_index(client: Client, console: Console, *, repair: bool, every: bool) -> dict[str, Any]:
    """What the server's index holds against what its database says."""
    query = "?every=true" if every else ""
    report = client.post(f"/api/v1/index/repair{query}") if repair else client.get(f"/api/v1/index/report{query}")
    for one in report["tenants"]:
        counts = ", ".join(f"{one[name]:,} {name}" for name in REPORTED)
        console.print(f"{one['tenant']}: {'clean' if one['clean'] else 'NOT CLEAN'} ({counts})", markup=False)
    return report


def _cases(client: Client) -> Iterator[dict[str, Any]]:
    cursor = ""
    while True:
        page = client.get(f"/api/v1/evaluation/cases?limit=100{cursor}")
        yield from page["cases"]
        if page["next_cursor"] is None:
            return
        cursor = f"&cursor={page['next_cursor']}"


def _run(client: Client, case: dict[str, Any], model: str | None) -> dict[str, Any]:
    answer = client.post("/api/v1/answers", {"question": case["question"], "model": model})
    expected = "an answer" if case["document_id"] else "a refusal"
    return {
        "id": case["id"],
        "question": case["question"],
        "expected": expected,
        "got": "a refusal" if answer["refused"] else "an answer",
        "hit": _hit(case, answer),
        "answer_id": answer["id"],
    }


def _hit(case: dict[str, Any], answer: dict[str, Any]) -> bool:
    if case["document_id"] is None:
        return bool(answer["refused"])
    right = [c for c in answer["citations"] if c["verified"] and c["document_id"] == case["document_id"]]
    wanted = _plain(case["quote"] or "")
    return any(not wanted or wanted in _plain(c["quote"]) or _plain(c["quote"]) in wanted for c in right)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".;,: ")
