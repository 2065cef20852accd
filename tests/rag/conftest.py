"""Models and documents for the tests of rag."""

import hashlib
import io
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from reportlab.pdfgen.canvas import Canvas

from app.rag.index.embedding import Embedder

PdfLines = Sequence[Sequence[str]]


class WordEmbedder(Embedder):
    """Bag of hashed words as a unit vector: no torch, the same everywhere, and similar texts are similar."""

    def __init__(self, dimension: int = 64) -> None:
        self.name = f"words-{dimension}"
        self._dimension = dimension

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        out = np.full((len(texts), self._dimension), 1e-3, dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                out[row, hashlib.md5(word.encode()).digest()[0] % self._dimension] += 1
        normed: npt.NDArray[np.float32] = out / np.linalg.norm(out, axis=1, keepdims=True)
        return normed

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return self.embed(texts)


@pytest.fixture(scope="session")
def words() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture(scope="session")
def minilm() -> Embedder:
    return Embedder(device="cpu")


def make_pdf(pages: PdfLines, *, title: str = "", encrypt: str | None = None) -> bytes:
    """A PDF with the given lines on each page, 12 points, from 72/760 downwards."""
    buffer = io.BytesIO()
    canvas = Canvas(buffer, pagesize=(595, 842), encrypt=encrypt)
    if title:
        canvas.setTitle(title)
    for lines in pages:
        for row, line in enumerate(lines):
            canvas.drawString(72, 760 - 16 * row, line)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()
