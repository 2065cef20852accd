"""What the demo model learns from: real contracts with annotations, generated contracts, and what is held out."""

import json
import lzma
import pickle
import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from demo import contamination
from demo.clauses import TOPIC_OF_CATEGORY, generate
from demo.episodes import Contract, Document, Fact, cut, tidy

MAX_CHARS = 500  # of a passage, as the product cuts them


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with lzma.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def real_documents(data: Path) -> list[Document]:
    """CUAD with its clause annotations, and the Common Paper templates."""
    labels: dict[str, list[tuple[str, list[dict[str, Any]]]]] = {}
    for row in read_lines(data / "cuad" / "questions.jsonl.xz"):
        labels.setdefault(row["contract"], []).append((row["category"], row["answers"]))
    documents = []
    for row in read_lines(data / "cuad" / "contracts.jsonl.xz"):
        text = tidy(row["text"])
        facts = tuple(_facts(text, len(text) / max(1, len(row["text"])), labels.get(row["contract"], [])))
        documents.append(Document(row["contract"].strip(), text, facts, frozenset(TOPIC_OF_CATEGORY.values())))
    for path in sorted((data / "templates_commonpaper").rglob("*.md")):
        if path.stem == "README":
            continue
        documents.append(Document(path.stem.replace("-", " "), tidy(path.read_text(encoding="utf-8"))))
    return documents


def _facts(text: str, shrunk: float, labels: list[tuple[str, list[dict[str, Any]]]]) -> Iterator[Fact]:
    """Annotated spans in the tidied text, found again near where they were."""
    for category, answers in labels:
        topic = TOPIC_OF_CATEGORY.get(category)
        for answer in answers if topic else ():
            wanted, near = tidy(answer["text"]), int(answer["start"] * shrunk)
            at = text.find(wanted, max(0, near - 3000))
            if wanted and at >= 0:
                yield Fact(str(topic), at, at + len(wanted))


def held_out(title: str) -> bool:
    return blake2b(title.encode()).digest()[0] < 20


@dataclass
class Corpus:
    training: list[Contract]
    generated: list[Contract]
    validation: list[Contract]  # real contracts that share next to nothing with those trained on
    exam: list[Contract]  # generated contracts that are not trained on
    texts: list[str]  # everything that is trained on


def load_corpus(data: Path | None, generated: int, cache: Path) -> Corpus:
    """Read, generate and chunk; cached, because chunking 21 million characters takes a while."""
    if cache.exists():
        loaded: Corpus = pickle.loads(cache.read_bytes())
        return loaded
    documents = real_documents(data) if data else []
    rng = random.Random(1)
    made = [generate(rng) for _ in range(generated)]
    training = [d for d in documents if not held_out(d.title)]
    grams = set[int]().union(*(contamination.sampled_grams(d.text) for d in training))
    strangers = [d for d in documents if held_out(d.title) and d.facts and is_stranger(d.text, grams)]
    chars = (MAX_CHARS, MAX_CHARS, 350)
    corpus = Corpus(
        [cut(d, rng.choice(chars)) for d in training],
        [cut(d, rng.choice(chars)) for d in made],
        [cut(d, MAX_CHARS) for d in strangers],
        [cut(generate(random.Random(10**6 + i)), MAX_CHARS) for i in range(60)],
        [d.text for d in (*training, *made)],
    )
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(pickle.dumps(corpus))
    return corpus


def is_stranger(text: str, known: set[int]) -> bool:
    """Contracts come in families (an amendment repeats its original); such a relative measures memory, not reading."""
    grams = contamination.sampled_grams(text)
    return bool(grams) and len(grams & known) <= 0.05 * len(grams)
