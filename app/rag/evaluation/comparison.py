"""Two ways to retrieve, side by side on the same questions: differences with paired bootstrap intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest
from app.rag.evaluation.retrieval_metrics import KS, WRONG_AT, RetrievalQuery, precision_recall, wrong_documents
from app.rag.retrieval.retriever import Passage

RESAMPLES = 2_000
LEVEL = 0.95
Values = npt.NDArray[np.float64]
SHOWN = (("precision@1", "P@1"), ("recall@8", "R@8"), ("recall@64", "R@64"), ("wrong_document_rate", "wrong in top 8"))


@dataclass(frozen=True, slots=True)
class Configuration:
    """What may differ between two runs."""

    embedding_model: str
    chunk_characters: int = 500
    thesaurus: bool = True

    def changed(self, changes: str) -> "Configuration":
        """With `name=value,name=value`. Raises InvalidRequest for what is no field, or no value of it."""
        values: dict[str, Any] = {}
        for change in changes.split(","):
            name, _, value = change.strip().partition("=")
            if name == "embedding_model" and value:
                values[name] = value
            elif name == "chunk_characters" and value.isdigit() and int(value) >= 100:
                values[name] = int(value)
            elif name == "thesaurus" and value in ("on", "off"):
                values[name] = value == "on"
            else:
                known = "embedding_model=NAME, chunk_characters=100 or more, thesaurus=on or off"
                raise InvalidRequest(f"{change!r} is none of {known}.")
        return replace(self, **values)


def by_query(asked: Sequence[RetrievalQuery], results: Sequence[Sequence[Passage]]) -> dict[str, Values]:
    """Each measure as one value for each query."""
    measures: dict[str, Values] = {}
    for k in KS:
        scores = np.asarray([precision_recall(q.snippets, found[:k]) for q, found in zip(asked, results, strict=True)])
        measures[f"precision@{k}"], measures[f"recall@{k}"] = scores[:, 0], scores[:, 1]
    wrong = [wrong_documents(q.snippets, found[:WRONG_AT]) for q, found in zip(asked, results, strict=True)]
    measures["wrong_document_rate"] = np.asarray(wrong)
    return measures


def interval(values: Values, seed: int = 0) -> tuple[float, float]:
    """The bootstrap interval of the mean at LEVEL. For a difference give the differences of pairs."""
    random = np.random.default_rng(seed)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(first: dict[str, Values], second: dict[str, Values]) -> dict[str, Any]:
    """For each measure both means and their difference (second − first), all with intervals. An interval of the
    difference that leaves out 0 is a difference that these questions show."""
    report: dict[str, Any] = {}
    for name in first:
        difference = second[name] - first[name]
        low, high = interval(difference)
        report[name] = {
            "first": {"mean": float(first[name].mean()), "interval": interval(first[name])},
            "second": {"mean": float(second[name].mean()), "interval": interval(second[name])},
            "difference": {"mean": float(difference.mean()), "interval": (low, high), "shown": not low <= 0 <= high},
        }
    return report


def draw(report: dict[str, Any], names: tuple[str, str], path: Path) -> None:
    """Both configurations as bars with intervals. Raises InvalidRequest without matplotlib, which draws."""
    try:
        import matplotlib
    except ImportError as error:
        raise InvalidRequest("A picture needs matplotlib: pip install matplotlib.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4))
    for row, side in enumerate(("first", "second")):
        sides = [report[measure][side] for measure, _ in SHOWN]
        means = [one["mean"] for one in sides]
        errors = [
            [mean - one["interval"][0] for mean, one in zip(means, sides, strict=True)],
            [one["interval"][1] - mean for mean, one in zip(means, sides, strict=True)],
        ]
        places = [place + 0.4 * row - 0.2 for place in range(len(SHOWN))]
        axes.bar(places, means, 0.38, yerr=errors, capsize=3, label=names[row])
    axes.set_xticks(range(len(SHOWN)), [label for _, label in SHOWN])
    axes.set_ylim(0, 1)
    axes.set_title(f"{LEVEL:.0%} bootstrap intervals over {report['queries']} questions")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
