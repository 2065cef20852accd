"""A small decoder that guesses for a large one (Leviathan, Kalman, Matias 2023, arXiv:2211.17192).

Its keys and values lie in pages of its own, but in the same blocks: where a token's block is, is known once, shared
prefixes are shared by both models, and a refused draft is forgotten by both at once. Prompts are computed by both
models; output tokens only when it is about to guess. A page that it has not computed holds zeros or old values, which
costs accepted tokens and nothing else: every guess is verified.
"""

import time
from collections.abc import Sequence as Seq
from pathlib import Path

import torch

from app.engine.architecture import DecoderSpec, read_spec
from app.engine.forward import Forward
from app.engine.kv_cache import KVCache
from app.engine.request import Sequence
from app.engine.schedule import Schedule, ScheduledRow

_RECENT = 0.9  # of the running mean of a forward pass's time


def read_draft_spec(folder: Path, target: DecoderSpec, longest: int) -> DecoderSpec:
    """Raises ValueError where the model has another vocabulary than the target or cannot read as much."""
    spec = read_spec(folder)
    if (spec.vocab_size, spec.eos_token_ids) != (target.vocab_size, target.eos_token_ids):
        raise ValueError(
            f"the draft model {folder} has {spec.vocab_size} tokens, ending with {spec.eos_token_ids}; the model "
            f"has {target.vocab_size}, ending with {target.eos_token_ids}: they must share one tokenizer"
        )
    if spec.max_position < longest:
        raise ValueError(f"the draft model {folder} reads {spec.max_position} tokens; the model reads {longest}")
    return spec


class DraftModel:
    """forward: runs it over the pages in `cache`."""

    def __init__(self, forward: Forward, cache: KVCache) -> None:
        self.forward, self.cache = forward, cache
        self.forward_seconds = 1e-3  # of one pass over rows of one token, lately

    def read(self, schedule: Schedule) -> None:
        """Compute what the target computes of prompts."""
        rows = [row for row in schedule.rows if not row.decodes]
        if rows:
            self._forward(rows)
        for row in rows:
            row.seq.draft_computed = row.start + row.num_tokens

    def write(self, rows: Seq[ScheduledRow]) -> None:
        """Fill the drafts of these rows, which have room for them, with the likeliest tokens one after the other."""
        began, passes = time.perf_counter(), max(len(row.draft) for row in rows)
        for place in range(passes):
            here = [row for row in rows if len(row.draft) > place]
            chosen = self._forward([self._next(row, place) for row in here]).argmax(-1).tolist()
            for row, token in zip(here, chosen, strict=True):
                row.draft[place] = token
                row.seq.draft_computed = row.start + place + 1
        self.forward_seconds += (1 - _RECENT) * ((time.perf_counter() - began) / passes - self.forward_seconds)

    def _next(self, row: ScheduledRow, place: int) -> ScheduledRow:
        """The token behind which the draft goes on, with the output tokens before it that were not computed yet."""
        if place:
            return ScheduledRow(row.seq, row.start + place, 1, [row.draft[place - 1]])
        start = min(row.seq.draft_computed or row.start, row.start)
        return ScheduledRow(row.seq, start, row.start + 1 - start)

    def discard(self, seq: Sequence) -> None:
        self.forward.discard(seq)

    def _forward(self, rows: list[ScheduledRow]) -> torch.Tensor:
        schedule = Schedule(sorted(rows, key=lambda row: row.num_tokens > 1), shared_blocks=[0] * len(rows))
        logits = self.forward.run(schedule)
        order = {id(row.seq): i for i, row in enumerate(schedule.rows)}
        return logits[[order[id(row.seq)] for row in rows]] if len(logits) == len(rows) else logits
