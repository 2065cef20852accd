"""/v1/embeddings on the model that is loaded for retrieval anyway."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.db import Database
from app.errors import InvalidRequest, ModelNotFound
from app.gateway.capabilities import estimate_text
from app.gateway.models import RequestRecord
from app.tenants.principal import Principal

# Texts in one go: searches that wait for the model get their turn in between.
BATCH = 16
TARGET = "embedding"


class EmbeddingModel(Protocol):
    """What the gateway asks of a loaded embedding model; `app.services` hands one in."""

    name: str

    @property
    def dimension(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """float32 [len(texts), dimension], in the order given. Thread-safe."""
        ...


class Embeddings:
    """Serves one embedding model under its own name."""

    def __init__(self, database: Database, model: EmbeddingModel) -> None:
        self._database = database
        self._model = model

    @property
    def name(self) -> str:
        return self._model.name

    async def embed(
        self, principal: Principal, model: str, texts: list[str], dimensions: int | None
    ) -> tuple[npt.NDArray[np.float32], int]:
        """(vectors, estimated prompt tokens). Text beyond the model's limit does not count into its vector.

        Raises ModelNotFound, and InvalidRequest for another number of dimensions than the model's.
        """
        if model != self._model.name:
            raise ModelNotFound(model)
        if dimensions not in (None, self._model.dimension):
            raise InvalidRequest(f"This model has {self._model.dimension} dimensions.", param="dimensions")
        started = time.perf_counter()
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        rows = [await asyncio.to_thread(self._model.embed, batch) for batch in batches]
        tokens = sum(estimate_text(text) for text in texts)
        await self._save(principal, tokens, (time.perf_counter() - started) * 1000)
        return np.concatenate(rows), tokens

    async def _save(self, principal: Principal, tokens: int, milliseconds: float) -> None:
        record = RequestRecord(
            tenant_id=principal.tenant_id,
            key_id=principal.key_id,
            model=self._model.name,
            target=TARGET,
            status="stop",
            fallbacks=0,
            prompt_tokens=tokens,
            completion_tokens=0,
            cached_tokens=0,
            first_delta_ms=milliseconds,
            total_ms=milliseconds,
        )
        async with self._database.session() as session:
            session.add(record)
            await session.commit()
