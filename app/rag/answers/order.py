"""Passages whose keys and values are in memory come first, where the ranking cannot tell them from the better ones.

A prompt's prefix is computed once for all who share it, passages included, as far as they come in the same order. So
among passages whose scores differ by less than the ranking's noise, the one goes next that continues a prefix which
is resident (gateway/prefixes.py says how that is known without a tokenizer). It changes the prompt, and so it is off
unless a measurement on one's own documents shows that answers do not suffer (rag.reuse_noise).
"""

from collections.abc import Callable, Mapping, Sequence

from app.gateway.prefixes import fingerprints
from app.gateway.schemas import Message
from app.rag.retrieval.search import Found

BEFORE = 2  # segments ahead of the first passage: the firm's policy and the passages' heading


def reuse_order(
    passages: Sequence[Found],
    resident: Mapping[str, int],
    noise: float,
    prompt: Callable[[list[Found]], tuple[Message, ...]],
) -> list[Found]:
    """The passages, of which each may move ahead of those that score less than `noise` (a share) more.

    resident: of the model that is asked.  prompt: the messages with these passages.
    """
    if not noise or not resident:
        return list(passages)
    left, placed = list(passages), list[Found]()
    while left:
        least = left[0].passage.score * (1 - noise)
        near = [found for found in left if found.passage.score >= least]
        ready = (found for found in near if _prefix(placed, found, prompt) in resident)
        chosen = next(ready, left[0])
        placed.append(chosen)
        left.remove(chosen)
    return placed


def _prefix(placed: list[Found], found: Found, prompt: Callable[[list[Found]], tuple[Message, ...]]) -> str:
    return fingerprints(prompt([*placed, found]))[BEFORE + len(placed)]
