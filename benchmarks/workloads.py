"""The workloads of docs and RESULTS.md, one definition for all benchmarks. Token ids are random by seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """One request: its prompt and how many tokens it answers with (end tokens ignored)."""

    prompt: list[int]
    output_len: int


@dataclass(frozen=True, slots=True)
class Workload:
    """All requests arrive at once. shared_len: leading tokens common to all prompts.  max_batch: requests at once."""

    name: str
    items: list[Item]
    shared_len: int
    max_batch: int

    @property
    def prompt_tokens(self) -> int:
        return sum(len(item.prompt) for item in self.items)

    @property
    def output_tokens(self) -> int:
        return sum(item.output_len for item in self.items)

    @property
    def longest(self) -> int:
        return max(len(item.prompt) + item.output_len for item in self.items)


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths are inclusive ranges, drawn uniformly; exponential: output mean, capped at the range's end."""

    shared: int
    private: tuple[int, int]
    output: tuple[int, int]
    num_requests: int
    max_batch: int
    exponential_mean: int | None = None


SHAPES = {
    "legal-cpu": Shape(2000, (64, 512), (32, 128), 64, 64),
    "legal-gpu": Shape(2048, (1024, 1024), (50, 500), 500, 512),
    "mixed": Shape(0, (25, 256), (25, 256), 64, 64),
    "mixed-gpu": Shape(0, (100, 1024), (100, 1024), 256, 256),
    "ragged": Shape(0, (25, 256), (1, 512), 256, 16, exponential_mean=64),
}


def build(name: str, vocab_size: int, *, seed: int = 0, num_requests: int | None = None) -> Workload:
    """Raises KeyError for an unknown name. num_requests overrides the shape's."""
    shape = SHAPES[name]
    rng = random.Random(seed)
    shared = _tokens(rng, shape.shared, vocab_size)
    output = _output_lengths(shape, rng)
    items = [
        Item(shared + _tokens(rng, rng.randint(*shape.private), vocab_size), output())
        for _ in range(num_requests or shape.num_requests)
    ]
    return Workload(name, items, shape.shared, shape.max_batch)


def _tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def _output_lengths(shape: Shape, rng: random.Random) -> Callable[[], int]:
    low, high = shape.output
    mean = shape.exponential_mean
    if mean is None:
        return lambda: rng.randint(low, high)
    return lambda: min(high, max(low, round(rng.expovariate(1 / mean))))
