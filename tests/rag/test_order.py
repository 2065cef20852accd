"""Passages in the order in which their keys and values can be reused, within the ranking's noise and no further."""

from dataclasses import dataclass
from typing import Any, cast

from app.gateway.prefixes import fingerprints
from app.gateway.schemas import Message, Segment
from app.rag.answers.order import reuse_order
from app.rag.retrieval.search import Found


@dataclass
class Scored:
    score: float


@dataclass
class Piece:
    """As much of a Found as the order looks at."""

    text: str
    passage: Scored


def pieces(**scores: float) -> list[Found]:
    return cast("list[Found]", [Piece(text, Scored(score)) for text, score in scores.items()])


def prompt(passages: list[Any]) -> tuple[Message, ...]:
    texts = [f"[{number}] {one.text}" for number, one in enumerate(passages, start=1)]
    user = (Segment("Passages:"), *map(Segment, texts), Segment("Question?"))
    return Message("system", (Segment("policy"),)), Message("user", user)


def seen(*texts: str) -> dict[str, int]:
    """What is resident after an answer from these passages in this order."""
    found = fingerprints(prompt([Piece(text, Scored(0)) for text in texts]))[:-1]
    return {name: 16 * number for number, name in enumerate(found, start=1)}


def order(passages: list[Found], resident: dict[str, int], noise: float) -> list[str]:
    return [found.text for found in reuse_order(passages, resident, noise, prompt)]


def test_a_resident_prefix_comes_first_within_the_noise() -> None:
    found = pieces(a=1.0, b=0.97, c=0.95, d=0.5)
    assert order(found, seen("c", "a"), 0.1) == ["c", "a", "b", "d"]
    assert order(found, seen("c", "d"), 0.1) == ["c", "a", "b", "d"], "d is too far behind for the second place"
    assert order(found, seen("d"), 0.1) == ["a", "b", "c", "d"], "and for the first"


def test_without_noise_or_memory_nothing_moves() -> None:
    found = pieces(a=1.0, b=0.99)
    assert order(found, seen("b"), 0.0) == ["a", "b"]
    assert order(found, {}, 0.5) == ["a", "b"]
    assert order(found, seen("a", "b"), 0.5) == ["a", "b"]


def test_only_a_prefix_counts_not_a_place_further_back() -> None:
    assert order(pieces(a=1.0, b=1.0, c=1.0), seen("x", "c"), 0.1) == ["a", "b", "c"]
