"""The workloads of docs and RESULTS.md, one definition for all benchmarks. Token ids are random by seed. No torch."""

import heapq
import random
from collections.abc import Callable, Sequence
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
class Result:
    """One contender in one round. kv_waste: allocated but unwritten share of KV slots, mean over steps.

    contiguous_waste: the same if each request had the workload's longest length to itself from its start.
    outside: share of a decoding step's time that is not the model's forward, median of the fullest steps.
    """

    seconds: float
    output_tokens: int
    ttft_p50_ms: float | None = None
    ttft_p95_ms: float | None = None
    kv_waste: float | None = None
    contiguous_waste: float | None = None
    prefill_asked: int | None = None
    prefill_computed: int | None = None
    outside: float | None = None

    @property
    def rate(self) -> float:
        return self.output_tokens / self.seconds


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


def build(name: str, vocab_size: int, *, seed: int = 0, num_requests: int | None = None, shrink: int = 1) -> Workload:
    """Raises KeyError for an unknown name. num_requests overrides the shape's; shrink divides every length."""
    shape = SHAPES[name]
    if shrink > 1:
        shape = _shrunk(shape, shrink)
    rng = random.Random(seed)
    shared = _tokens(rng, shape.shared, vocab_size)
    output = _output_lengths(shape, rng)
    items = [
        Item(shared + _tokens(rng, rng.randint(*shape.private), vocab_size), output())
        for _ in range(num_requests or shape.num_requests)
    ]
    return Workload(name, items, shape.shared, shape.max_batch)


def slot_bound(items: Sequence[Item], slots: int) -> float:
    """How many times fewer steps continuous batching needs than static batches of `slots` that run on until their
    longest answer is done; in the items' order, prefill not counted."""
    lengths = [item.output_len for item in items]
    static = sum(max(lengths[i : i + slots]) for i in range(0, len(lengths), slots))
    ends = [0] * slots
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return static / max(ends)


def _shrunk(shape: Shape, by: int) -> Shape:
    def smaller(span: tuple[int, int]) -> tuple[int, int]:
        return max(1, span[0] // by), max(1, span[1] // by)

    mean = shape.exponential_mean
    return Shape(
        shape.shared // by, smaller(shape.private), smaller(shape.output), shape.num_requests, shape.max_batch,
        max(1, mean // by) if mean else None,
    )  # fmt: skip


def _tokens(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    return [rng.randrange(vocab_size) for _ in range(count)]


def _output_lengths(shape: Shape, rng: random.Random) -> Callable[[], int]:
    low, high = shape.output
    mean = shape.exponential_mean
    if mean is None:
        return lambda: rng.randint(low, high)
    return lambda: min(high, max(low, round(rng.expovariate(1 / mean))))
