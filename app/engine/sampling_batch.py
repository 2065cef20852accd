"""What the rows of a step ask of the sampler, as tensors. Rebuilt only when the rows change.

In a decoding batch the same sequences sample step after step: then only the random numbers, the tokens counted
for penalties and the end tokens still banned by min_tokens differ.
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.engine.positions import Positions
from app.engine.quote_lock import QuoteLock
from app.engine.request import Sequence
from app.engine.sampler import Pairs, Penalties, SamplingBatch, uniform

Owners = npt.NDArray[np.int64]
Steps = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
State = tuple[QuoteLock | None, Mask | None]


class SamplingBatches:
    """Owned by the runner. discard() when a sequence has ended."""

    def __init__(self, vocab_size: int, eos_token_ids: Seq[int]) -> None:
        self._eos = tuple(eos_token_ids)
        self._vocab_size = vocab_size
        self._tokens = _TokenCounts(vocab_size)
        self._rows: list[Sequence] = []
        self._batch: SamplingBatch | None = None
        self._seeds = np.zeros(0, dtype=np.uint64)
        self._min_tokens = np.zeros(0, dtype=np.uint64)

    def batch(self, seqs: list[Sequence], drafts: Seq[list[int]] = ()) -> SamplingBatch:
        """For these sequences, in this order, at their next output position and at those behind each draft token."""
        if self._batch is None or seqs != self._rows:
            self._rebuild(seqs)
        assert self._batch is not None
        steps = np.array([seq.num_output_tokens for seq in seqs], dtype=np.uint64)
        if self._batch.penalties is not None:
            self._tokens.refresh(self._batch.penalties, seqs)
        if not any(drafts):
            return self._here(self._batch, np.arange(len(seqs)), steps, _locks(seqs))
        positions = Positions(drafts)
        batch, owners = positions.batch(self._batch), positions.owners
        return self._here(batch, owners, steps[owners] + positions.places, _locks(seqs, drafts))

    def _here(self, batch: SamplingBatch, owners: Owners, steps: Steps, locks: list[State]) -> SamplingBatch:
        """With what changes from position to position. owners: the row of each; steps: its output position."""
        batch.uniform = torch.from_numpy(uniform(self._seeds[owners], steps))
        batch.banned = self._banned(owners, steps)
        batch.locked = self._locked(locks)
        return batch

    def discard(self, seq: Sequence) -> None:
        self._tokens.discard(seq)
        self._rows, self._batch = [], None

    def _rebuild(self, seqs: list[Sequence]) -> None:
        params = [seq.sampling for seq in seqs]
        self._rows = list(seqs)
        self._seeds = np.array([seq.seed for seq in seqs], dtype=np.uint64)
        self._min_tokens = np.array([p.min_tokens for p in params], dtype=np.uint64)
        biased = [(i, token, bias) for i, p in enumerate(params) for token, bias in p.logit_bias.items()]
        self._batch = SamplingBatch(
            temperature=torch.tensor([p.temperature for p in params]),
            top_k=torch.tensor([p.top_k for p in params]),
            top_p=torch.tensor([p.top_p for p in params]),
            min_p=torch.tensor([p.min_p for p in params]),
            uniform=torch.empty(0),
            sampled=_where([not p.is_greedy and not p.has_filters for p in params]),
            filtered=_where([not p.is_greedy and p.has_filters for p in params]),
            with_logprobs=_where([p.logprobs is not None for p in params]),
            num_top=max((p.logprobs or 0 for p in params), default=0),
            biased=_pairs([(i, token) for i, token, _ in biased]) if biased else None,
            bias=torch.tensor([bias for _, _, bias in biased]) if biased else None,
            penalties=self._penalties(seqs),
        )

    def _penalties(self, seqs: list[Sequence]) -> Penalties | None:
        rows = _where([seq.sampling.has_penalties for seq in seqs])
        if not len(rows):
            return None
        params = [seqs[i].sampling for i in rows.tolist()]
        none = torch.empty(0)
        return Penalties(
            rows,
            counts=none,
            seen=none,
            presence=torch.tensor([[p.presence_penalty] for p in params]),
            frequency=torch.tensor([[p.frequency_penalty] for p in params]),
            repetition=torch.tensor([[p.repetition_penalty] for p in params]),
        )

    def _locked(self, states: list[State]) -> Pairs | None:
        """Positions with a quote lock or a grammar that is not indifferent there. The loop is over these alone: each
        is an automaton; a grammar's mask was computed while the model ran."""
        rows, masks = [], []
        for i, (lock, grammar) in enumerate(states):
            mask = self._impossible(lock, grammar) if lock is not None or grammar is not None else None
            if mask is not None:
                rows.append(i)
                masks.append(mask)
        return (torch.tensor(rows), torch.stack(masks)) if rows else None

    def _impossible(self, lock: QuoteLock | None, grammar: Mask | None) -> Tensor | None:
        """Where lock and grammar leave nothing together, the grammar's end is still an end."""
        locked = self._outside_quotes(lock) if lock is not None else None
        if grammar is None:
            return locked
        by_grammar = torch.from_numpy(grammar)
        both = by_grammar if locked is None else by_grammar | locked
        return by_grammar if bool(both.all()) else both

    def _outside_quotes(self, lock: QuoteLock) -> Tensor | None:
        allowed, forbidden = lock.allowed(), lock.forbidden()
        if allowed is None and not forbidden:
            return None
        mask = torch.full((self._vocab_size,), allowed is not None)
        mask[forbidden if allowed is None else allowed] = allowed is None
        return mask

    def _banned(self, owners: Owners, steps: Steps) -> Pairs | None:
        """End tokens where a row has not reached its min_tokens."""
        early = np.flatnonzero(steps < self._min_tokens[owners]).tolist()
        ends = {int(row): {*self._rows[row].sampling.stop_token_ids, *self._eos} for row in owners[early]}
        pairs = [(i, end) for i in early for end in ends[int(owners[i])]]
        return _pairs(pairs) if pairs else None


