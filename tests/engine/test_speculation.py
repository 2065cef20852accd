"""Speculation changes nothing but time: whatever is drafted, tokens, ends, penalties and log probabilities are those
of decoding one by one."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.config import REPOSITORY
from app.engine import EngineConfig, Grammar, LLMEngine, Request, RequestOutput, SamplingParams, TokenSegment
from app.engine.request import Sequence as EngineSequence
from app.engine.sampler import sample
from app.engine.sampling_batch import SamplingBatches
from app.engine.spec.drafts import Draft, Drafter
from app.engine.spec.length import Acceptance, least_acceptance
from app.engine.spec.suffix import SEPARATOR, SuffixIndex
from benchmarks.speculation import DEMO, questions, requests
from tests.engine.conftest import VOCAB, config, make_model, prompts
from tests.engine.test_sampling import reference

Make = Callable[..., LLMEngine]
Outputs = list[RequestOutput]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
PROMPTS = prompts(37, 5, 90, 61)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft is tried in full: what pays is another question than what is right."""
    monkeypatch.setattr(Acceptance, "length", lambda self, kind, available, least: available)
    monkeypatch.setattr("app.engine.spec.speculator.MIN_STEPS", 0)
    monkeypatch.setattr("app.engine.spec.speculator.Speculator._least", lambda *_: (0.5, 0.0))


Known = dict[tuple[int, ...], list[int]]


def drafting(monkeypatch: pytest.MonkeyPatch, known: Known, spoil: Callable[[int], bool]) -> None:
    """A drafter that knows what comes (`known`: answers by prompt) and gets the tokens wrong that `spoil` says."""

    def drafts(self: Drafter, tokens: Sequence[int], most: int, at_least: int) -> list[Draft]:
        for prompt, answer in known.items():
            done = len(tokens) - len(prompt)
            if done >= 0 and tuple(tokens[: len(prompt)]) == prompt:
                truth = answer[done : done + most]
                return [Draft([(t + 1) % VOCAB if spoil(done + i) else t for i, t in enumerate(truth)], 1)]
        return []

    monkeypatch.setattr(Drafter, "drafts", drafts)


SPOIL: dict[str, Callable[[int], bool]] = {
    "right": lambda at: False,
    "wrong": lambda at: True,
    "mixed": lambda at: at % 3 == 2,
}


def run(engine: LLMEngine, sampling: Sequence[SamplingParams], tokens: Sequence[list[int]] = PROMPTS) -> Outputs:
    return engine.generate(list(tokens), list(sampling))


def known(outputs: Outputs) -> Known:
    return {tuple(prompt): output.token_ids for prompt, output in zip(PROMPTS, outputs, strict=True)}


@pytest.mark.parametrize("spoiled", sorted(SPOIL))
@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 16}, {"num_blocks": 14}], ids=str)
@pytest.mark.usefixtures("always")
def test_tokens_are_those_of_plain_decoding(
    engine: Make, monkeypatch: pytest.MonkeyPatch, spoiled: str, most: int, settings: dict[str, int]
) -> None:
    """Over chunking and preemption, alone and in company."""
    plain = run(engine(max_draft_tokens=0), [GREEDY] * 4)
    drafting(monkeypatch, known(plain), SPOIL[spoiled])
    one = engine(max_draft_tokens=most, **settings)
    found = run(one, [GREEDY] * 4)
    steps = one.stats().steps
    assert [o.token_ids for o in found] == [o.token_ids for o in plain]
    assert [run(one, [GREEDY], [prompt])[0].token_ids for prompt in PROMPTS] == [o.token_ids for o in plain]
    drafted = [o.metrics.speculation for o in found if o.metrics.speculation is not None]
    accepted, tried = sum(s.accepted for s in drafted), sum(s.drafted for s in drafted)
    assert tried > 0
    assert accepted == {"right": tried, "wrong": 0}.get(spoiled, accepted)
    if "num_blocks" in settings:
        assert one.stats().preemptions > 0
    if spoiled == "right" and not settings:
        assert steps <= GREEDY.max_tokens / (most + 1) + 6
    assert one.pool.used == 0


