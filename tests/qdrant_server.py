"""A stand-in for a Qdrant server: the part of its REST interface that qdrant-client uses, on the client's own local
implementation. What only the server does (HNSW, quantization, tenant placement, snapshots on disk) is accepted and
recorded, not done.
"""

import json
import re
import threading
import warnings
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from pydantic import BaseModel, TypeAdapter
from qdrant_client import QdrantClient
from qdrant_client import models as qm

Route = Callable[["Store", str, Any], Any]


class Store:
    """Collections, and what was asked of them that a local collection cannot do."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.lock = threading.Lock()
        self.created: dict[str, qm.CreateCollection] = {}
        self.indexes: dict[str, dict[str, Any]] = {}
        self.snapshots: list[str] = []


class Missing(Exception):
    pass


class Exists(Exception):
    pass


def create(store: Store, name: str, body: Any) -> bool:
    asked = qm.CreateCollection.model_validate(body)
    if store.client.collection_exists(name):
        raise Exists(f"Wrong input: Collection `{name}` already exists!")
    store.created[name] = asked
    return store.client.create_collection(name, asked.vectors, sparse_vectors_config=asked.sparse_vectors)


def describe(store: Store, name: str, body: Any) -> Any:
    if not store.client.collection_exists(name):
        raise Missing(name)
    return store.client.get_collection(name)


def index(store: Store, name: str, body: Any) -> Any:
    store.indexes.setdefault(name, {})[body["field_name"]] = body["field_schema"]
    return done()


def upsert(store: Store, name: str, body: Any) -> Any:
    store.client.upsert(name, TypeAdapter(list[qm.PointStruct]).validate_python(body["points"]))
    return done()


def delete(store: Store, name: str, body: Any) -> Any:
    store.client.delete(name, TypeAdapter(qm.PointsSelector).validate_python(body))
    return done()


def query(store: Store, name: str, body: Any) -> Any:
    asked = qm.QueryRequestBatch.model_validate(body).searches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return store.client.query_batch_points(name, asked)


def retrieve(store: Store, name: str, body: Any) -> Any:
    asked = qm.PointRequest.model_validate(body)
    payload: Any = asked.with_payload
    return store.client.retrieve(name, asked.ids, payload, asked.with_vector or False)


def count(store: Store, name: str, body: Any) -> Any:
    return store.client.count(name, qm.CountRequest.model_validate(body).filter)


def scroll(store: Store, name: str, body: Any) -> Any:
    asked = qm.ScrollRequest.model_validate(body)
    payload: Any = asked.with_payload
    rows, following = store.client.scroll(
        name,
        scroll_filter=asked.filter,
        limit=asked.limit or 10,
        offset=asked.offset,
        with_payload=payload,
        with_vectors=asked.with_vector or False,
    )
    return {"points": rows, "next_page_offset": following}


def snapshot(store: Store, name: str, body: Any) -> Any:
    store.snapshots.append(f"{name}-{len(store.snapshots) + 1}.snapshot")
    return {"name": store.snapshots[-1], "creation_time": None, "size": 0, "checksum": None}


def done() -> Any:
    return qm.UpdateResult(operation_id=0, status=qm.UpdateStatus.COMPLETED)


ROUTES: dict[tuple[str, str], Route] = {
    ("GET", "/exists"): lambda store, name, body: {"exists": store.client.collection_exists(name)},
    ("GET", ""): describe,
    ("PUT", ""): create,
    ("PUT", "/index"): index,
    ("PUT", "/points"): upsert,
    ("POST", "/points"): retrieve,
    ("POST", "/points/delete"): delete,
    ("POST", "/points/query/batch"): query,
    ("POST", "/points/count"): count,
    ("POST", "/points/scroll"): scroll,
    ("POST", "/snapshots"): snapshot,
}
STATUSES: dict[type[Exception], int] = {Missing: 404, Exists: 409}
_PATH = re.compile(r"/collections/([^/?]+)([^?]*)")


def handler(api_key: str) -> type[BaseHTTPRequestHandler]:
    """A handler class with a store of its own."""
    store = Store()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_PUT(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            if api_key and self.headers.get("api-key") != api_key:
                return self._send(401, {"status": {"error": "Must provide an API key"}})
            match = _PATH.match(self.path)
            route = ROUTES.get((self.command, match[2])) if match else None
            if match is None or route is None:
                return self._send(404, {"status": {"error": f"no {self.command} {self.path}"}})
            try:
                with store.lock:
                    found = route(store, match[1], body)
            except (Missing, Exists, ValueError) as error:
                return self._send(STATUSES.get(type(error), 400), {"status": {"error": str(error)}})
            self._send(200, {"result": _plain(found), "status": "ok", "time": 0.0})

        def _send(self, status: int, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Tests are quiet."""

    return Handler


def _plain(found: Any) -> Any:
    if isinstance(found, BaseModel):
        return found.model_dump(mode="json", by_alias=True)
    if isinstance(found, list):
        return [_plain(one) for one in found]
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    return found
