"""Which index serves, and moving everything to another one while both are written to.

Searches read the current one alone. A move first lets every write go to both, then copies page by page under the lock
that writes take as well, so that a copy can never overwrite what came after it or bring back what was deleted. Only
when the counts agree does the target become the current one; what fails before that leaves everything as it was.
"""

import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.config import RagSettings
from app.errors import AppError, ConfigurationError, Conflict
from app.rag.index.base import KINDS, FloatArray, IndexPoint, Kind, Legs, SearchFilter, StoredPoint, VectorIndex
from app.rag.index.edge import EdgeIndex
from app.rag.index.qdrant import QdrantIndex
from app.telemetry import logger

log = logger(__name__)
EDGE = "edge"
PAGE = 256
MOVED = "moved"  # file in an embedded index's folder that says where everything went


@dataclass(frozen=True, slots=True)
class Move:
    """How far a move is; `error` says why it was given up."""

    to: str
    done: int = 0
    total: int = 0
    finished: bool = False
    error: str | None = None


class IndexOpener:
    """Opens the index at a place: `edge`, or the URL of a Qdrant server."""

    def __init__(self, settings: RagSettings, folder: Path, dimension: int, model: str) -> None:
        self._settings = settings
        self._folder = folder
        self._dimension = dimension
        self._model = model

    def configured(self) -> tuple[str, VectorIndex]:
        """The place that the settings name, opened. Raises ConfigurationError."""
        if self._settings.index == EDGE:
            if (marker := self._folder / MOVED).exists():
                raise ConfigurationError(
                    f'The index in {self._folder} was moved to {marker.read_text("utf-8")}: set rag.index = "qdrant" '
                    "and rag.qdrant_url, or delete the folder and ingest again."
                )
            return EDGE, self._edge()
        if self._settings.index != "qdrant" or not self._settings.qdrant_url:
            raise ConfigurationError("[rag] index is edge, or qdrant with a qdrant_url.")
        return self._settings.qdrant_url, self._server(self._settings.qdrant_url)

    def target(self, place: str) -> VectorIndex:
        """An empty index to move to. Raises Conflict where the place holds points already, and as `configured`."""
        if place == EDGE and (self._folder / MOVED).exists():
            shutil.rmtree(self._folder)  # what everything was moved away from
        index = self._edge() if place == EDGE else self._server(place)
        if index.count(kind=None):
            index.close()
            raise Conflict(f"{place} holds points of this model already; an index is moved to an empty place.")
        return index

    def left(self, place: str, to: str) -> None:
        """Note that nothing is to be read at `place` any more."""
        if place == EDGE:
            (self._folder / MOVED).write_text(to, "utf-8")

    def _edge(self) -> EdgeIndex:
        return EdgeIndex(self._folder, self._dimension, model=self._model)

    def _server(self, url: str) -> QdrantIndex:
        chosen = self._settings
        key, seconds = chosen.qdrant_api_key, chosen.qdrant_timeout_seconds
        return QdrantIndex(url, self._dimension, model=self._model, api_key=key, timeout_seconds=seconds)


