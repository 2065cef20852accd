"""The engine: requests in, tokens out, one step at a time."""

import itertools
import random
import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from app.engine.admission import Limits, check_request
from app.engine.blocks import BlockPool
from app.engine.config import EngineConfig, SamplingParams
from app.engine.detokenizer import TextStream
from app.engine.prefix import BlockHasher
from app.engine.request import FinishReason, Request, RequestOutput, Sequence, StepOutput, TokenSegment
from app.engine.runner import ModelRunner, Sampled, resolve_threads
from app.engine.scheduler import Schedule, ScheduledRow, Scheduler
from app.engine.tokenizer import Tokenizer, has_tokenizer


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot after a step. Blocks: free + used + cached == total. tokens_per_s: output, over recent steps."""

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


class LLMEngine:
    """Not thread-safe: one thread calls it (AsyncEngine brings one).

    Raises ValueError for a model or pool that cannot work; see loader.py and runner.py.
    """

    def __init__(self, config: EngineConfig) -> None:
        torch.set_num_threads(resolve_threads(config.threads))
        self.config = config
        self.runner = ModelRunner(config)
        runner = self.runner
        hasher = BlockHasher(f"{runner.folder.resolve()}:{runner.dtype}", config.block_size)
        self.pool = BlockPool(runner.num_blocks)
        self.scheduler = Scheduler(
            self.pool,
            hasher if config.enable_prefix_cache else None,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            block_size=config.block_size,
        )
        self.tokenizer = Tokenizer(runner.folder) if has_tokenizer(runner.folder) else None
        self.limits = Limits(runner.max_model_len, runner.spec.vocab_size, self.tokenizer is not None)
        self._sequences: dict[str, Sequence] = {}
        self._seeds = random.Random(config.seed)
        self._stats = EngineStats(total_blocks=self.pool.total, free_blocks=self.pool.total)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add_request(self, request: Request) -> None:
        """Raises InvalidRequest or ContextTooLong; an id that is running already is a ValueError."""
        if request.request_id in self._sequences:
            raise ValueError(f"request id {request.request_id!r} is running already")
        max_tokens = check_request(request, self.limits)
        seed = request.sampling.seed
        seq = Sequence(request, self._seeds.getrandbits(63) if seed is None else seed, max_tokens)
        self._sequences[request.request_id] = seq
        self.scheduler.add(seq)

    def abort(self, request_id: str) -> StepOutput | None:
        """End a request wherever it is and give its blocks back; None if it has ended already."""
        seq = self._sequences.get(request_id)
        return None if seq is None else self._finish(seq, [], "abort")

    def abort_all(self) -> list[StepOutput]:
        return [self._finish(seq, [], "abort") for seq in list(self._sequences.values())]

    def step(self) -> list[StepOutput]:
        """Schedule, run, postprocess. A step in which nothing can be scheduled returns no outputs."""
        began = time.perf_counter()
        schedule = self.scheduler.schedule()
        if not schedule.rows:
            return []
        sampled = self._run(schedule)
        outputs = self._postprocess(schedule, sampled)
        self._count(schedule, sampled, time.perf_counter() - began)
        return outputs

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
            check_request(request, self.limits)
        for request in requests:
            self.add_request(request)
        collected = {r.request_id: _Collected(r, self.tokenizer) for r in requests}
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

    def stats(self) -> EngineStats:
        return self._stats

    def _run(self, schedule: Schedule) -> Sampled:
        with torch.inference_mode():
            return self.runner.run(schedule)

    def _postprocess(self, schedule: Schedule, sampled: Sampled) -> list[StepOutput]:
        """Advance every row; those that caught up get their token and may be done."""
        outputs: list[StepOutput] = []
        sampling_rows = itertools.count()
        for row in schedule.rows:
            samples = row.samples
            self.scheduler.advance(row)
            if samples:
                i = next(sampling_rows)
                logprob = sampled.logprobs[i] if sampled.logprobs is not None else None
                outputs.append(self._append(row, sampled.token_ids[i], logprob))
        return outputs

    def _append(self, row: ScheduledRow, token: int, logprob: float | None) -> StepOutput:
        seq = row.seq
        seq.first_token = seq.first_token or time.perf_counter()
        seq.tokens.append(token)
        logprobs = [logprob] if seq.sampling.logprobs is not None and logprob is not None else None
        reason = self._end_reason(seq, token)
        if reason is None:
            return StepOutput(seq.request_id, [token], logprobs)
        return self._finish(seq, [token], reason, logprobs)

    def _end_reason(self, seq: Sequence, token: int) -> FinishReason | None:
        is_eos = not seq.sampling.ignore_eos and token in self.runner.spec.eos_token_ids
        if is_eos or token in seq.sampling.stop_token_ids:
            return "stop"
        return "length" if seq.num_output_tokens >= seq.max_tokens else None

    def _finish(
        self, seq: Sequence, tokens: list[int], reason: FinishReason, logprobs: list[float] | None = None
    ) -> StepOutput:
        self.scheduler.finish(seq)
        del self._sequences[seq.request_id]
        return StepOutput(seq.request_id, tokens, logprobs, reason, seq.metrics())

    def _count(self, schedule: Schedule, sampled: Sampled, seconds: float) -> None:
        last, pool, scheduler = self._stats, self.pool, self.scheduler
        rate = len(sampled.token_ids) / max(seconds, 1e-6)
        started = [row for row in schedule.rows if row.start == row.seq.num_cached and not row.seq.num_preemptions]
        prefill = sum(max(0, min(r.seq.num_prompt_tokens - r.start, r.num_tokens)) for r in schedule.rows)
        self._stats = EngineStats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            total_blocks=pool.total,
            free_blocks=pool.free,
            used_blocks=pool.used,
            cached_blocks=pool.cached,
            steps=last.steps + 1,
            tokens_per_s=rate if not last.steps else 0.9 * last.tokens_per_s + 0.1 * rate,
            prompt_tokens=last.prompt_tokens + sum(row.seq.num_prompt_tokens for row in started),
            prefill_tokens_computed=last.prefill_tokens_computed + prefill,
            output_tokens=last.output_tokens + len(sampled.token_ids),
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            preemptions=scheduler.preemptions,
        )


class _Collected:
    """What generate() has of one request so far."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None) -> None:
        self.tokens: list[int] = []
        self.logprobs: list[float] | None = [] if request.sampling.logprobs is not None else None
        self.text = ""
        self.end: StepOutput | None = None
        self._request_id = request.request_id
        self._stream = TextStream(tokenizer, request.sampling.stop)

    def add(self, output: StepOutput) -> bool:
        """Whether a stop string is complete."""
        self.tokens += output.token_ids
        if self.logprobs is not None:
            self.logprobs += output.logprobs or []
        last, stop = output.finish_reason is not None, output.finish_reason == "stop"
        self.text += self._stream.push(output.token_ids, last=last, drop_last_token=stop)
        self.end = output if last else self.end
        return self._stream.stopped

    def output(self) -> RequestOutput:
        assert self.end is not None and self.end.finish_reason is not None and self.end.metrics is not None
        reason: FinishReason = "stop" if self._stream.stopped else self.end.finish_reason
        return RequestOutput(self._request_id, self.tokens, self.text, reason, self.logprobs, self.end.metrics)
