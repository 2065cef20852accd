"""Deadlines, retries and the circuit breaker of one target."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from app.config import TargetSettings
from app.errors import AppError, InvalidRequest, RateLimited, Unavailable, UpstreamError, UpstreamTimeout
from app.gateway.providers.base import TransientError
from app.gateway.providers.openai import OpenAIProvider
from app.gateway.resilience import Breaker, GuardedTarget, exhausted, pause
from app.gateway.schemas import Attempt, ChatRequest
from tests.gateway import wires
from tests.gateway.upstream import Exchange, Script, Upstream, Wire, answering, chat, failing, provider_at, upstream

FAST: dict[str, Any] = {"timeout_seconds": 5.0, "max_retries": 2, "breaker_failures": 2, "breaker_seconds": 0.2}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(TargetSettings(name="t", breaker_failures=3, breaker_seconds=10), clock)


def admitted(breaker: Breaker) -> bool:
    try:
        breaker.admit()
    except (Unavailable, RateLimited):
        return False
    return True


def test_the_breaker_opens_after_failures_in_a_row(breaker: Breaker) -> None:
    error = UpstreamError("x")
    for settle in (breaker.failed, breaker.failed, lambda _: breaker.succeeded(), breaker.failed, breaker.failed):
        settle(error)
        assert admitted(breaker)
    breaker.failed(error)
    assert (breaker.state, admitted(breaker)) == ("open", False)


def test_one_request_probes_and_the_others_wait(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        breaker.failed(UpstreamError("x"))
    clock.now += 10.1
    assert breaker.state == "half-open"
    assert [admitted(breaker) for _ in range(3)] == [True, False, False]
    breaker.failed(UpstreamError("x"))
    assert (breaker.state, admitted(breaker)) == ("open", False)
    clock.now += 10.1
    assert admitted(breaker)
    breaker.answering()
    assert (breaker.state, admitted(breaker)) == ("closed", True)
    breaker.failed(UpstreamError("died later"))
    assert breaker.state == "open"


def test_a_probe_whose_caller_left_teaches_nothing(breaker: Breaker, clock: Clock) -> None:
    for _ in range(3):
        breaker.failed(UpstreamError("x"))
    clock.now += 10.1
    assert admitted(breaker)
    breaker.released()
    assert admitted(breaker)


def test_a_limit_closes_the_door_for_as_long_as_it_says(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(RateLimited("x", retry_after=7))
    with pytest.raises(RateLimited) as caught:
        breaker.admit()
    assert caught.value.retry_after == pytest.approx(7)
    assert breaker.state == "closed"
    clock.now += 7.1
    assert admitted(breaker)


@pytest.mark.parametrize(
    ("error", "alternatives", "expected"),
    [
        (RateLimited("x", retry_after=2), False, 2),
        (RateLimited("x", retry_after=2), True, None),
        (RateLimited("x", retry_after=60), False, None),
        (TransientError("x", retry_after=1.5), True, 1.5),
        (TransientError("x", retry_after=60), True, None),
        (UpstreamTimeout("x"), True, None),
        (UpstreamError("x"), True, None),
        (Unavailable("x"), True, None),
    ],
)
def test_what_is_waited_for(error: AppError, alternatives: bool, expected: float | None) -> None:
    assert pause(error, 0, alternatives=alternatives) == expected


def test_backoff_is_jittered_grows_and_is_bounded() -> None:
    waits = {
        tries: [pause(TransientError("x"), tries, alternatives=True) or 0 for _ in range(200)] for tries in (0, 3, 30)
    }
    assert [max(values) <= most for values, most in zip(waits.values(), (0.1, 0.8, 2.0), strict=True)] == [True] * 3
    assert max(waits[3]) > 0.4
    assert len(set(waits[0])) > 100


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([RateLimited("x", retry_after=9), RateLimited("x", retry_after=4)], RateLimited),
        ([RateLimited("x", retry_after=9), UpstreamError("x")], UpstreamError),
        ([UpstreamTimeout("x"), UpstreamTimeout("x")], UpstreamTimeout),
        ([Unavailable("x"), Unavailable("x")], Unavailable),
        ([Unavailable("x"), TransientError("x")], UpstreamError),
        ([InvalidRequest("x")], InvalidRequest),
    ],
)
def test_the_one_error_of_many(errors: list[AppError], kind: type[AppError]) -> None:
    made = exhausted([Attempt(f"t{n}", error) for n, error in enumerate(errors)])
    assert type(made) is kind
    if isinstance(made, RateLimited):
        assert made.retry_after == 4


class Site:
    """One guarded target before one scripted upstream."""

    def __init__(self, guarded: GuardedTarget, running: Upstream) -> None:
        self.guarded = guarded
        self.running = running

    def pause_over(self) -> None:
        """As when breaker_seconds have gone by."""
        self.guarded.breaker._open_until = 0.0

    async def ask(self, request: ChatRequest | None = None, *, alternatives: bool = False) -> str:
        stream = await self.guarded.open(request or chat(), alternatives=alternatives)
        try:
            return "".join([delta.text async for delta in stream])
        finally:
            await stream.aclose()


async def guarded(script: Script, check: Callable[[Site], Any], **settings: Any) -> Upstream:
    async with (
        upstream(script) as running,
        provider_at(OpenAIProvider, running.url, **{**FAST, **settings}) as provider,
    ):
        await check(Site(GuardedTarget(provider.target, provider), running))
    return running


def by_turn(*scripts: Script) -> Script:
    """The first request gets the first script, and so on; the last one stays."""
    turn = iter(scripts)
    current = scripts[0]

    async def script(exchange: Exchange, wire: Wire) -> None:
        nonlocal current
        current = next(turn, current)
        await current(exchange, wire)

    return script


async def test_a_transient_failure_is_tried_again() -> None:
    async def check(site: Site) -> None:
        assert (await site.ask()).startswith("Hello")
        assert site.guarded.breaker.state == "closed"

    script = by_turn(failing(503, {}), failing(500, {}, **{"retry-after-ms": "20"}), answering(*wires.OPENAI_TEXT))
    assert len((await guarded(script, check)).exchanges) == 3


async def test_retries_are_bounded_and_count_as_one_failure() -> None:
    async def check(site: Site) -> None:
        with pytest.raises(TransientError):
            await site.ask()
        assert site.guarded.breaker.state == "closed"
        with pytest.raises(TransientError):
            await site.ask()
        assert site.guarded.breaker.state == "open"
        with pytest.raises(Unavailable):
            await site.ask()
        site.pause_over()
        site.running.script = answering(*wires.OPENAI_TEXT)
        assert (await site.ask()).startswith("Hello")
        assert site.guarded.breaker.state == "closed"

    assert len((await guarded(failing(503, {}), check, breaker_seconds=3600.0)).exchanges) == 3 + 3 + 1


async def test_a_probe_that_answers_lets_the_others_in_before_it_has_ended() -> None:
    async def check(site: Site) -> None:
        for _ in range(2):
            with pytest.raises(TransientError):
                await site.ask()
        site.running.script = silent_after_text
        site.pause_over()
        probe = await site.guarded.open(chat(), alternatives=False)
        other = await site.guarded.open(chat(), alternatives=False)
        await probe.aclose()
        await other.aclose()

    await guarded(failing(503, {}), check, max_retries=0, breaker_seconds=3600.0)


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_what_trying_again_cannot_mend_is_not_tried_again(status: int) -> None:
    async def check(site: Site) -> None:
        for _ in range(3):
            with pytest.raises(AppError):
                await site.ask()
        # A caller's mistakes say nothing about the target's health.
        assert site.guarded.breaker.state == ("closed" if status == 400 else "open")

    made = await guarded(failing(status, {"error": {"message": "x"}}), check)
    assert len(made.exchanges) == (3 if status == 400 else 2)


async def test_a_limit_is_waited_for_where_there_is_no_other_target() -> None:
    limited = failing(429, {}, **{"retry-after-ms": "120"})

    async def alone(site: Site) -> None:
        started = time.perf_counter()
        assert (await site.ask()).startswith("Hello")
        assert time.perf_counter() - started >= 0.12

    async def among_others(site: Site) -> None:
        with pytest.raises(RateLimited):
            await site.ask(alternatives=True)

    assert len((await guarded(by_turn(limited, answering(*wires.OPENAI_TEXT)), alone)).exchanges) == 2
    assert len((await guarded(limited, among_others)).exchanges) == 1


async def hanging(_: Exchange, wire: Wire) -> None:
    await wire.until_left()


async def silent_after_headers(_: Exchange, wire: Wire) -> None:
    await wire.head()
    await wire.send(wires.OPENAI_TEXT[0])
    await wire.until_left()


async def silent_after_text(_: Exchange, wire: Wire) -> None:
    await wire.head()
    await wire.send(*wires.OPENAI_TEXT[:2])
    await wire.until_left()


@pytest.mark.parametrize("script", [hanging, silent_after_headers])
async def test_the_first_token_deadline_closes_the_upstream(script: Script) -> None:
    async def check(site: Site) -> None:
        started = time.perf_counter()
        with pytest.raises(UpstreamTimeout, match=r"nothing in 0\.2 s"):
            await site.ask()
        assert 0.2 <= time.perf_counter() - started < 4
        assert await site.running.seen_leaving()

    assert len((await guarded(script, check, timeout_seconds=0.2)).exchanges) == 1


async def test_the_deadline_between_tokens() -> None:
    async def check(site: Site) -> None:
        started = time.perf_counter()
        with pytest.raises(UpstreamTimeout, match="stopped answering"):
            await site.ask()
        assert 0.1 <= time.perf_counter() - started < 4
        assert await site.running.seen_leaving()

    await guarded(silent_after_text, check, timeout_seconds=5.0, idle_seconds=0.1)


async def test_the_total_deadline_stops_a_drip() -> None:
    async def drip(_: Exchange, wire: Wire) -> None:
        await wire.head()
        while True:
            await wire.send(wires.OPENAI_TEXT[1])
            await asyncio.sleep(0.02)

    async def check(site: Site) -> None:
        with pytest.raises(UpstreamTimeout):
            await site.ask()
        assert await site.running.seen_leaving()

    await guarded(drip, check, total_seconds=0.3)


async def test_a_port_where_nobody_listens_is_a_transient_failure() -> None:
    async with provider_at(OpenAIProvider, "http://127.0.0.1:9", **FAST) as provider:
        with pytest.raises(TransientError, match="ConnectError"):
            await GuardedTarget(provider.target, provider).open(chat(), alternatives=False)


async def test_leaving_a_stream_closes_the_upstream() -> None:
    async def check(site: Site) -> None:
        stream = await site.guarded.open(chat(), alternatives=False)
        await anext(stream)
        await stream.aclose()
        assert await site.running.seen_leaving()
        assert site.guarded.breaker.state == "closed"

    await guarded(silent_after_text, check, timeout_seconds=30.0)
