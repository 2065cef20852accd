"""Moving the index to a Qdrant server and back, while it is searched and written to."""

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from app.client import ClientError, move_index
from app.config import RagSettings
from app.errors import ConfigurationError, Conflict, Unavailable
from app.rag.index.base import SearchFilter
from app.rag.index.moving import IndexOpener, MovableIndex
from app.rag.index.qdrant import QdrantIndex
from app.tenants.principal import TENANT_SCOPES
from tests.conftest import Site
from tests.rag.conftest import WordEmbedder
from tests.rag.test_index import put
from tests.servers import free_port, qdrant_server

NOBODY: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with qdrant_server() as started:
        yield started


@pytest.fixture
def index(tmp_path: Path, words: WordEmbedder) -> Iterator[MovableIndex]:
    opened = MovableIndex(opener(tmp_path, words))
    yield opened
    opened.close()


def opener(folder: Path, words: WordEmbedder, settings: RagSettings | None = None) -> IndexOpener:
    return IndexOpener(settings or RagSettings(), folder / "index", words.dimension, f"{words.name}-{folder.name}")


def found(index: MovableIndex, words: WordEmbedder) -> set[str]:
    legs = index.search(words.embed_query("term"), {"delaware": 1.0}, SearchFilter("t1", NOBODY), 500)
    assert {hit.document_id for hit in legs.dense} >= {hit.document_id for hit in legs.sparse}
    return {hit.document_id for hit in legs.dense}


def test_there_and_back_again(index: MovableIndex, words: WordEmbedder, url: str) -> None:
    for n in range(40):
        put(index, words, f"d{n}")
    everything = found(index, words)
    assert len(everything) == 40
    moved = index.move(url)
    assert (index.place, moved.finished, moved.done) == (url, True, 120)
    assert found(index, words) == everything
    index.delete_document("t1", "d0")
    index.move("edge")
    assert index.place == "edge"
    assert found(index, words) == everything - {"d0"}


@pytest.mark.slow
def test_nothing_is_lost_or_brought_back_while_it_moves(
    index: MovableIndex, words: WordEmbedder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.rag.index.moving.PAGE", 7)
    for n in range(60):
        put(index, words, f"old{n}")
    stop, failures = threading.Event(), list[BaseException]()

    def churn() -> None:
        try:
            for n in range(60):
                index.delete_document("t1", f"old{n}") if n % 2 else put(index, words, f"new{n}")
                assert "old58" in found(index, words)
        except BaseException as error:
            failures.append(error)
        stop.set()

    writer = threading.Thread(target=churn)
    writer.start()
    index.move(url)
    stop.wait(60)
    writer.join()
    assert not failures
    expected = {f"old{n}" for n in range(0, 60, 2)} | {f"new{n}" for n in range(0, 60, 2)}
    assert found(index, words) == expected
    assert index.count(kind=None) == 3 * len(expected)


def test_a_target_that_fails_changes_nothing(
    index: MovableIndex, words: WordEmbedder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(index, words, "kept")
    with pytest.raises(Unavailable):
        index.move(f"http://127.0.0.1:{free_port()}")

    def breaks(self: QdrantIndex, points: Sequence[Any]) -> None:
        raise Unavailable("The Qdrant server does not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(QdrantIndex, "store", breaks)
        with pytest.raises(Unavailable):
            index.move(url)
    assert index.place == "edge"
    assert index.moved
    assert index.moved.error == "The Qdrant server does not answer."
    assert found(index, words) == {"kept"}
    index.move(url)
    assert found(index, words) == {"kept"}


def test_counts_that_differ_stop_the_move(
    index: MovableIndex, words: WordEmbedder, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(index, words, "kept")
    store = QdrantIndex.store
    monkeypatch.setattr(QdrantIndex, "store", lambda self, points: store(self, points[1:]))
    with pytest.raises(Conflict, match="nothing was moved"):
        index.move(url)
    assert index.place == "edge"


def test_a_place_with_points_is_no_target(index: MovableIndex, words: WordEmbedder, url: str) -> None:
    put(index, words, "kept")
    index.move(url)
    with pytest.raises(Conflict, match="already"):
        index.move(url)
    index.move("edge")
    with pytest.raises(Conflict, match="holds points"):
        index.move(url)


def test_a_start_with_the_old_setting_is_refused(tmp_path: Path, words: WordEmbedder, url: str) -> None:
    index = MovableIndex(opener(tmp_path, words))
    put(index, words, "kept")
    index.move(url)
    index.close()
    with pytest.raises(ConfigurationError, match="was moved to http"):
        MovableIndex(opener(tmp_path, words))
    again = MovableIndex(opener(tmp_path, words, RagSettings(index="qdrant", qdrant_url=url)))
    assert found(again, words) == {"kept"}
    again.close()
    for wrong in (RagSettings(index="qdrant"), RagSettings(index="faiss")):
        with pytest.raises(ConfigurationError, match="qdrant_url"):
            opener(tmp_path, words, wrong).configured()


async def test_only_the_operator_sees_and_moves_the_index(site: Site) -> None:
    tenant = await site.headers("index-tenant")
    operator = await site.headers("index-operator", scopes=[*TENANT_SCOPES, "operator"])
    assert (await site.client.get("/api/v1/index", headers=tenant)).status_code == 403
    body = {"to": "edge"}
    assert (await site.client.post("/api/v1/index/move", json=body, headers=tenant)).status_code == 403
    shown = (await site.client.get("/api/v1/index", headers=operator)).json()
    assert (shown["place"], shown["rejected_hits"], shown["move"]) == ("edge", 0, None)
    again = await site.client.post("/api/v1/index/move", json=body, headers=operator)
    assert again.status_code == 409
    bad = await site.client.post("/api/v1/index/move", json={"to": "ftp://x"}, headers=operator)
    assert bad.status_code == 400


def test_the_command_waits_for_the_move_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"to": "edge", "done": 1, "total": 1, "finished": True, "error": None}
    new = old | {"to": "http://q", "finished": False}
    states = [{"move": old}, {"move": new}, {"move": new | {"finished": True}, "chunks": 3, "documents": 1}]

    class Server:
        def post(self, path: str, body: dict[str, str]) -> dict[str, Any]:
            return states.pop(0)

        def get(self, path: str) -> dict[str, Any]:
            return states.pop(0)

    monkeypatch.setattr("app.client.POLL_SECONDS", 0)
    console = Console(record=True, file=io.StringIO(), width=200)
    move_index(Server(), "http://q", console)  # type: ignore[arg-type]
    assert "3 chunks and 1 documents are served from http://q" in console.export_text()
    states[:] = [{"move": new | {"error": "The copy has 2 points"}}]
    with pytest.raises(ClientError, match="copy has 2 points"):
        move_index(Server(), "http://q", console)  # type: ignore[arg-type]
