"""Ranks that die, hang or cannot load are said, replaced, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from app.engine import AsyncEngine, EngineError, LLMEngine
from app.engine.arbiter import DeviceArbiter
from app.engine.parallel import ranks
from app.engine.resident import Resident
from tests.engine.conftest import config, prompts
from tests.engine.test_async_engine import collect, explode, request, run, until

REPOSITORY = Path(__file__).resolve().parents[3]
TENSOR: dict[str, Any] = {"tensor_parallel_size": 2, "restart_backoff_s": 0.01}


def pids(engine: LLMEngine) -> list[int]:
    return [child.process.pid for child in engine.runner.ranks._children]


def alive(pid: int) -> bool:
    """A process that nobody has waited for yet is dead all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while alive(pid):
        assert time.monotonic() < deadline, "it outlived its engine"
        time.sleep(0.01)


def test_a_killed_rank_is_said_and_replaced_in_a_stream_and_while_idle(llama: Path) -> None:
    wanted = LLMEngine(config(llama)).generate([[1, 2]], request([1], max_tokens=3).sampling)[0].token_ids

    async def answers(engine: AsyncEngine) -> None:
        deltas = await collect(engine.generate(request([1, 2], max_tokens=3)))
        assert [token for delta in deltas for token in delta.token_ids] == wanted

    async def scenario(engine: AsyncEngine) -> None:
        tasks = [asyncio.create_task(collect(engine.generate(request(p, max_tokens=400)))) for p in prompts(9, 30)]
        await until(lambda: engine.stats().output_tokens > 4)
        [first] = pids(engine.engine)
        began = time.monotonic()
        os.kill(first, signal.SIGKILL)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < 5
        assert all(isinstance(r, EngineError) and "rank 1 was ended by SIGKILL" in str(r) for r in results), results
        await until(lambda: engine.healthy)
        await answers(engine)

        [second] = pids(engine.engine)
        assert not alive(first) and alive(second)
        os.kill(second, signal.SIGKILL)
        await until(lambda: not engine.healthy)
        assert engine.reason == "EngineError: rank 1 was ended by SIGKILL"
        await until(lambda: engine.healthy)
        await answers(engine)
        last.extend(pids(engine.engine))

    last: list[int] = []
    run(llama, scenario, **TENSOR)
    assert last and not any(map(alive, last)), "an engine that stops leaves nobody behind"


def test_a_failure_of_rank_0_ends_those_who_wait_for_it(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        [waiting] = pids(engine.engine)
        engine.engine.runner.decoder.layers = explode  # type: ignore[assignment, method-assign]
        with pytest.raises(EngineError):
            await collect(engine.generate(request([1, 2, 3])))
        await until(lambda: engine.healthy)
        assert not alive(waiting)
        assert len(await collect(engine.generate(request([1, 2], max_tokens=3)))) == 3

    run(llama, scenario, **TENSOR)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that is started."""
    made: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            made.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return made


async def test_closing_does_not_wait_for_ever_for_a_rank_that_hangs_while_it_loads(
    llama: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "LOAD_SECONDS", 1.0)
    model = Resident("slow", AsyncEngine(config(llama, **TENSOR)), DeviceArbiter("cpu"))
    opening = asyncio.create_task(model.open())
    await until(lambda: bool(started))
    started[0].send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(20):
            await model.close()
        assert started[0].poll() == -signal.SIGKILL and model.arbiter.used == 0
    finally:
        started[0].kill()
    with pytest.raises(asyncio.CancelledError):
        await opening


def test_a_rank_that_cannot_load_says_why(llama: Path, tmp_path: Path, started: list[subprocess.Popen[bytes]]) -> None:
    """Layers 0 and 1 are rank 0's; what is missing is read by rank 1 alone."""
    tensors = load_file(llama / "model.safetensors")
    del tensors["model.layers.2.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(ValueError, match=r"rank 1 failed: ValueError: .* lacks 1 tensors, among them model.layers.2"):
        LLMEngine(config(tmp_path, pipeline_parallel_size=2))
    assert [process.poll() for process in started] == [1]


def test_ranks_end_with_a_process_that_is_killed(llama: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; from tests.engine.conftest import config; from app.engine import LLMEngine; "
        "engine = LLMEngine(config(sys.argv[1], tensor_parallel_size=2)); "
        "print(*(c.process.pid for c in engine.runner.ranks._children), flush=True); time.sleep(60)"
    )
    command, env = [sys.executable, "-c", code, llama], os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY, env=env) as parent:
        assert parent.stdout is not None
        rank = int(parent.stdout.readline())
        assert alive(rank)
        parent.kill()
    wait_until_gone(rank, 5)


@pytest.mark.slow
def test_an_engine_that_nobody_releases_goes_with_its_process(llama: Path) -> None:
    """And the process ends in order, whatever torch's threads hold."""
    code = (
        "import sys; from tests.engine.conftest import config; from app.engine import LLMEngine, SamplingParams; "
        "engine = LLMEngine(config(sys.argv[1], tensor_parallel_size=2)); "
        "engine.generate([[1, 2, 3]], SamplingParams(max_tokens=3)); "
        "print(*(c.process.pid for c in engine.runner.ranks._children))"
    )
    done = subprocess.run([sys.executable, "-c", code, llama], capture_output=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    wait_until_gone(int(done.stdout), 5)


@pytest.mark.slow
def test_a_rank_that_hangs_is_replaced(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        [stopped] = pids(engine.engine)
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(EngineError, match="no step progressed"):
            await collect(engine.generate(request([1, 2, 3])))
        await until(lambda: str(engine.reason).startswith("EngineError: a rank does not answer"))
        await until(lambda: engine.healthy)
        assert not alive(stopped)
        assert len(await collect(engine.generate(request([1, 2], max_tokens=3)))) == 3

    run(llama, scenario, **TENSOR, stall_s=1.0)


@pytest.mark.slow
def test_one_of_three_is_named_though_all_end(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        task = asyncio.create_task(collect(engine.generate(request([1, 2, 3], max_tokens=400))))
        await until(lambda: engine.stats().output_tokens > 2)
        os.kill(pids(engine.engine)[1], signal.SIGKILL)
        with pytest.raises(EngineError, match="rank 2 was ended by SIGKILL"):
            await task
        await until(lambda: engine.healthy)
        assert len(await collect(engine.generate(request([1, 2], max_tokens=3)))) == 3

    run(llama, scenario, pipeline_parallel_size=2, **TENSOR)
