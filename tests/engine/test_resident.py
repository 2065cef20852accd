"""Models that share a device: who may stay, who goes first, and what is left of one that sleeps."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.engine import AsyncEngine, EngineError, LLMEngine, TokenSegment, memory
from app.engine import footprint as footprint_module
from app.engine.arbiter import DeviceArbiter, Devices, Span
from app.engine.checksums import write_sums
from app.engine.footprint import footprint, rank_bytes
from app.engine.resident import Resident, State
from app.engine.runner import ModelRunner
from app.errors import ConfigurationError, Conflict
from tests.engine.conftest import config, make_model, prompts
from tests.engine.test_async_engine import collect, explode, request, until

BLOCKS = 64


def settings(folder: Path, **changes: Any) -> Any:
    return config(folder, **{"num_blocks": BLOCKS, "restart_backoff_s": 0.01} | changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one size with different weights."""
    made = []
    for seed in range(3):
        folder = tmp_path_factory.mktemp(f"model{seed}")
        model = make_model("llama", initializer_range=0.3 + seed / 10)
        model.save_pretrained(folder)
        made.append(folder)
    return made


@pytest.fixture(scope="module")
def size(folders: list[Path]) -> int:
    return footprint(settings(folders[0]), folders[0])


class Crowd:
    """Models on one device."""

    def __init__(self, arbiter: DeviceArbiter, models: list[Resident]) -> None:
        self.arbiter, self.models = arbiter, models
        self.most = 0
        self._seen: set[ModelRunner] = set()  # also those of engines that are gone: a reference keeps no memory

    def measured(self) -> int:
        """Bytes of tensors that are there in fact, whatever the arbiter believes."""
        engines = [model.engine._worker.engine for model in self.models if model.engine._worker is not None]
        self._seen |= {engine.runner for engine in engines if engine is not None}
        return sum(runner.num_bytes() for runner in self._seen)

    async def watch(self) -> None:
        while True:
            assert self.arbiter.used <= (self.arbiter.budget or 1 << 60)
            self.most = max(self.most, self.measured())
            await asyncio.sleep(0.001)

    async def ask(self, index: int, prompt: list[int], seconds: float | None = 20, **sampling: Any) -> list[int]:
        model = self.models[index]
        async with model.use(seconds):
            deltas = await collect(model.engine.generate(request(prompt, **{"max_tokens": 6} | sampling)))
        return [token for delta in deltas for token in delta.token_ids]

    @property
    def awake(self) -> list[int]:
        return [index for index, model in enumerate(self.models) if model.state is State.AWAKE]


@asynccontextmanager
async def opened(folders: list[Path], budget: int, *, pinned: tuple[int, ...] = (), **changes: Any) -> Any:
    arbiter = DeviceArbiter("cpu", budget)
    arbiter.slice_seconds = 0.2
    async with AsyncExitStack() as stack:
        models = []
        for index, folder in enumerate(folders):
            engine = AsyncEngine(settings(folder, **changes))
            models.append(Resident(str(index), engine, arbiter, pinned=index in pinned))
            stack.push_async_callback(models[-1].close)
            await models[-1].open()
        crowd = Crowd(arbiter, models)
        watching = asyncio.create_task(crowd.watch())
        yield crowd
        assert not watching.done(), watching.exception()
        watching.cancel()


