"""Load, residency, predictions, pins, forgetting: what the rooms above ask and order."""

import asyncio
import itertools
import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.engine import AsyncEngine, LLMEngine, Request, SamplingParams, TokenSegment
from app.engine.cost import AnswerLengths, Backlog, Coverage, Outlook, ResidualQuantiles, StepShape, StepTimeModel
from app.engine.kv_cache import KVCache
from app.errors import ContextTooLong
from tests.engine.conftest import config, prompts
from tests.engine.test_async_engine import collect, idle, request, run, until

SHORT = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
ACME = frozenset({"acme"})


def fill_with_nan(engine: LLMEngine) -> None:
    for pages in (*engine.runner.cache.keys, *engine.runner.cache.values):
        pages.fill_(float("nan"))


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 24}], ids=["plain", "chunked"])
def test_what_a_former_owner_left_in_a_page_spoils_nobody(
    llama: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = prompts(3, 17, 40, 33)
    asked = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)

    def tokens(spoilt: bool) -> list[list[int]]:
        engine = LLMEngine(config(llama, **settings))
        if spoilt:
            fill_with_nan(engine)
        return [output.token_ids for output in engine.generate(many, asked)]

    clean = tokens(spoilt=False)
    assert tokens(spoilt=True) == clean
    monkeypatch.setattr(KVCache, "clear", lambda self, block_ids: None)
    assert tokens(spoilt=True) != clean, "without clearing it would"


def test_pinned_prefix_survives_a_full_pool_and_shortens_the_longest_request(engine) -> None:  # type: ignore[no-untyped-def]
    made = engine(num_blocks=16, max_model_len=256)
    [policy] = prompts(70)
    assert made.pin([TokenSegment(policy)]) == 64
    stats = made.stats()
    assert (stats.pinned_blocks, stats.used_blocks, stats.free_blocks + stats.cached_blocks) == (4, 4, 12)
    assert made.limits.max_model_len == 12 * 16
    with pytest.raises(ContextTooLong):
        made.generate(prompts(192), SHORT)
    made.generate(prompts(150, 160, 170, seed=5), SHORT)
    [again] = made.generate([[*policy, 1, 2]], SHORT)
    assert again.metrics.num_cached_tokens == 64 and made.pool.is_consistent()
    with pytest.raises(ValueError, match="at most 50% of 16"):
        made.pin([TokenSegment(prompts(100, seed=8)[0])])
    assert made.pool.pinned == 4
    made.forget({"nothing"})
    assert made.pool.pinned == 4


def test_forget_ends_users_drops_blocks_and_pins_and_clears_memory(engine) -> None:  # type: ignore[no-untyped-def]
    made = engine()
    policy, lease, deed = prompts(32, 32, 32)
    wide, old, new = TokenSegment(policy), TokenSegment(lease, ACME, ("lease",)), TokenSegment(deed, ACME, ("deed",))
    made.pin([wide, old])
    asked = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    for name, segments in (("gone", (wide, old)), ("stays", (wide, new)), ("queued", (wide, old, new))):
        made.add_request(Request(name, segments, asked))
    for _ in range(3):
        made.step()
    ended = made.forget({"lease"})
    assert {(o.request_id, o.finish_reason) for o in ended} == {("gone", "forgotten"), ("queued", "forgotten")}
    assert made.forecast.match(made.forecast.keys([wide, old])) == [32, 0]
    assert made.forecast.match(made.forecast.keys([wide, new])) == [32, 32]
    assert made.pool.pinned == 2 and made.stats().forgotten == 2, "the policy before it stays pinned"
    free = made.pool.free_ids()
    assert free and not any(bool(pages[free].any()) for pages in made.runner.cache.keys), "nothing of it is left"
    outputs = [output for output in iter(lambda: made.step() if made.has_work else None, None)]
    last = outputs[-1][-1]
    assert (last.request_id, last.finish_reason) == ("stays", "length")
    wanted = engine().generate([policy + deed], asked)[0].token_ids
    again = made.generate_requests([Request("again", (wide, new), asked)])[0]
    assert again.token_ids == wanted and again.metrics.num_cached_tokens == 48


