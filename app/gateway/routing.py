"""From the model name a caller uses to the targets that may serve it, in order, with the reason for each step."""

import hashlib
import random
from dataclasses import dataclass
from typing import Any

from app.config import LOCAL, EngineSettings, RouteSettings, Settings, TargetSettings
from app.errors import AppError, ConfigurationError, ModelNotFound, RateLimited
from app.gateway.capabilities import estimate_tokens
from app.gateway.complexity import Complexity, complexity, features
from app.gateway.eligibility import objection, refused_by_all
from app.gateway.prices import PriceTable
from app.gateway.providers.base import Forecast, Provider
from app.gateway.resilience import GuardedTarget
from app.gateway.schemas import ChatRequest, Usage
from app.gateway.strategies import Candidate, Wish, rank
from app.tenants.principal import Principal

# Strategies that want to know what a target says of this very prompt.
FORECASTING = ("latency", "affinity", "hybrid")
# So much of a prompt's beginning tells which requests share a prefix.
AFFINITY_CHARACTERS = 2_000


@dataclass(frozen=True)
class Verdict:
    """What became of one target. `rank`: its turn, from 1; None where it may not serve."""

    target: str
    rank: int | None
    reason: str


@dataclass(frozen=True)
class Decision:
    """Which way a request goes, and why. `expected`: the tokens it was taken for."""

    model: str
    strategy: str
    verdicts: tuple[Verdict, ...]
    expected: Usage
    complexity: Complexity | None = None

    @property
    def order(self) -> list[str]:
        ranked = [verdict for verdict in self.verdicts if verdict.rank is not None]
        return [verdict.target for verdict in sorted(ranked, key=lambda verdict: verdict.rank or 0)]

    def to_json(self) -> dict[str, Any]:
        said: dict[str, Any] = {
            "strategy": self.strategy,
            "targets": [{"target": v.target, "rank": v.rank, "reason": v.reason} for v in self.verdicts],
        }
        if self.complexity:
            said["complexity"] = {"level": self.complexity.level, "because": list(self.complexity.because)}
        return said


class Router:
    """Holds targets and routes. Each in-process model is a target (that of [engine] is `local`) with a route under its
    served name, and one for each of its adapters."""

    def __init__(self, settings: Settings) -> None:
        alone = settings.server.role == "engine"
        self.targets = {} if alone else {target.name: target for target in settings.targets}
        self.routes = {} if alone else {route.model: route for route in settings.routes}
        for name, engine in settings.local_models.items():
            self.targets.setdefault(name, _local(name, engine))
            for model in (engine.served_name, *engine.adapter_models):
                self.routes.setdefault(model, RouteSettings(model=model, targets=(name,)))
        for route in self.routes.values():
            missing = [name for name in route.targets if name not in self.targets]
            if missing:
                raise ConfigurationError(f"route {route.model!r} names the unknown target {missing[0]!r}")

    @property
    def default_model(self) -> str:
        """The model of answers that name none: the first route."""
        if not self.routes:
            raise ConfigurationError("no route is configured: neither an engine model nor [[routes]]")
        return next(iter(self.routes))

    def plan(self, model: str) -> RouteSettings:
        """Raises ModelNotFound."""
        route = self.routes.get(model)
        if route is None:
            raise ModelNotFound(model)
        return route


def _local(name: str, engine: EngineSettings) -> TargetSettings:
    """The machine itself: whatever comes here leaves for nowhere."""
    return TargetSettings(
        name=name,
        provider=LOCAL,
        timeout_seconds=600.0,
        region=engine.region,
        privileged=True,
        quality=engine.quality,
    )