def _locks(seqs: list[Sequence], drafts: Seq[list[int]] = ()) -> list[State]:
    """Quote lock and grammar mask at every position."""
    states: list[State] = []
    for seq, draft in zip(seqs, drafts or [[]] * len(seqs), strict=True):
        count = 1 + len(draft)
        locks = [seq.lock, *seq.draft_locks][:count] if seq.lock is not None else [None] * count
        masks = seq.grammar.impossible(len(draft)) if seq.grammar is not None else [None] * count
        states += zip(locks, masks, strict=True)
    return states


class _TokenCounts:
    """Occurrences of every token in the output and the prompt of the sequences with penalties."""

    def __init__(self, vocab_size: int) -> None:
        self._counts = torch.zeros(0, vocab_size)
        self._seen = torch.zeros(0, vocab_size, dtype=torch.bool)
        self._places: dict[Sequence, int] = {}
        self._counted: dict[Sequence, int] = {}
        self._free: list[int] = []

    def refresh(self, penalties: Penalties, seqs: list[Sequence]) -> None:
        """Count what these sequences gained since the last time, the token of the last step included."""
        mine = [seqs[i] for i in penalties.rows.tolist()]
        for seq in mine:
            if seq not in self._places:
                self._add(seq)
        new = [seq.tokens[self._counted[seq] :] for seq in mine]
        self._counted.update((seq, len(seq.tokens)) for seq in mine)
        places = torch.tensor([self._places[seq] for seq in mine])
        rows = places.repeat_interleave(torch.tensor([len(tokens) for tokens in new]))
        tokens = torch.tensor([token for some in new for token in some], dtype=torch.int64)
        self._counts.index_put_((rows, tokens), torch.ones(len(tokens)), accumulate=True)
        self._seen[rows, tokens] = True
        penalties.counts, penalties.seen = self._counts[places], self._seen[places]

    def discard(self, seq: Sequence) -> None:
        place = self._places.pop(seq, None)
        if place is not None:
            del self._counted[seq]
            self._free.append(place)

    def _add(self, seq: Sequence) -> None:
        if not self._free:
            self._grow()
        place = self._places[seq] = self._free.pop()
        self._counted[seq] = seq.num_prompt_tokens
        self._counts[place], self._seen[place] = 0.0, False
        self._seen[place, torch.tensor(seq.tokens[: seq.num_prompt_tokens])] = True

    def _grow(self) -> None:
        old = len(self._counts)
        self._free += range(old, 2 * old + 4)
        self._counts = torch.cat([self._counts, self._counts.new_zeros(old + 4, self._counts.shape[1])])
        self._seen = torch.cat([self._seen, self._seen.new_zeros(old + 4, self._seen.shape[1])])


def _where(flags: list[bool]) -> Tensor:
    return torch.tensor([i for i, flag in enumerate(flags) if flag], dtype=torch.int64)


def _pairs(pairs: Seq[tuple[int, int]]) -> Pairs:
    rows, tokens = torch.tensor(pairs).unbind(1)
    return rows, tokens
