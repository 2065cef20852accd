"""Order, fairness, deadlines, pins, forgetting: on the real scheduler, without torch."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine import waiting
from app.engine.pace import LOOK_EVERY, MAX_SLOWDOWN
from app.engine.request import TokenSegment
from app.engine.schedule import Schedule
from app.engine.waiting import AGEING_SECONDS, MAX_OVERTAKES
from tests.engine.simulation import SIZE, Simulation

ACME, BETA = frozenset({"acme"}), frozenset({"beta"})


def tokens(count: int, seed: int = 0) -> TokenSegment:
    return TokenSegment([(seed * 7919 + i * i) % 1000 for i in range(count)])


def test_higher_priority_starts_first_and_age_makes_up_for_it() -> None:
    sim = Simulation(seats=1)
    sim.add("running", [tokens(4)])
    sim.step()
    sim.add("old", [tokens(4, 1)])
    sim.now += 1.5 * AGEING_SECONDS
    sim.add("normal", [tokens(4, 2)])
    sim.add("urgent", [tokens(4, 3)], priority=1)
    sim.add("very urgent", [tokens(4, 4)], priority=3)
    sim.run()
    assert sim.started == ["running", "very urgent", "old", "urgent", "normal"]


def test_longest_resident_prefix_goes_first() -> None:
    sim = Simulation(seats=1)
    hot = [tokens(8, 1)]
    sim.add("warm", hot)
    sim.run()
    sim.add("running", [tokens(4)])
    sim.step()
    sim.add("cold", [tokens(9, 2)])
    sim.add("hot", [*hot, tokens(1)])
    sim.run()
    assert sim.started == ["warm", "running", "hot", "cold"]
    other = Simulation(seats=1, cache=False)  # negative control: without the cache it is the order of arrival
    other.add("running", [tokens(4)])
    other.step()
    other.add("cold", [tokens(9, 2)])
    other.add("hot", [*hot, tokens(1)])
    other.run()
    assert other.started == ["running", "cold", "hot"]


def overtakes() -> int:
    """How many with a warm prefix start before a cold one that came first."""
    sim = Simulation(num_blocks=40, seats=2)
    hot = [tokens(8, 1)]
    sim.add("warm", hot)
    sim.run()
    for i in range(2):
        sim.add(f"hot {i}", [*hot, tokens(2, i)])
    sim.step()
    sim.add("cold", [tokens(9, 99)])
    for i in range(2, 40):
        sim.add(f"hot {i}", [*hot, tokens(2, i)])
        sim.step()
    sim.run()
    return sim.started.index("cold") - sim.started.index("hot 1") - 1


def test_overtaking_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < overtakes() <= MAX_OVERTAKES
    monkeypatch.setattr(waiting, "MAX_OVERTAKES", 1000)
    assert overtakes() > MAX_OVERTAKES


def test_request_that_could_not_start_in_time_ends_with_a_reason() -> None:
    sim = Simulation(seats=1)
    sim.add("running", [tokens(4)], max_tokens=40, max_queue_seconds=0.1)
    sim.step()
    sim.add("late", [tokens(4, 1)], max_queue_seconds=0.1)
    sim.add("patient", [tokens(4, 2)])
    sim.run()
    assert sim.ended == {"running": "length", "late": "deadline", "patient": "length"}
    assert "late" not in sim.started and sim.pool.used == 0


def test_decoding_goes_on_beside_a_long_prompt_that_came_first() -> None:
    sim = Simulation(num_blocks=200, budget=16)
    sim.add("long", [tokens(300)])
    short = sim.add("short", [tokens(2, 1)], max_tokens=30)
    sim.step()
    sim.step()
    for _ in range(10):
        before = short.num_output_tokens
        schedule = sim.step()
        assert short.num_output_tokens == before + 1 and schedule.num_tokens == 8 + 1


@pytest.mark.parametrize("deep", [False, True], ids=["every token costs the same", "the more, the deeper"])
def test_chunks_of_a_long_prompt_follow_what_steps_take(deep: bool) -> None:
    def seconds(schedule: Schedule) -> float:
        cost = sum(row.num_tokens * (1 + deep * row.start / 500) for row in schedule.rows)
        return 0.010 + cost * 1e-4

    sim = Simulation(num_blocks=2000, budget=256)
    sim.add("short", [tokens(2, 1)], max_tokens=400)
    for _ in range(4):
        sim.scheduler.took(schedule := sim.step(), seconds(schedule))
    sim.add("long", [tokens(7000)])
    chunks, times = [], []
    for _ in range(60):
        sim.scheduler.took(schedule := sim.step(), seconds(schedule))
        chunks.append(schedule.num_tokens - 1)
        times.append(seconds(schedule))
    assert chunks.count(0) >= 1, "now and then a step without it is looked at"
    assert max(times[5:]) < 0.010 * 1.25 * MAX_SLOWDOWN
    full = [chunk for chunk in chunks[5:] if chunk]
    assert full[-1] < full[0] / 2 if deep else min(full) > 50


@pytest.mark.parametrize("cache", [False, True])
def test_a_long_prompt_may_come_before_any_step(cache: bool) -> None:
    """Also before one that goes without long prompts: it then begins with the next."""
    for before in range(LOOK_EVERY + 4):
        sim = Simulation(num_blocks=200, budget=16, cache=cache)
        for number in range(2):
            sim.add(f"short {number}", [tokens(2, number)], max_tokens=60)
        for _ in range(before):
            sim.step()
        sim.add("long", [tokens(300, 9)])
        sim.run()
        assert sim.ended["long"] == "length" and sim.pool.used == 0


def test_a_long_prompt_alone_takes_the_whole_budget() -> None:
    alone = Simulation(num_blocks=600, budget=256)
    alone.add("long", [tokens(2000)])
    assert alone.step().num_tokens == alone.step().num_tokens == 256


def test_last_in_rank_is_preempted() -> None:
    sim = Simulation(num_blocks=9, budget=64)
    sim.add("urgent", [tokens(12, 1)], max_tokens=12, priority=2)
    sim.add("later", [tokens(12, 2)], max_tokens=12)
    sim.run()
    assert sim.scheduler.preemptions > 0 and sim.ended == {"urgent": "length", "later": "length"}
    assert list(sim.ended) == ["urgent", "later"]


@pytest.mark.parametrize("pinned", [True, False])
def test_pinned_blocks_are_never_evicted(pinned: bool) -> None:
    sim = Simulation(num_blocks=12)
    policy = tokens(8)
    seq = sim.add("policy", [policy], max_tokens=1)
    sim.run()
    if pinned:
        for key in seq.keys[:2]:
            block = sim.pool.lookup(key)
            assert block is not None
            sim.pool.pin(block)
            sim.pool.pin(block)
    assert sim.pool.pinned == sim.pool.used == 2 * pinned and sim.pool.is_consistent()
    for i in range(8):
        sim.add(str(i), [tokens(24, i + 1)])
    sim.run()
    after = sim.add("again", [policy, tokens(1)], max_tokens=1)
    sim.run()
    assert after.num_cached == (8 if pinned else 0)
    sim.pool.forget_all()
    assert sim.pool.pinned == sim.pool.used == 2 * pinned and sim.pool.is_consistent()


def test_counters_per_label() -> None:
    sim = Simulation(num_blocks=40)
    prompt = [tokens(8), TokenSegment([5] * 8, ACME), TokenSegment([6] * 4)]
    for name in ("one", "two"):
        sim.add(name, prompt)
        sim.run()
    sim.add("beta", [tokens(8), TokenSegment([5] * 8, BETA)])
    sim.run()
    counts = sim.scheduler.labels.snapshot()
    wide, acme, beta = (counts[label] for label in (frozenset(), ACME, BETA))
    assert (wide.requests, wide.prompt_tokens, wide.hit_tokens) == (3, 24, 16)
    assert (acme.requests, acme.prompt_tokens, acme.hit_tokens) == (2, 24, 8)
    assert (beta.requests, beta.prompt_tokens, beta.hit_tokens) == (1, 8, 0)


def test_forgetting_a_source_drops_its_blocks_and_ends_its_users_and_nobody_else() -> None:
    sim = Simulation(num_blocks=60, seats=2)
    policy, lease, deed = tokens(8), TokenSegment([5] * 8, ACME, ("lease",)), TokenSegment([6] * 8, ACME, ("deed",))
    sim.add("before", [policy, lease, deed])
    sim.run()
    # The same tokens from elsewhere share the block; they say the same in words of their own and go on.
    sim.add("user", [policy, TokenSegment([5] * 8, ACME), tokens(3)], max_tokens=30)
    sim.add("other", [policy, deed], max_tokens=30)
    sim.step()
    sim.add("queued", [policy, deed, lease])
    sim.forget({"lease", "unknown"})
    assert sim.ended == {"before": "length", "queued": "forgotten"}
    sim.run()
    assert sim.ended["other"] == sim.ended["user"] == "length" and sim.pool.is_consistent()
    for name, prompt, cached in (("lease", [policy, lease], 8), ("deed", [policy, deed, tokens(1)], 16)):
        seq = sim.add(name, [*prompt, tokens(1)])
        sim.run()
        assert seq.num_cached == cached


LABELS = [frozenset(), ACME, BETA]
SOURCES = ["lease", "deed", "will"]
segments = st.lists(
    st.builds(
        TokenSegment,
        st.integers(1, 3).flatmap(lambda n: st.lists(st.integers(0, 1), min_size=4 * n - 1, max_size=4 * n)),
        st.sampled_from(LABELS),
        st.lists(st.sampled_from(SOURCES), max_size=1).map(tuple),
    ),
    min_size=1,
    max_size=3,
)


class SchedulerMachine(RuleBasedStateMachine):
    """Scheduler, blocks and prefix under random work; Simulation.step() looks at every page that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation(num_blocks=20, seats=4)
        self.names = 0

    @rule(
        prompt=segments, max_tokens=st.integers(1, 12), priority=st.integers(-1, 1), wait=st.sampled_from([None, 0.1])
    )
    def add(self, prompt: list[TokenSegment], max_tokens: int, priority: int, wait: float | None) -> None:
        self.names += 1
        self.sim.add(str(self.names), prompt, max_tokens, priority=priority, max_queue_seconds=wait)

    @rule(count=st.integers(1, 4))
    def step(self, count: int) -> None:
        for _ in range(count):
            schedule = self.sim.step()
            assert schedule.rows or not self.sim.scheduler.has_work or self.sim.scheduler.preemptions
            self.holds()

    @precondition(lambda self: self.sim.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.sim.end(data.draw(st.sampled_from(self.sim.live)), "abort")

    @rule(source=st.sampled_from(SOURCES))
    def forget(self, source: str) -> None:
        self.sim.forget({source})

    @precondition(lambda self: self.sim.pool.pinned < 5)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        found = [block for block in self.sim.pool._blocks if block.key is not None]
        if found:
            self.sim.pool.pin(data.draw(st.sampled_from(found)))

    @rule(seconds=st.sampled_from([0.05, 1.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.sim.now += seconds

    @invariant()
    def holds(self) -> None:
        pool, scheduler = self.sim.pool, self.sim.scheduler
        assert pool.free + pool.used + pool.cached == pool.total and pool.is_consistent()
        held = {block.id for seq in scheduler.running for block in seq.blocks}
        assert pool.used == len(held | {block.id for block in pool._blocks if block.pinned})
        assert all(not seq.blocks for seq in scheduler.waiting)
        assert all(owner in scheduler.running for owner in scheduler._computing.values())
        assert [seq.rank for seq in scheduler.running] == sorted(seq.rank for seq in scheduler.running)

    def teardown(self) -> None:
        self.sim.run()
        assert not self.sim.live and not self.sim.scheduler._computing
        assert self.sim.pool.used == self.sim.pool.pinned


ANY_MACHINE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


class TestSchedulerMachine(SchedulerMachine.TestCase):  # type: ignore[misc, name-defined]
    """A few hundred steps."""

    settings = settings(max_examples=15, stateful_step_count=30, **ANY_MACHINE)


@pytest.mark.slow
class TestSchedulerMachineAtLength(SchedulerMachine.TestCase):  # type: ignore[misc, name-defined]
    """Far more than 2,000 steps."""

    settings = settings(max_examples=300, stateful_step_count=60, **ANY_MACHINE)


def test_simulation_notices_a_stale_page() -> None:
    """Negative control of the machine: a page that was not cleared, and one with another prompt's content."""
    for spoil in ("stale", "foreign"):
        sim = Simulation()
        sim.add("one", [tokens(2 * SIZE)], max_tokens=6)
        sim.step()
        if spoil == "foreign":
            sim.pages[sim.live[0].block_ids[0]][1] = "garbage"
        else:
            sim.scheduler._partial_blocks = lambda rows: []  # type: ignore[method-assign]
        with pytest.raises(AssertionError):
            sim.step()
