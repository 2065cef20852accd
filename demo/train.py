"""Train the demo model: `python -m demo.train --minutes 90 --data shared/data`.

Batches, losses and the loop (`Trainer.train`); the material comes from `corpus` and `episodes`, the arithmetic from
`network`. Without --data it learns from generated contracts alone. It runs on a GPU when there is one and on a laptop's
CPU otherwise, writes a complete Hugging Face folder every quarter of an hour, and continues from its checkpoint with
--resume.
"""

import argparse
import math
import os
import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from demo import contamination
from demo.clauses import QUESTIONS
from demo.corpus import Corpus, load_corpus
from demo.episodes import IGNORE, Batch, Encoder, EpisodeMaker, Recipe, Row, collate, visible
from demo.export import Progress, export, model_card
from demo.network import Decoder, KeyValue, Shape, Trace
from demo.tokenizer_training import train_tokenizer
from demo.validation import Score, draw_exam, examine

POLICY = Path(__file__).parent.parent / "app" / "rag" / "answers" / "legal_prompt.md"
STUB = "# Policy for answers about contracts"  # stands for the policy where a phase trains without it
VOCABULARY = 6144
ASKED_LAYER, SENTENCE_LAYER, FIRST_LAYER, NUMBER_LAYER = 2, 3, 4, 1  # under supervision, see `losses`


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
    Phase(0.58, Recipe((4, 5), 2, 6, 0.15, 0.75, 0.2, 400), 0.08, 4096),
    Phase(0.76, Recipe((4, 6), 0, 6, 0.22, 0.8, 0.15), 0.3, 6144),
    Phase(1.00, Recipe((5, 5), 0, 6, 0.2, 0.85, 0.1), 0.85, 6144),
)


# ---------------------------------------------------------------- batches


def make_tokenizer(corpus: Corpus) -> Tokenizer:
    """The policy and the questions are short beside the contracts; repeating them makes their words whole tokens."""
    questions = [question for asked in QUESTIONS.values() for question in asked]
    return train_tokenizer([*corpus.texts, *[POLICY.read_text(encoding="utf-8")] * 250, *questions * 40], VOCABULARY)


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


# ---------------------------------------------------------------- losses


def attention_mass(
    trace: Trace, layer: int, rows: Tensor, looking: Tensor, low: Tensor, high: Tensor, mask: Tensor
) -> Tensor:
    """Minus log of the attention that head 0 of `layer` pays from (rows, looking) to tokens low..high, per choice."""
    queries, keys = trace.attention[layer]
    prefix = keys.shape[2] - queries.shape[2]
    every = torch.bmm(queries[:, 0], keys[:, 0].transpose(1, 2))  # (batch, tokens, prefix + tokens)
    scores = every[rows, looking].float() / queries.shape[-1] ** 0.5
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
        return self.answer + self.asked + self.sentence + self.first + 0.2 * self.number


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


@torch.no_grad()
def validate(network: Decoder, numbers: nn.Linear, tests: Sequence[Batch], prefix: list[KeyValue] | None) -> Score:
    score = Score()
    for batch in tests:
        _, predicted, chosen = losses(network, numbers, batch, prefix)
        score.add(batch.kinds[chosen], predicted == batch.targets[chosen])
    return score


# ---------------------------------------------------------------- the loop


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

    def __str__(self) -> str:
        return " ".join(f"{count}:{speed:.0f}" for count, speed in sorted(self.speed.items()))


class Every:
    """A clock that rings once per `minutes` of training time."""

    def __init__(self, progress: Progress, minutes: float) -> None:
        self.progress, self.minutes, self.last = progress, minutes, progress.seconds

    def due(self) -> bool:
        if self.progress.seconds - self.last < 60 * self.minutes:
            return False
        self.last = self.progress.seconds
        return True


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
        self.state = Progress(
            hardware=torch.cuda.get_device_name() if self.device.type == "cuda" else f"{os.cpu_count()} CPU cores"
        )
        self.averages: dict[str, float] = {}
        self.size = sum(p.numel() for p in self.network.parameters())
        self._tests()
        say(
            f"{self.size / 1e6:.2f} M parameters, policy {len(self.policy)} tokens, "
            f"{len(self.corpus.training)} real and {len(self.corpus.generated)} generated contracts"
        )

    def _tests(self) -> None:
        made = EpisodeMaker(self.corpus.exam, QUESTIONS)
        self.examiner = EpisodeMaker(self.corpus.validation or self.corpus.exam, QUESTIONS)
        self.exams = {"real": draw_exam(self.examiner, 200, 0.25, 7), "generated": draw_exam(made, 200, 0.25, 8)}
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
        self.state = Progress(**saved["state"])
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

    def publish(self, questions: int) -> None:
        """Export what there is, examine it with `questions` of each kind of contract, and say so in the model card."""
        real = self.args.data is not None
        export(self.network, self.encoder.tokenizer, self.args.out)
        with self.autocast():
            prefix = self.prefix()
            found = {
                name: examine(self.network, self.encoder, prefix, exam[:questions]) for name, exam in self.exams.items()
            }
        for name, measured in found.items():
            say(f"  exam, {name}: " + ", ".join(f"{measure} {value:.2f}" for measure, value in measured.items()))
        card = model_card(self.state, found, questions, self.size, real)
        (self.args.out / "README.md").write_text(card, encoding="utf-8")
        say(f"  exported to {self.args.out}")

    def train(self) -> None:
        makers = [EpisodeMaker(contracts, QUESTIONS) for contracts in (self.corpus.training, self.corpus.generated)]
        feeder = Feeder([m for m in makers if m.contracts], self.encoder, self.policy, seed=self.state.step)
        threads, budget = Threads(), self.args.minutes * 60
        saving = Every(self.state, 2)
        reporting, publishing = Every(self.state, self.args.report_minutes), Every(self.state, self.args.export_minutes)
        while self.state.seconds < budget:
            began = time.monotonic()
            feeder.fraction = self.state.seconds / budget
            batch, behind = feeder.ready.get()
            found = self.step(to_device(batch, self.device), behind, feeder.fraction)
            self.state.step += 1
            self.state.tokens += batch.tokens.numel()
            threads.tick(self.state.step, batch.tokens.numel() / (time.monotonic() - began))
            self.note(found, threads)
            if saving.due():
                self.save()
            if reporting.due():
                self.report()
            if publishing.due():
                self.publish(20)
            self.state.seconds += time.monotonic() - began
        self.save()
        self.report()
        self.publish(200)

    def note(self, found: Losses, threads: Threads) -> None:
        """Keep running averages of the losses, and print them now and then."""
        for name, value in vars(found).items():
            self.averages[name] = 0.98 * self.averages.get(name, value.item()) + 0.02 * value.item()
        if self.state.step % 50 == 0:
            done = f"step {self.state.step} {self.state.seconds / 60:.1f} min {self.state.tokens / 1e6:.2f} M"
            parts = " ".join(f"{name} {value:.3f}" for name, value in self.averages.items())
            say(f"{done} | {parts} | tok/s {threads}")


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