class Planner:
    """Takes decisions."""

    def __init__(
        self,
        targets: dict[str, GuardedTarget],
        prices: PriceTable,
        assumed_output: int,
        overload_ms: float = 0.0,
        rng: random.Random | None = None,
    ) -> None:
        self._targets = targets
        self._prices = prices
        self._assumed_output = assumed_output
        self._overload_ms = overload_ms
        self._rng = rng or random.Random()

    async def decide(
        self, principal: Principal, request: ChatRequest, route: RouteSettings
    ) -> tuple[Decision, AppError | None]:
        """The decision, and the caller's error where no target may serve."""
        answer = request.sampling.max_tokens or self._assumed_output
        expected = Usage(estimate_tokens(request), answer * request.upstream_only.get("n", 1))
        objections: dict[str, AppError] = {}
        for name in route.targets:
            guarded = self._targets[name]
            if error := objection(principal, request, guarded.target, guarded.provider):
                objections[name] = error
        eligible = [name for name in route.targets if name not in objections]
        hard = complexity(features(request, expected.prompt_tokens)) if route.strategy == "hybrid" else None
        ranked, busy = [], None
        if eligible:
            candidates = [await self._candidate(name, request, route, expected) for name in eligible]
            wish = Wish(_affinity(principal, request), hard, request.hints.ttft_ms)
            ranked = rank(route.strategy, candidates, wish, self._rng)
            busy = None if request.hints.batch else self._busy(candidates)
        verdicts = [Verdict(c.name, number, reason) for number, (c, reason) in enumerate(ranked, start=1)]
        verdicts += [Verdict(name, None, error.detail) for name, error in objections.items()]
        decision = Decision(route.model, route.strategy, tuple(verdicts), expected, hard)
        return decision, busy if eligible else refused_by_all(route.model, list(objections.values()))

    def pressure(self, route: RouteSettings) -> float:
        """How near the route's least busy engine is to overload: 0 idle, 1 overloaded. 0 where no engine tells."""
        told = [self._targets[name].provider.queue_ms() for name in route.targets]
        waits = [wait for wait in told if wait is not None]
        return min(1.0, min(waits) / self._overload_ms) if waits and self._overload_ms else 0.0

    def _busy(self, candidates: list[Candidate]) -> RateLimited | None:
        """Decided before anything is computed: where every target's queue is too long, when to come back."""
        if not all(candidate.overload for candidate in candidates):
            return None
        shortest = min(self._targets[candidate.name].provider.queue_ms() or 0.0 for candidate in candidates)
        wait = max(1.0, (shortest - self._overload_ms) / 1000)
        return RateLimited("Every engine that may serve this is overloaded.", retry_after=wait)

    def _overload(self, provider: Provider) -> str | None:
        wait = provider.queue_ms() if self._overload_ms else None
        if wait is None or wait <= self._overload_ms:
            return None
        return f"overloaded, first token in {wait / 1000:.0f} s"

    async def _candidate(self, name: str, request: ChatRequest, route: RouteSettings, expected: Usage) -> Candidate:
        guarded = self._targets[name]
        position = route.targets.index(name)
        forecast = await _forecast(guarded.provider, request) if route.strategy in FORECASTING else None
        return Candidate(
            target=guarded.target,
            position=position,
            weight=route.weights[position] if route.weights else 1,
            trouble=guarded.trouble(),
            overload=self._overload(guarded.provider),
            running=guarded.running,
            ttft_ms=forecast.ttft_ms if forecast else guarded.ttft_ms,
            cached_tokens=forecast.cached_tokens if forecast else 0,
            cost_micros=self._prices.cost(name, request.model, expected).total,
        )


async def _forecast(provider: Provider, request: ChatRequest) -> Forecast | None:
    return None if provider.unhealthy() else await provider.forecast(request)


def _affinity(principal: Principal, request: ChatRequest) -> str:
    """What requests have in common that should meet the same cache: their session, or how their prompts begin."""
    if request.hints.session:
        return f"{principal.tenant_id}\0{request.hints.session}"
    beginning = "\0".join(message.text for message in request.messages)[:AFFINITY_CHARACTERS]
    return hashlib.sha256(f"{principal.tenant_id}\0{beginning}".encode()).hexdigest()
