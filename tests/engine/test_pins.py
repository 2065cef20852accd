"""Prefixes that are kept over restarts, and what is forgotten or fails while one is being computed."""

import asyncio
import time
from pathlib import Path

import pytest

from app.engine import AsyncEngine, EngineError, TokenSegment
from app.engine.pins import Pins, Prefix
from tests.engine.conftest import prompts
from tests.engine.test_async_engine import collect, explode, request, run, until

LEASE: Prefix = (TokenSegment([1] * 16), TokenSegment([2] * 16, source_ids=("lease",)))


def test_what_is_forgotten_while_it_is_computed_is_not_read_again() -> None:
    read: list[Prefix] = []

    async def reading(prefix: Prefix) -> None:
        read.append(prefix)
        if len(read) == 1:
            pins.forget(frozenset({"lease"}))

    async def keep(_: Prefix) -> int:
        return 16  # the blocks before the forgotten source

    pins = Pins(16, reading, keep)
    pins.remember(LEASE)
    asyncio.run(pins.again())
    assert read == [LEASE]
    asyncio.run(pins.again())
    assert read == [LEASE, LEASE[:1]], "the engines to come compute what stands before it"


def test_a_prefix_is_kept_for_the_next_engine_where_this_one_goes_meanwhile(llama: Path) -> None:
    [policy] = prompts(64)

    async def scenario(engine: AsyncEngine) -> None:
        engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        assert await engine.pin([TokenSegment(policy)]) == 0
        await until(lambda: engine.healthy)
        assert engine.load().pinned_blocks == 4
        with pytest.raises(ValueError, match="would be pinned"):
            await engine.pin([TokenSegment(p) for p in prompts(100, 400)])
        await engine.stop()
        await engine.start()
        assert engine.load().pinned_blocks == 4, "what does not fit is not kept"

    run(llama, scenario, num_blocks=48, restart_backoff_s=0.01)


def test_forgetting_is_done_where_the_engine_fails_meanwhile(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        engine.engine.forget = explode  # type: ignore[assignment, method-assign]
        await engine.forget(["lease"])
        await until(lambda: engine.healthy)

    run(llama, scenario, restart_backoff_s=0.01)


def test_an_engine_that_fails_right_after_an_answer_restarts(llama: Path) -> None:
    """Both come to a loop that was busy in the same turn."""

    async def scenario(engine: AsyncEngine) -> None:
        engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        answer = asyncio.create_task(engine.forget(["lease"]))
        asking = asyncio.create_task(collect(engine.generate(request([1, 2]))))
        await asyncio.sleep(0)  # both orders are in the inbox
        time.sleep(0.5)  # the loop is busy
        await answer
        with pytest.raises(EngineError, match="may be sent again"):
            await asking
        await until(lambda: engine.healthy)
        assert len(await collect(engine.generate(request([1, 2], max_tokens=2)))) == 2

    run(llama, scenario, restart_backoff_s=0.01)
