"""Streaming, aborting and failing, as the rooms above see it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.engine import AsyncEngine, EngineDelta, LLMEngine, Request, SamplingParams, TokenSegment
from app.errors import ContextTooLong, InvalidRequest
from tests.engine.conftest import VOCAB, config, prompts


def request(prompt: list[int], **sampling: Any) -> Request:
    return Request("r", (TokenSegment(prompt),), SamplingParams(**{"temperature": 0, "ignore_eos": True} | sampling))


async def collect(stream: AsyncIterator[EngineDelta]) -> list[EngineDelta]:
    return [delta async for delta in stream]


def run(folder: Path, scenario: Callable[[AsyncEngine], Any], **settings: Any) -> Any:
    async def main() -> Any:
        engine = AsyncEngine(config(folder, **settings))
        await engine.start()
        try:
            return await asyncio.wait_for(scenario(engine), 60)
        finally:
            await engine.stop()

    return asyncio.run(main())


async def idle(engine: AsyncEngine) -> None:
    """Until every order has been taken and nothing runs."""
    while engine.engine.has_work or not engine._worker.inbox.empty():  # type: ignore[union-attr]
        await asyncio.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def explode(_: object) -> None:
    raise RuntimeError("injected")


def test_stream_gives_the_tokens_of_the_offline_engine(llama: Path) -> None:
    wanted = [o.token_ids for o in LLMEngine(config(llama)).generate(prompts(20, 50), request([1]).sampling)]

    async def scenario(engine: AsyncEngine) -> list[list[EngineDelta]]:
        return await asyncio.gather(*(collect(engine.generate(request(p))) for p in prompts(20, 50)))

    streams = run(llama, scenario)
    for deltas, tokens in zip(streams, wanted, strict=True):
        assert [t for d in deltas for t in d.token_ids] == tokens
        assert len(deltas) == len(tokens), "one delta per step"
        assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
        last = deltas[-1]
        assert last.finish_reason == "length" and last.metrics is not None
        assert last.metrics.num_output_tokens == len(tokens)
        assert last.metrics.ttft_ms == pytest.approx(last.metrics.queue_ms + last.metrics.prefill_ms)


def test_abort_storm_leaves_the_pool_at_baseline_and_the_others_exact(llama: Path) -> None:
    many = prompts(*[10 + i % 37 for i in range(100)])
    wanted = LLMEngine(config(llama)).generate(many, request([1], max_tokens=12).sampling)

    async def one(engine: AsyncEngine, i: int) -> list[int]:
        tokens: list[int] = []
        stream = engine.generate(request(many[i], max_tokens=12))
        async for delta in stream:
            tokens += delta.token_ids
            if i % 10 == 3:
                await stream.aclose()  # type: ignore[attr-defined]
                break
        return tokens

    async def scenario(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(one(engine, i)) for i in range(100)]
        await asyncio.sleep(0.01)
        for i in range(7, 100, 10):  # some before admission: more are sent than run at once
            tasks[i].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        exact = [i for i in range(100) if i % 10 not in (3, 7)]
        assert [results[i] for i in exact] == [wanted[i].token_ids for i in exact]
        await idle(engine)
        pool = engine.engine.pool
        assert pool.used == 0 and pool.is_consistent() and not engine._outboxes

    run(llama, scenario, max_num_seqs=16)


def test_impossible_requests_are_refused_at_admission(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        with pytest.raises(ContextTooLong) as caught:
            engine.generate(request([1] * 128))
        assert caught.value.extra == {"prompt_tokens": 128, "max_model_tokens": 128}
        for bad, param in [
            (request([]), "messages"),
            (request([VOCAB]), "messages"),
            (request([1], stop_token_ids=(VOCAB,)), "stop_token_ids"),
            (request([1], stop=("x",)), "stop"),
            (request([1] * 100, min_tokens=60), "min_tokens"),
        ]:
            with pytest.raises(InvalidRequest) as refused:
                engine.generate(bad)
            assert refused.value.param == param
        deltas = await collect(engine.generate(request([1] * 120, max_tokens=100)))
        assert sum(len(d.token_ids) for d in deltas) == 8 and deltas[-1].finish_reason == "length"

    run(llama, scenario, max_model_len=128)


def test_start_raises_what_loading_raised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    async def main() -> None:
        engine = AsyncEngine(config(tmp_path))
        with pytest.raises(ValueError, match="'gpt2' is not supported; supported are llama"):
            await engine.start()
        assert not engine.healthy
        await engine.stop()

    asyncio.run(main())


def test_stop_aborts_requests_in_flight(llama: Path) -> None:
    async def main() -> None:
        engine = AsyncEngine(config(llama))
        await engine.start()
        task = asyncio.create_task(collect(engine.generate(request([1, 2], max_tokens=400))))
        while not engine.stats().running:
            await asyncio.sleep(0.002)
        await engine.stop()
        assert (await task)[-1].finish_reason == "abort"

    asyncio.run(main())
