"""The index contract, on every adapter: rights in every leg, deletion, persistence, one owner."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from qdrant_client.qdrant_remote import QdrantRemote

from app.errors import ConfigurationError, Unavailable
from app.rag.documents.chunking import Chunk
from app.rag.index.base import KINDS, Hit, IndexPoint, SearchFilter, VectorIndex
from app.rag.index.edge import EdgeIndex
from app.rag.index.points import DocumentVersion, chunk_points, document_point
from app.rag.index.qdrant import QdrantIndex
from tests.rag.conftest import WordEmbedder
from tests.servers import free_port, qdrant_server

TEXT = "The initial term is three years. Governed by the laws of Delaware."
ATOMS = ("alpha", "beta", "gamma")
LABEL_SETS = [frozenset(c) for size in range(4) for c in itertools.combinations(ATOMS, size)]


@pytest.fixture(scope="module")
def qdrant_url() -> Iterator[str]:
    with qdrant_server() as url:
        yield url


@pytest.fixture(params=["edge", "qdrant"])
def index(
    request: pytest.FixtureRequest, tmp_path: Path, words: WordEmbedder, qdrant_url: str
) -> Iterator[EdgeIndex | QdrantIndex]:
    opened: EdgeIndex | QdrantIndex
    if request.param == "edge":
        opened = EdgeIndex(tmp_path / "index", words.dimension, model=words.name)
    else:
        opened = QdrantIndex(qdrant_url, words.dimension, model=f"{words.name}-{uuid4().hex}")
    yield opened
    opened.close()


def put(
    index: VectorIndex,
    words: WordEmbedder,
    document: str,
    *,
    tenant: str = "t1",
    labels: frozenset[str] = frozenset(),
    version: int = 1,
    collection: str = "c",
    text: str = TEXT,
) -> list[IndexPoint]:
    facts = DocumentVersion(tenant, document, version, collection, tuple(labels), "Title", f"{document}.txt")
    cut = text.index(". ") + 2
    points = chunk_points(facts, text, [Chunk(0, 0, cut), Chunk(1, cut, len(text))], words)
    index.upsert([*points, document_point(facts, text, words)])
    return points


def seen(index: VectorIndex, words: WordEmbedder, where: SearchFilter) -> dict[str, set[str]]:
    """Documents each leg shows, chunks and documents apart."""
    question = "initial term governed delaware"
    found: dict[str, set[str]] = {}
    for kind in ("chunk", "document"):
        legs = index.search(words.embed_query(question), dict.fromkeys(question.split(), 1.0), where, 500, kind=kind)
        found |= {f"{kind} dense": _ids(legs.dense), f"{kind} sparse": _ids(legs.sparse)}
    return found


def _ids(hits: tuple[Hit, ...]) -> set[str]:
    return {hit.document_id for hit in hits}


@pytest.mark.parametrize("optimized", [False, True])
def test_every_leg_shows_exactly_what_the_caller_may_see(
    index: EdgeIndex | QdrantIndex, words: WordEmbedder, optimized: bool
) -> None:
    for tenant in ("t1", "t2"):
        for labels in LABEL_SETS:
            put(index, words, f"{tenant} {'+'.join(sorted(labels))}", tenant=tenant, labels=labels)
    if optimized:
        index.optimize()
    for tenant, held in itertools.product(("t1", "t2"), LABEL_SETS):
        allowed = {f"{tenant} {'+'.join(sorted(labels))}" for labels in LABEL_SETS if labels <= held}
        legs = seen(index, words, SearchFilter(tenant, held | {"unused"}))
        assert all(shown == allowed for shown in legs.values()), (tenant, held, legs)
    assert index.rejected_hits == 0


def test_stranger_sees_nothing(index: VectorIndex, words: WordEmbedder) -> None:
    put(index, words, "a")
    assert not any(seen(index, words, SearchFilter("nobody", frozenset(ATOMS))).values())


def test_collection_and_documents_narrow_every_leg(index: VectorIndex, words: WordEmbedder) -> None:
    for name, collection in (("a", "x"), ("b", "x"), ("c", "y")):
        put(index, words, name, collection=collection)
    nobody: frozenset[str] = frozenset()
    for where, allowed in (
        (SearchFilter("t1", nobody, collection="x"), {"a", "b"}),
        (SearchFilter("t1", nobody, document_ids=("b", "c")), {"b", "c"}),
        (SearchFilter("t1", nobody, collection="x", document_ids=("b", "c")), {"b"}),
        (SearchFilter("t1", nobody, document_ids=()), set()),
    ):
        assert all(shown == allowed for shown in seen(index, words, where).values()), where


def test_another_tenants_words_do_not_move_the_scores(index: VectorIndex, words: WordEmbedder) -> None:
    put(index, words, "a")
    put(index, words, "b", text="Rent is due monthly. The tenant pays.")
    where = SearchFilter("t1", frozenset())
    before = index.search(None, {"delaware": 1.0}, where, 5).sparse
    for n in range(20):
        put(index, words, f"other {n}", tenant="t2")
        put(index, words, f"walled {n}", labels=frozenset({"alpha"}))
    assert index.search(None, {"delaware": 1.0}, where, 5).sparse == before


def test_upsert_replaces_and_delete_removes_versions(index: VectorIndex, words: WordEmbedder) -> None:
    put(index, words, "a")
    put(index, words, "a")
    put(index, words, "a", version=2)
    put(index, words, "b", tenant="t2")
    assert index.count("t1", "a") == 4 and index.count("t1", "a", kind=None) == 6
    index.delete_document("t1", "a", 1)
    legs = index.search(words.embed_query("term"), {"term": 1.0}, SearchFilter("t1", frozenset()), 9)
    assert {hit.version for hit in legs.dense} == {2}
    index.delete_document("t1", "a")
    assert index.count("t1", kind=None) == 0 and index.count("t2", kind=None) == 3


def test_coverage_is_the_share_of_the_weight_found(index: VectorIndex, words: WordEmbedder) -> None:
    first, second = put(index, words, "a")
    terms = {"terms": 3.0, "delaware": 1.0}  # stems, so "terms" is found as "term"
    assert index.coverage([first.chunk_id, second.chunk_id], terms) == {first.chunk_id: 0.75, second.chunk_id: 0.25}
    assert index.coverage([first.chunk_id], {}) == {first.chunk_id: 0.0}
    assert index.coverage([], terms) == {}


def test_scan_hands_over_what_store_takes(index: VectorIndex, tmp_path: Path, words: WordEmbedder) -> None:
    for n in range(5):
        put(index, words, f"d{n}", labels=frozenset({"alpha"}))
    other = EdgeIndex(tmp_path / "other", words.dimension, model=words.name)
    for kind in KINDS:
        after: str | None = None
        while True:
            points, after = index.scan(kind, after, 3)
            other.store(points)
            if after is None:
                break
    where = SearchFilter("t1", frozenset({"alpha"}))
    assert other.count(kind=None) == index.count(kind=None) == 15
    for kind in KINDS:
        legs = [
            one.search(words.embed_query("term"), {"delaware": 1.0, "term": 0.5}, where, 50, kind=kind)
            for one in (index, other)
        ]
        for mine, theirs in ((legs[0].dense, legs[1].dense), (legs[0].sparse, legs[1].sparse)):
            scores = [{hit.chunk_id: hit.score for hit in hits} for hits in (mine, theirs)]
            assert scores[0] and scores[0] == pytest.approx(scores[1], rel=1e-3)
    other.close()


def test_a_server_that_is_away_or_refuses_is_said_so(words: WordEmbedder) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        QdrantIndex(f"http://127.0.0.1:{free_port()}", words.dimension, timeout_seconds=1)
    with qdrant_server("secret") as url:
        with pytest.raises(ConfigurationError, match="refuses the key"):
            QdrantIndex(url, words.dimension, api_key="other")
        opened = QdrantIndex(url, words.dimension, api_key="secret")
        with pytest.raises(ConfigurationError, match="not made"):
            opened._require(12)
        assert opened.snapshot().endswith(".snapshot")
        opened.close()
    with pytest.raises(Unavailable, match="closed"):
        opened.count()


def test_replicas_that_start_at_once_share_one_collection(
    qdrant_url: str, words: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All find it missing before any of them makes it."""
    together, looked = threading.Barrier(4), threading.local()
    exists = QdrantRemote.collection_exists

    def asked(client: QdrantRemote, **asking: Any) -> bool:
        found = exists(client, **asking)
        if not hasattr(looked, "once"):
            looked.once = together.wait(10)
        return found

    model = uuid4().hex
    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as replicas:
        patch.setattr(QdrantRemote, "collection_exists", asked)
        opened = list(replicas.map(lambda _: QdrantIndex(qdrant_url, words.dimension, model=model), range(4)))
    put(opened[0], words, "a")
    assert {one.count("t1", "a", kind=None) for one in opened} == {3}
    for one in opened:
        one.close()


