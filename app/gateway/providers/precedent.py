"""Another Precedent with an engine (`precedent serve --role engine`), with nothing lost on the way: labelled segments,
quote sources and drafts arrive as they are, and it tells what it has in KV memory and when a first token would come.

Its endpoints are in controllers_replica.py; the key needs the scope `engine`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import httpx
import msgspec

from app.config import TargetSettings
from app.errors import AppError, UpstreamError, source_gone
from app.gateway.capabilities import estimate_text
from app.gateway.prefixes import split
from app.gateway.providers.advert import Advert
from app.gateway.providers.base import Forecast, TransientError
from app.gateway.providers.http import HttpProvider, Json, sse_data
from app.gateway.providers.local import TAKES
from app.gateway.schemas import ChatRequest, Delta
from app.telemetry import logger

log = logger(__name__)
ADVERT_SECONDS = 1.0
FRESH_SECONDS = 5.0  # after so long without a word nothing is known of the replica
GENERATE, ADVERT, FORGET = ("api/v1/engine/" + name for name in ("generate", "advert", "forget"))


class PrecedentProvider(HttpProvider):
    """Asks for the replica's advert every second."""

    TAKES = TAKES

    def __init__(self, target: TargetSettings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        super().__init__(target, transport)
        self._advert: Advert | None = None
        self._heard = 0.0
        self._unsaid: set[str] = set()  # forgotten sources that the replica has not confirmed
        self._watch: asyncio.Task[None] | None = None

    @property
    def _advert_path(self) -> str:
        return f"{ADVERT}?{urlencode({'model': self.target.model})}" if self.target.model else ADVERT

    async def start(self) -> None:
        await super().start()
        self._watch = asyncio.create_task(self._listen(), name=f"advert of {self.target.name}")

    async def close(self) -> None:
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await super().close()

    def unhealthy(self) -> str | None:
        if reason := super().unhealthy():
            return reason
        if self._advert is None or time.monotonic() - self._heard > FRESH_SECONDS:
            return "the replica has not been heard of"
        return self._advert.unhealthy

    async def forecast(self, request: ChatRequest) -> Forecast | None:
        advert = self._advert
        if advert is None:
            return None
        cached, rest = split(request.messages, self.resident(request.model))
        return Forecast(advert.ttft_ms + estimate_text(rest) * advert.ms_per_token, cached)

    def queue_ms(self) -> float | None:
        return self._advert.ttft_ms if self._advert else None

    def resident(self, model: str) -> Mapping[str, int]:
        return self._advert.resident(self.target.model or model) if self._advert else {}

    async def forget(self, source_ids: Collection[str]) -> None:
        """Told at once, and again every second until it is confirmed: a replica that was away hears it then."""
        self._unsaid |= set(source_ids)
        await self._confirm()

    def path(self, request: ChatRequest) -> str:
        return GENERATE

    def probe_path(self) -> str:
        return "health/ready"

    def body(self, request: ChatRequest) -> Json:
        """Everything but what is the gateway's own business."""
        model = self.target.model or request.model
        found: Json = msgspec.to_builtins(replace(request, model=model, cache_query=None, relay=""))
        return found

    async def deltas(self, chunks: AsyncIterator[bytes], request: ChatRequest) -> AsyncGenerator[Delta, None]:
        finished = False
        async for data in sse_data(chunks):
            delta = msgspec.convert(self.decode(data), Delta)
            finished = finished or delta.finish_reason is not None
            yield delta
        if not finished:
            raise self.broken_off()

    def failure(self, status: int, headers: Mapping[str, str], body: bytes) -> AppError:
        return source_gone() if status == 409 else super().failure(status, headers, body)

    def reported(self, said: Json) -> AppError:
        code = (said.get("error") or {}).get("code") if isinstance(said.get("error"), dict) else None
        return source_gone() if code == "conflict" else super().reported(said)

    async def _listen(self) -> None:
        while True:
            try:
                self._advert = msgspec.convert(await self._ask(self._advert_path), Advert)
                self._heard = time.monotonic()
                self.takes = self._advert.takes
                await self._confirm()
            except (AppError, httpx.HTTPError, msgspec.ValidationError) as error:
                log.warning("replica does not say how it is", target=self.target.name, reason=str(error))
            await asyncio.sleep(ADVERT_SECONDS)

    async def _confirm(self) -> None:
        if not self._unsaid:
            return
        said = frozenset(self._unsaid)
        try:
            await self._ask(FORGET, {"source_ids": sorted(said)})
        except (AppError, httpx.HTTPError) as error:
            log.warning("replica was not told what is gone", target=self.target.name, reason=str(error))
            return
        self._unsaid -= said

    async def _ask(self, path: str, body: Json | None = None) -> Any:
        """Raises UpstreamError or httpx's errors."""
        if self._client is None:
            raise UpstreamError(f"The target {self.target.name!r} is not started.")
        status, said = await self._client.exchange(path, msgspec.json.encode(body) if body is not None else None)
        if status != 200:
            raise TransientError(f"The target {self.target.name!r} answered {status}.")
        return msgspec.json.decode(said)
