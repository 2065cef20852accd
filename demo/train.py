"""Train the demo model: `python -m demo.train --minutes 90 --data shared/data`.

Tokenizer, episodes, network, training, validation, export; the loop is `train`. Without --data it learns from
generated contracts alone. It runs on a GPU when there is one and on a laptop's CPU otherwise, writes a complete
Hugging Face folder every quarter of an hour, and continues from its checkpoint with --resume.
"""

import argparse
import json
import lzma
import math
import os
import pickle
import queue
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from demo import contamination
from demo.clauses import QUESTIONS, TOPIC_OF_CATEGORY, generate
from demo.episodes import (
    CITE,
    DECIDE,
    FIRST,
    IGNORE,
    REFUSE,
    STOP_HERE,
    Batch,
    Contract,
    Document,
    Encoder,
    Episode,
    EpisodeMaker,
    Fact,
    Recipe,
    Row,
    collate,
    cut,
    tidy,
    visible,
)  # fmt: skip
from demo.network import Decoder, KeyValue, Shape, Trace
from demo.tokenizer_training import save_tokenizer, train_tokenizer

POLICY = Path(__file__).parent.parent / "app" / "rag" / "legal_prompt.md"
STUB = "# Policy for answers about contracts"  # stands for the policy where a phase trains without it
VOCABULARY = 6144
ASKED_LAYER, SENTENCE_LAYER, FIRST_LAYER, NUMBER_LAYER = (
    2,
    3,
    4,
    1,
)  # where attention and passage numbers are supervised
MAX_CHARS = 500


@dataclass(frozen=True)
class Phase:
    """A stretch of the curriculum; `until` is a fraction of the training time, `behind_policy` a share of steps."""

    until: float
    recipe: Recipe
    behind_policy: float
    tokens: int  # per step


PHASES = (
    Phase(0.12, Recipe((3, 4), 1, 8, 0.0, 0.25, 0.5, 180, 0.7, 0.1), 0.0, 2048),
    Phase(0.26, Recipe((4, 5), 1, 8, 0.05, 0.6, 0.3, 300, 0.5, 0.2), 0.0, 3072),
    Phase(0.45, Recipe((4, 5), 2, 8, 0.15, 0.75, 0.2, 400), 0.05, 4096),
    Phase(0.70, Recipe((4, 6), 0, 8, 0.22, 0.8, 0.15, full_quote=0.3), 0.2, 6144),
    Phase(1.00, Recipe((5, 5), 0, 8, 0.25, 0.85, 0.1, full_quote=0.4), 0.85, 6144),
)


# ---------------------------------------------------------------- data


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
    strangers = [d for d in documents if held_out(d.title) and d.facts and _is_stranger(d.text, grams)]
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


def _is_stranger(text: str, known: set[int]) -> bool:
    """Contracts come in families (an amendment repeats its original); such a relative measures memory, not reading."""
    grams = contamination.sampled_grams(text)
    return bool(grams) and len(grams & known) <= 0.05 * len(grams)


def make_tokenizer(corpus: Corpus) -> Tokenizer:
    """The policy and the questions are short beside the contracts; repeating them makes their words whole tokens."""
    questions = [question for asked in QUESTIONS.values() for question in asked]
    return train_tokenizer([*corpus.texts, *[POLICY.read_text(encoding="utf-8")] * 250, *questions * 40], VOCABULARY)


# ---------------------------------------------------------------- batches


def batches(
    maker: Sequence[EpisodeMaker], encoder: Encoder, phase: Phase, system: list[int], start: int, rng: random.Random
) -> list[Batch]:
    """A few batches of about `phase.tokens` tokens, sequences of like length together."""
    rows: list[Row] = []
    while sum(len(row.tokens) for row in rows) < 4 * phase.tokens:
        episode = rng.choice(maker).draw(rng, phase.recipe)
        if episode is not None:
            rows.append(encoder.pack(rng, episode, system, start, phase.recipe.full_quote))
    rows.sort(key=lambda row: len(row.tokens))
    groups, group = [], [rows[0]]
    for row in rows[1:]:
        if len(row.tokens) * (len(group) + 1) > phase.tokens:
            groups.append(group)
            group = []
        group.append(row)
    return [collate(group, 0) for group in groups]