def test_payload_indexes_that_a_killed_replica_left_out_are_made(
    qdrant_url: str, words: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed = []
    index_payload = QdrantRemote.create_payload_index

    def made(client: QdrantRemote, **asking: Any) -> Any:
        indexed.append(asking["field_name"])
        return index_payload(client, **asking)

    QdrantIndex(qdrant_url, words.dimension, model="killed").close()
    monkeypatch.setattr(QdrantRemote, "create_payload_index", made)
    QdrantIndex(qdrant_url, words.dimension, model="killed").close()
    assert set(indexed) == {"tenant", "labels", "document_id", "collection", "kind", "version"}


def test_points_survive_reopening(tmp_path: Path, words: WordEmbedder) -> None:
    first = EdgeIndex(tmp_path, words.dimension, model=words.name)
    put(first, words, "a", labels=frozenset({"alpha"}))
    first.close()
    first.close()
    with pytest.raises(Unavailable):
        first.count()
    again = EdgeIndex(tmp_path, words.dimension, model=words.name)
    assert all(shown == {"a"} for shown in seen(again, words, SearchFilter("t1", frozenset({"alpha"}))).values())
    assert not any(seen(again, words, SearchFilter("t1", frozenset())).values())
    again.close()


def test_points_survive_a_killed_process(tmp_path: Path, words: WordEmbedder) -> None:
    script = (
        "import os, sys; from pathlib import Path; from app.rag.index.edge import EdgeIndex\n"
        "from tests.rag.conftest import WordEmbedder; from tests.rag.test_index import put\n"
        "words = WordEmbedder(); index = EdgeIndex(Path(sys.argv[1]), words.dimension, model=words.name)\n"
        "put(index, words, 'a'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -9
    index = EdgeIndex(tmp_path, words.dimension, model=words.name)
    assert index.count("t1", "a", kind=None) == 3
    index.close()


def test_folder_has_one_owner_and_one_model(tmp_path: Path, words: WordEmbedder) -> None:
    index = EdgeIndex(tmp_path, words.dimension, model=words.name)
    with pytest.raises(ConfigurationError, match="Qdrant server"):
        EdgeIndex(tmp_path, words.dimension, model=words.name)
    index.close()
    with pytest.raises(ConfigurationError, match="built with"):
        EdgeIndex(tmp_path, 12, model="other")
    EdgeIndex(tmp_path, words.dimension, model=words.name).close()


def test_a_stopped_index_is_opened_and_optimized(tmp_path: Path, words: WordEmbedder) -> None:
    with pytest.raises(ConfigurationError, match="no index"):
        EdgeIndex.existing(tmp_path / "none")
    index = EdgeIndex(tmp_path, words.dimension, model=words.name)
    put(index, words, "a")
    with pytest.raises(ConfigurationError, match="Qdrant server"):
        EdgeIndex.existing(tmp_path)
    index.close()
    again = EdgeIndex.existing(tmp_path)
    again.optimize()
    assert all(shown == {"a"} for shown in seen(again, words, SearchFilter("t1", frozenset())).values())
    again.close()


def test_searches_and_updates_run_side_by_side(index: VectorIndex, words: WordEmbedder) -> None:
    put(index, words, "kept")
    failures: list[BaseException] = []

    def guarded(work: object) -> None:
        try:
            for n in range(15):
                if work == "write":
                    put(index, words, f"d{n}")
                    index.delete_document("t1", f"d{n}")
                else:
                    legs = seen(index, words, SearchFilter("t1", frozenset()))
                    assert all("kept" in shown for shown in legs.values())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in ("write", "read", "read", "read")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert index.count("t1") == 2