def test_forget_while_streaming(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        [lease] = prompts(40)
        segments = (TokenSegment(lease, ACME, ("lease",)),)
        stream = engine.generate(Request("r", segments, SamplingParams(max_tokens=400, ignore_eos=True)))
        task = asyncio.create_task(collect(stream))
        await until(lambda: engine.stats().running == 1)
        assert engine.match(segments) == [0] or engine.match(segments) == [32]
        await engine.forget(["lease"])
        deltas = await task
        assert deltas[-1].finish_reason == "forgotten" and deltas[-1].metrics is not None
        assert engine.match(segments) == [0] and engine.load().used_blocks == 0

    run(llama, scenario)


def test_deadline_is_told_not_dropped(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        long = asyncio.create_task(collect(engine.generate(request([1, 2], max_tokens=300))))
        await until(lambda: engine.stats().running == 1)
        late = Request("late", (TokenSegment([3, 4]),), SHORT, max_queue_seconds=0.02)
        [delta] = await collect(engine.generate(late))
        assert delta.finish_reason == "deadline" and delta.metrics is not None and delta.metrics.queue_ms >= 20
        assert len(await long) == 300 and engine.stats().expired == 1

    run(llama, scenario, max_num_seqs=1)


def test_load_and_match_tell_what_is(llama: Path) -> None:
    async def scenario(engine: AsyncEngine) -> None:
        policy, question = prompts(40, 30)
        segments = [TokenSegment(policy), TokenSegment(question, ACME)]
        assert engine.match(segments) == [0, 0]
        await collect(engine.generate(Request("r", tuple(segments), SHORT)))
        await idle(engine)
        assert engine.match(segments) == [40, 24]
        assert engine.match([segments[0], TokenSegment(question)]) == [32, 0], "another label, other blocks"
        load = engine.load()
        assert (load.running, load.waiting, load.tokens_in_flight, load.tokens_due) == (0, 0, 0, 0)
        assert load.free_blocks + load.used_blocks + load.cached_blocks == load.total_blocks
        assert load.cached_blocks == 4 and load.steps > 0 and load.step_ms["step"] >= 0
        task = asyncio.create_task(collect(engine.generate(request([1, 2, 3], max_tokens=300))))
        await until(lambda: engine.load().running == 1)
        assert 3 <= engine.load().tokens_in_flight <= 303
        await task

    run(llama, scenario)


def test_prediction_takes_less_than_100_microseconds_given_the_hashes(llama: Path) -> None:
    engine = LLMEngine(config(llama, max_model_len=512))
    engine.generate(prompts(*[100] * 20), SHORT)
    keys = engine.forecast.keys([TokenSegment(prompts(500)[0])])
    times = []
    for _ in range(200):
        began = time.perf_counter()
        engine.forecast.predict(keys, 0.9)
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 100e-6


def test_step_time_model_finds_the_coefficients_and_follows_a_change() -> None:
    rng, model = random.Random(0), StepTimeModel()

    def truth(shape: StepShape, factor: float = 1.0) -> float:
        return factor * (0.004 + shape.prefill_tokens * 2e-4 + shape.decode_rows * 3e-4 + shape.decode_context * 1e-7)

    def shape() -> StepShape:
        return StepShape(rng.choice([0, rng.randrange(1000)]), rng.randrange(64), rng.randrange(100_000), 0)

    for factor in (1.0, 3.0):
        for _ in range(1500):
            seen = shape()
            model.learn(seen, truth(seen, factor) * rng.uniform(0.9, 1.1))
        errors = [abs(model.seconds(s) / truth(s, factor) - 1) for s in (shape() for _ in range(200))]
        assert statistics.median(errors) < 0.05


def test_step_times_are_fitted_without_bias_where_they_scatter() -> None:
    """Weighted by what steps took, slow ones count less and sums of steps come out short: by 13 % on a busy machine."""
    rng, model = random.Random(0), StepTimeModel()
    said = took = 0.0
    for i in range(3000):
        shape = StepShape(rng.choice([0, 300]), rng.randrange(1, 64), rng.randrange(100_000), 0)
        seconds = (0.004 + shape.prefill_tokens * 2e-4 + shape.decode_rows * 3e-4) * rng.choice([0.5, 0.7, 1.0, 1.8])
        if i > 500:
            said, took = said + model.seconds(shape), took + seconds
        model.learn(shape, seconds)
    assert said / took == pytest.approx(1.0, abs=0.03)


def test_the_machines_level_lasts_for_a_few_steps_and_fades_over_many() -> None:
    model, shape = StepTimeModel(), StepShape(0, 8, 0, 0)
    for _ in range(500):
        model.learn(shape, 0.010)
    for _ in range(30):
        model.learn(shape, 0.020)
    assert model.seconds(shape) * model.over(1) > 0.017
    assert model.seconds(shape) * model.over(1000) < 0.014


def test_lengths_of_answers_are_learned_and_bounded_by_what_is_allowed() -> None:
    lengths, rng = AnswerLengths(), random.Random(2)
    written, most = np.array([0.0, 90.0] * 50), np.full(100, 100.0)
    assert lengths.left(written, most).tolist() == [100.0, 10.0] * 50, "before any has ended"
    for _ in range(400):
        lengths.learn(rng.randint(10, 50), 100)
    left = lengths.left(written, most)
    assert 25 < left[::2].mean() < 35 and left[::2].min() > 8 and left[::2].max() < 52, "they scatter as they did"
    assert lengths.left(np.full(50, 40.0), most[:50]).mean() < 8 and (left >= 1).all()
    for _ in range(400):
        lengths.learn(60, 60)
    assert lengths.left(np.zeros(50), np.full(50, 60.0)).mean() > 55


def outlook(free_seats: int = 0, waiting: int = 0, blocks: int = 1000, **more: float) -> Outlook:
    model = StepTimeModel()
    for tokens, rows in itertools.product([0, 100, 400], [0, 4, 8]):
        for _ in range(30):
            model.learn(StepShape(tokens, rows, 0, 0), 0.010 + 1e-4 * tokens)
    running = tuple((0, 50 + 10 * i) for i in range(4))
    backlog = Backlog(running, ((100, 100, 50),) * waiting, 0, free_seats, 0, blocks, 10.0, **more)
    return Outlook(backlog, model, AnswerLengths(), budget=512, block=16)


def test_outlook_follows_the_seats() -> None:
    def seconds(**backlog: float) -> float:
        return outlook(**backlog).first_token(100, 100)  # type: ignore[arg-type]

    assert seconds(free_seats=1) == pytest.approx(0.020, rel=0.1), "one step"
    assert seconds(free_seats=3, waiting=2) == pytest.approx(0.040, rel=0.1), "with the chunks of those before it"
    assert seconds() == pytest.approx(0.520, rel=0.1), "once the first of the running has ended"
    assert seconds(waiting=2) == pytest.approx(0.740, rel=0.1), "and two others before it took seats"
    assert seconds(tokens_per_row=2.0) == pytest.approx(0.270, rel=0.1), "drafts that hold make it sooner"
    assert seconds(free_seats=1, blocks=2) == pytest.approx(0.520, rel=0.1), "a seat without pages is none"
    assert seconds(waiting=1000) == pytest.approx(1000 / 4 * 0.51 + 10, rel=0.1), "a long queue by its means"


def test_residual_quantiles_cover_what_they_say() -> None:
    rng, residuals = random.Random(1), ResidualQuantiles()
    assert residuals.quantiles(1.0, 0.5, 0.9) == [1.0, 1.0]
    below, errors, skew = 0, [], 1.0
    for i in range(8000):
        skew = 1.0 if i < 4000 else 2.0  # the machine becomes slower than the model thinks
        actual = skew * rng.lognormvariate(0.0, 0.12)
        if i % 4000 >= 1000:
            median, high = residuals.quantiles(1.0, 0.5, 0.9)
            below += actual <= high
            errors.append(abs(median / actual - 1))
        residuals.learn(1.0, actual)
    assert 0.88 <= below / len(errors) <= 0.92 and statistics.median(errors) < 0.15
    assert len(residuals) == 512


def test_residuals_of_idle_and_of_queueing_requests_are_told_apart() -> None:
    rng, residuals = random.Random(1), ResidualQuantiles()
    for _ in range(200):
        residuals.learn(0.01, 0.01 * rng.uniform(0.95, 1.05))
        residuals.learn(5.0, 5.0 * rng.uniform(0.5, 3.0))
    assert residuals.quantiles(0.01, 0.9)[0] < 1.06 < 2.5 < residuals.quantiles(5.0, 0.9)[0]
    assert residuals.quantiles(100.0, 0.9)[0] > 2, "where there is nothing like it, all count"


def test_coverage_widens_on_misses_before_the_late_tokens_come_and_balances() -> None:
    coverage = Coverage()
    for i in range(50):
        coverage.promise(i, until=1.0)
    coverage.settle(2.0)
    widened = coverage.log_factor
    assert widened > 0.3
    coverage.came(0, 3.0)
    coverage.forget(1)
    assert coverage.log_factor == widened, "each counts once"
    for i in range(1000):
        coverage.promise(i, until=10.0)
        coverage.came(i, 11.0 if i % 10 == 0 else 5.0)
    assert coverage.log_factor == pytest.approx(widened, abs=0.02), "one miss in ten is as promised"


def test_every_request_teaches_the_forecaster(llama: Path) -> None:
    engine = LLMEngine(config(llama))
    engine.generate(prompts(*range(10, 60)), SHORT)
    assert len(engine.forecast.residuals) == 50 and not engine.forecast._planned
    prediction = engine.forecast.predict(engine.forecast.keys([TokenSegment(prompts(40)[0])]), 0.9)
    assert 0 < prediction.median_s <= prediction.quantile_s and prediction.cached_tokens in (0, 32)
    assert torch.get_num_threads() == 1