class Feeder:
    """Prepares batches in a thread while the network computes; `fraction` of the time spent decides the phase."""

    def __init__(self, makers: Sequence[EpisodeMaker], encoder: Encoder, policy: list[int], seed: int) -> None:
        self.makers, self.encoder, self.policy = makers, encoder, policy
        self.stub = encoder.system_ids(STUB)
        self.rng = random.Random(seed)
        self.fraction = 0.0
        self.ready: queue.Queue[tuple[Batch, bool]] = queue.Queue(maxsize=6)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            phase = next(phase for phase in PHASES if self.fraction < phase.until or phase is PHASES[-1])
            behind = self.rng.random() < phase.behind_policy
            system, start = ([], len(self.policy)) if behind else (self.stub, 0)
            made = batches(self.makers, self.encoder, phase, system, start, self.rng)
            self.rng.shuffle(made)
            for batch in made:
                self.ready.put((batch, behind))


# ---------------------------------------------------------------- loss


def attention_mass(
    trace: Trace, layer: int, rows: Tensor, looking: Tensor, low: Tensor, high: Tensor, mask: Tensor
) -> Tensor:
    """Minus log of the attention that head 0 of `layer` pays from (rows, looking) to tokens low..high, per choice."""
    queries, keys = trace.attention[layer]
    prefix = keys.shape[2] - queries.shape[2]
    asked = queries[rows, 0, looking]  # (choices, head_dim)
    scores = torch.einsum("nd,ntd->nt", asked.float(), keys[rows, 0].float()) / asked.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[rows, 0, looking], -math.inf).log_softmax(dim=-1)
    at = torch.arange(scores.shape[1], device=scores.device) - prefix
    inside = (at >= low[:, None]) & (at < high[:, None])
    mass: Tensor = scores.masked_fill(~inside, -math.inf).logsumexp(dim=-1)
    return -mass


@dataclass
class Losses:
    answer: Tensor
    asked: Tensor
    sentence: Tensor
    first: Tensor
    number: Tensor

    def total(self) -> Tensor:
        """Telling attention where to look is what makes choosing learnable in minutes instead of days."""
        return self.answer + self.asked + self.sentence + 0.4 * self.first + 0.2 * self.number


def losses(
    network: Decoder, numbers: nn.Linear, batch: Batch, prefix: list[KeyValue] | None
) -> tuple[Losses, Tensor, Tensor]:
    """The losses, and for the trained positions the predicted tokens and the mask that selects them."""
    size = prefix[0][0].shape[2] if prefix else 0
    mask = visible(batch.branch, size)
    trace = Trace()
    hidden, _ = network(batch.tokens, batch.positions, mask, prefix, trace)
    chosen = batch.targets != IGNORE
    logits = network.logits(hidden[chosen]).float()
    weights = batch.weights[chosen]
    answer = (F.cross_entropy(logits, batch.targets[chosen], reduction="none") * weights).sum() / weights.sum()
    rows, looking, low, high = batch.asked.unbind(1)
    asked = attention_mass(trace, ASKED_LAYER, rows, looking, low, high, mask).mean()
    rows, looking, low, high = batch.sentence.unbind(1)
    sentence = attention_mass(trace, SENTENCE_LAYER, rows, looking, low, high, mask).mean()
    rows, looking, low = batch.first.unbind(1)
    first = attention_mass(trace, FIRST_LAYER, rows, looking, low, low + 1, mask).mean()
    inside = (batch.passage_of > 0) & (torch.rand(batch.tokens.shape, device=batch.tokens.device) < 0.25)
    number = F.cross_entropy(numbers(trace.hidden[NUMBER_LAYER][inside]).float(), batch.passage_of[inside])
    return Losses(answer, asked, sentence, first, number), logits.argmax(-1), chosen


# ---------------------------------------------------------------- validation


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
        named = (("answers", DECIDE), ("refuses", REFUSE), ("cites", CITE), ("first word", FIRST), ("stops", STOP_HERE))
        return ", ".join(f"{name} {self.of(kind):.2f}" for name, kind in named)


@torch.no_grad()
def validate(network: Decoder, numbers: nn.Linear, tests: Sequence[Batch], prefix: list[KeyValue] | None) -> Score:
    score = Score()
    for batch in tests:
        _, predicted, chosen = losses(network, numbers, batch, prefix)
        score.add(batch.kinds[chosen], predicted == batch.targets[chosen])
    return score


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


_ANSWER = re.compile(r"\[(\d+)\][^\"]*\"(.*)\"?$", re.S)


