"""Telling other processes through Redis that there is work, or that a document has been replaced.

The database stays the truth: a bell that is not heard costs a few seconds, until they look by themselves. That is why
Redis carries no queue: a second list of jobs could disagree with the first.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from typing import Any
from uuid import uuid4

import redis.asyncio as redis
from redis.exceptions import RedisError

from app.telemetry import logger

log = logger(__name__)
CHANNEL = "precedent:bell"
RETRY_SECONDS = 2.0
JOB = b"job"
Gone = Callable[[Collection[str]], Awaitable[None]]


class Bell:
    """Rings and listens until closed. `heard_job` and `heard_gone` are called for what others ring."""

    def __init__(self, url: str, heard_job: Callable[[], None], heard_gone: Gone | None = None) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)
        self._heard_job = heard_job
        self._heard_gone = heard_gone
        self._task: asyncio.Task[None] | None = None
        self._name = uuid4().hex
        self._told: set[str] = set()  # by others: not to be told on

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen(), name="bell")

    async def close(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._client.aclose()

    async def ring(self) -> None:
        """There is a job. Never raises: the others look by themselves."""
        await self._publish(JOB)

    async def gone(self, sources: Collection[str]) -> None:
        """These sources (`forget.source_ids`) must not be used any more."""
        news = set(sources) - self._told
        self._told -= set(sources)
        if news:
            await self._publish(json.dumps({"from": self._name, "gone": sorted(news)}).encode())

    async def _publish(self, message: bytes) -> None:
        try:
            await self._client.publish(CHANNEL, message)
        except (RedisError, OSError) as error:
            log.warning("the bell was not rung", reason=str(error))

    async def _listen(self) -> None:
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(CHANNEL)
                    while True:
                        heard = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
                        if heard:
                            await self._hear(heard["data"])
            except (RedisError, OSError) as error:
                log.warning("the bell is not heard", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)

    async def _hear(self, message: Any) -> None:
        if message == JOB:
            self._heard_job()
        elif self._heard_gone and (told := json.loads(message))["from"] != self._name:
            self._told.update(told["gone"])
            try:
                await self._heard_gone(told["gone"])
            except Exception:  # whoever listens no more hears of nothing that comes after it
                log.exception("not everybody here could be told what is gone")
