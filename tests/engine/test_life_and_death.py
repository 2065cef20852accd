"""Failing, stalling, restarting, aborting at every moment, and stopping."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from app.engine import AsyncEngine, EngineError, LLMEngine, Request, SamplingParams, TokenSegment
from app.errors import InvalidRequest
from tests.engine.conftest import config, prompts
from tests.engine.test_async_engine import collect, explode, idle, request, run, until


def test_failing_step_fails_every_waiter_and_the_engine_restarts_itself(llama: Path) -> None:
    wanted = LLMEngine(config(llama)).generate([[1, 2]], request([1], max_tokens=3).sampling)[0].token_ids

    async def scenario(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(collect(engine.generate(request(p, max_tokens=400)))) for p in prompts(9, 30)]
        await until(lambda: engine.stats().running == 2)
        failed = engine.engine
        failed.runner.run = explode  # type: ignore[assignment, method-assign]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(r, EngineError) and r.retryable and "injected" in str(r) for r in results)
        assert not engine.healthy and engine.reason == "RuntimeError: injected"
        assert failed.pool.used == 0 and failed.pool.is_consistent() and not engine._outboxes
        with pytest.raises(EngineError, match="injected"):
            engine.generate(request([1, 2]))
        await until(lambda: engine.healthy)
        assert engine.engine is not failed
        deltas = await collect(engine.generate(request([1, 2], max_tokens=3)))
        assert [t for d in deltas for t in d.token_ids] == wanted

    run(llama, scenario, restart_backoff_s=0.2)


def test_restarts_are_bounded_and_start_begins_anew(llama: Path) -> None:
    async def fail_once(engine: AsyncEngine) -> None:
        engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineError):
            await collect(engine.generate(request([1, 2, 3])))

    async def scenario(engine: AsyncEngine) -> None:
        for _ in range(2):
            await fail_once(engine)
            await until(lambda: engine.healthy)
        await fail_once(engine)
        await until(lambda: "given up after 2 restarts" in str(engine.reason))
        await asyncio.sleep(0.1)
        assert not engine.healthy
        await engine.start()
        assert engine.healthy and len(await collect(engine.generate(request([1, 2], max_tokens=3)))) == 3

    run(llama, scenario, restart_limit=2, restart_backoff_s=0.01)


def test_pins_come_back_after_a_restart(llama: Path) -> None:
    [policy] = prompts(64)

    async def scenario(engine: AsyncEngine) -> None:
        assert await engine.pin([TokenSegment(policy)]) == 64
        engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineError):
            await collect(engine.generate(request([1, 2, 3])))
        await until(lambda: engine.healthy)
        assert engine.load().pinned_blocks == 4 and engine.match([TokenSegment(policy)]) == [64]

    run(llama, scenario, restart_backoff_s=0.01)


def test_watchdog_fails_waiters_of_a_stalled_step_and_forgives_when_it_progresses(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        await asyncio.sleep(0.3)
        assert engine.healthy, "being idle is not being stalled"
        inner, gate = engine.engine.runner.run, threading.Event()

        def hang(schedule: Any) -> Any:
            gate.wait(20)
            return inner(schedule)

        engine.engine.runner.run = hang  # type: ignore[method-assign]
        began = time.monotonic()
        with pytest.raises(EngineError, match="no step progressed"):
            await collect(engine.generate(request([1, 2, 3], max_tokens=50)))
        assert 0.2 < time.monotonic() - began < 5
        assert not engine.healthy and "no step progressed" in str(engine.reason)
        gate.set()
        await until(lambda: engine.healthy)
        await idle(engine)
        assert engine.engine.pool.used == 0, "those who were told to go are no longer computed"
        assert len(await collect(engine.generate(request([1, 2], max_tokens=3)))) == 3

    run(llama, scenario, stall_s=0.2)


def test_watchdog_sees_work_that_is_never_scheduled(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        engine.engine.scheduler.max_num_seqs = 0  # nobody is ever admitted: a defect in scheduling
        with pytest.raises(EngineError, match="no step progressed"):
            await collect(engine.generate(request([1, 2, 3])))

    run(llama, scenario, stall_s=0.2)


def test_abort_storm_of_500_leaves_pool_and_threads_at_baseline(llama: Path) -> None:
    many = prompts(*[10 + i % 23 for i in range(500)])
    exact = range(0, 500, 25)
    few = LLMEngine(config(llama)).generate([many[i] for i in exact], request([1], max_tokens=6).sampling)
    wanted = {i: output.token_ids for i, output in zip(exact, few, strict=True)}

    async def one(engine: AsyncEngine, i: int) -> list[int]:
        tokens: list[int] = []
        stream = engine.generate(request(many[i], max_tokens=6 if i in wanted else 200))
        async for delta in stream:
            tokens += delta.token_ids
            if i not in wanted and len(tokens) >= i % 5:
                break
        await stream.aclose()
        return tokens

    async def scenario(engine: AsyncEngine) -> None:
        threads, blocks = threading.active_count(), engine.engine.pool.used
        tasks = [asyncio.create_task(one(engine, i)) for i in range(500)]
        await asyncio.sleep(0.05)
        for i in range(1, 500, 3):  # before admission, queued, in the middle of prefill
            if i not in wanted:
                tasks[i].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert {i: results[i] for i in wanted} == wanted
        await idle(engine)
        assert threading.active_count() == threads and not engine._outboxes and engine.healthy
        assert engine.engine.pool.used == blocks == 0 and engine.engine.pool.is_consistent()
        assert not engine.engine.scheduler._computing and not engine.engine._sequences

    run(llama, scenario, max_num_seqs=16, max_num_batched_tokens=64)


@pytest.mark.parametrize("moment", ["before admission", "queued", "mid-prefill", "decoding", "over"])
def test_abort_at_every_moment_gives_everything_back(engine, moment: str) -> None:  # type: ignore[no-untyped-def]
    made = engine(max_num_seqs=1, max_num_batched_tokens=16)
    first, second = prompts(40, 20)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    if moment == "queued":
        made.add_request(Request("other", (TokenSegment(second),), params))
        made.step()
    made.add_request(Request("r", (TokenSegment(first),), params))
    for _ in range({"mid-prefill": 2, "decoding": 4, "over": 5, "queued": 1}.get(moment, 0)):
        outputs = made.step()
    ended = made.abort("r")
    assert (ended is None) == (moment == "over") and (moment != "over" or outputs[0].finish_reason == "length")
    while made.has_work:
        made.step()
    assert made.pool.used == 0 and made.pool.is_consistent() and not made.scheduler._computing
    stats, load = made.stats(), made.load()
    assert (stats.running, stats.waiting, stats.used_blocks, load.tokens_in_flight) == (0, 0, 0, 0)


def test_abort_while_the_final_step_runs_ends_once(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        inner, begun, gate = engine.engine.runner.run, threading.Event(), threading.Event()

        def slow_at_the_end(schedule: Any) -> Any:
            if schedule.rows[0].seq.num_output_tokens == 2:  # the third of three tokens
                begun.set()
                gate.wait(20)
            return inner(schedule)

        engine.engine.runner.run = slow_at_the_end  # type: ignore[method-assign]
        task = asyncio.create_task(collect(engine.generate(request(prompts(40)[0], max_tokens=3))))
        await until(begun.is_set)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not engine._outboxes
        gate.set()
        await idle(engine)
        assert engine.healthy and engine.engine.pool.used == 0 and not engine.engine._sequences
        assert engine.stats().aborts == 0, "it had ended by itself"

    run(llama, scenario)


def test_refused_in_the_engine_thread_fails_that_request_only(llama: Path) -> None:
    """Limits may shrink between the check at admission and the order's turn, e.g. by pinning."""

    async def scenario(engine: AsyncEngine) -> None:
        inner = engine.engine.add_request

        def refuse(request: Request, arrived: float | None = None) -> None:
            if len(request.prompt_token_ids) == 5:
                raise InvalidRequest("too late", param="messages")
            inner(request, arrived)

        engine.engine.add_request = refuse  # type: ignore[method-assign]
        good = asyncio.create_task(collect(engine.generate(request([1, 2], max_tokens=5))))
        with pytest.raises(InvalidRequest, match="too late"):
            await collect(engine.generate(request([1] * 5)))
        assert len(await good) == 5 and engine.healthy

    run(llama, scenario)


def test_stop_drains_or_aborts_by_choice(llama: Path) -> None:
    async def stop(**how: Any) -> list[Any]:
        engine = AsyncEngine(config(llama, max_num_seqs=2))
        await engine.start()
        tasks = [asyncio.create_task(collect(engine.generate(request(p, max_tokens=60)))) for p in prompts(5, 9, 30)]
        await until(lambda: engine.stats().running == 2)
        stopping = asyncio.create_task(engine.stop(**how))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="stopping"):
            engine.generate(request([1]))
        results = await asyncio.gather(*tasks)
        await stopping
        assert not any(thread.name == "engine" for thread in threading.enumerate())
        return [deltas[-1].finish_reason for deltas in results]

    assert asyncio.run(stop(drain_seconds=60)) == ["length"] * 3
    assert asyncio.run(stop()) == ["abort"] * 3
    assert "abort" in asyncio.run(stop(drain_seconds=0.001))