class MovableIndex:
    """A VectorIndex that can change its place while it is used."""

    def __init__(self, opener: IndexOpener) -> None:
        self._opener = opener
        self.place, self._current = opener.configured()
        self.moved: Move | None = None
        self._target: VectorIndex | None = None
        self._failure: AppError | None = None
        self._writing = threading.RLock()
        self._retired: list[VectorIndex] = []

    @property
    def rejected_hits(self) -> int:
        """Points that a filter let through and the second check refused; must stay 0."""
        return int(getattr(self._current, "rejected_hits", 0))

    def upsert(self, points: Sequence[IndexPoint]) -> None:
        """Insert or replace points by chunk_id; visible to searches on return."""
        self._write(lambda index: index.upsert(points))

    def store(self, points: Sequence[StoredPoint]) -> None:
        """Insert or replace points as `scan` of any adapter gives them."""
        self._write(lambda index: index.store(points))

    def delete_document(self, tenant: str, document_id: str, version: int | None = None) -> None:
        """Remove every point of a document, or of one version of it."""
        self._write(lambda index: index.delete_document(tenant, document_id, version))

    def search(
        self,
        dense: FloatArray | None,
        terms: Mapping[str, float] | None,
        where: SearchFilter,
        limit: int,
        *,
        kind: Kind = "chunk",
    ) -> Legs:
        """Up to `limit` hits per leg."""
        return self._current.search(dense, terms, where, limit, kind=kind)

    def coverage(self, chunk_ids: Sequence[str], terms: Mapping[str, float]) -> Mapping[str, float]:
        """For each chunk the share (0-1) of the weight of `terms` that occurs in it; ids must come from a search."""
        return self._current.coverage(chunk_ids, terms)

    def count(self, tenant: str | None = None, document_id: str | None = None, *, kind: Kind | None = "chunk") -> int:
        """Exact number of points, of both kinds when `kind` is None."""
        return self._current.count(tenant, document_id, kind=kind)

    def scan(self, kind: Kind, after: str | None, limit: int) -> tuple[list[StoredPoint], str | None]:
        """Points in the order of their ids, from `after` on, and where the next page starts (None: the end)."""
        return self._current.scan(kind, after, limit)

    def is_gone(self) -> bool:
        """Whether the index that serves lost everything."""
        return self._current.is_gone()

    def renew(self) -> None:
        """Make the index that serves anew, empty, where it is gone."""
        self._current.renew()

    def optimize(self) -> None:
        """Merge segments and build indexes."""
        self._current.optimize()

    def close(self) -> None:
        """Close whatever is open. The index cannot be used afterwards."""
        for index in (self._current, self._target, *self._retired):
            if index:
                index.close()

    def move(self, to: str) -> Move:
        """Copy everything to `to` (`edge` or a URL) and serve from there; blocks until that is so.

        Raises Conflict while another move runs or where the target is not empty, and whatever makes the copy fail.
        """
        with self._writing:
            if to == self.place:
                raise Conflict("The index is there already.")
            if self.moved and not self.moved.finished and self.moved.error is None:
                raise Conflict("The index is being moved.")
            self.moved, self._failure = Move(to), None
        try:
            with self._writing:
                self._close_retired(to)
                self._target = self._opener.target(to)
                self.moved = Move(to, 0, self._current.count(kind=None))
            for kind in KINDS:
                self._copy(kind)
            self._switch(to)
        except BaseException as error:
            self._give_up(str(error))
            raise
        return self.moved

    def _copy(self, kind: Kind) -> None:
        after: str | None = None
        while True:
            with self._writing:
                target = self._moving()
                points, after = self._current.scan(kind, after, PAGE)
                target.store(points)
                assert self.moved
                done = self.moved.done + len(points)
                self.moved = Move(self.moved.to, done, max(done, self.moved.total))
            if after is None:
                return

    def _switch(self, to: str) -> None:
        with self._writing:
            target = self._moving()
            for kind in KINDS:
                here, there = self._current.count(kind=kind), target.count(kind=kind)
                if here != there:
                    raise Conflict(
                        f"The copy has {there} points of kind {kind}, the original {here}; nothing was moved."
                    )
            self._opener.left(self.place, to)
            self._retired.append(self._current)  # searches may still read it
            self._current, self._target, self.place = target, None, to
            self.moved = Move(to, target.count(kind=None), target.count(kind=None), finished=True)

    def _moving(self) -> VectorIndex:
        if self._target is None:
            raise self._failure or Conflict("The move was given up.")
        return self._target

    def _give_up(self, reason: str) -> None:
        with self._writing:
            target, self._target = self._target, None
            if self.moved:
                self.moved = Move(self.moved.to, self.moved.done, self.moved.total, error=reason)
        if target:
            target.close()

    def _write(self, write: Callable[[VectorIndex], None]) -> None:
        """To the current index, and to the target of a move; a target that fails ends the move, not the write."""
        with self._writing:
            write(self._current)
            if self._target:
                try:
                    write(self._target)
                except AppError as error:
                    log.warning("the index is not moved: its target failed", reason=error.detail)
                    self._failure = error
                    self._give_up(error.detail)

    def _close_retired(self, to: str) -> None:
        """An embedded index that is moved to again must let go of its folder first."""
        if to == EDGE:
            for index in self._retired:
                index.close()
            self._retired.clear()
