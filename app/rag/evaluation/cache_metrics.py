"""Measures the semantic cache's last two gates: what it would serve wrongly, and what it would miss.

Pairs of questions are made by program from any questions. Unlike ones differ in one thing that decides (a negation, a
number, a party ...) and must never be taken for one another; like ones are one question put differently. The evidence
is taken to be the same in all: the worst case for the first and the usual one for the second.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.gateway.cache.threshold import highest_rate
from app.rag.index.embedding import Embedder
from app.rag.retrieval.slots import slots

# Each kind: what is said in the one question and in the other, in the place of a word or around the question.
SWAPS: dict[str, tuple[tuple[str, str], ...]] = {
    "negation": (
        ("is", "is not"), ("are", "are not"), ("does", "does not"), ("can", "cannot"), ("with", "without"),
        ("limited", "unlimited"), ("exclusive", "non-exclusive"), ("any", "no"), ("direct", "indirect"),
        ("reasonable", "unreasonable"), ("lawful", "unlawful"), ("include", "exclude"),
    ),
    "direction": (
        ("before", "after"), ("minimum", "maximum"), ("start", "end"), ("renewal", "termination"), ("buy", "sell"),
        ("more", "less"), ("increase", "decrease"), ("effective", "expiration"), ("first", "last"),
    ),
    "modality": (("may", "must"), ("can", "must"), ("shall", "may"), ("should", "must"), ("allowed", "required")),
}  # fmt: skip
FRAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "negation": (("{} if consent was given", "{} if consent was not given"),
                 ("{} where the party has failed to pay", "{} where the party has paid"),
                 ("{} unless notice is given", "{} once notice is given")),
    "number": (("{} within 30 days", "{} within 60 days"), ("{} after thirty-five days", "{} after forty-five days"),
               ("{} above $1 million", "{} above $2 million"), ("{} over 5 percent", "{} over 15 percent"),
               ("{} in the first year", "{} in the third year"),
               ("{} for two renewal terms", "{} for three renewal terms")),
    "date": (("{} as of January 1, 2019", "{} as of January 1, 2020"), ("{} since March 2018", "{} since April 2018"),
             ("{} from 15 June 2021", "{} from 25 June 2021"), ("{} until Monday", "{} until Friday")),
    "party": (("{} for the licensor", "{} for the licensee"), ("{} for the buyer", "{} for the seller"),
              ("{} with regard to Northwind Holdings", "{} with regard to Southgate Partners"),
              ("for the disclosing party, {}", "for the receiving party, {}"),
              ("for the landlord, {}", "for the tenant, {}"), ("{} against Orion Labs", "{} against Vega Labs")),
    "section": (("under Section 4.2, {}", "under Section 4.3, {}"), ("under Article IV, {}", "under Article VI, {}"),
                ("in Exhibit A, {}", "in Exhibit B, {}"),
                ("according to clause 7(a), {}", "according to clause 7(b), {}")),
    "modality": (("may a party act where {}", "must a party act where {}"),
                 ("{} and is it permitted", "{} and is it required"),
                 ("is a party entitled to know {}", "is a party obliged to know {}")),
    "place": (("in New York, {}", "in Delaware, {}"), ("{} in Germany", "{} in France"),
              ("{} in England", "{} in Scotland")),
}  # fmt: skip
PARAPHRASES = (
    "{}", "please tell me: {}", "I would like to know {}", "tell me {}", "could you say {}", "{}, please",
    "in this agreement, {}", "according to the contract, {}", "{} according to the agreement", "we need to know {}",
    "find out {}", "quick question: {}",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    kind: str
    one: str
    other: str


def evaluate(questions: Sequence[str], embedder: Embedder, threshold: float, pairs: int, seed: int) -> dict[str, Any]:
    """At least `pairs` pairs of each sort. unsafe: unlike ones that would be served, with the bound on their rate that
    holds with 95 % confidence; alike: the same by similarity alone, without the slots."""
    rng = random.Random(seed)
    different: list[Pair] = []
    while len(different) < pairs:
        different += unlike(rng, rng.choice(questions))
    same = [like(rng, rng.choice(questions)) for _ in range(pairs)]
    unsafe, alike = _served(different, embedder, threshold)
    hits, _ = _served(same, embedder, threshold)
    return {
        "threshold": threshold,
        "unlike": len(different),
        "by_kind": dict(Counter(pair.kind for pair in different)),
        "unsafe": [vars(pair) for pair in unsafe],
        "unsafe_at_most": highest_rate(len(unsafe), len(different)),
        "alike": len(alike),
        "like": len(same),
        "hit_rate": len(hits) / len(same),
    }


def _served(pairs: Sequence[Pair], embedder: Embedder, threshold: float) -> tuple[list[Pair], list[Pair]]:
    """(what passes both gates, what is similar enough)."""
    one, other = (embedder.embed_queries([getattr(pair, side) for pair in pairs]) for side in ("one", "other"))
    alike = [pair for pair, cosine in zip(pairs, (one * other).sum(1), strict=True) if cosine >= threshold]
    return [pair for pair in alike if slots(pair.one) == slots(pair.other)], alike


def unlike(rng: random.Random, question: str) -> Iterator[Pair]:
    """Pairs that differ in one thing that decides: of each kind one, by a word's opposite where there is one."""
    plain = _plain(question)
    for kind in dict.fromkeys([*SWAPS, *FRAMES]):
        swapped = [pair for one, other in SWAPS.get(kind, ()) for pair in _swapped(kind, plain, one, other)]
        if swapped and (kind not in FRAMES or rng.random() < 0.5):
            yield rng.choice(swapped)
        elif kind in FRAMES:
            one, other = rng.choice(FRAMES[kind])
            yield Pair(kind, _asked(one.format(plain)), _asked(other.format(plain)))


def like(rng: random.Random, question: str) -> Pair:
    """The same question as another person would put it."""
    one, other = rng.sample(PARAPHRASES, 2)
    plain = _plain(question)
    return Pair("paraphrase", _asked(one.format(plain)), _asked(_reworded(rng, other.format(plain))))


def _swapped(kind: str, plain: str, one: str, other: str) -> list[Pair]:
    word = re.compile(rf"\b{one}\b(?! not)", re.IGNORECASE)
    if not word.search(plain):
        return []
    return [Pair(kind, _asked(plain), _asked(word.sub(other, plain, count=1)))]


def _plain(question: str) -> str:
    text = question.strip().rstrip("?.! ")
    return text[:1].lower() + text[1:] if not text[:2].isupper() else text


def _asked(text: str) -> str:
    return text[:1].upper() + text[1:] + "?"


def _reworded(rng: random.Random, text: str) -> str:
    for one, other in (("agreement", "contract"), ("clause", "provision"), ("specify", "state"), ("details", "terms")):
        if rng.random() < 0.5:
            text = re.sub(rf"\b{one}\b", other, text)
    return text
