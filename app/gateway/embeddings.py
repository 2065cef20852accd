"""/v1/embeddings on the model that is loaded for retrieval anyway."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, ModelNotFound
from app.gateway.capabilities import estimate_text
from app.gateway.metering import Meter, Reservation
from app.gateway.record import Record
from app.gateway.schemas import Usage
from app.gateway.service import Gateway
from app.gateway.writer import Writer
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
    """Serves one embedding model under its own name, within the same limits and budgets as chat; or none."""

    def __init__(self, model: EmbeddingModel | None, meter: Meter, gateway: Gateway, writer: Writer) -> None:
        self._model = model
        self._meter = meter
        self._gateway = gateway
        self._writer = writer

    @property
    def name(self) -> str:
        """Empty where there is none."""
        return self._model.name if self._model else ""

    async def embed(
        self, principal: Principal, model: str, texts: list[str], dimensions: int | None
    ) -> tuple[npt.NDArray[np.float32], int]:
        """(vectors, estimated prompt tokens). Text beyond the model's limit does not count into its vector.

        Raises ModelNotFound, InvalidRequest for another number of dimensions than the model's, RateLimited and
        BudgetExceeded.
        """
        loaded = self._model
        if loaded is None or model != loaded.name or not principal.may_use(model):
            raise ModelNotFound(model)
        if dimensions not in (None, loaded.dimension):
            raise InvalidRequest(f"This model has {loaded.dimension} dimensions.", param="dimensions")
        usage = Usage(sum(estimate_text(text) for text in texts))
        record = Record.of(principal, "embeddings", model, streamed=False)
        cost = self._gateway.board.prices.cost(TARGET, model, usage)
        reservation = await self._meter.admit(principal, record, usage.prompt_tokens, cost.total)
        work = asyncio.create_task(self._compute(loaded, record, reservation, texts, usage))
        return await asyncio.shield(work), usage.prompt_tokens

    async def _compute(
        self, model: EmbeddingModel, record: Record, reservation: Reservation, texts: list[str], usage: Usage
    ) -> npt.NDArray[np.float32]:
        """The vectors. Runs to its end also when the caller goes away: what was computed is owed."""
        record.target, record.status = TARGET, "error"
        started = time.perf_counter()
        done = Usage()
        try:
            batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
            rows = [await asyncio.to_thread(model.embed, batch) for batch in batches]
            record.status, done = "stop", usage
            return np.concatenate(rows)
        finally:
            record.total_ms = record.first_delta_ms = (time.perf_counter() - started) * 1000
            record.prompt_tokens = done.prompt_tokens
            cost = self._gateway.board.prices.cost(TARGET, record.model, done, round(record.total_ms))
            record.cost_micros = cost.total
            await self._meter.settle(reservation, done.prompt_tokens, cost.total)
            self._writer.add(record.row(), record.ledger_row(cost))