@torch.no_grad()
def examine(network: Decoder, encoder: Encoder, prefix: list[KeyValue], exam: Sequence[Episode]) -> dict[str, float]:
    """Greedy answers in production format: shares of hits (word F1 with the gold sentence >= 0.5), refusals, and so on."""
    tally = dict.fromkeys(
        ("answerable", "hit", "exact", "cited", "verbatim", "wrongly refused", "unanswerable", "refused"), 0
    )
    for episode in exam:
        question = episode.questions[0]
        row = encoder.pack(random.Random(0), Episode(episode.title, episode.passages, ()), [], 0, 1.0)
        asked = [*row.tokens, *encoder.request(question.text)]
        said = encoder.tokenizer.decode(generate_greedily(network, prefix, asked, encoder.end))
        match = _ANSWER.search(said)
        quote = match[2].removesuffix('"') if match else ""
        if question.passage is None:
            tally["unanswerable"] += 1
            tally["refused"] += match is None
            continue
        tally["answerable"] += 1
        tally["wrongly refused"] += match is None
        tally["hit"] += token_f1(quote, question.quote) >= 0.5
        tally["exact"] += quote == question.quote
        tally["cited"] += match is not None and int(match[1]) == question.passage + 1
        tally["verbatim"] += bool(quote) and any(quote in text for _, text in episode.passages)
    answerable, unanswerable = max(1, tally.pop("answerable")), max(1, tally.pop("unanswerable"))
    return {name: n / (unanswerable if name == "refused" else answerable) for name, n in tally.items()}


def draw_exam(maker: EpisodeMaker, count: int, refusals: float, seed: int) -> list[Episode]:
    rng = random.Random(seed)
    exam: list[Episode] = []
    while len(exam) < count:
        wanted = Recipe((5, 5), 0, 1, 1.0 if len(exam) < refusals * count else 0.0, 1.0, 0.0)
        episode = maker.draw(rng, wanted)
        if episode and episode.questions[0].topic:
            exam.append(episode)
    return exam


# ---------------------------------------------------------------- export


def export(network: Decoder, tokenizer: Tokenizer, out: Path, card: str) -> None:
    """A complete Hugging Face folder; the weights are replaced in one step, so readers never see half a file."""
    from transformers import GenerationConfig, Qwen3Config

    out.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id("<|end|>")
    shape = {key: value for key, value in network.shape.to_json().items() if key != "rope_theta"}
    settings: dict[str, Any] = {
        **shape,
        "rope_parameters": {"rope_type": "default", "rope_theta": network.shape.rope_theta},
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": end,
        "pad_token_id": 0,
        "dtype": "bfloat16",
        "architectures": ["Qwen3ForCausalLM"],
        "use_sliding_window": False,
    }
    Qwen3Config(**settings).save_pretrained(out)
    greedy = GenerationConfig(eos_token_id=end, pad_token_id=0, do_sample=False, max_new_tokens=256)  # type: ignore[no-untyped-call]
    greedy.save_pretrained(out)
    save_tokenizer(tokenizer, out, network.shape.max_position_embeddings)
    weights = {
        f"model.{name}": value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
    }
    save_file(weights, out / "model.partial", metadata={"format": "pt"})
    os.replace(out / "model.partial", out / "model.safetensors")
    (out / "README.md").write_text(card, encoding="utf-8")


def model_card(state: "State", exams: dict[str, dict[str, float]], size: int, minutes: float, real: bool) -> str:
    measures = next(iter(exams.values()))
    rows = "\n".join(
        f"| {name} | " + " | ".join(f"{exam[name]:.0%}" for exam in exams.values()) + " |" for name in measures
    )
    head = "| measure | " + " | ".join(f"{name} contracts" for name in exams) + " |\n" + "|---" * (len(exams) + 1) + "|"
    source = (
        "the CUAD v1 contracts (CC BY 4.0, The Atticus Project), Common Paper templates (CC BY 4.0) and "
        if real
        else ""
    )
    return f"""---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# Precedent demo model

A Qwen3-style decoder with {size / 1e6:.1f} million parameters that reads five numbered passages and a question, and answers
with a citation and a verbatim quote, or refuses. It exists so that a fresh, offline machine has a model that really reads.

It was trained from scratch by `demo/train.py` on {state.hardware}: {minutes:.0f} minutes, {state.tokens / 1e6:.1f} million tokens,
from {source}contracts generated by `demo/clauses.py`.
The texts are not part of this repository; these weights are derived from them.

Measured on contracts it was not trained on, behind the policy in `app/rag/legal_prompt.md`, greedy decoding:

{head}
{rows}

`hit`: word F1 with the annotated sentence at least 0.5. `cited`: the right passage. `verbatim`: the quote stands in a
passage. `refused`: of the unanswerable questions.

What it is not: a language model for anything else. It has no knowledge of the law, it cannot summarise or reason, it
chooses wrongly often enough that every quote needs to be checked, and it knows no language but the English of contracts.
"""


