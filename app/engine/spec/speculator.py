"""Drafts for the rows that decode: asked for before a step is scheduled, judged after it. No torch.

Verification is the ordinary step: a row is scheduled with its draft behind its last token, the sampler draws a token
at every one of these positions with the random number of that position, and the draft holds as far as it says the
same. That is lossless: a draft from these sources is one certain guess d, rejection sampling (Leviathan, Kalman,
Matias 2023, arXiv:2211.17192) accepts it with probability p(d) and otherwise draws from p without d, and drawing from
p first and comparing does both at once. It even gives the very tokens that decoding one by one gives, since the
random numbers belong to positions and not to steps.
"""

from collections.abc import Sequence as Seq
from copy import copy
from typing import Protocol

from app.engine.cost import StepShape, StepTimeModel
from app.engine.request import Request, Sequence
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.spec.counts import SpeculationCounts
from app.engine.spec.drafts import Draft, Drafter
from app.engine.spec.length import Acceptance, least_acceptance

MIN_STEPS = 8  # of the step-time model before it decides; until then drafts are short
EARLY_LENGTH = 2
LONG_MATCH = 8  # matches beyond this are alike
RESERVED = -1  # in place of a token that the draft model will write
GUESS = Draft([], 0, "model")


class Guesses(Protocol):
    """What the speculator needs of a draft model."""

    forward_seconds: float

    def write(self, rows: Seq[ScheduledRow]) -> None: ...


class Speculator:
    """most: draft tokens per row and step; 0 turns speculation off. model: guesses where nothing else does."""

    def __init__(self, cost: StepTimeModel, most: int, model: Guesses | None = None) -> None:
        self._cost = cost
        self._most = most
        self._model = model
        self._acceptance = Acceptance()
        self.totals = SpeculationCounts()

    def start(self, seq: Sequence, request: Request) -> None:
        if self._most:
            seq.drafter = Drafter(request.draft_token_ids)

    def propose(self, running: Seq[Sequence]) -> None:
        """Fill `draft` of those that decode."""
        if not self._most:
            return
        decoding = [seq for seq in running if seq.num_output_tokens and len(seq.tokens) - seq.num_computed == 1]
        if not decoding:
            return
        least, rate = self._least(decoding)
        for seq in decoding:
            seq.draft = self._draft(seq, least)
        if self._model is not None:
            self._reserve([seq for seq in decoding if not seq.draft], least + rate * self._model.forward_seconds)

    def complete(self, schedule: Schedule) -> None:
        """Let the model write what was reserved for it; what lock and grammar rule out is taken back."""
        rows = [row for row in schedule.rows if row.draft and row.draft[0] == RESERVED]
        if not rows or self._model is None:
            return
        self._model.write(rows)
        for row in rows:
            tokens = permitted(row.seq, row.draft)
            if row.seq.grammar is not None and tokens:
                tokens = tokens[: row.seq.grammar.look_ahead(tokens)]
            row.num_tokens -= len(row.draft) - len(tokens)
            row.draft = tokens

    def judged(self, seq: Sequence, draft: Seq[int], tokens: Seq[int]) -> None:
        """The step gave `tokens`: the accepted part of `draft` and one more."""
        if seq.drafter is None:
            return
        seq.drafter.wrote(tokens)
        if draft and seq.draft_of is not None:
            held = min(len(tokens) - 1, len(draft))
            self._acceptance.learn(_kind(seq.draft_of), min(held + 1, len(draft)), held)
            for counts in (seq.speculation, self.totals):
                counts.count(seq.draft_of.source, len(draft), held)

    def _least(self, decoding: Seq[Sequence]) -> tuple[float, float]:
        """What a draft token must promise to be worth its time in this step, and the step's rows per second."""
        rows, context = len(decoding), sum(seq.num_computed for seq in decoding)
        if self._cost.steps < MIN_STEPS:
            return 0.5, 0.0
        plain = self._cost.seconds(StepShape(0, rows, context, 0))
        longer = self._cost.seconds(StepShape(rows, rows, context, context))
        return least_acceptance(rows, plain, (longer - plain) / rows), rows / plain

    def _reserve(self, seqs: Seq[Sequence], least: float) -> None:
        """Places for guesses of the model; a pass of it serves all of them at once."""
        for seq in seqs:
            room = min(self._most, seq.max_tokens - seq.num_output_tokens - 1)
            length = self._acceptance.length(_kind(GUESS), room, least) if room > 0 and least < 1 else 0
            if length:
                seq.draft, seq.draft_of = [RESERVED] * length, GUESS

    def _draft(self, seq: Sequence, least: float) -> list[int]:
        room = min(self._most, seq.max_tokens - seq.num_output_tokens - 1)
        if seq.drafter is None or room <= 0 or least >= 1:
            return []
        seq.draft_of, tokens = _best(seq, room)
        if seq.draft_of is None:
            return []
        length = self._acceptance.length(_kind(seq.draft_of), len(tokens), least)
        if self._cost.steps < MIN_STEPS:
            length = min(length, EARLY_LENGTH)
        if seq.grammar is not None and length:
            length = seq.grammar.look_ahead(tokens[:length])
        return tokens[:length]


def _kind(draft: Draft) -> tuple[str, int]:
    return draft.source, min(draft.match, LONG_MATCH)


def _best(seq: Sequence, most: int) -> tuple[Draft | None, list[int]]:
    """The first draft, and as much of it as is possible. Within a quote it is the passage cited that decides: of
    several places where one word stands the lock leaves those from which the quote can go on."""
    assert seq.drafter is not None
    if seq.lock is None or not seq.lock.inside:
        for draft in seq.drafter.drafts(seq.tokens, most, 2):
            return draft, permitted(seq, draft.tokens)
        return None, []
    found: tuple[Draft | None, list[int]] = None, []
    for draft in seq.drafter.drafts(seq.tokens, most, 1):
        tokens = permitted(seq, draft.tokens)
        if len(tokens) == len(draft.tokens):
            return draft, tokens
        if len(tokens) > len(found[1]):
            found = draft, tokens
    if found[0] is not None:
        permitted(seq, found[1])
    return found


def permitted(seq: Sequence, tokens: list[int]) -> list[int]:
    """As many of these tokens as the quote lock does not rule out; leaves its state behind each in draft_locks."""
    seq.draft_locks = []
    if seq.lock is None:
        return tokens
    lock = seq.lock
    for i, token in enumerate(tokens):
        ahead = copy(lock)
        ahead.advance(token)
        if ahead.broken and not lock.broken:
            return tokens[:i]
        seq.draft_locks.append(ahead)
        lock = ahead
    return tokens
