"""What quantization changes of a model, measured beside the original on the same texts.

Perplexity, Kullback-Leibler divergence and top-1 agreement over the texts' tokens; and copying: each text is read
twice in a row, and what must be said the second time is known. Numbers and negations are counted apart, since a
contract is wrong when one of them is. Intervals are bootstrapped over texts (95 %), both models on the same draws.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Read = Callable[[list[int]], Tensor]
Floats = npt.NDArray[np.float64]
_NUMBER = re.compile(r"\d")
_NEGATION = re.compile(
    r"\b(?:not|no|nor|never|none|neither|without|unless|except|cannot|nicht|kein\w*|nie|niemals|weder|ohne|außer)\b",
    re.I,
)
_DRAWS = 1000
COPIED = ("numbers", "negations")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a quantization may cost; each is held against the bad end of its interval.

    tokens: of one text. perplexity: of the quantized over the original's. divergence: nats per token.
    agreement: share of tokens with the same likeliest one.  copying: how much less of numbers, or of negations, is
    copied right, as a share of them.  answers: how many questions less are answered, or refused, rightly, likewise.
    """

    tokens: int = 256
    perplexity: float = 1.01
    divergence: float = 0.02
    agreement: float = 0.95
    copying: float = 0.01
    answers: float = 0.05


@dataclass(slots=True)
class _Text:
    """Sums over one text. copied: by kind, how many there are and how many each model gets right."""

    tokens: int
    losses: tuple[float, float]
    divergence: float
    agreeing: int
    copied: dict[str, tuple[int, int, int]] = field(default_factory=dict)


def compare(
    original: Read, quantized: Read, pieces: Sequence[list[int]], decode: Callable[[list[int]], str], limits: Limits,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:  # fmt: skip
    """Every measure with its interval, the limit, and whether it is kept; `passed` where all are."""
    texts = []
    for i, tokens in enumerate(pieces):
        texts.append(_measured(original, quantized, tokens, decode))
        progress(i + 1, len(pieces))
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(texts), (_DRAWS, len(texts)))
    measures = _language(texts, draws, limits)
    for kind in COPIED:
        measures |= _copying(kind, texts, draws, limits.copying)
    kept = all(measure["kept"] for measure in measures.values())
    return {"pieces": len(texts), "tokens": sum(text.tokens for text in texts), "measures": measures, "passed": kept}


def _measured(original: Read, quantized: Read, tokens: list[int], decode: Callable[[list[int]], str]) -> _Text:
    length = len(tokens)
    twice = torch.tensor(tokens + tokens)
    first, second = (read(twice.tolist())[:-1].log_softmax(-1) for read in (original, quantized))
    once = twice[1:length]
    a, b = first[: length - 1], second[: length - 1]
    losses = tuple(-float(x.gather(1, once[:, None]).sum()) for x in (a, b))
    divergence = float((a.exp() * (a - b)).sum())
    agreeing = int((a.argmax(-1) == b.argmax(-1)).sum())
    right = [x[length:].argmax(-1) == twice[length + 1 :] for x in (first, second)]
    copied = {}
    for kind, pattern in zip(COPIED, (_NUMBER, _NEGATION), strict=True):
        at = torch.tensor([bool(pattern.search(decode([token]))) for token in tokens[1:]])
        copied[kind] = (int(at.sum()), int((right[0] & at).sum()), int((right[1] & at).sum()))
    return _Text(length - 1, (losses[0], losses[1]), divergence, agreeing, copied)


def _language(texts: list[_Text], draws: npt.NDArray[np.int64], limits: Limits) -> dict[str, Any]:
    tokens = np.array([text.tokens for text in texts], dtype=np.float64)
    losses = np.array([text.losses for text in texts])
    apart = np.array([text.divergence for text in texts])
    agreeing = np.array([text.agreeing for text in texts], dtype=np.float64)
    ratio = _interval(lambda n, a, b: np.exp((b - a) / n), draws, tokens, losses[:, 0], losses[:, 1])
    divergence, agreement = (_interval(lambda n, x: x / n, draws, tokens, x) for x in (apart, agreeing))
    perplexities = {
        name: math.exp(losses[:, i].sum() / tokens.sum()) for i, name in enumerate(("original", "quantized"))
    }
    return {
        "perplexity_ratio": perplexities | ratio | _at_most(ratio, limits.perplexity),
        "divergence": divergence | _at_most(divergence, limits.divergence),
        "top1_agreement": agreement | {"limit": limits.agreement, "kept": agreement["low"] >= limits.agreement},
    }


def _copying(kind: str, texts: list[_Text], draws: npt.NDArray[np.int64], limit: float) -> dict[str, Any]:
    """Nothing where the texts have none."""
    counts = np.array([text.copied[kind] for text in texts], dtype=np.float64)
    if not counts[:, 0].sum():
        return {}
    total, first, second = counts.T
    loss = _interval(lambda n, a, b: (a - b) / np.maximum(n, 1), draws, total, first, second)
    shares = {"count": int(total.sum()), "original": first.sum() / total.sum(), "quantized": second.sum() / total.sum()}
    return {f"{kind}_copied_less": shares | loss | _at_most(loss, limit)}


def _interval(measure: Callable[..., Floats], draws: npt.NDArray[np.int64], *sums: Floats) -> dict[str, float]:
    value = measure(*(np.asarray(column.sum()) for column in sums))
    low, high = np.quantile(measure(*(column[draws].sum(1) for column in sums)), (0.025, 0.975))
    return {"value": float(value), "low": float(low), "high": float(high)}


def _at_most(interval: dict[str, float], limit: float) -> dict[str, Any]:
    return {"limit": limit, "kept": interval["high"] <= limit}