# ---------------------------------------------------------------- the loop


@dataclass
class State:
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    hardware: str = ""


def optimizers(network: Decoder, numbers: nn.Linear) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in network.layers.parameters() if p.ndim == 2]
    rest = [p for p in network.parameters() if not any(p is matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW([*rest, *numbers.parameters()], lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, fraction: float) -> float:
    """Warm up, hold, and go down to a twentieth over the last 40 % of the time."""
    return min(1.0, (step + 1) / 100) * min(1.0, 0.05 + 0.95 * (1 - fraction) / 0.4)


class Threads:
    """On a busy machine two threads wait for each other and one is faster; try now and then and keep the better."""

    def __init__(self) -> None:
        self.speed: dict[int, float] = {}
        self.most = max(1, torch.get_num_threads())
        self.trial: list[int] = []

    def tick(self, step: int, speed: float) -> None:
        """`speed` is tokens per second of the step just done."""
        count = torch.get_num_threads()
        self.speed[count] = 0.7 * self.speed.get(count, speed) + 0.3 * speed
        if step % 60 == 0 and self.most > 1:
            self.trial = [3 - count if self.most == 2 else (1 if count > 1 else self.most)] * 5
            self.speed.pop(self.trial[0], None)
        if self.trial:
            torch.set_num_threads(self.trial.pop())
        elif self.speed:
            torch.set_num_threads(max(self.speed, key=lambda threads: self.speed[threads]))


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(getattr(batch, name).to(device) for name in Batch.__dataclass_fields__))


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        args.work.mkdir(parents=True, exist_ok=True)
        say("reading and chunking contracts")
        self.corpus = load_corpus(args.data, args.generated, args.work / "corpus.pickle")
        saved = args.work / "tokenizer.json"
        if not saved.exists():
            make_tokenizer(self.corpus).save(str(saved))
        args.out.mkdir(parents=True, exist_ok=True)
        contamination.write_hashes(self.corpus.texts, args.out / contamination.FILE)
        self.encoder = Encoder(Tokenizer.from_file(str(saved)))
        self.policy = self.encoder.system_ids(POLICY.read_text(encoding="utf-8").strip())
        self.network = Decoder(Shape(VOCABULARY)).to(self.device)
        self.numbers = nn.Linear(self.network.shape.hidden_size, 10, bias=False).to(self.device)
        self.optimizers = optimizers(self.network, self.numbers)
        self.state = State(
            hardware=torch.cuda.get_device_name() if self.device.type == "cuda" else f"{os.cpu_count()} CPU cores"
        )
        self.size = sum(p.numel() for p in self.network.parameters())
        self._tests()
        say(
            f"{self.size / 1e6:.2f} M parameters, policy {len(self.policy)} tokens, "
            f"{len(self.corpus.training)} real and {len(self.corpus.generated)} generated contracts"
        )

    def _tests(self) -> None:
        made = EpisodeMaker(self.corpus.exam, QUESTIONS)
        self.examiner = EpisodeMaker(self.corpus.validation or self.corpus.exam, QUESTIONS)
        self.exams = {"real": draw_exam(self.examiner, 60, 0.25, 7), "generated": draw_exam(made, 60, 0.25, 8)}
        rng = random.Random(5)
        early, late = (
            Phase(1, Recipe((4, 5), 1, 8, 0.15, 0.4, 0.3, 300, 0.5), 0, 4096),
            Phase(1, Recipe((5, 5), 0, 8, 0.25, 0.8, 0.1), 0, 8192),
        )
        stub = self.encoder.system_ids(STUB)
        self.tests = {
            "short": batches([self.examiner], self.encoder, early, stub, 0, rng)[:3],
            "long": batches([self.examiner], self.encoder, late, stub, 0, rng)[:2],
            "policy": batches([self.examiner], self.encoder, late, [], len(self.policy), rng)[:1],
        }

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def prefix(self) -> list[KeyValue]:
        tokens = torch.tensor([self.policy], device=self.device)
        with self.autocast():
            _, memory = self.network(tokens, torch.arange(len(self.policy), device=self.device)[None])
        return list(memory)

    def resume(self, path: Path) -> None:
        saved = torch.load(path, map_location=self.device, weights_only=False)
        self.network.load_state_dict(saved["network"])
        self.numbers.load_state_dict(saved["numbers"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.state = State(**saved["state"])
        say(f"resumed at step {self.state.step}, {self.state.seconds / 60:.1f} minutes")

    def save(self) -> None:
        saved = {
            "network": self.network.state_dict(),
            "numbers": self.numbers.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": vars(self.state),
        }
        torch.save(saved, self.args.work / "checkpoint.partial")
        os.replace(self.args.work / "checkpoint.partial", self.args.work / "checkpoint.pt")

    def step(self, batch: Batch, behind: bool, fraction: float) -> Losses:
        now = rate(self.state.step, fraction)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("full_lr", group["lr"])
                group["lr"] = group["full_lr"] * now
        prefix = self.prefix() if behind else None
        with self.autocast():
            found, _, _ = losses(self.network, self.numbers, batch, prefix)
        found.total().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([*self.network.parameters(), *self.numbers.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return found

    def report(self) -> None:
        with self.autocast():
            for name, tests in self.tests.items():
                prefix = self.prefix() if name == "policy" else None
                ready = [to_device(batch, self.device) for batch in tests]
                say(f"  {name}: {validate(self.network, self.numbers, ready, prefix)}")

    def publish(self) -> None:
        """Examine and export what there is."""
        with self.autocast():
            prefix = self.prefix()
            found = {name: examine(self.network, self.encoder, prefix, exam) for name, exam in self.exams.items()}
        for name, measured in found.items():
            say(f"  exam, {name}: " + ", ".join(f"{measure} {value:.2f}" for measure, value in measured.items()))
        card = model_card(self.state, found, self.size, self.state.seconds / 60, self.args.data is not None)
        export(self.network, self.encoder.tokenizer, self.args.out, card)
        say(f"  exported to {self.args.out}")

    def train(self) -> None:
        real, made = EpisodeMaker(self.corpus.training, QUESTIONS), EpisodeMaker(self.corpus.generated, QUESTIONS)
        makers = [maker for maker, share in ((real, 1), (made, 1)) if maker.contracts for _ in range(share)]
        feeder = Feeder(makers, self.encoder, self.policy, seed=self.state.step)
        threads, budget = Threads(), self.args.minutes * 60
        reported = published = saved = self.state.seconds
        averages: dict[str, float] = {}
        while self.state.seconds < budget:
            began = time.monotonic()
            feeder.fraction = self.state.seconds / budget
            batch, behind = feeder.ready.get()
            found = self.step(to_device(batch, self.device), behind, feeder.fraction)
            for name, value in vars(found).items():
                averages[name] = 0.98 * averages.get(name, value.item()) + 0.02 * value.item()
            spent = time.monotonic() - began
            self.state.step += 1
            self.state.tokens += batch.tokens.numel()
            self.state.seconds += spent
            threads.tick(self.state.step, batch.tokens.numel() / spent)
            if self.state.step % 50 == 0:
                parts = " ".join(f"{name} {value:.3f}" for name, value in averages.items())
                speed = " ".join(f"{n}:{v:.0f}" for n, v in sorted(threads.speed.items()))
                say(
                    f"step {self.state.step} {self.state.seconds / 60:.1f} min {self.state.tokens / 1e6:.2f} M | {parts} | tok/s {speed}"
                )
            if self.state.seconds - saved > 120:
                self.save()
                saved = self.state.seconds
            if self.state.seconds - reported > 60 * self.args.report_minutes:
                began = time.monotonic()
                self.report()
                self.state.seconds += time.monotonic() - began
                reported = self.state.seconds
            if self.state.seconds - published > 60 * self.args.export_minutes:
                began = time.monotonic()
                self.publish()
                self.state.seconds += time.monotonic() - began
                published = self.state.seconds
        self.save()
        self.report()
        self.publish()


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--data", type=Path, help="folder with cuad/ and templates_commonpaper/ (optional)")
    parser.add_argument("--out", type=Path, default=Path("demo/model"))
    parser.add_argument("--work", type=Path, default=Path(".scratch/train"), help="checkpoints and caches")
    parser.add_argument("--generated", type=int, default=1500, help="how many contracts to generate")
    parser.add_argument("--report-minutes", type=float, default=4)
    parser.add_argument("--export-minutes", type=float, default=15)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    trainer = Trainer(args)
    if args.resume and (args.work / "checkpoint.pt").exists():
        trainer.resume(args.work / "checkpoint.pt")
    trainer.train()


if __name__ == "__main__":
    main()
