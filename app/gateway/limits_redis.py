"""The counters of `limits`, shared by replicas through Redis: each decision is one Lua script, on Redis' own clock.

Keys of one tenant share a hash tag, so that on a cluster they live in one slot, as a script demands. A rate is a hash
from slice to amount; concurrency a sorted set of leases by expiry; a budget a hash (spent, held) beside a sorted set
of what each lease holds, by expiry: what a dead replica held comes back by itself.

Redis may fail: `SharedLimits` then counts in this process for a while, so that limits hold per replica and no request
waits long. Slow is worse than dead, hence the short deadline.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import redis.asyncio as redis
from redis.exceptions import RedisError

from app.gateway.limits import Draw, Granted, Kind, LimitStore, MemoryLimits, Refused, Unseeded
from app.telemetry import logger

T = TypeVar("T")
log = logger(__name__)
DEADLINE_SECONDS = 0.5
PAUSE_SECONDS = 5.0

# ARGV: lease, lease milliseconds, then per draw: kind, limit, amount, window in milliseconds.
# Answer: {"ok", then per draw remaining and slice} | {"no", wait in ms, then numbers of draws} | {"seed", numbers}.
ACQUIRE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease, keep = ARGV[1], tonumber(ARGV[2])
local SLICES = 60
local unseeded, refused, wait, used = {}, {}, 0, {}

local function committed(key)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', key .. ':held', '-inf', now)) do
    redis.call('ZREM', key .. ':held', member)
    redis.call('HINCRBY', key, 'held', -tonumber(string.match(member, '|(%d+)$')))
  end
  local values = redis.call('HMGET', key, 'spent', 'held')
  return tonumber(values[1]) + tonumber(values[2] or 0)
end

local function rate(i, key, limit, amount, window)
  local size, sum, live = window / SLICES, 0, {}
  local fields = redis.call('HGETALL', key)
  for f = 1, #fields, 2 do
    local slice = tonumber(fields[f])
    if slice < math.floor(now / size) - SLICES then
      redis.call('HDEL', key, fields[f])
    else
      sum = sum + tonumber(fields[f + 1])
      live[#live + 1] = {slice, tonumber(fields[f + 1])}
    end
  end
  used[i] = sum
  local excess = sum + amount - limit
  if excess <= 0 then return nil end
  table.sort(live, function(a, b) return a[1] < b[1] end)
  for _, entry in ipairs(live) do
    excess = excess - entry[2]
    if excess <= 0 then return math.max(0, (entry[1] + 1 + SLICES) * size - now) end
  end
  return window
end

for i, key in ipairs(KEYS) do
  local at = 3 + (i - 1) * 4
  local kind, limit = ARGV[at], tonumber(ARGV[at + 1])
  local amount, window = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local late = nil
  if kind == 'rate' then
    late = rate(i, key, limit, amount, window)
  elseif kind == 'concurrency' then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    used[i] = redis.call('ZCARD', key)
    if used[i] >= limit then late = 1000 end
  elseif redis.call('EXISTS', key) == 0 then
    unseeded[#unseeded + 1] = i
  else
    used[i] = committed(key)
    if used[i] + amount > limit then late = 0 end
  end
  if late then
    refused[#refused + 1] = i
    wait = math.max(wait, late)
  end
end
if #unseeded > 0 then return {'seed', unpack(unseeded)} end
if #refused > 0 then return {'no', math.ceil(wait), unpack(refused)} end

local answer = {'ok'}
for i, key in ipairs(KEYS) do
  local at = 3 + (i - 1) * 4
  local kind, limit = ARGV[at], tonumber(ARGV[at + 1])
  local amount, window = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local slice = 0
  if kind == 'rate' then
    slice = math.floor(now / (window / SLICES))
    redis.call('HINCRBY', key, slice, amount)
    redis.call('PEXPIRE', key, math.ceil(window * 2))
  elseif kind == 'concurrency' then
    amount = 1
    redis.call('ZADD', key, now + keep, lease)
    redis.call('PEXPIRE', key, keep)
  else
    redis.call('HINCRBY', key, 'held', amount)
    redis.call('ZADD', key .. ':held', now + keep, lease .. '|' .. amount)
    redis.call('PEXPIRE', key, window)
    redis.call('PEXPIRE', key .. ':held', window)
  end
  answer[#answer + 1] = limit - used[i] - amount
  answer[#answer + 1] = slice
end
return answer
"""

# ARGV: lease, then per draw: kind, limit, amount, window in milliseconds, actual, slice. Answer: remaining per draw.
SETTLE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local answer = {}
for i, key in ipairs(KEYS) do
  local at = 2 + (i - 1) * 6
  local kind, limit, amount = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local window, actual, slice = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]), ARGV[at + 5]
  answer[i] = 0
  if kind == 'rate' then
    if redis.call('HEXISTS', key, slice) == 1 then
      redis.call('HINCRBY', key, slice, actual - amount)
    elseif actual > amount then
      redis.call('HINCRBY', key, math.floor(now / (window / 60)), actual - amount)
      redis.call('PEXPIRE', key, math.ceil(window * 2))
    end
  elseif kind == 'concurrency' then
    redis.call('ZREM', key, ARGV[1])
  else
    if redis.call('ZREM', key .. ':held', ARGV[1] .. '|' .. amount) == 1 then
      redis.call('HINCRBY', key, 'held', -amount)
    end
    -- A counter that was lost is made again from the ledger, which will hold this amount.
    if redis.call('EXISTS', key) == 1 then
      redis.call('HINCRBY', key, 'spent', actual)
      local values = redis.call('HMGET', key, 'spent', 'held')
      answer[i] = limit - tonumber(values[1]) - tonumber(values[2] or 0)
    end
  end
