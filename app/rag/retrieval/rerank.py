"""A cross-encoder reads question and passage together: slower than comparing vectors, and better at the order.

torch is imported when a model is loaded, not when this module is.
"""

import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from app.errors import ConfigurationError

BATCH = 8  # pairs in one forward; between two of them the time is looked at
MAX_TOKENS = 512


class CrossEncoder:
    """A loaded sequence classifier with one output (or whose last one means "relevant"). Thread-safe, blocking."""

    def __init__(self, model: str, *, device: str = "auto", max_ms: float = 200.0) -> None:
        """Load a folder or hub id. Raises ConfigurationError when that is no such model."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = model
        self._max_seconds = max_ms / 1e3
        self._lock = threading.Lock()
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(model).eval()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"The reranker {model!r} cannot be loaded: {error}") from error
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._model.to(self.device)
        limit = getattr(self._model.config, "max_position_embeddings", MAX_TOKENS)
        self._max_tokens = min(MAX_TOKENS, int(limit))

    @property
    def num_bytes(self) -> int:
        """Of its weights."""
        return sum(tensor.nbytes for tensor in (*self._model.parameters(), *self._model.buffers()))

    def scores(self, question: str, passages: Sequence[str]) -> list[float]:
        """Relevance in 0-1 of the first passages, as many as the time allows (at least one batch), in their order."""
        deadline = perf_counter() + self._max_seconds
        found: list[float] = []
        with self._lock:
            while len(found) < len(passages) and (not found or perf_counter() < deadline):
                found += self._forward(question, passages[len(found) : len(found) + BATCH])
        return found

    def _forward(self, question: str, passages: Sequence[str]) -> list[float]:
        import torch

        pairs = self._tokenizer(
            [question] * len(passages),
            list(passages),
            truncation="longest_first",
            max_length=self._max_tokens,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        with torch.inference_mode():
            logits = self._model(**pairs).logits.float()
        relevant = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
        scores: list[float] = relevant[:, -1].tolist()
        return scores
