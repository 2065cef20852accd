"""The order in which a route's eligible targets are tried. Each strategy sorts candidates and says why."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from app.config import TargetSettings
from app.gateway.complexity import Complexity


@dataclass(frozen=True)
class Candidate:
    """What is known of one eligible target when the decision is taken.

    trouble: why it would not answer now (None: nothing is known against it).  overload: its queue is too long, which is
    trouble under every strategy.  ttft_ms: predicted, else measured lately,
    else None.  cached_tokens: of this prompt, already computed there.  cost_micros: the most the request would cost.
    """

    target: TargetSettings
    position: int
    weight: int = 1
    trouble: str | None = None
    overload: str | None = None
    running: int = 0
    ttft_ms: float | None = None
    cached_tokens: int = 0
    cost_micros: int = 0

    @property
    def name(self) -> str:
        return self.target.name


@dataclass(frozen=True)
class Wish:
    """What the decision looks at besides the candidates. affinity: what requests of one kind have in common."""

    affinity: str = ""
    complexity: Complexity | None = None
    ttft_ms: float | None = None


Ranked = list[tuple[Candidate, str]]
Strategy = Callable[[list[Candidate], Wish, random.Random], Ranked]


def rank(strategy: str, candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    """Candidates in the order in which they are tried, each with its reason.

    Whatever the strategy prefers, a target that would not answer now comes after those that would; `order` is taken at
    its word, but for overload.
    """

    def against(candidate: Candidate) -> str | None:
        return candidate.overload or (candidate.trouble if strategy != "order" else None)

    ranked = STRATEGIES[strategy](candidates, wish, rng)
    well = [(candidate, reason) for candidate, reason in ranked if not against(candidate)]
    ill = [(candidate, f"last: {against(candidate)}") for candidate, _ in ranked if against(candidate)]
    return well + ill


def order(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    return [(candidate, f"number {candidate.position + 1} of the route") for candidate in candidates]


def weight(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    """Each comes first with a chance of its weight (A-Res: Efraimidis and Spirakis, 2006); 0 is for fallback only."""
    drawn = {c.name: rng.random() ** (1 / c.weight) if c.weight else -1.0 - c.position for c in candidates}
    total = sum(candidate.weight for candidate in candidates)
    return [(c, f"drawn by weight {c.weight} of {total}") for c in sorted(candidates, key=lambda c: -drawn[c.name])]


def latency(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    """A target nobody has measured goes first: that measures it."""
    ranked = sorted(candidates, key=lambda c: (c.ttft_ms if c.ttft_ms is not None else -1.0, c.position))
    return [(c, _first_token(c)) for c in ranked]


def cost(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    return [
        (c, f"costs up to {c.cost_micros} µ$") for c in sorted(candidates, key=lambda c: (c.cost_micros, c.position))
    ]


def load(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    def pressure(candidate: Candidate) -> float:
        return candidate.running / candidate.weight if candidate.weight else float("inf")

    ranked = sorted(candidates, key=lambda c: (pressure(c), c.position))
    return [(c, f"{c.running} running, weight {c.weight}") for c in ranked]


def affinity(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    """Where most of the prompt is computed already; else rendezvous hashing, so that the same goes to the same."""

    def score(candidate: Candidate) -> float:
        digest = hashlib.sha256(f"{wish.affinity}\0{candidate.name}".encode()).digest()
        # Uniform in (0, 1); the weighted form is Schindelhauer and Schomaker's, 2005.
        uniform = (int.from_bytes(digest[:8], "big") + 1) / (2**64 + 2)
        return uniform ** (1 / candidate.weight) if candidate.weight else 0.0

    ranked = sorted(candidates, key=lambda c: (-c.cached_tokens, -score(c)))
    return [
        (c, f"{c.cached_tokens} tokens of the prompt are there" if c.cached_tokens else "by hash of the session")
        for c in ranked
    ]


def hybrid(candidates: list[Candidate], wish: Wish, rng: random.Random) -> Ranked:
    """Good enough for the task, then in time, then cheapest. Where none is good enough, the best ones come first."""
    level = wish.complexity.level if wish.complexity else 1

    def below(candidate: Candidate) -> int:
        return max(0, level - candidate.target.quality)

    def late(candidate: Candidate) -> bool:
        return wish.ttft_ms is not None and candidate.ttft_ms is not None and candidate.ttft_ms > wish.ttft_ms

    def reason(candidate: Candidate) -> str:
        parts = [f"quality {candidate.target.quality} for a task of level {level}"]
        if wish.ttft_ms is not None:
            parts.append(f"{_first_token(candidate)}, wanted in {wish.ttft_ms:g} ms")
        return ", ".join([*parts, f"costs up to {candidate.cost_micros} µ$"])

    ranked = sorted(candidates, key=lambda c: (below(c), late(c), c.cost_micros, c.position))
    return [(candidate, reason(candidate)) for candidate in ranked]


def _first_token(candidate: Candidate) -> str:
    return "first token not measured yet" if candidate.ttft_ms is None else f"first token in {candidate.ttft_ms:.0f} ms"


STRATEGIES: dict[str, Strategy] = {
    "order": order,
    "weight": weight,
    "latency": latency,
    "cost": cost,
    "load": load,
    "affinity": affinity,
    "hybrid": hybrid,
}