FEATURES: dict[str, dict[str, Any]] = {
    "seed": {"temperature": 0.9, "seed": 11},
    "top": {"temperature": 1.1, "seed": 5, "top_k": 20, "top_p": 0.9},
    "min_p": {"temperature": 1.0, "seed": 3, "min_p": 0.05},
    "penalties": {"temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    "bias": {"temperature": 0, "logit_bias": {3: 4.0, 9: -100.0}},
    "logprobs": {"temperature": 0.8, "seed": 4, "logprobs": 3},
    "early end": {"temperature": 1.5, "seed": 8, "ignore_eos": False},
    "min_tokens": {"temperature": 1.5, "seed": 8, "ignore_eos": False, "min_tokens": 20},
    "stop ids": {"temperature": 1.0, "seed": 2, "stop_token_ids": tuple(range(0, VOCAB, 9))},
}


@pytest.mark.parametrize("feature", sorted(FEATURES))
@pytest.mark.usefixtures("always")
def test_every_way_to_sample_holds_at_each_draft_position(
    engine: Make, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    params = replace(GREEDY, **FEATURES[feature])
    mixed = [params, GREEDY, params, params]
    plain = run(engine(max_draft_tokens=0), mixed)
    without = run(engine(max_draft_tokens=0), [GREEDY] * 4)
    changed = [o.token_ids != w.token_ids for o, w in zip(plain, without, strict=True)]
    assert any(changed), "the feature must change something, or its test proves nothing"
    drafting(monkeypatch, known(plain), SPOIL["mixed"])
    found = run(engine(max_draft_tokens=5), mixed)
    for one, other in zip(found, plain, strict=True):
        assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)
        assert one.metrics.num_output_tokens == len(other.token_ids)
        if other.logprobs is not None:
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            assert ranked(one) == ranked(other)
    assert any(o.metrics.speculation is not None and o.metrics.speculation.accepted for o in found)


def ranked(output: RequestOutput) -> list[list[int]]:
    return [[token for token, _ in top] for top in output.top_logprobs or []]


DRAWS = 20_000


@pytest.mark.parametrize(
    "params", [{"temperature": 1.0}, {"temperature": 0.8, "top_k": 6}, {"temperature": 1.2, "top_p": 0.8}], ids=str
)
def test_what_is_written_behind_a_draft_follows_the_models_distribution(params: dict[str, Any]) -> None:
    """Chi-square against float64 over 20,000 outputs: the first token, and the second where the draft held."""
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 24, generator=generator) * 1.5
    wanted = [reference(logits, **params) for logits in (first, second)]
    guess = int(wanted[0].argsort()[-2])
    sampling = SamplingParams(**params)
    request = Request("", (TokenSegment([1]),), sampling)
    seqs = [EngineSequence(request, seed=i * 104729, max_tokens=9) for i in range(DRAWS)]
    batch = SamplingBatches(24, ()).batch(seqs, [[guess]] * DRAWS)
    tokens = sample(torch.stack([first, second]).repeat(DRAWS, 1), batch).tokens.view(DRAWS, 2)
    assert deviation(tokens[:, 0], wanted[0]) < 5
    held = tokens[tokens[:, 0] == guess, 1]
    assert len(held) / DRAWS == pytest.approx(float(wanted[0][guess]), abs=0.02)
    assert deviation(held, wanted[1]) < 5
    # Negative control: who keeps the guess with probability p, but otherwise draws from all of p, writes it too often.
    again = torch.multinomial(wanted[0], DRAWS, replacement=True, generator=generator)
    wrong = torch.where(tokens[:, 0] == guess, tokens[:, 0], again)
    assert deviation(wrong, wanted[0]) > 5


