"""The engine: requests in, tokens out, one step at a time."""

import itertools
import random
import time
from collections.abc import Collection
from collections.abc import Sequence as Seq
from dataclasses import replace

import torch

from app.engine.admission import Limits, check_request
from app.engine.blocks import BlockPool
from app.engine.config import EngineConfig, SamplingParams
from app.engine.cost import StepShape
from app.engine.facts import EngineLoad, EngineStats, Forecaster
from app.engine.grammar import Grammars
from app.engine.laps import Laps
from app.engine.model import resolve_threads
from app.engine.offline import Collected
from app.engine.overlap import Flight, take_off, waits, without_placeholders
from app.engine.prefix import BlockHasher, Label, LabelCount
from app.engine.quote_lock import QuoteLock, QuoteSources
from app.engine.request import EngineError, FinishReason, Request, RequestOutput, Sequence, StepOutput, TokenSegment
from app.engine.runner import Launched, ModelRunner, Sampled
from app.engine.schedule import Schedule, ScheduledRow
from app.engine.scheduler import Scheduler
from app.engine.spec.speculator import Speculator
from app.engine.warm import Warm

MAX_PINNED = 0.5  # of the pool


class LLMEngine:
    """Not thread-safe: one thread calls it (AsyncEngine brings one).

    Raises ValueError for a model or pool that cannot work; see loader.py and runner.py.
    """

    def __init__(self, config: EngineConfig, warm: Warm | None = None, laps: Laps | None = None) -> None:
        """warm: what was left of the last one, if any; laps: where the seconds went."""
        torch.set_num_threads(resolve_threads(config.threads, config.num_ranks))
        self.config, warm, laps = config, warm or Warm(), laps or Laps()
        self.runner = runner = ModelRunner(config, warm.weights, laps)
        self.pool = BlockPool(runner.num_blocks)
        size, model_id = config.block_size, f"{runner.folder.resolve()}:{runner.dtype}"
        hasher = BlockHasher(model_id, size) if config.enable_prefix_cache else None
        # Its own hasher: prompts are fingerprinted in the caller's thread.
        outside = BlockHasher(model_id, size) if config.enable_prefix_cache else None
        self.forecast = Forecaster(self.pool, outside, block_size=size, cost=warm.cost)
        self.scheduler = Scheduler(
            self.pool,
            hasher,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            block_size=size,
        )
        self.forecast.refresh(self.scheduler)
        self.tokenizer = warm.tokenizer_of(runner.folder)
        laps.lap("tokenizer")
        has_text = self.tokenizer is not None
        adapters = frozenset(config.adapters)
        self.limits = Limits(runner.max_model_len, runner.spec.vocab_size, has_text, config.max_num_seqs, adapters)
        self.grammars = Grammars(self.tokenizer, runner.spec.vocab_size, runner.spec.eos_token_ids)
        self.speculator = Speculator(self.forecast.cost, config.max_draft_tokens, runner.draft_model)
        self._sequences: dict[str, Sequence] = {}
        self._seeds = random.Random(config.seed)
        self._stats = EngineStats(total_blocks=self.pool.total, free_blocks=self.pool.total)
        self._ended: dict[FinishReason, int] = {}
        self._flight: Flight | None = None

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def check(self, request: Request) -> None:
        """Raises InvalidRequest or ContextTooLong for what cannot work. May be called from any thread."""
        check_request(request, self.limits)
        if request.grammar is not None:
            self.grammars.check(request.grammar)

    def add_request(self, request: Request, arrived: float | None = None) -> None:
        """Raises InvalidRequest or ContextTooLong; an id that is running already is a ValueError.

        arrived: by time.perf_counter(), where that was earlier than now.
        """
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is running already")
        max_tokens = check_request(request, self.limits)
        grammar = self.grammars.start(request.grammar) if request.grammar is not None else None
        seed = request.sampling.seed
        seq = Sequence(request, self._seeds.getrandbits(63) if seed is None else seed, max_tokens, arrived)
        seq.lock, seq.grammar = self._quote_lock(request), grammar
        self.speculator.start(seq, request)
        self._sequences[request.request_id] = seq
        self.scheduler.add(seq)
        self.forecast.arrived(seq)

    def _quote_lock(self, request: Request) -> QuoteLock | None:
        if not request.quote_sources or self.tokenizer is None:
            return None
        return QuoteLock(self.tokenizer.vocabulary, QuoteSources(request.quote_sources))

    def abort(self, request_id: str) -> StepOutput | None:
        """End a request wherever it is and give its blocks back; None if it has ended already."""
        seq = self._sequences.get(request_id)
        return None if seq is None else self._abort([seq])[0]

    def abort_all(self) -> list[StepOutput]:
        return self._abort(list(self._sequences.values()))

    def _abort(self, seqs: list[Sequence]) -> list[StepOutput]:
        """No step may follow that would count them out."""
        ended = [self._finish(seq, [], "abort") for seq in seqs]
        self._count(Schedule(), 0, 0.0)
        return ended

    def step(self) -> list[StepOutput]:
        """Schedule, run, postprocess. A step in which nothing can be scheduled returns no tokens."""
        began = time.perf_counter()
        outputs = [self._finish(seq, [], "deadline") for seq in self.scheduler.expired()]
        if self._flight is not None and any(map(waits, self.scheduler.running)):
            outputs += self._land()
        self.speculator.propose(self.scheduler.running)
        schedule = self.scheduler.schedule()
        if self.config.overlap:
            return outputs + self._land(then=schedule)
        if not schedule.rows:
            self._count(schedule, 0, 0.0)
            return outputs
        shape = schedule.shape()
        self.forecast.stepping(shape)
        outputs += self._postprocess(schedule, self._run(schedule))
        self._stepped(schedule, shape, outputs, time.perf_counter() - began)
        return outputs

    def _stepped(self, schedule: Schedule, shape: StepShape, outputs: list[StepOutput], seconds: float) -> None:
        ended, written = sum(o.finish_reason is not None for o in outputs), sum(len(o.token_ids) for o in outputs)
        self.forecast.stepped(shape, seconds, ended, written)
        self.scheduler.took(schedule, seconds)
        self._count(schedule, written, seconds)

    def generate(
        self, prompts: list[list[int]], sampling: SamplingParams | list[SamplingParams]
    ) -> list[RequestOutput]:
        """All prompts to their end, in order. Raises InvalidRequest before anything runs if one is impossible."""
        params = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
        pairs = zip(prompts, params, strict=True)
        requests = [Request(f"offline-{i}", (TokenSegment(p),), s) for i, (p, s) in enumerate(pairs)]
        return self.generate_requests(requests)

    def generate_requests(self, requests: Seq[Request]) -> list[RequestOutput]:
        """As generate(), for requests with segments and labels."""
        for request in requests:
            self.check(request)
        for request in requests:
            self.add_request(request)
        collected = {r.request_id: Collected(r, self.tokenizer) for r in requests}
        while self.has_work:
            for output in self.step():
                if collected[output.request_id].add(output) and output.finish_reason is None:
                    ended = self.abort(output.request_id)
                    assert ended is not None
                    collected[output.request_id].add(ended)
        return [collected[r.request_id].output() for r in requests]

    def warm_up(self) -> None:
        """One small request through every path, so that the first caller does not pay; leaves no cached block."""
        length = min(4 * self.config.block_size, self.limits.max_model_len - 2)
        prompt = [i % self.limits.vocab_size for i in range(length)]
        self.generate([prompt, prompt[: length // 2]], SamplingParams(max_tokens=2, ignore_eos=True))
        self.pool.forget_all()

    def pin(self, segments: Seq[TokenSegment]) -> int:
        """Compute the whole blocks of this prefix and keep them for good; returns how many tokens they hold.

        For a start, before there are requests: raises EngineError beside running work, and ValueError where more
        than MAX_PINNED of the pool would be pinned. Requests may then be shorter by what is pinned.
        """
        if self.has_work:
            raise EngineError("pin() needs an engine without work.")
        self.generate_requests([pin_request(segments)])
        return self.keep(segments)

    def keep(self, segments: Seq[TokenSegment]) -> int:
        """Pin as much of this prefix as is in the cache now; returns how many tokens that is."""
        prompt = self.forecast.keys(segments)
        found = list(itertools.takewhile(lambda block: block is not None, map(self.pool.lookup, prompt.keys)))
        blocks = [block for block in found if block is not None]
        pinned = self.pool.pinned + sum(not block.pinned for block in blocks)
        if pinned > MAX_PINNED * self.pool.total:
            raise ValueError(f"{pinned} blocks would be pinned; at most {MAX_PINNED:.0%} of {self.pool.total} may be")
        for block in blocks:
            self.pool.pin(block)
        self._pins_changed()
        return len(blocks) * self.config.block_size

    def forget(self, source_ids: Collection[str]) -> list[StepOutput]:
        """Drop every block and pin computed from these sources and clear free memory; whoever reads them ends."""
        ended = [self._finish(seq, [], "forgotten") for seq in self.scheduler.users_of(source_ids)]
        self.pool.forget(source_ids)
        self.runner.clear(self.pool.free_ids())
        self._pins_changed()
        return ended

    def stats(self) -> EngineStats:
        return self._stats

    def load(self) -> EngineLoad:
        return self.forecast.load

    def label_counts(self) -> dict[Label, LabelCount]:
        """Prompt tokens and prefix cache hits per access label."""
        return self.scheduler.labels.snapshot()

    def _pins_changed(self) -> None:
        room = (self.pool.total - self.pool.pinned) * self.config.block_size
        self.limits = replace(self.limits, max_model_len=min(self.runner.max_model_len, room))
        self._count(Schedule(), 0, 0.0)

    def _run(self, schedule: Schedule) -> Sampled:
        with torch.inference_mode():
            self._prepare(schedule)
            return self.runner.run(schedule)

    def _launch(self, schedule: Schedule) -> Launched:
        with torch.inference_mode():
            self._prepare(schedule)
            return self.runner.launch(schedule)

    def _prepare(self, schedule: Schedule) -> None:
        self.runner.prepare(schedule)
        self.speculator.complete(schedule)

    def _land(self, then: Schedule | None = None) -> list[StepOutput]:
        """Launch the next step, if any, and process the one before."""
        last, self._flight = self._flight, None
        if then is not None and then.rows:
            self._flight = take_off(then, self._launch, self.runner.tokens)
        if last is None:
            self._count(Schedule(), 0, 0.0)
            return []
        self.forecast.stepping(last.shape)
        outputs: list[StepOutput] = []
        sampled, at = last.launched.wait(), 0
        for row, count in zip(last.schedule.rows, last.samples, strict=True):
            if self._sequences.get(row.seq.request_id) is row.seq:  # else it has ended since
                outputs += self._land_row(row, sampled, at, count)
            at += count
        self._stepped(last.schedule, last.shape, outputs, last.seconds())
        return outputs

    def _land_row(self, row: ScheduledRow, sampled: Sampled, at: int, count: int) -> list[StepOutput]:
        """A later step may have taken the sequence further, a preemption back to nothing: that stays as it is."""
        seq, computed = row.seq, row.seq.num_computed
        if not count:
            self.scheduler.advance(row)
            seq.num_computed = computed
            return []
        ahead = without_placeholders(row)
        output = self._append(row, sampled, at, count)
        if output.finish_reason is None:
            seq.tokens += ahead
            seq.num_computed = computed
            if not ahead:
                self.runner.tokens.discard(seq)
        return [output]

    def _postprocess(self, schedule: Schedule, sampled: Sampled) -> list[StepOutput]:
        """Advance every row; those that caught up get their tokens and may be done."""
        outputs: list[StepOutput] = []
        at = 0
        for row in schedule.rows:
            count = row.num_samples
            if not count:
                self.scheduler.advance(row)
                continue
            outputs.append(self._append(row, sampled, at, count))
            at += count
        return outputs

    def _append(self, row: ScheduledRow, sampled: Sampled, at: int, count: int) -> StepOutput:
        """The tokens sampled at `count` positions from `at` on, as far as the draft that they stand behind holds."""
        seq = row.seq
        if not seq.first_token:
            seq.first_token = time.perf_counter()
            self.forecast.started_output(seq)
        tokens: list[int] = []
        reason: FinishReason | None = None
        for token, guess in zip(sampled.token_ids[at : at + count], [*row.draft, None], strict=True):
            tokens.append(token)
            reason = self._write(seq, token)
            if reason is not None or token != guess:
                break
        self.speculator.judged(seq, row.draft, tokens)
        self.scheduler.advance(row, refused=len(row.draft) - (len(tokens) - 1))
        output = StepOutput(seq.request_id, tokens) if reason is None else self._finish(seq, tokens, reason)
        if seq.sampling.logprobs is None:
            return output
        here = range(at, at + len(tokens))
        top = [sampled.top_logprobs[i] for i in here] if seq.sampling.logprobs else None
        return replace(output, logprobs=[sampled.logprobs[i] for i in here], top_logprobs=top)

    def _write(self, seq: Sequence, token: int) -> FinishReason | None:
        seq.tokens.append(token)
        if seq.lock is not None:
            seq.lock.advance(token)
        if seq.grammar is not None:
            seq.grammar.advance(token)
        return self._end_reason(seq, token)

    def _end_reason(self, seq: Sequence, token: int) -> FinishReason | None:
        is_eos = not seq.sampling.ignore_eos and token in self.runner.spec.eos_token_ids
        if is_eos or token in seq.sampling.stop_token_ids:
            return "stop"
        return "length" if seq.num_output_tokens >= seq.max_tokens else None

    def _finish(self, seq: Sequence, tokens: list[int], reason: FinishReason) -> StepOutput:
        self.scheduler.finish(seq)
        self.runner.discard(seq)
        self.forecast.ended(seq)
        del self._sequences[seq.request_id]
        self._ended[reason] = self._ended.get(reason, 0) + 1
        return StepOutput(seq.request_id, tokens, finish_reason=reason, metrics=seq.metrics())

    def _count(self, schedule: Schedule, output_tokens: int, seconds: float) -> None:
        last, pool, scheduler = self._stats, self.pool, self.scheduler
        started = [row for row in schedule.rows if row.start == row.seq.num_cached and not row.seq.num_preemptions]
        prefill = sum(max(0, min(r.seq.num_prompt_tokens - r.start, r.num_tokens)) for r in schedule.rows)
        rate = output_tokens / max(seconds, 1e-6)
        rate = rate if not last.steps else 0.9 * last.tokens_per_s + 0.1 * rate
        ended = self._ended
        self._stats = EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            total_blocks=pool.total,
            free_blocks=pool.free,
            used_blocks=pool.used,
            cached_blocks=pool.cached,
            steps=last.steps + bool(schedule.rows),
            tokens_per_s=rate if schedule.rows else last.tokens_per_s,
            prompt_tokens=last.prompt_tokens + sum(row.seq.num_prompt_tokens for row in started),
            prefill_tokens_computed=last.prefill_tokens_computed + prefill,
            output_tokens=last.output_tokens + output_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            preemptions=scheduler.preemptions,
            pinned_blocks=pool.pinned,
            aborts=ended.get("abort", 0),
            expired=ended.get("deadline", 0),
            forgotten=ended.get("forgotten", 0),
            draft_tokens=self.speculator.totals.drafted,
            draft_tokens_accepted=self.speculator.totals.accepted,
        )
        self.forecast.refresh(scheduler)


def pin_request(segments: Seq[TokenSegment]) -> Request:
    """One token after the prefix: what computes its blocks."""
    return Request("pin", tuple(segments), SamplingParams(temperature=0, max_tokens=1, ignore_eos=True))
