"""What the engine says about itself: counters, load, what is resident, and when a first token would come.

Written by the engine thread, read by any: every snapshot is one object, replaced as a whole. No torch.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import exp

from app.engine.blocks import BlockPool
from app.engine.cost import (
    COVERED,
    Backlog,
    Coverage,
    ResidualQuantiles,
    StepShape,
    StepTimeModel,
    TTFTPrediction,
    first_token_seconds,
)
from app.engine.prefix import BlockHasher, LabelChain, block_keys
from app.engine.request import Sequence, TokenSegment
from app.engine.scheduler import Scheduler

_DECAY = 0.99  # per request that ends, of how many output tokens lie between two ends


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
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._busy_until = 0.0  # when the step that runs now should be over
        self.cost = StepTimeModel()
        self.residuals = ResidualQuantiles()
        self._coverage = Coverage()
        self.backlog = Backlog(0, 0, 0, 1, 0, 0, pool.total, 0.0)
        self.load = EngineLoad(total_blocks=pool.total, free_blocks=pool.total)
        self._pool = pool
        self._hasher = hasher
        self._block_size = block_size
        self._planned: set[bytes] = set()  # blocks that a waiting or running request is going to compute
        self._budget = 1
        self._output_tokens = self._ended = 0.0

    def keys(self, segments: Seq[TokenSegment]) -> PromptKeys:
        """Hashing is the larger part of a prediction, so it is done once per prompt."""
        lengths = [len(segment.token_ids) for segment in segments]
        ends = tuple(sum(lengths[: i + 1]) for i in range(len(lengths)))
        if self._hasher is None:
            return PromptKeys(ends, ())
        tokens = [token for segment in segments for token in segment.token_ids]
        labels = LabelChain([(len(s.token_ids), s.label) for s in segments])
        return PromptKeys(ends, tuple(block_keys(self._hasher, tokens, labels, len(tokens) // self._block_size)))

    def match(self, prompt: PromptKeys) -> list[int]:
        """Resident tokens per segment."""
        resident = self._resident(prompt.keys) * self._block_size
        starts = (0, *prompt.ends[:-1])
        return [max(0, min(end, resident) - start) for start, end in zip(starts, prompt.ends, strict=True)]

    def predict(self, prompt: PromptKeys, quantile: float) -> TTFTPrediction:
        matchable = (prompt.num_tokens - 1) // self._block_size
        keys = prompt.keys[:matchable]
        seconds = max(0.0, self._busy_until - self._clock()) + self._seconds(keys, prompt.num_tokens)
        median, high = self.corrected(seconds, quantile)
        return TTFTPrediction(median, high, quantile, self._resident(keys) * self._block_size)

    def corrected(self, seconds: float, quantile: float) -> tuple[float, float]:
        """Median and quantile, by how wrong such predictions were lately."""
        median, high = self.residuals.quantiles(seconds, 0.5, quantile)
        widened = high * exp(self._coverage.log_factor * (quantile - 0.5) / (COVERED - 0.5))
        return seconds * median, seconds * max(median, widened) if quantile >= 0.5 else seconds * high

    def arrived(self, seq: Sequence) -> None:
        """Between two steps: a request is in the queue; its keys are known, and how long it has waited."""
        keys = seq.keys[: (seq.num_prompt_tokens - 1) // self._block_size]
        seq.predicted_ttft = self._clock() - seq.arrived + self._seconds(keys, seq.num_prompt_tokens)
        self._coverage.promise(seq, seq.arrived + self.corrected(seq.predicted_ttft, COVERED)[1])
        seq.planned = [key for key in keys if key not in self._planned and self._pool.lookup(key) is None]
        self._planned.update(seq.planned)
        last = self.backlog
        due = self._due(seq)
        self.backlog = Backlog(
            last.tokens_due + due, last.waiting + 1, last.running, last.free_seats, last.decode_rows,
            last.decode_context, last.blocks_available, last.tokens_per_end,
        )  # fmt: skip

    def started_output(self, seq: Sequence) -> None:
        """Its first token is out: what was predicted can be compared."""
        self.residuals.learn(seq.predicted_ttft, seq.first_token - seq.arrived)
        self._coverage.came(seq, seq.first_token)
        self.ended(seq)

    def ended(self, seq: Sequence) -> None:
        self._coverage.forget(seq)
        self._planned.difference_update(seq.planned)
        seq.planned = []

    def stepping(self, shape: StepShape) -> None:
        """A step of this shape begins."""
        self._busy_until = self._clock() + self.cost.seconds(shape)

    def stepped(self, shape: StepShape, seconds: float, ended: int, output_tokens: int) -> None:
        """A step of this shape took so long, gave so many tokens, and so many requests ended in it."""
        self.cost.learn(shape, seconds)
        decay = _DECAY**ended
        self._output_tokens = decay * self._output_tokens + output_tokens
        self._ended = decay * self._ended + ended

    def refresh(self, scheduler: Scheduler) -> None:
        """New snapshots of backlog and load."""
        self._coverage.settle(self._clock())
        pool, running, waiting = self._pool, scheduler.running, list(scheduler.waiting)
        behind = [len(seq.tokens) - seq.num_computed for seq in running]
        context = [seq.num_computed for seq, due in zip(running, behind, strict=True) if due == 1]
        due = sum(x for x in behind if x > 1) + sum(map(self._due, waiting))
        self._budget = scheduler.max_num_batched_tokens
        longest = sum(seq.max_tokens for seq in running) / max(1, len(running))
        self.backlog = Backlog(
            due, len(waiting), len(running), scheduler.max_num_seqs - len(running), len(context), sum(context),
            pool.available, min(longest, self._output_tokens / max(1.0, self._ended)),
        )  # fmt: skip
        self.load = EngineLoad(
            len(waiting), len(running), pool.total, pool.free, pool.used, pool.cached, pool.pinned,
            sum(len(seq.tokens) for seq in (*running, *waiting)), due, self.cost.steps, self.cost.coefficients(),
        )  # fmt: skip

    def _seconds(self, keys: Seq[bytes], num_tokens: int) -> float:
        """Before correction. Blocks that somebody ahead computes anyway are in the backlog already."""
        missing = sum(1 for key in keys if key not in self._planned and self._pool.lookup(key) is None)
        tail = num_tokens - len(keys) * self._block_size
        uncached = min(num_tokens, missing * self._block_size + tail)
        return first_token_seconds(
            self.backlog,
            self.cost,
            prompt_tokens=num_tokens,
            cached_tokens=num_tokens - uncached,
            budget=self._budget,
            blocks_needed=missing + 1,
        )

    def _resident(self, keys: Seq[bytes]) -> int:
        """Leading blocks in the cache."""
        return next((i for i, key in enumerate(keys) if self._pool.lookup(key) is None), len(keys))

    def _due(self, seq: Sequence) -> int:
        size = self._block_size
        return len(seq.planned) * size + len(seq.tokens) - (len(seq.tokens) - 1) // size * size
