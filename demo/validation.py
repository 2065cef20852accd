"""How well the demo model chooses and quotes, on contracts it was not trained on."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from demo.episodes import CITE, COPY, DECIDE, FIRST, REFUSE, STOP_HERE, Encoder, Episode, EpisodeMaker, Recipe, visible
from demo.network import Decoder, KeyValue


@dataclass
class Score:
    """Teacher-forced accuracies by kind of token, on contracts that were not trained on."""

    right: dict[int, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)

    def add(self, kinds: Tensor, right: Tensor) -> None:
        for kind in sorted(set(kinds.tolist())):
            at = kinds == kind
            self.right[kind] = self.right.get(kind, 0) + int(right[at].sum())
            self.seen[kind] = self.seen.get(kind, 0) + int(at.sum())

    def of(self, kind: int) -> float:
        return self.right.get(kind, 0) / max(1, self.seen.get(kind, 0))

    def __str__(self) -> str:
        named = (
            ("answers", DECIDE),
            ("refuses", REFUSE),
            ("cites", CITE),
            ("first word", FIRST),
            ("copies", COPY),
            ("stops", STOP_HERE),
        )
        return ", ".join(f"{name} {self.of(kind):.2f}" for name, kind in named)


@torch.no_grad()
def generate_greedily(
    network: Decoder, prefix: list[KeyValue], ids: list[int], end: int, limit: int = 160
) -> list[int]:
    """One answer behind a cached prefix; ids are the tokens after it."""
    device = network.embed_tokens.weight.device
    memory, position = prefix, prefix[0][0].shape[2]
    out: list[int] = []
    tokens = torch.tensor([ids], device=device)
    mask = visible(torch.zeros_like(tokens), position)
    while len(out) < limit:
        positions = torch.arange(position, position + tokens.shape[1], device=device)[None]
        hidden, memory = network(tokens, positions, mask, memory)
        position += tokens.shape[1]
        token = int(network.logits(hidden[:, -1]).argmax())
        if token == end:
            break
        out.append(token)
        tokens = torch.tensor([[token]], device=device)
        mask = torch.ones(1, 1, 1, position + 1, dtype=torch.bool, device=device)
    return out


def token_f1(one: str, other: str) -> float:
    """Overlap of words as a multiset, the usual measure of extractive answers."""
    left, right = re.findall(r"\w+", one.lower()), re.findall(r"\w+", other.lower())
    common = sum(min(left.count(word), right.count(word)) for word in set(left))
    return 2 * common / (len(left) + len(right)) if common else 0.0


MEASURES = ("hit", "hit where not ranked first", "exact", "cited", "verbatim", "wrongly refused", "refused")
_ANSWER = re.compile(r"\[(\d+)\][^\"]*\"(.*)\"?$", re.S)


def mark(said: str, episode: Episode) -> dict[str, bool]:
    """What is right about one answer; a measure that the question cannot test is left out."""
    question = episode.questions[0]
    match = _ANSWER.search(said)
    if question.passage is None:
        return {"refused": match is None}
    quote = match[2].removesuffix('"') if match else ""
    hit = token_f1(quote, question.quote) >= 0.5
    marks = {
        "hit": hit,
        "exact": quote == question.quote,
        "cited": match is not None and int(match[1]) == question.passage + 1,
        "verbatim": bool(quote) and any(quote in text for _, text in episode.passages),
        "wrongly refused": match is None,
    }
    return marks if question.passage == 0 else marks | {"hit where not ranked first": hit}


@torch.no_grad()
def examine(network: Decoder, encoder: Encoder, prefix: list[KeyValue], exam: Sequence[Episode]) -> dict[str, float]:
    """Greedy answers in production format: for each measure of `mark` its share among the questions that test it."""
    marks: dict[str, list[bool]] = {}
    for episode in exam:
        row = encoder.pack(random.Random(0), Episode(episode.title, episode.passages, ()), [], 0, 1.0)
        asked = [*row.tokens, *encoder.request(episode.questions[0].text)]
        said = encoder.tokenizer.decode(generate_greedily(network, prefix, asked, encoder.end))
        for name, right in mark(said, episode).items():
            marks.setdefault(name, []).append(right)
    return {name: sum(marks.get(name, [])) / max(1, len(marks.get(name, []))) for name in MEASURES}


def draw_exam(maker: EpisodeMaker, count: int, refusals: float, seed: int) -> list[Episode]:
    rng = random.Random(seed)
    exam: list[Episode] = []
    while len(exam) < count:
        wanted = Recipe((5, 5), 0, 1, 1.0 if len(exam) < refusals * count else 0.0, 1.0, 0.0)
        episode = maker.draw(rng, wanted)
        if episode and episode.questions[0].topic:
            exam.append(episode)
    rng.shuffle(exam)
    return exam
