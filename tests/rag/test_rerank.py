"""The cross-encoder: a tiny one with random weights, read from a folder like any other."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import ConfigurationError
from app.rag.retrieval import search
from app.rag.retrieval.rerank import BATCH, CrossEncoder
from tests.conftest import Site


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    path = tmp_path_factory.mktemp("reranker")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rent", "pets", "otter", "lease", "crown"]
    (path / "vocab.txt").write_text("\n".join([*words, *"abcdefghijklmnopqrstuvwxyz"]))
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=1.0,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    return path


def test_scores_do_not_depend_on_the_company(folder: Path) -> None:
    reranker = CrossEncoder(str(folder), device="cpu", max_ms=10_000)
    texts = [f"rent {'crown ' * n}" for n in range(2 * BATCH + 3)]
    together = reranker.scores("pets rent", texts)
    assert len(together) == len(texts)
    assert all(0 <= score <= 1 for score in together)
    assert together == pytest.approx([reranker.scores("pets rent", [text])[0] for text in texts], abs=1e-5)
    assert len(set(together)) > 1
    assert reranker.scores("pets", []) == []


def test_time_bounds_how_much_is_read(folder: Path) -> None:
    reranker = CrossEncoder(str(folder), device="cpu", max_ms=0)
    assert len(reranker.scores("rent", ["lease"] * 3 * BATCH)) == BATCH


def test_a_folder_without_a_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="reranker"):
        CrossEncoder(str(tmp_path))


async def test_search_orders_by_the_cross_encoder(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = await site.headers("reranked")
    text = "\n\n".join(f"## {n}. Clause\n\nThe rent of clause {n} is {n} crowns. {'Lease. ' * 40}" for n in range(9))
    await site.file("a.md", text, headers)
    request = {"query": "How much is the rent?", "k": 4}

    async def ask() -> list[dict[str, Any]]:
        response = await site.client.post("/api/v1/search", json=request, headers=headers)
        return response.json()["passages"]  # type: ignore[no-any-return]

    plain = await ask()
    assert all("reranked" not in passage["scores"] for passage in plain)
    reranker = CrossEncoder(str(folder), device="cpu", max_ms=10_000)
    monkeypatch.setattr(site.services.library.search, "_reranker", reranker)
    reranked = await ask()
    assert len(reranked) == 4
    scores = [passage["score"] for passage in reranked]
    assert scores == sorted(scores, reverse=True) == [passage["scores"]["reranked"] for passage in reranked]
    monkeypatch.setattr(search, "RERANKED", 4)  # the same four, in another order
    assert {p["chunk_id"] for p in await ask()} == {p["chunk_id"] for p in plain}
