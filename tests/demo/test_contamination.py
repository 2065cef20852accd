"""The sample contracts and questions must be new to the demo model, or every number measured on them is memory.

Independent contracts share wording: stock phrases longer than 13 words exist ("if any provision of this Agreement is
held to be invalid or unenforceable ..."). Of 26 real contracts that were held out from training, the median shares
0.5 % of its 13-grams with the 389 others and three quarters stay under 2 %; copies and amendments share 20 to 100 %.
So a document fails above 2 %, where at least three of its sampled grams are known (short documents have few).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.contamination import FILE, TrainingText, sampled_grams, write_hashes

DEMO = Path(__file__).parents[2] / "demo"
TOLERATED_SHARE, TOLERATED_GRAMS = 0.02, 2


def read_document(path: Path) -> str:
    if path.suffix == ".pdf":
        import pypdfium2

        return "\n".join(page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(path))
    if path.suffix == ".docx":
        import docx

        return "\n".join(paragraph.text for paragraph in docx.Document(str(path)).paragraphs)
    return path.read_text(encoding="utf-8")


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def assert_new(name: str, text: str, training: TrainingText) -> None:
    known, seen = training.known(text)
    assert known <= max(TOLERATED_GRAMS, TOLERATED_SHARE * seen), (
        f"{name}: {known} of {seen} sampled 13-grams are training text"
    )


@pytest.fixture(scope="module")
def training() -> TrainingText:
    return TrainingText(DEMO / "model" / FILE)


def test_the_hashes_are_there_and_small(training: TrainingText) -> None:
    assert len(training.hashes) > 10_000
    assert (DEMO / "model" / FILE).stat().st_size <= 4 * 2**20


def test_sample_contracts_are_new_to_the_model(training: TrainingText) -> None:
    documents = [path for path in sorted((DEMO / "contracts").rglob("*")) if path.is_file()]
    assert documents, "demo/contracts is empty: nothing was checked"
    for path in documents:
        assert_new(path.name, read_document(path), training)


def test_sample_questions_are_new_to_the_model(training: TrainingText) -> None:
    lines = (DEMO / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines, "demo/questions.jsonl is empty: nothing was checked"
    for number, line in enumerate(lines, start=1):
        for text in strings(json.loads(line)):
            assert_new(f"question {number}", text, training)


def test_a_training_text_would_be_noticed(tmp_path: Path) -> None:
    text = " ".join(f"word{number}" for number in range(3_000))
    write_hashes([text], tmp_path / FILE)
    training = TrainingText(tmp_path / FILE)
    known, seen = training.known(text.upper().replace(" ", ",  "))
    assert known == seen > 100
    assert training.known(" ".join(f"other{number}" for number in range(3_000)))[0] == 0
    with pytest.raises(AssertionError, match="training text"):
        assert_new("copy", text, training)


def test_short_texts_have_no_grams() -> None:
    assert sampled_grams("Which law governs the agreement?") == set()
