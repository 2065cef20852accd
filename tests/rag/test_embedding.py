"""The embedder against the definition of its vectors."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ConfigurationError
from app.rag.index.embedding import TOKENS_PER_BATCH, Embedder, _batches

TEXTS = ["short", "The term is three years. " * 40, "", "Governing law of the agreement"]


def test_vectors_have_unit_length_and_do_not_depend_on_the_batch(minilm: Embedder) -> None:
    together = minilm.embed(TEXTS)
    assert together.dtype == np.float32 and together.shape == (4, minilm.dimension) == (4, 384)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-4)
    alone = np.concatenate([minilm.embed([text]) for text in TEXTS])
    assert ((together * alone).sum(axis=1) > 0.995).all()
    assert minilm.embed([]).shape == (0, 384)


def test_packed_questions_see_themselves_alone() -> None:
    exact = Embedder(dtype="float32")
    asked = ["Notice?", "What is the governing law?", "the Supply Agreement between Acme Corporation and Beta Limited"]
    alone = np.stack([exact.embed_query(text) for text in asked])
    assert np.abs(exact.embed_queries(asked) - alone).max() < 1e-5
    assert np.abs(exact.embed(asked) - alone).max() < 1e-5, "padded, as documents are"


def test_meaning_is_near(minilm: Embedder) -> None:
    question = minilm.embed_query("Which state's law applies?")
    law, rent = minilm.embed(["Governed by the laws of Delaware.", "Rent is due on the first day of each month."])
    assert question @ law > question @ rent + 0.1


def test_bfloat16_stays_close_to_float32(minilm: Embedder) -> None:
    exact = Embedder(device="cpu", dtype="float32")
    texts = [text for text in TEXTS if text]
    assert ((exact.embed(texts) * minilm.embed(texts)).sum(axis=1) > 0.995).all()


def test_missing_model_is_a_configuration_error(tmp_path: object) -> None:
    with pytest.raises(ConfigurationError, match="cannot be loaded"):
        Embedder(str(tmp_path))


def test_importing_rag_does_not_import_torch() -> None:
    rooms = ("retrieval.retriever", "index.edge", "evaluation.retrieval_metrics", "parsing", "answers.citations")
    modules = ", ".join(f"app.rag.{room}" for room in rooms)
    code = f"import {modules}, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(st.lists(st.integers(1, 600), min_size=1, max_size=80))
def test_batches_cover_every_row_once_within_the_budget(lengths: list[int]) -> None:
    batches = list(_batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= TOKENS_PER_BATCH for batch in batches)
