"""Train the draft model, a tenth of the demo model's size: `python -m demo.draft --minutes 10 --data shared/data`.

It shares the demo model's tokenizer and learns from the same episodes, by the answer's tokens alone: a draft only needs
to guess what the larger model will say, and is corrected where it does not (app/engine/spec/model.py). Checkpoints in
--work, continued with --resume, like demo/train.py.
"""

import argparse
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor

from app.engine.checksums import write_sums
from demo.clauses import QUESTIONS
from demo.corpus import load_corpus
from demo.episodes import IGNORE, Batch, Encoder, EpisodeMaker, visible
from demo.export import export
from demo.network import Decoder, KeyValue, Shape
from demo.train import PHASES, POLICY, STUB, VOCABULARY, Feeder, batches, rate, to_device

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
         "head_dim": 32, "intermediate_size": 192}  # fmt: skip
SAVE_EVERY = 60.0  # seconds
CARD = """---
license: apache-2.0
language: en
---
# Precedent demo draft model

{size:.2f} million parameters that guess what the demo model will say next, so that it can verify several tokens at
once. It answers nothing by itself. Trained by `demo/draft.py` for {minutes:.0f} minutes on {tokens:.1f} million tokens
of the episodes that `demo/train.py` describes. On contracts it was not trained on, behind the same passages, its
likeliest token is the next token of the annotated answer in {agreement:.0%} of the places.
"""


class DraftTrainer:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(0)
        args.work.mkdir(parents=True, exist_ok=True)
        corpus = load_corpus(args.data, args.generated, args.work / "corpus.pickle")
        self.tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
        self.encoder = Encoder(self.tokenizer)
        self.policy = self.encoder.system_ids(POLICY.read_text(encoding="utf-8").strip())
        self.network = Decoder(Shape(VOCABULARY, **SMALL)).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
        self.seconds, self.steps, self.tokens = 0.0, 0, 0
        makers = [EpisodeMaker(contracts, QUESTIONS) for contracts in (corpus.training, corpus.generated)]
        self.feeder = Feeder([m for m in makers if m.contracts], self.encoder, self.policy, seed=1)
        exam = EpisodeMaker(corpus.validation or corpus.exam, QUESTIONS)
        stub = self.encoder.system_ids(STUB)
        self.tests = batches([exam], self.encoder, PHASES[-2], stub, 0, random.Random(5))

    def losses(self, batch: Batch, prefix: list[KeyValue] | None) -> tuple[Tensor, Tensor]:
        """Of the answers' tokens: the mean loss, and for each whether the likeliest token is the right one."""
        size = prefix[0][0].shape[2] if prefix else 0
        hidden, _ = self.network(batch.tokens, batch.positions, visible(batch.branch, size), prefix)
        chosen = batch.targets != IGNORE
        logits, targets = self.network.logits(hidden[chosen]).float(), batch.targets[chosen]
        return F.cross_entropy(logits, targets), logits.argmax(-1) == targets

    @torch.no_grad()
    def prefix(self) -> list[KeyValue]:
        tokens = torch.tensor([self.policy], device=self.device)
        _, memory = self.network(tokens, torch.arange(len(self.policy), device=self.device)[None])
        return list(memory)

    @torch.no_grad()
    def agreement(self) -> float:
        right = torch.cat([self.losses(to_device(batch, self.device), None)[1] for batch in self.tests])
        return float(right.float().mean())

    def step(self, batch: Batch, behind: bool, fraction: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = 4e-3 * rate(self.steps, fraction)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss, _ = self.losses(batch, self.prefix() if behind else None)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        self.tokens += batch.tokens.numel()
        return loss.item()

    def train(self) -> None:
        budget, saved, loss = self.args.minutes * 60, self.seconds, 0.0
        columns = TextColumn("draft model"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
        with Progress(*columns) as bar:
            task = bar.add_task("", total=budget)
            while self.seconds < budget:
                began = time.monotonic()
                self.feeder.fraction = self.seconds / budget
                batch, behind = self.feeder.ready.get()
                found = self.step(to_device(batch, self.device), behind, self.feeder.fraction)
                loss = 0.98 * loss + 0.02 * found if loss else found
                self.seconds += time.monotonic() - began
                told = f"loss {loss:.3f}, {self.tokens / 1e6:.1f} M tokens"
                bar.update(task, completed=min(self.seconds, budget), description=told)
                if self.seconds - saved > SAVE_EVERY:
                    saved = self.seconds
                    self.save()
        self.save()
        self.publish()

    def publish(self) -> None:
        export(self.network, self.tokenizer, self.args.out)
        size = sum(p.numel() for p in self.network.parameters()) / 1e6
        agreement = self.agreement()
        card = CARD.format(size=size, minutes=self.seconds / 60, tokens=self.tokens / 1e6, agreement=agreement)
        (self.args.out / "README.md").write_text(card, encoding="utf-8")
        write_sums(self.args.out, self.args.out / "SHA256SUMS")
        print(f"{size:.2f} M parameters, agreement {agreement:.1%}, written to {self.args.out}")

    def save(self) -> None:
        kept = {name: getattr(self, name) for name in ("seconds", "steps", "tokens")}
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "kept": kept}
        torch.save(state, self.args.work / "draft.partial")
        os.replace(self.args.work / "draft.partial", self.args.work / "draft.pt")

    def resume(self) -> None:
        state = torch.load(self.args.work / "draft.pt", map_location=self.device, weights_only=False)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["kept"].items():
            setattr(self, name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--data", type=Path, help="folder with cuad/ and templates_commonpaper/ (optional)")
    parser.add_argument("--model", type=Path, default=Path("demo/model"), help="whose tokenizer it shares")
    parser.add_argument("--out", type=Path, default=Path("demo/draft"))
    parser.add_argument("--work", type=Path, default=Path(".scratch/train"), help="checkpoints and caches")
    parser.add_argument("--generated", type=int, default=1500, help="how many contracts to generate")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    trainer = DraftTrainer(args)
    if args.resume and (args.work / "draft.pt").exists():
        trainer.resume()
    trainer.train()


if __name__ == "__main__":
    main()