def deviation(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    """Chi-square in deviations from its mean: about 0 +- 1 when tokens are drawn from probs."""
    counts, expected = torch.bincount(tokens, minlength=len(probs)).double(), probs * len(tokens)
    assert not counts[probs == 0].any()
    value = float(((counts - expected)[probs > 0] ** 2 / expected[probs > 0]).sum())
    freedom = max(1, int((probs > 0).sum()) - 1)
    return (value - freedom) / (2 * freedom) ** 0.5


def test_the_random_numbers_belong_to_positions(engine: Make) -> None:
    """The same seed writes the same text with drafts and without: more than the same distribution."""
    params = SamplingParams(temperature=1.0, seed=21, max_tokens=60, ignore_eos=True)
    repeating = [[5, 6, 7, 8] * 12]
    plain = engine(max_draft_tokens=0).generate(repeating, params)[0].token_ids
    assert engine(max_draft_tokens=8).generate(repeating, params)[0].token_ids == plain


@pytest.fixture(scope="module")
def demo() -> Iterator[Callable[..., LLMEngine]]:
    model = REPOSITORY / "demo" / "model"
    yield lambda **s: LLMEngine(
        EngineConfig(model, **{"dtype": "float32", "threads": 1, "num_blocks": 96, "max_model_len": 640} | s)
    )


PASSAGE = (
    "Provider sends its invoice on the first business day of each month, and every undisputed invoice falls due "
    "thirty-five days after Client receives it."
)


def ask(engine: LLMEngine, number: int, **changes: Any) -> Request:
    assert engine.tokenizer is not None
    question = f'Question: When is invoice {number} due?\nThe contract states [1]: "'
    text = f"Passages:\n\n[1] Invoices\n{PASSAGE}\n\n{question}"
    segment = TokenSegment(engine.tokenizer.encode(text))
    sampling = SamplingParams(temperature=0, max_tokens=60)
    return Request(str(number), (segment,), sampling, **changes)


@pytest.mark.parametrize("lock", [False, True])
def test_the_demo_model_quotes_by_drafts(demo: Make, lock: bool) -> None:
    """The prompts that it is made for, alone and in company."""
    room = {"num_blocks": 400, "max_model_len": 3072}
    plain, engine = demo(max_draft_tokens=0, **room), demo(**room)
    assert plain.tokenizer is not None
    four = questions(DEMO / "contracts", DEMO / "questions.jsonl", None)[:4]
    asked = requests(plain.tokenizer, four, lock=lock)
    wanted = plain.generate_requests(asked)
    for company in (1, 4):
        parts = [engine.generate_requests(asked[i : i + company]) for i in range(0, 4, company)]
        found = list(itertools.chain.from_iterable(parts))
        assert [o.token_ids for o in found] == [o.token_ids for o in wanted]
        counts = [o.metrics.speculation for o in found if o.metrics.speculation is not None]
        assert sum(c.accepted for c in counts) > sum(len(o.token_ids) for o in found) / 3
        assert all(sum(c.by_position) == c.accepted for c in counts)


def test_the_demo_draft_model_guesses_and_is_verified(demo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafter, "drafts", lambda *_: [])
    plain, engine = demo(max_draft_tokens=0), demo(draft_model=REPOSITORY / "demo" / "draft", max_draft_tokens=3)
    asked = [ask(engine, number) for number in range(3)]
    found, wanted = engine.generate_requests(asked), plain.generate_requests(asked)
    assert [o.token_ids for o in found] == [o.token_ids for o in wanted]
    assert engine.speculator.totals.by_source["model"][0] > 0


def test_an_earlier_answer_is_verified_and_not_trusted(demo: Make) -> None:
    engine = demo()
    assert engine.tokenizer is not None
    [wanted] = demo(max_draft_tokens=0).generate_requests([ask(engine, 1)])
    same = tuple(wanted.token_ids)
    other = (*same[:6], *engine.tokenizer.encode("the moon is rented to the tenant"), *same[10:])
    for answer in (same, other):
        [found] = engine.generate_requests([ask(engine, 1, draft_token_ids=answer)])
        assert found.token_ids == wanted.token_ids
        assert found.metrics.speculation is not None
        assert found.metrics.speculation.by_source["answer"][1] > 0


def test_a_draft_never_leaves_grammar_or_stop_string(demo: Make) -> None:
    pattern = "Provider sends its invoice on the (first|last) (bank|business) day of each month"
    for changes in ({"grammar": Grammar("regex", pattern)}, {"stop": ("business",)}):
        outputs = []
        for most in (0, 8):
            engine = demo(max_draft_tokens=most)
            request = ask(engine, 2)
            if stop := changes.get("stop"):
                request = replace(request, sampling=replace(request.sampling, stop=stop))
            else:
                request = replace(request, grammar=changes["grammar"])
            outputs += engine.generate_requests([request])
        plain, found = outputs
        assert (found.text, found.token_ids, found.finish_reason) == (plain.text, plain.token_ids, plain.finish_reason)
        assert found.metrics.num_output_tokens == len(found.token_ids)
        assert found.metrics.speculation is not None


def test_no_draft_comes_from_another_tenants_text(demo: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One engine, two tenants, the same words before a canary: each is only ever offered its own."""
    engine = demo()
    assert engine.tokenizer is not None
    offered: dict[str, list[int]] = {"a": [], "b": []}
    encode = engine.tokenizer.encode
    canaries = {"a": encode(" zeppelin zeppelin zeppelin"), "b": encode(" quokka quokka quokka")}
    requests = []
    for name, canary in canaries.items():
        text = [*encode("The password is"), *canary, *encode(". " * 9 + "The password is")]
        sampling = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
        requests.append(Request(name, (TokenSegment(text, frozenset({name})),), sampling))
    for request in requests:
        engine.add_request(request)
    original = Drafter.drafts

    def watched(self: Drafter, tokens: Sequence[int], most: int, at_least: int) -> list[Draft]:
        """The text itself must be asked for too: what a sequence says next is up to the weights."""
        owner = next(seq for seq in engine.scheduler.running if seq.drafter is self)
        prompt = tokens[: owner.num_prompt_tokens]
        for found in (*original(self, tokens, most, 1), *original(self, prompt, most, 1)):
            offered[owner.request_id] += found.tokens
        return original(self, tokens, most, at_least)

    monkeypatch.setattr(Drafter, "drafts", watched)
    while engine.has_work:
        engine.step()
    own = {name: set(canary) for name, canary in canaries.items()}
    assert own["a"] & set(offered["a"]) and own["b"] & set(offered["b"]), "the canaries must be reachable at all"
    assert not (own["b"] - own["a"]) & set(offered["a"]) and not (own["a"] - own["b"]) & set(offered["b"])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 16}, {"num_blocks": 14}], ids=str)
@pytest.mark.usefixtures("always")
def test_a_draft_model_changes_nothing_but_time(
    engine: Make, checkpoint: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch, family: str,
    settings: dict[str, int],
) -> None:  # fmt: skip
    """llama guesses for itself and is always right; qwen3, with other weights and heads, hardly ever is."""
    monkeypatch.setattr(Drafter, "drafts", lambda *_: [])
    params = [GREEDY, replace(GREEDY, temperature=1.0, seed=3), GREEDY, replace(GREEDY, repetition_penalty=1.2)]
    plain = run(engine(max_draft_tokens=0), params)
    one = engine(max_draft_tokens=4, draft_model=checkpoint(family)[0], **settings)
    found = run(one, params)
    assert [o.token_ids for o in found] == [o.token_ids for o in plain]
    greedy = found[0].metrics.speculation
    assert greedy is not None and set(greedy.by_source) == {"model"}
    if family == "llama" and not settings:
        assert greedy.accepted == greedy.drafted
    again = run(one, params)
    assert [o.token_ids for o in again] == [o.token_ids for o in plain], "with what both caches hold of the first time"
    assert one.pool.used == 0


def test_a_draft_model_must_share_the_tokenizer(engine: Make, tmp_path: Path) -> None:
    make_model("llama", vocab_size=VOCAB + 1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must share one tokenizer"):
        engine(draft_model=tmp_path)


def test_suffix_index_finds_the_longest_match() -> None:
    rng = random.Random(4)
    for _ in range(300):
        text = [rng.randrange(5) for _ in range(rng.randrange(0, 70))]
        context = [rng.randrange(5) for _ in range(rng.randrange(1, 7))]
        found = SuffixIndex(text).continuations(context, 4, 1)
        best = max((_match(text, place, context) for place in range(len(text) - 1)), default=0)
        assert max((match for _, match in found), default=0) == best
        for tokens, match in found:
            places = [p for p in range(len(text)) if _match(text, p, context) == match]
            assert tokens in [text[p + 1 : p + 5] for p in places]


def _match(text: list[int], place: int, context: list[int]) -> int:
    length = 0
    while length < min(len(context), place + 1) and text[place - length] == context[-1 - length]:
        length += 1
    return length


def test_texts_that_do_not_follow_each_other_are_kept_apart() -> None:
    index = SuffixIndex([1, 2, 3, SEPARATOR, 9, 9])
    assert index.continuations([1, 2], 5, 2) == [([3], 2)]
    assert index.continuations([2, 3], 5, 2) == []
    index.extend([1, 2, 7] + [0] * 32)
    assert index.continuations([1, 2], 1, 2)[0] == ([7], 2), "the latest of equally long matches"


def test_drafts_grow_with_what_was_accepted_and_stop_when_they_do_not_pay() -> None:
    acceptance = Acceptance()
    for _ in range(50):
        acceptance.learn("sure", 8, 8)
        acceptance.learn("poor", 1, 0)
    cheap, dear = least_acceptance(1, 10e-3, 1e-3), least_acceptance(64, 40e-3, 0.6e-3)
    assert acceptance.length("sure", 8, cheap) == 8
    assert acceptance.length("sure", 8, dear) < 8
    assert acceptance.length("poor", 8, cheap) == 0
    probes = [acceptance.length("poor", 8, cheap) for _ in range(200)]
    assert set(probes) == {0, 1} and sum(probes) <= 4, "now and then one token, to see whether it pays again"


def test_most_zero_is_off(llama: Path) -> None:
    engine = LLMEngine(config(llama, max_draft_tokens=0))
    [output] = engine.generate([[5, 6, 7] * 9], GREEDY)
    assert output.metrics.speculation is None and engine.speculator is not None
