"""`precedent quantize` and `precedent eval quantization`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.base import console
from app.cli.evaluation import evaluate

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("quantize")
@click.argument("model", type=FOLDER)
@click.option("--format", "format_name", required=True, type=click.Choice(["int8", "fp8", "awq"]))
@click.option(
    "--calibration", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Text, or JSON Lines of {\"text\"}, like what the model will read; awq needs it.",
)  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path))
def quantize(model: Path, format_name: str, calibration: Path | None, out: Path) -> None:
    """Write MODEL with smaller weights, and SHA256SUMS beside it.

    int8 and fp8 are compressed-tensors, awq is int4 in AutoAWQ's layout. Compare with `precedent eval quantization`
    before you serve it.
    """
    from app.quantization import quantize as write_quantized

    with _progress("quantize") as bar, _refusals():
        task = bar.add_task("layers", total=None)
        write_quantized(
            model, out, format_name, calibration, lambda n, total: bar.update(task, completed=n, total=total)
        )
    console.print(f"{out} is written.")


@evaluate.command("quantization")
@click.argument("original", type=FOLDER)
@click.argument("quantized", type=FOLDER)
@click.option("--texts", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tokens", default=256, show_default=True, type=click.IntRange(min=8), help="Tokens of one piece of text."
)
@click.option("--perplexity", default=1.01, show_default=True, help="Most that it may be of the original's.")
@click.option("--divergence", default=0.02, show_default=True, help="Most nats per token.")
@click.option("--agreement", default=0.95, show_default=True, help="Least share of equal likeliest tokens.")
@click.option("--copying", default=0.01, show_default=True, help="Most of numbers, or negations, copied less.")
@click.option(
    "--questions", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSON Lines of question, passages and answers, for models with a chat template.",
)  # fmt: skip
@click.option("--answers", default=0.05, show_default=True, help="Most answers, or refusals, right less.")
def eval_quantization(
    original: Path, quantized: Path, texts: Path, tokens: int, perplexity: float, divergence: float, agreement: float,
    copying: float, questions: Path | None, answers: float,
) -> None:  # fmt: skip
    """Compare QUANTIZED with ORIGINAL; exit status 1 where a limit is not kept. The report is filed in QUANTIZED."""
    from app.engine.quant.quality import Limits
    from app.engine.quant.report import REPORT
    from app.quantization import evaluate as compare

    limits = Limits(tokens, perplexity, divergence, agreement, copying, answers)
    with _progress("compare") as bar, _refusals():
        task = bar.add_task("texts", total=None)
        report = compare(
            original, quantized, texts, limits, lambda n, total: bar.update(task, completed=n, total=total), questions
        )
    for name, measure in report["measures"].items():
        verdict = "kept" if measure["kept"] else "NOT KEPT"
        interval = f"{measure['value']:.4f} ({measure['low']:.4f} to {measure['high']:.4f})"
        console.print(f"{name}: {interval}, limit {measure['limit']:g}: {verdict}")
    if without := report["answers_not_compared"]:
        console.print(f"Answers were not compared: {without}.")
    console.print(f"The report is {quantized / REPORT}.")
    if not report["passed"]:
        sys.exit(1)


def _progress(what: str) -> Progress:
    columns = TextColumn(f"{what} {{task.description}}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error
