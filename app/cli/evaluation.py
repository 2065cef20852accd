"""`precedent eval`: measuring retrieval, answers and citations."""

import json
import sys
from pathlib import Path

import click

from app.cases import run_cases
from app.cli.base import console, files_in, with_session, write
from app.client import Client
from app.config import Settings


@click.group("eval")
def evaluate() -> None:
    """Measure retrieval and answers on labelled data; inputs may be .xz."""


@evaluate.command("retrieval")
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--queries", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="A seeded sample, stratified by category.")
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
@click.option(
    "--against",
    help="Compare with a configuration that differs in name=value,…: embedding_model, chunk_characters, thesaurus.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the comparison as PNG.")
def eval_retrieval(
    corpus: Path, queries: Path, limit: int | None, output: Path, against: str | None, picture: Path | None
) -> None:
    """Character precision and recall (LegalBench-RAG) and the wrong-document rate."""
    from app.evaluation import compare_retrieval, retrieval

    if against:
        write(output, compare_retrieval(corpus, queries, limit, against, picture, console, Settings.load()))
        return
    write(output, retrieval(corpus, queries, limit, console, Settings.load()))


@evaluate.command("answers")
@click.option(
    "--contracts",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="JSONL, or a folder of files.",
)
@click.option("--questions", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="A seeded sample, stratified by category.")
@click.option("--oracle-passages", is_flag=True, help="Give the gold passage among five instead of retrieving.")
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
def eval_answers(contracts: Path, questions: Path, limit: int | None, oracle_passages: bool, output: Path) -> None:
    """Hits, citations and refusals, each question asked of its own contract."""
    from app.evaluation import answers

    write(output, answers(contracts, questions, limit, oracle_passages, console, Settings.load()))


@evaluate.command("citations")
@click.option("--documents", required=True, type=click.Path(exists=True, path_type=Path), help="A folder of PDF files.")
@click.option("--per-document", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
def eval_citations(documents: Path, per_document: int, output: Path) -> None:
    """Quotes of PDF files, looked up again on the page and in the boxes that their citations name."""
    from app.evaluation import citations

    files = [path for path in files_in((documents,)) if path.suffix.lower() == ".pdf"]
    write(output, citations(files, per_document, console))


@evaluate.command("cases")
@click.option("--model", help="Model name (default: the server's first route).")
@click.option("--json", "output", type=click.Path(path_type=Path))
def eval_cases(model: str | None, output: Path | None) -> None:
    """Ask a running server its saved cases; exit status 1 where one is not answered as expected."""
    result = run_cases(Client(), model, console)
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if result["hits"] == result["cases"] else 1)


@evaluate.command("cache")
@click.option("--questions", required=True, type=click.Path(exists=True, path_type=Path), help="JSONL with `question`.")
@click.option("--threshold", type=float, help="Cosine (default: cache.semantic_threshold).")
@click.option("--pairs", default=1000, show_default=True, type=click.IntRange(min=1))
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
def eval_cache(questions: Path, threshold: float | None, pairs: int, seed: int, output: Path) -> None:
    """What the semantic cache's last gates would serve wrongly, and what they would miss; exit status 1 if unsafe."""
    from app.rag.evaluation.cache_metrics import evaluate as measure
    from app.rag.evaluation.retrieval_metrics import read_lines
    from app.rag.index.embedding import Embedder

    settings = Settings.load()
    asked = sorted({row.get("question") or row["query"].rsplit(";", 1)[-1].strip() for row in read_lines(questions)})
    least = settings.cache.semantic_threshold if threshold is None else threshold
    result = measure(asked, Embedder(settings.rag.embedding_model), least, pairs, seed)
    write(output, result)
    sys.exit(1 if result["unsafe"] else 0)


@evaluate.command("gate")
@click.option("--baseline", required=True, type=click.Path(exists=True, path_type=Path), help="What is deployed.")
@click.option("--candidate", required=True, type=click.Path(exists=True, path_type=Path), help="What would be.")
@click.option(
    "--target", default="", help="The target that the candidate's report is of, for `precedent route promote`."
)
@click.option(
    "--checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The candidate's model, if quantized: its own report must have passed (default: that of a local target).",
)  # fmt: skip
@click.option(
    "--force", "forced", default="", metavar="REASON", help="Whatever that report says; kept in the audit log."
)
def eval_gate(baseline: Path, candidate: Path, target: str, checkpoint: Path | None, forced: str) -> None:
    """Compare two reports; exit status 1 where the candidate is shown to be worse, or its checkpoint's report has not
    passed. Recorded in the audit log."""
    from app.operations import gate

    verdicts = gate.compare(gate.read(baseline), gate.read(candidate))
    found = gate.objection(checkpoint or gate.local_checkpoint(Settings.load(), target))
    decision = gate.Decision(verdicts, found, forced)
    with_session(lambda session: gate.record(session, baseline, candidate, decision, target))
    console.print(gate.table(verdicts))
    if found:
        console.print(f"{found}: {f'forced, {forced}' if forced else 'refused'}")
    sys.exit(1 if decision.refused else 0)
