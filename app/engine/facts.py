"""What the engine says about itself: counters, load, what is resident, and when a first token would come.

Written by the engine thread, read by any: every snapshot is one object, replaced as a whole. No torch.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from math import exp

from app.engine.blocks import BlockPool
from app.engine.cost import (
    COVERED,
    AnswerLengths,
    Backlog,
    Coverage,
    Outlook,
    ResidualQuantiles,
    StepShape,
    StepTimeModel,
    TTFTPrediction,
)
from app.engine.prefix import BlockHasher, LabelChain, block_keys
from app.engine.request import Sequence, TokenSegment
from app.engine.scheduler import Scheduler

_FRESH = 1.0  # seconds
_DECAY = 0.98  # per step, of what a decoding row gave and tried


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot after a step. Blocks: free + used + cached == total; pinned ones are used.

    tokens_per_s: output, over recent steps.  expired, forgotten: ended with these reasons.
    """

    running: int = 0
    waiting: int = 0
    total_blocks: int = 0
    free_blocks: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0
    steps: int = 0
    tokens_per_s: float = 0.0
    prompt_tokens: int = 0
    prefill_tokens_computed: int = 0
    output_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    pinned_blocks: int = 0
    aborts: int = 0
    expired: int = 0
    forgotten: int = 0
    draft_tokens: int = 0
    draft_tokens_accepted: int = 0


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """For routing. tokens_in_flight: prompt and output tokens of running and waiting requests; tokens_due: of those
    not computed yet.  step_ms: the fitted model, see StepTimeModel.coefficients()."""

    waiting: int = 0
    running: int = 0
    total_blocks: int = 0
    free_blocks: int = 0
    used_blocks: int = 0
    cached_blocks: int = 0
    pinned_blocks: int = 0
    tokens_in_flight: int = 0
    tokens_due: int = 0
    steps: int = 0
    step_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """A prompt as the prefix cache sees it. ends: where each segment ends; keys: of its whole blocks."""

    ends: tuple[int, ...]
    keys: tuple[bytes, ...]

    @property
    def num_tokens(self) -> int:
        return self.ends[-1] if self.ends else 0


