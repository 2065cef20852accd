"""Whatever a model wants to write: what stands between quotation marks exists, and so do the numbers cited."""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import REPOSITORY
from app.engine import EngineConfig, LLMEngine, Request, SamplingParams, Tokenizer, TokenSegment
from app.engine.quote_lock import QuoteLock, QuoteSources, TokenBytes

SOURCES = [
    "1. Term. The term is three (3) years.\nIt renews for one year.",
    'The "Fee" means EUR 100, payable monthly. No fee is due in May.',
]
WORDS = [
    "The ",
    "term ",
    "is ",
    "three ",
    " (3)",
    "years",
    'years."',
    ' "The',
    '"',
    '" ',
    "[",
    "[1",
    "[9",
    "1]",
    "]: ",
    "It",
]
VOCABULARY = TokenBytes([bytes([b]) for b in range(256)] + [word.encode() for word in WORDS] + [None])
EOS = 256 + len(WORDS)


@pytest.fixture(scope="module")
def demo_engine() -> Iterator[LLMEngine]:
    model = REPOSITORY / "demo" / "model"
    yield LLMEngine(EngineConfig(model=model, num_blocks=64, max_model_len=512, max_num_seqs=16, threads=1))


def folded(text: str) -> str:
    return " ".join(text.split())


def lock() -> QuoteLock:
    return QuoteLock(VOCABULARY, QuoteSources(SOURCES))


def write(locked: QuoteLock, text: str) -> None:
    for byte in text.encode():
        locked.advance(byte)


def allowed_text(locked: QuoteLock) -> set[str]:
    allowed = locked.allowed()
    assert allowed is not None
    return {(VOCABULARY.of[token] or b"").decode(errors="replace") for token in allowed}


def test_outside_quotes_anything_goes() -> None:
    locked = lock()
    write(locked, "The contract states ")
    assert locked.allowed() is None


def test_a_quote_begins_at_a_word_of_the_cited_source() -> None:
    locked = lock()
    write(locked, 'It says [1]: "')
    allowed = allowed_text(locked)
    assert {"T", "The ", "t", "term ", "I", "It"} <= allowed
    assert "N" not in allowed  # stands in source 2 alone
    assert "h" not in allowed  # the middle of a word
    assert '"' not in allowed  # an empty quote


def test_without_a_citation_every_source_may_be_quoted() -> None:
    locked = lock()
    write(locked, '"')
    assert {"I", "N"} <= allowed_text(locked)


def test_a_quote_goes_on_as_the_source_does_or_closes() -> None:
    locked = lock()
    write(locked, '[1] "The term is three (3) ')
    assert allowed_text(locked) == {"y", "years", 'years."', '"', '" '}
    locked.advance(256 + WORDS.index('years."'))
    assert locked.allowed() is None
    assert not locked.broken


def test_a_line_break_may_be_written_as_a_space() -> None:
    for between in ("\n", " "):
        locked = lock()
        write(locked, f'"(3) years.{between}It renews')
        assert not locked.broken


def test_a_mark_that_the_source_has_too_leaves_both_ways_open() -> None:
    going_on, closing = lock(), lock()
    write(going_on, '[2] "The "Fee" means EUR')
    assert allowed_text(going_on) == {" ", '"', '" ', ' "The'}
    write(closing, '[2] "The "')
    allowed = closing.allowed()
    assert allowed is not None
    assert {ord("F"), ord("."), ord(" "), EOS} <= set(allowed)  # the source goes on, or the answer does
    assert ord("x") not in allowed
    write(closing, " and so on")
    assert closing.allowed() is None
    assert not closing.broken


def test_only_numbers_that_exist_are_cited() -> None:
    locked = lock()
    write(locked, "It says ")
    assert 256 + WORDS.index("[9") in locked.forbidden()
    assert 256 + WORDS.index("[1") not in locked.forbidden()
    write(locked, "[")
    assert allowed_text(locked) == {"1", "2", "1]"}


def test_a_token_that_opens_a_quote_of_nothing_is_forbidden() -> None:
    locked = lock()
    assert 256 + WORDS.index('" ') in locked.forbidden()  # no source has a word that begins with a space
    assert 256 + WORDS.index(' "The') not in locked.forbidden()


def test_negative_control_an_unlocked_lie_breaks() -> None:
    locked = lock()
    write(locked, '[1] "The moon')
    assert locked.broken


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_walk_over_allowed_tokens_quotes_verbatim(rng: random.Random) -> None:
    locked, text = lock(), b""
    write(locked, start := rng.choice(['[1]: "', '[2]: "', 'Because "', "See ["]))
    text += start.encode()
    for _ in range(60):
        allowed = locked.allowed()
        if allowed is None:
            bad = set(locked.forbidden())
            token = next(t for t in iter(lambda: rng.randrange(EOS), None) if t not in bad)
        else:
            token = rng.choice([token for token in allowed if token != EOS])
        locked.advance(token)
        text += VOCABULARY.of[token] or b""
        assert not locked.broken
        if not locked.inside:
            break
    pieces = text.split(b'"')
    if len(pieces) >= 3:  # what stands between the first two marks; a source's own mark may be the second
        said = folded(pieces[1].decode(errors="replace"))
        assert any(said in folded(source) for source in SOURCES), text


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_source_offers_nothing(text: str) -> None:
    locked = QuoteLock(VOCABULARY, QuoteSources([text]))
    write(locked, "see ")
    assert 256 + WORDS.index('"') in locked.forbidden() or locked.allowed() is None


def test_the_engine_writes_only_quotes_that_exist(demo_engine: LLMEngine) -> None:
    """Behind an opening mark even a hot, random sample stays inside the sources."""
    tokenizer = demo_engine.tokenizer
    assert tokenizer is not None
    prompt = TokenSegment(tokenizer.encode("Anything at all"))
    sampling = SamplingParams(temperature=5.0, max_tokens=60, ignore_eos=True, logit_bias=_only_quotes(tokenizer))
    requests = [Request(f"r{i}", (prompt,), replace(sampling, seed=i), quote_sources=tuple(SOURCES)) for i in range(6)]
    free = [replace(request, request_id=f"free{i}", quote_sources=()) for i, request in enumerate(requests)]
    quoted = lied = 0
    for output in demo_engine.generate_requests([*requests, *free]):
        quotes = [folded(quote) for quote in output.text.split('"')[1::2] if folded(quote)]
        invented = [quote for quote in quotes if not any(quote in folded(source) for source in SOURCES)]
        if output.request_id.startswith("free"):
            lied += len(invented)
        else:
            quoted += len(quotes)
            assert not invented, output.text
    assert quoted
    assert lied  # the negative control: without the lock the same samples invent


def _only_quotes(tokenizer: Tokenizer) -> dict[int, float]:
    """Opening a quote at once is likely, so that the test is about what follows."""
    return {tokenizer.encode('"')[0]: 45.0}


def test_a_quote_never_ends_inside_a_character() -> None:
    locked = QuoteLock(VOCABULARY, QuoteSources(["Supply – Parts"]))
    write(locked, '[1] "Supply ')
    assert '"' in allowed_text(locked)
    for byte in "–".encode()[:2]:
        locked.advance(byte)
        assert '"' not in allowed_text(locked)
    locked.advance("–".encode()[2])
    assert '"' in allowed_text(locked)
