"""The command line's HTTP client: `precedent ask` and `ingest` speak to a running server like anybody else."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

KEY_FILE = Path("var/demo.key")
POLL_SECONDS = 0.3
STAGES = ("embed", "search", "rerank", "queue", "prefill", "decode", "total")


class ClientError(Exception):
    """What the server answered, or that it did not, in words for the terminal."""


class Client:
    """A key at a server."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        """Defaults: PRECEDENT_URL, PRECEDENT_KEY, the demo's key file. Raises ClientError without any key."""
        base = url or os.environ.get("PRECEDENT_URL") or "http://127.0.0.1:8800"
        secret = key or os.environ.get("PRECEDENT_KEY") or _demo_key()
        if not secret:
            raise ClientError(f"No API key: set PRECEDENT_KEY, or run the demo, which writes {KEY_FILE}.")
        self._http = httpx.Client(base_url=base, headers={"authorization": f"Bearer {secret}"}, timeout=600.0)

    def get(self, path: str) -> dict[str, Any]:
        return self._json("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._json("POST", path, json=body)

    def upload(
        self, paths: list[Path], collection: str, labels: list[str]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """File documents, one request for each. Returns what was filed, and what of archives was refused and why."""
        filed: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for path in paths:
            with ExitStack() as stack:
                file = stack.enter_context(path.open("rb"))
                form = {"collection": collection, "labels": ",".join(labels)}
                answer = self._json("POST", "/api/v1/documents", files={"files": (path.name, file)}, data=form)
                filed += answer["documents"]
                refused += answer["refused"]
        return filed, refused

    def answer_events(self, request: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(event, data) of a streamed answer. Raises ClientError for an error event too."""
        with (
            self._errors(),
            self._http.stream("POST", "/api/v1/answers", json=request | {"stream": True}) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise _failure(response)
            event = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    event = line[7:]
                elif line.startswith("data: "):
                    data = json.loads(line[6:])
                    if event == "error":
                        raise ClientError(data["detail"])
                    yield event, data

    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with self._errors():
            response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise _failure(response)
        body: dict[str, Any] = response.json()
        return body

    def _errors(self) -> "_TransportErrors":
        return _TransportErrors(str(self._http.base_url))


class _TransportErrors:
    """Says which server could not be reached instead of showing a stack."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, httpx.TransportError):
            raise ClientError(f"The server at {self._url} does not answer ({type(error).__name__}).") from error


def ingest(client: Client, paths: list[Path], collection: str, labels: list[str], console: Console) -> list[str]:
    """File and wait for the jobs, with a progress bar. Returns a sentence for each file that failed."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Ingesting documents", total=len(paths))
        filed, refused = client.upload(paths, collection, labels)
        waiting = {one["job_id"]: one["filename"] for one in filed if one["job_id"]}
        bar.update(task, total=len(filed), advance=len(filed) - len(waiting))
        failures = [f"{one['filename']}: {one['reason']}" for one in refused]
        while waiting:
            for job_id in list(waiting):
                job = client.get(f"/api/v1/jobs/{job_id}")
                if job["status"] in ("queued", "running"):
                    if job["status"] == "running":
                        bar.update(task, description=f"{waiting[job_id][:24]} {job['stage']}")
                    continue
                name = waiting.pop(job_id)
                bar.advance(task)
                if job["status"] != "succeeded":
                    failures.append(f"{name}: {job['error'] or job['status']}")
            time.sleep(POLL_SECONDS if waiting else 0)
        bar.update(task, description="Ingesting documents")
    return failures


def ask(client: Client, request: dict[str, Any], console: Console) -> dict[str, Any]:
    """Ask, print the answer as it comes, then its citations and where the time went. Returns the answer."""
    console.print(f"\n[bold]{escape(request['question'])}[/bold]\n")
    shown = ""
    answer: dict[str, Any] = {}
    for event, data in client.answer_events(request):
        if event == "delta":
            shown += data["text"]
            console.print(data["text"], end="", markup=False, highlight=False)
        elif event == "done":
            answer = data
    console.print()
    if answer["answer"].strip() != shown.strip():
        console.print(f"→ {answer['answer']}", markup=False)
    for citation in answer["citations"]:
        console.print(_citation_line(citation), highlight=False)
    console.print(stage_table(answer))
    return answer


def _drafted(speculation: dict[str, Any] | None) -> str:
    return f", {speculation['accepted']} of them drafted from the passages" if speculation else ""


def stage_table(answer: dict[str, Any]) -> Table:
    """Where the time of an answer went."""
    timings, usage = answer["timings_ms"], answer["usage"]
    table = Table(box=SIMPLE, padding=(0, 1), title=f"served by {answer['served_by']}", title_justify="left")
    for name in (*STAGES, "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    cells = [_duration(timings.get(name)) for name in STAGES]
    decode = timings.get("decode")
    cells.append(f"{usage['completion_tokens'] / decode * 1000:,.0f}" if decode else "—")
    table.add_row(*cells)
    table.caption = (
        f"{usage['prompt_tokens']:,} prompt tokens, {usage['cached_tokens']:,} of them from the prefix cache; "
        f"{usage['completion_tokens']} tokens of answer{_drafted(answer.get('speculation'))}"
    )
    table.caption_justify = "left"
    return table


def _duration(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "—"
    return f"{milliseconds:.0f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"


def _citation_line(citation: dict[str, Any]) -> str:
    pages = sorted({span["page"] for span in citation["spans"] if span["page"]})
    where = f", p. {', '.join(map(str, pages))}" if pages else ""
    spans = citation["spans"]
    offsets = f", characters {spans[0]['start']}–{spans[-1]['end']}" if spans else ""
    mark = "[green]✓ verified[/green]" if citation["verified"] else "[yellow]✗ not verified[/yellow]"
    return f"  \\[{citation['marker']}] {escape(citation['document'])}{where}{offsets}  {mark} ({citation['match']})"


def _demo_key() -> str | None:
    return KEY_FILE.read_text().strip() if KEY_FILE.exists() else None


def _failure(response: httpx.Response) -> ClientError:
    try:
        return ClientError(f"{response.status_code}: {response.json()['detail']}")
    except (ValueError, KeyError):
        return ClientError(f"The server answered {response.status_code}.")


def move_index(client: Client, to: str, console: Console) -> None:
    """Start a move and wait for its end. Raises ClientError with the reason where it is given up."""
    state = client.post("/api/v1/index/move", {"to": to})
    while not (state["move"] and state["move"]["to"] == to and state["move"]["finished"]):
        if state["move"] and state["move"]["to"] == to:
            if state["move"]["error"]:
                raise ClientError(f"The index was not moved: {state['move']['error']}")
            console.print(f"{state['move']['done']} of {state['move']['total']} points copied")
        time.sleep(POLL_SECONDS)
        state = client.get("/api/v1/index")
    chosen = 'index = "edge"' if to == "edge" else f'index = "qdrant" and qdrant_url = "{to}"'
    console.print(f"{state['chunks']} chunks and {state['documents']} documents are served from {to}.")
    console.print(f"Before the next start, set {chosen} under [rag].", markup=False)