end
return answer
"""
SEED = "if redis.call('HSETNX', KEYS[1], 'spent', ARGV[1]) == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end"


class RedisLimits:
    """Raises RedisError or TimeoutError where Redis does not answer."""

    def __init__(self, url: str, lease_seconds: float = 1800.0) -> None:
        self.failures = 0
        self._redis: Any = redis.Redis.from_url(url, socket_connect_timeout=DEADLINE_SECONDS)
        self._lease_ms = int(lease_seconds * 1000)
        self._acquire = self._redis.register_script(ACQUIRE)
        self._settle = self._redis.register_script(SETTLE)
        self._seed = self._redis.register_script(SEED)

    async def acquire(self, lease: str, draws: Sequence[Draw]) -> Granted | Refused | Unseeded:
        args: list[Any] = [lease, self._lease_ms]
        for draw in draws:
            args += [draw.kind.value, draw.limit, draw.amount, _milliseconds(draw)]
        verdict, *rest = await self._acquire(keys=_keys(draws), args=args)
        if verdict == b"seed":
            return Unseeded(tuple(draws[number - 1] for number in rest))
        if verdict == b"no":
            return Refused(tuple(draws[number - 1] for number in rest[1:]), rest[0] / 1000)
        keys = [draw.key for draw in draws]
        return Granted(dict(zip(keys, rest[::2], strict=True)), dict(zip(keys, rest[1::2], strict=True)))

    async def settle(
        self, lease: str, draws: Sequence[Draw], granted: Granted, actual: Mapping[str, int]
    ) -> dict[str, int]:
        args: list[Any] = [lease]
        for draw in draws:
            took = actual.get(draw.key, 0 if draw.kind == Kind.BUDGET else draw.amount)
            args += [draw.kind.value, draw.limit, draw.amount, _milliseconds(draw), took, granted.slices[draw.key]]
        remaining = await self._settle(keys=_keys(draws), args=args)
        return {d.key: left for d, left in zip(draws, remaining, strict=True) if d.kind == Kind.BUDGET}

    async def seed(self, draw: Draw, spent: int) -> None:
        await self._seed(keys=_keys([draw]), args=[spent, _milliseconds(draw)])

    async def close(self) -> None:
        await self._redis.aclose()


class SharedLimits:
    """The shared counters, and this process' own while they are away. A lease ends where it began.

    What was taken meanwhile is told to the shared counters when they are back.
    """

    def __init__(self, shared: LimitStore, lease_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._shared = shared
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._away_until = 0.0
        # Made anew for each time the others are away: its budgets are seeded from the ledger of that moment.
        self._own: MemoryLimits | None = None
        self._own_leases: dict[str, MemoryLimits] = {}
        self._owed: list[tuple[str, Sequence[Draw], Granted, Mapping[str, int]]] = []
        self.failures = 0
        """How often the shared counters did not answer."""

    async def acquire(self, lease: str, draws: Sequence[Draw]) -> Granted | Refused | Unseeded:
        answer = await self._ask(self._shared.acquire(lease, draws))
        if answer is not None:
            await self._recover()
            return answer
        own = self._own = self._own or MemoryLimits(self._clock, self._lease_seconds)
        answer = await own.acquire(lease, draws)
        if isinstance(answer, Granted):
            self._own_leases[lease] = own
        return answer

    async def settle(
        self, lease: str, draws: Sequence[Draw], granted: Granted, actual: Mapping[str, int]
    ) -> dict[str, int]:
        own = self._own_leases.pop(lease, None)
        remaining = await own.settle(lease, draws, granted, actual) if own else None
        answer = await self._ask(self._shared.settle(lease, draws, granted, actual))
        if answer is None:
            self._owed.append((lease, draws, granted, actual))
        return remaining if remaining is not None else answer or {}

    async def seed(self, draw: Draw, spent: int) -> None:
        if self._own:
            await self._own.seed(draw, spent)
        else:
            await self._ask(_done(self._shared.seed(draw, spent)))

    async def close(self) -> None:
        await self._shared.close()

    async def _ask(self, work: Coroutine[Any, Any, T]) -> T | None:
        """None where the shared counters are away."""
        if self._clock() < self._away_until:
            work.close()
            return None
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await work
        except (RedisError, OSError, TimeoutError) as error:
            self.failures += 1
            self._away_until = self._clock() + PAUSE_SECONDS
            log.warning("shared limits are away, counting in this process", reason=type(error).__name__)
            return None

    async def _recover(self) -> None:
        self._own = None
        owed, self._owed = self._owed, []
        for lease, draws, granted, actual in owed:
            await self.settle(lease, draws, granted, actual)


async def _done(work: Coroutine[Any, Any, None]) -> bool:
    await work
    return True


def _keys(draws: Sequence[Draw]) -> list[str]:
    return [draw.key for draw in draws]


def _milliseconds(draw: Draw) -> int:
    return int(draw.window * 1000)


def open_limits(redis_url: str, lease_seconds: float) -> LimitStore:
    """The store that the settings ask for."""
    if redis_url:
        return SharedLimits(RedisLimits(redis_url, lease_seconds), lease_seconds)
    return MemoryLimits(lease_seconds=lease_seconds)
