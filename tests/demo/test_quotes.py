"""The quote lock on the demo model, at a temperature at which it would invent: what it quotes is in the passages."""

import re
from dataclasses import replace

import pytest

from app.engine import EngineConfig, LLMEngine, RequestOutput, SamplingParams, TokenSegment
from benchmarks.speculation import DEMO, Asked, questions, requests

ANSWERS = 500
AT_A_TIME = 64
LEAD_IN = "The contract states ["


def quotes(text: str) -> list[str]:
    """What stands between quotation marks; an answer cut off at its token limit may leave the last one open."""
    return [quote for quote in re.findall(r'"([^"]*)(?:"|\ufffd*$)', text) if quote]


@pytest.mark.slow
@pytest.mark.parametrize("most", [0, 8])
def test_no_quote_of_500_hot_answers_is_invented(most: int) -> None:
    engine = LLMEngine(EngineConfig(DEMO / "model", max_num_seqs=AT_A_TIME, max_draft_tokens=most))
    assert engine.tokenizer is not None
    every = questions(DEMO / "contracts", DEMO / "questions.jsonl", None)
    # Where a passage has quotation marks of its own, which marks of the answer belong together is a matter of reading:
    # that is what tests/engine/test_quote_lock.py and the verification of citations are about.
    asked = [question for question in every if not any('"' in source for source in question.sources)]
    assert len(asked) > 20
    made = requests(engine.tokenizer, asked, lock=True)
    begun = TokenSegment(engine.tokenizer.encode(LEAD_IN))  # at this temperature it would refuse a quarter of them
    count = ANSWERS // 2  # with drafts and without: together 500
    work = []
    for i in range(count):
        request, sampling = made[i % len(made)], SamplingParams(temperature=1.0, seed=i, max_tokens=96)
        segments = (*request.segments, begun)
        work.append(replace(request, request_id=str(i), segments=segments, sampling=sampling))
    outputs: list[RequestOutput] = []
    for i in range(0, count, AT_A_TIME):
        outputs += engine.generate_requests(work[i : i + AT_A_TIME])
    texts = [output.text for output in outputs]
    sources = [asked[i % len(asked)] for i in range(count)]
    found = [(quote, source) for text, source in zip(texts, sources, strict=True) for quote in quotes(text)]
    invented = [quote for quote, source in found if not exists(quote, source)]
    assert invented == []
    assert sum(any(len(quote.split()) >= 5 for quote in quotes(text)) for text in texts) >= 0.8 * count


def exists(quote: str, asked: Asked) -> bool:
    folded = " ".join(quote.split())
    return any(folded in " ".join(source.split()) for source in asked.sources)