class Forecaster:
    """Learns how long steps take and how wrong its predictions were."""

    def __init__(
        self, pool: BlockPool, hasher: BlockHasher | None, *, block_size: int,
        clock: Callable[[], float] = time.perf_counter, cost: StepTimeModel | None = None,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._busy_until = 0.0  # when the step that runs now should be over
        self.cost = cost or StepTimeModel()
        self.residuals = ResidualQuantiles()
        self._coverage = Coverage()
        self.backlog = Backlog((), (), 0, 1, 0, pool.total, 0.0)
        self.load = EngineLoad(total_blocks=pool.total, free_blocks=pool.total)
        self._pool = pool
        self._hasher = hasher
        self._block_size = block_size
        self._planned: set[bytes] = set()  # blocks that a waiting or running request is going to compute
        self._budget = 1
        self._lengths = AnswerLengths()
        self._scheduler: Scheduler | None = None
        self._stepped = 0.0  # when a step was over
        self._during = self.backlog, 0.0  # backlog and end of the step before, as predict() saw them then
        self._unseen = 0  # requests that came during that step and are in the queue by now
        self._usual = (1, 1, 1)  # the last request, for one that is not known
        self._places: dict[Sequence, tuple[int, int, int]] = {}  # of all requests: due, prompt, most
        self._rows = self._written = self._drafts = 0.0  # decoding rows, and their tokens, lately
        self._last: float | None = None  # when the step before this one was over, if there was work ever since

    def keys(self, segments: Seq[TokenSegment], adapter: str | None = None) -> PromptKeys:
        """Hashing is the larger part of a prediction, so it is done once per prompt."""
        lengths = [len(segment.token_ids) for segment in segments]
        ends = tuple(sum(lengths[: i + 1]) for i in range(len(lengths)))
        if self._hasher is None:
            return PromptKeys(ends, ())
        tokens = [token for segment in segments for token in segment.token_ids]
        labels = LabelChain([(len(s.token_ids), s.label) for s in segments])
        count = len(tokens) // self._block_size
        return PromptKeys(ends, tuple(block_keys(self._hasher, tokens, labels, count, adapter)))

    def match(self, prompt: PromptKeys) -> list[int]:
        """Resident tokens per segment."""
        resident = self._resident(prompt.keys) * self._block_size
        starts = (0, *prompt.ends[:-1])
        return [max(0, min(end, resident) - start) for start, end in zip(starts, prompt.ends, strict=True)]

    def predict(self, prompt: PromptKeys, quantile: float, unseen: int = 0) -> TTFTPrediction:
        """unseen: how many requests were sent that the engine does not know of yet; taken as ordinary ones."""
        matchable = (prompt.num_tokens - 1) // self._block_size
        keys = prompt.keys[:matchable]
        due = self._uncached(keys, prompt.num_tokens)
        seconds = self._seconds(self.backlog, self._busy_until, self._clock(), unseen, due, prompt.num_tokens)
        median, high = self.corrected(seconds, quantile)
        return TTFTPrediction(median, high, quantile, self._resident(keys) * self._block_size)

    def corrected(self, seconds: float, quantile: float) -> tuple[float, float]:
        """Median and quantile, by how wrong such predictions were lately.

        The median follows them only as far as they are fresh: what was wrong with predictions of 20 s is known 20 s
        later, of another queue. In simulated overload their medians made errors of 8 % into 15 %.
        """
        median, high = self.residuals.quantiles(seconds, 0.5, quantile)
        median **= exp(-seconds / _FRESH)
        widened = high * exp(self._coverage.log_factor * (quantile - 0.5) / (COVERED - 0.5))
        return seconds * median, seconds * max(median, widened) if quantile >= 0.5 else seconds * high

    def arrived(self, seq: Sequence) -> None:
        """Between two steps: a request is in the queue; its keys are known, and how long it has waited."""
        keys = seq.keys[: (seq.num_prompt_tokens - 1) // self._block_size]
        due = self._uncached(keys, seq.num_prompt_tokens)
        seen, busy_until, unseen = self.backlog, self._clock(), 0
        if seq.arrived < self._stepped:  # what predict() said then, during the step that is over now
            (seen, busy_until), unseen, self._unseen = self._during, self._unseen, self._unseen + 1
        prompt = seq.num_prompt_tokens
        seq.predicted_ttft = self._seconds(seen, busy_until, seq.arrived, unseen, due, prompt)
        self._coverage.promise(seq, seq.arrived + self.corrected(seq.predicted_ttft, COVERED)[1])
        seq.planned = [key for key in keys if key not in self._planned and self._pool.lookup(key) is None]
        self._planned.update(seq.planned)
        self._places[seq] = self._usual = self._due(seq), prompt, seq.max_tokens
        self.backlog = replace(self.backlog, waiting=(*self.backlog.waiting, self._places[seq]))

    def started_output(self, seq: Sequence) -> None:
        """Its first token is out: what was predicted can be compared."""
        self.residuals.learn(seq.predicted_ttft, seq.first_token - seq.arrived)
        self._coverage.came(seq, seq.first_token)
        self._settle(seq)

    def ended(self, seq: Sequence) -> None:
        if seq.first_token:
            self._lengths.learn(seq.num_output_tokens, seq.max_tokens)
        self._settle(seq)
        self._places.pop(seq, None)

    def _settle(self, seq: Sequence) -> None:
        self._coverage.forget(seq)
        self._planned.difference_update(seq.planned)
        seq.planned = []

    def stepping(self, shape: StepShape) -> None:
        """A step of this shape begins: what it computes is over when it is, and not to be waited for again."""
        self._busy_until = self._clock() + self.cost.seconds(shape)
        if self._scheduler is not None:
            self.backlog = self._look(self._scheduler, shape.prefill_tokens - shape.draft_tokens)
        self._during, self._unseen = (self.backlog, self._busy_until), 0

    def stepped(self, shape: StepShape, seconds: float, ended: int, output_tokens: int) -> None:
        """A step of this shape took so long and gave so many tokens.

        Where step follows step, what counts is the time from end to end: taking orders and sending tokens included.
        """
        now = self._stepped = self._clock()
        self.cost.learn(shape, seconds if self._last is None else now - self._last)
        self._last = now
        self._rows = _DECAY * self._rows + shape.decode_rows
        self._drafts = _DECAY * self._drafts + shape.draft_tokens
        self._written = _DECAY * self._written + min(output_tokens, shape.decode_rows + shape.draft_tokens)

    def refresh(self, scheduler: Scheduler) -> None:
        """New snapshots of backlog and load."""
        self._coverage.settle(self._clock())
        pool, running, waiting = self._pool, scheduler.running, list(scheduler.waiting)
        self._scheduler = scheduler
        if not running and not waiting:
            self._last = None
        self._budget = scheduler.max_num_batched_tokens
        self.backlog = self._look(scheduler, 0)
        due = self.backlog.catching_up + sum(due for due, *_ in self.backlog.waiting)
        self.load = EngineLoad(
            len(waiting), len(running), pool.total, pool.free, pool.used, pool.cached, pool.pinned,
            sum(len(seq.tokens) for seq in (*running, *waiting)), due, self.cost.steps, self.cost.coefficients(),
        )  # fmt: skip

    def _look(self, scheduler: Scheduler, computing: int) -> Backlog:
        """What lies before a new request once the step that computes so many tokens of prompts is over."""
        running = scheduler.running
        behind = sum(len(seq.tokens) - seq.num_computed - 1 for seq in running)
        own = sum(len(seq.tokens) - seq.num_cached for seq in running)
        return Backlog(
            tuple((seq.num_output_tokens, seq.max_tokens) for seq in running),
            tuple(self._places[seq] for seq in scheduler.waiting), max(0, behind - computing),
            scheduler.max_num_seqs - len(running), sum(seq.num_computed for seq in running), self._pool.available,
            own / self._block_size / max(1, len(running)), max(1.0, self._written / max(1.0, self._rows)),
            self._drafts / max(1.0, self._rows),
        )  # fmt: skip

    def _seconds(
        self, backlog: Backlog, busy_until: float, now: float, unseen: int, due: int, prompt_tokens: int
    ) -> float:
        """Before correction."""
        if unseen:
            backlog = replace(backlog, waiting=backlog.waiting + unseen * (self._usual,))
        outlook = Outlook(backlog, self.cost, self._lengths, self._budget, self._block_size)
        return max(0.0, busy_until - now) + outlook.first_token(due, prompt_tokens)

    def _uncached(self, keys: Seq[bytes], num_tokens: int) -> int:
        """Tokens to compute; blocks that somebody ahead computes anyway are in the backlog already."""
        missing = sum(1 for key in keys if key not in self._planned and self._pool.lookup(key) is None)
        return min(num_tokens, missing * self._block_size + num_tokens - len(keys) * self._block_size)

    def _resident(self, keys: Seq[bytes]) -> int:
        """Leading blocks in the cache."""
        return next((i for i, key in enumerate(keys) if self._pool.lookup(key) is None), len(keys))

    def _due(self, seq: Sequence) -> int:
        size = self._block_size
        return len(seq.planned) * size + len(seq.tokens) - (len(seq.tokens) - 1) // size * size