def play(scenario: Callable[[], Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(60):
            return await scenario()

    return asyncio.run(limited())


def test_the_footprint_is_what_is_there_in_the_end(folders: list[Path], size: int, llama: Path) -> None:
    engine = LLMEngine(settings(folders[0]))
    assert engine.runner.num_bytes() == size > 1000
    engine.runner.release()
    assert engine.runner.num_bytes() == 0
    tied = settings(llama, draft_model=llama)
    assert LLMEngine(tied).runner.num_bytes() == footprint(tied, llama), "a draft model counts"


def test_models_swap_under_a_budget_for_one_and_answer_as_if_alone(folders: list[Path], size: int) -> None:
    asked = prompts(20, 33, 50, 41)
    alone = [
        [
            output.token_ids
            for output in LLMEngine(settings(folder)).generate(asked, request([1], max_tokens=6).sampling)
        ]
        for folder in folders
    ]
    assert alone[0] != alone[1], "the models differ"

    async def scenario() -> None:
        async with opened(folders, size) as crowd:
            assert crowd.awake == [0]
            jobs = [(index, at) for at in range(len(asked)) for index in range(3)]
            results = await asyncio.gather(*(crowd.ask(index, asked[at]) for index, at in jobs))
            assert results == [alone[index][at] for index, at in jobs]
            assert crowd.most == size, "two were never there at once"
            assert sum(model.wakes for model in crowd.models) >= 3 and len(crowd.awake) == 1

    play(scenario)


def test_with_room_for_all_nobody_sleeps(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders, 3 * size) as crowd:
            await asyncio.gather(*(crowd.ask(index, prompt) for index in range(3) for prompt in prompts(9, 30)))
            assert crowd.awake == [0, 1, 2] and [model.wakes for model in crowd.models] == [1, 1, 1]
            assert crowd.most == crowd.arbiter.used == 3 * size

    play(scenario)


def test_the_least_recently_used_goes_first_and_a_pinned_one_never(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders, 2 * size) as crowd:
            assert crowd.awake == [0, 1]
            await crowd.ask(0, [1, 2, 3])
            await crowd.ask(2, [1, 2, 3])
            assert crowd.awake == [0, 2], "0 was used after 1"
            await crowd.ask(1, [1, 2, 3])
            assert crowd.awake == [1, 2]
        async with opened(folders, 2 * size, pinned=(0,)) as crowd:
            for index in (1, 2, 1):
                await crowd.ask(index, [1, 2, 3])
                assert crowd.awake == [0, index]

    play(scenario)


def test_a_model_that_can_never_fit_is_refused_with_the_figures(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        with pytest.raises(ConfigurationError, match=f"{size:,} bytes of the {size - 1:,}"):
            async with opened(folders[:1], size - 1):
                pass
        with pytest.raises(ConfigurationError, match="what never sleeps there takes"):
            async with opened(folders[:2], 2 * size - 1, pinned=(0,)):
                pass
        arbiter = DeviceArbiter("cpu", size)
        arbiter.hold("embedder", 100)
        with pytest.raises(ConfigurationError, match="'reranker' needs"):
            arbiter.hold("reranker", size)
        with pytest.raises(ConfigurationError, match="what never sleeps there takes 100 "):
            await Resident("late", AsyncEngine(settings(folders[0])), arbiter).open()

    play(scenario)


def test_a_model_that_turns_out_larger_than_its_files_say_makes_more_room_and_wakes(
    folders: list[Path], size: int
) -> None:
    async def scenario() -> None:
        arbiter = DeviceArbiter("cpu", size + size // 2)
        first, late = (Resident(str(i), AsyncEngine(settings(folders[i])), arbiter) for i in range(2))
        await first.open()
        async with understated(late, size // 2):
            await late.open()
            assert (first.state, late.state) == (State.ASLEEP, State.AWAKE)
            assert arbiter.used == late.num_bytes == size
            async with late.use(20):
                assert len(await collect(late.engine.generate(request([1, 2], max_tokens=6)))) == 6
        await first.close()

    play(scenario)


def test_a_model_that_turns_out_larger_than_the_budget_says_so_and_leaves_nothing(
    folders: list[Path], size: int
) -> None:
    async def scenario() -> None:
        arbiter = DeviceArbiter("cpu", size - 1)
        late = Resident("late", AsyncEngine(settings(folders[0])), arbiter)
        async with understated(late, size // 2):
            with pytest.raises(ConfigurationError, match=f"'late' needs {size:,} bytes of the {size - 1:,}"):
                await late.open()
            assert (arbiter.used, late.state, late.engine._worker) == (0, State.ASLEEP, None)

    play(scenario)


@asynccontextmanager
async def understated(model: Resident, num_bytes: int) -> Any:
    """Its files say so many bytes, as those of packed weights may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(footprint_module, "footprint", lambda config, folder: num_bytes)
        try:
            yield
        finally:
            await model.close()


def test_a_copy_that_counts_twice_while_it_is_replaced_is_named_in_the_error(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders[:1], 2 * size - 1, pinned=(0,)) as crowd:
            new = Resident("0", AsyncEngine(settings(folders[0])), crowd.arbiter, pinned=True)
            with pytest.raises(ConfigurationError, match="the copy that serves now counts until"):
                await new.open()
            crowd.arbiter.budget = 2 * size
            await new.open()
            assert crowd.arbiter.held == {"0": 2 * size}
            await new.close()

    play(scenario)


@pytest.mark.parametrize("ranks", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_of_several_ranks_each_ones_bytes_are_known(folders: list[Path], size: int, ranks: str) -> None:
    told = settings(folders[0], **{ranks: 2})
    first, second = rank_bytes(told, folders[0])
    engine = LLMEngine(told)
    assert engine.runner.num_bytes() == first
    engine.runner.release()
    assert footprint(told, folders[0]) == first + second, "on a CPU they are together"
    assert size <= first + second < 1.1 * size, "norms, and with PP nothing, are there twice"


@asynccontextmanager
async def two_devices(folders: list[Path], budget: int) -> Any:
    """A model on both devices, then one on each, under a budget for one on each. What they are told is of a CPU."""
    devices = Devices(budget)
    places = devices.place("cuda", 2), devices.of("cuda:0"), devices.of("cuda:1")
    assert isinstance(places[0], Span)
    for one in devices.all():
        one.slice_seconds = 0.2
    async with AsyncExitStack() as stack:
        models = [
            Resident(str(index), AsyncEngine(settings(folder)), place)
            for index, (folder, place) in enumerate(zip(folders, places, strict=True))
        ]
        for model in models:
            stack.push_async_callback(model.close)
            await model.open()
        yield devices.all(), models


def test_a_model_on_two_devices_and_one_on_each_take_turns(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with two_devices(folders, size) as (devices, models):
            assert [one.used for one in devices] == [size, size] and models[0].state is State.AWAKE

            async def keep_asking(model: Resident) -> None:
                while min(one.wakes for one in models) < 3:
                    async with model.use(20):
                        await collect(model.engine.generate(request([1, 2], max_tokens=20)))
                    assert all(one.used <= size for one in devices)

            await asyncio.gather(*(keep_asking(model) for model in models for _ in range(3)))
        assert [one.used for one in devices] == [0, 0]

    play(scenario)


def test_who_waits_for_a_second_device_in_vain_gives_the_first_back(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with two_devices(folders, size) as (devices, [wide, first, second]):
            await wide.sleep()
            async with second.use(20):
                with pytest.raises(TimeoutError):
                    async with wide.use(0.3):
                        pass
                await until(lambda: devices[0].used == 0)
                async with first.use(20):
                    assert [one.used for one in devices] == [size, size]
            async with wide.use(20):
                assert (first.state, second.state) == (State.ASLEEP, State.ASLEEP)
                assert wide.held_bytes == size

    play(scenario)


def test_who_could_never_fit_on_one_of_its_devices_is_registered_on_none(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        devices = Devices(size)
        devices.hold("cuda:1", "embedder", 1)
        wide = Resident("wide", AsyncEngine(settings(folders[0])), devices.place("cuda", 2))
        with pytest.raises(ConfigurationError, match="on 'cuda:1'"):
            await wide.open()
        assert not devices.of("cuda:0")._models and devices.of("cuda:0").used == 0

    play(scenario)


def test_who_waits_for_a_busy_model_is_told_at_its_deadline(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders[:2], size) as crowd:
            inner, gate = crowd.models[0].engine.engine.runner.run, threading.Event()

            def held(schedule: Any) -> Any:
                gate.wait(60)
                return inner(schedule)

            crowd.models[0].engine.engine.runner.run = held  # type: ignore[method-assign]
            endless = asyncio.create_task(crowd.ask(0, [1, 2], max_tokens=120))
            await until(lambda: crowd.models[0].users == 1)
            assert crowd.models[1].wake_s() > crowd.models[1].wake_seconds, "there is no room"
            began = time.monotonic()
            waiting = [crowd.ask(1, [3, 4], seconds=0.3) for _ in range(3)]
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(result) for result in results] == [TimeoutError] * 3
            assert 0.3 <= time.monotonic() - began < 10
            with pytest.raises(Conflict, match="requests in flight: 1"):
                await crowd.models[0].sleep()
            assert crowd.models[1].state is State.ASLEEP and crowd.models[1]._waking is None
            gate.set()
            assert len(await endless) == 120, "who was there first was not disturbed"
            assert len(await crowd.ask(1, [3, 4])) == 6
            assert crowd.awake == [1]

    play(scenario)


def test_a_stream_of_requests_that_never_ends_yields_after_its_slice(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders[:2], size) as crowd:
            served = [0, 0]

            async def keep_asking(index: int) -> None:
                while min(served) < 6 or min(model.wakes for model in crowd.models) < 2:
                    await crowd.ask(index, [1, 2, index], max_tokens=20)
                    served[index] += 1

            await asyncio.gather(*(keep_asking(index) for index in (0, 0, 0, 1, 1, 1)))
            assert crowd.most == size, "neither starved, and both were never there at once"

    play(scenario)


def test_what_is_pinned_in_the_prefix_cache_is_computed_again_at_wake(folders: list[Path], size: int) -> None:
    [policy] = prompts(64)

    async def scenario() -> None:
        async with opened(folders[:2], size) as crowd:
            first, second = (model.engine for model in crowd.models)
            assert await first.pin([TokenSegment(policy)]) == 64
            assert await second.pin([TokenSegment(policy)]) == 0, "asleep: it is remembered"
            await crowd.ask(1, [1, 2])
            assert second.load().pinned_blocks == 4 and second.match([TokenSegment(policy)]) == [64]
            await crowd.ask(0, [1, 2])
            assert first.load().pinned_blocks == 4 and crowd.models[0].start_seconds["pins"] > 0

    play(scenario)


def test_a_model_that_cannot_be_woken_says_why_and_leaks_nothing(
    folders: list[Path], size: int, tmp_path: Path
) -> None:
    from shutil import copytree

    folder = copytree(folders[0], tmp_path / "copy")
    write_sums(folder, folder / "SHA256SUMS")

    async def scenario() -> None:
        async with opened([folder, folders[1]], size) as crowd:
            await crowd.ask(1, [1, 2])
            assert crowd.awake == [1]
            weights = folder / "model.safetensors"
            raw = weights.read_bytes()
            weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
            results = await asyncio.gather(*(crowd.ask(0, [1, 2]) for _ in range(5)), return_exceptions=True)
            assert all(
                isinstance(result, EngineError) and "does not match its SHA-256" in str(result) for result in results
            )
            assert "SHA-256" in (crowd.models[0].trouble or "") and crowd.arbiter.used == crowd.measured() == 0
            with pytest.raises(EngineError, match="cannot serve"):
                await crowd.ask(0, [1, 2])
            assert len(await crowd.ask(1, [1, 2])) == 6, "the other one is not affected"
            weights.write_bytes(raw)
            crowd.models[0].revive()
            assert len(await crowd.ask(0, [1, 2])) == 6 and crowd.models[0].failure is None

    play(scenario)


def test_whoever_leaves_while_a_failed_wake_is_cleared_away_leaves_no_room_behind(
    folders: list[Path], size: int
) -> None:
    async def scenario() -> None:
        async with opened(folders[:2], size) as crowd:
            model, cleared = crowd.models[1], asyncio.Event()
            stop = model.engine.stop

            async def fails() -> None:
                raise OSError("no such device")

            async def slowly(**how: Any) -> None:
                await cleared.wait()
                await stop(**how)

            model.engine.start, model.engine.stop = fails, slowly
            with pytest.raises(TimeoutError):
                await crowd.ask(1, [1, 2], seconds=0.3)
            cleared.set()
            await until(lambda: model._waking is None)
            assert (crowd.arbiter.used, model.state) == (0, State.ASLEEP)
            assert len(await crowd.ask(0, [1, 2])) == 6

    play(scenario)


def test_an_abort_storm_leaves_nobody_waiting(folders: list[Path], size: int) -> None:
    many = prompts(*[5 + i % 29 for i in range(90)])
    alone = [LLMEngine(settings(folder)) for folder in folders]
    sampling = request([1], max_tokens=6).sampling
    wanted = {i: alone[i % 3].generate([many[i]], sampling)[0].token_ids for i in range(0, 90, 7)}

    async def scenario() -> None:
        async with opened(folders, 2 * size, max_num_seqs=8) as crowd:
            tasks = [asyncio.create_task(crowd.ask(i % 3, many[i])) for i in range(90)]
            for round_ in range(6):
                await asyncio.sleep(0.03)
                for i in range(round_, 90, 6):
                    if i not in wanted:
                        tasks[i].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {i: results[i] for i in wanted} == wanted
            assert [(model.users, model.waiting, model._waking) for model in crowd.models] == [(0, 0, None)] * 3
            assert crowd.arbiter.used == crowd.measured() <= 2 * size and not crowd.arbiter._queue.locked()
            for index in range(3):
                assert len(await crowd.ask(index, [1, 2])) == 6

    play(scenario)


def test_a_request_that_comes_while_its_model_leaves_wakes_it_again(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders[:1], size) as crowd:
            states: list[str] = []
            crowd.models[0].on_change = lambda model: states.append(model.state)
            leaving = asyncio.create_task(crowd.models[0].sleep())
            await asyncio.sleep(0)
            assert crowd.models[0].state is State.LEAVING
            assert len(await crowd.ask(0, [1, 2])) == 6
            await leaving
            assert states == ["leaving", "waking", "awake"] and crowd.measured() == size

    play(scenario)


def test_closing_while_others_wait_tells_them(folders: list[Path], size: int) -> None:
    async def scenario() -> None:
        async with opened(folders[:2], size) as crowd:
            busy = asyncio.create_task(crowd.ask(0, [1, 2], max_tokens=400))
            await until(lambda: crowd.models[0].users == 1)
            waiting = asyncio.create_task(crowd.ask(1, [1, 2]))
            await until(lambda: crowd.models[1].state is State.WAKING)
            await crowd.models[1].close()
            with pytest.raises(EngineError, match="stopping"):
                await waiting
            await busy
            loading = asyncio.create_task(crowd.models[0].sleep())
            await loading
            again = asyncio.create_task(crowd.ask(0, [1, 2]))
            await until(lambda: crowd.models[0]._loading_since is not None)
            await crowd.models[0].close()
            with pytest.raises(EngineError, match="stopping"):
                await again
            assert crowd.arbiter.used == crowd.measured() == 0

    play(scenario)


def test_a_failed_engine_restarts_and_one_given_up_gives_its_room_back(folders: list[Path], size: int) -> None:
    async def fail(crowd: Crowd) -> None:
        crowd.models[0].engine.engine.runner.run = explode  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineError):
            await crowd.ask(0, [1, 2, 3])

    async def scenario() -> None:
        async with opened(folders[:2], size, restart_limit=1) as crowd:
            await fail(crowd)
            await until(lambda: crowd.models[0].trouble is None)
            assert crowd.arbiter.used == crowd.measured() == size, "restarted in its own room"
            await fail(crowd)
            await until(lambda: crowd.models[0].state is State.FAILED)
            assert "given up" in (crowd.models[0].trouble or "") and crowd.arbiter.used == crowd.measured() == 0
            assert len(await crowd.ask(1, [1, 2])) == 6
            with pytest.raises(EngineError, match="given up"):
                await crowd.ask(0, [1, 2])
            crowd.models[0].revive()
            assert len(await crowd.ask(0, [1, 2])) == 6

    play(scenario)


def test_the_memory_behind_a_view_counts_once_and_goes_for_all() -> None:
    import torch

    base = torch.ones(100)
    held = {"whole": base, "views": [base[:10], (base.view(10, 10),)]}
    assert memory.num_bytes(held) == 400
    memory.free(held)
    assert memory.num_bytes(held) == 0
