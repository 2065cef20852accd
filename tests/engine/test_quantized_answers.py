"""Answers of a quantized model beside the original's: the same questions, the same passages, paired."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from app.engine.checksums import write_sums
from app.engine.quant.quality import Limits
from app.errors import InvalidRequest
from app.quantization import SUMS, evaluate, quantize
from app.quantization_answers import Case, compare_answers, read_cases

ROOT = Path(__file__).parent.parent.parent
MODEL, SOURCES = ROOT / "demo/model", sorted((ROOT / "demo/sources").glob("*.md"))
ASKED = 12


def rows() -> list[dict[str, object]]:
    """Questions of the demo, each with the paragraph that answers it among two others, and some without it."""
    paragraphs = {path: [x for x in path.read_text().split("\n\n") if len(x) > 80] for path in SOURCES}
    made: list[dict[str, object]] = []
    for line in (ROOT / "demo/questions.jsonl").read_text().splitlines():
        row = json.loads(line)
        for path, found in paragraphs.items():
            gold = [x for x in found if row["answers"] and row["answers"][0]["text"] in x]
            if gold and len(made) < ASKED:
                others = [x for x in found if x != gold[0]][3:5]
                answered = len(made) % 3 != 2
                shown = [others[0], *gold, others[1]] if answered else others
                passages = [{"title": path.stem, "text": text} for text in shown]
                made.append(
                    {"question": row["question"], "passages": passages}
                    | ({"answers": row["answers"]} if answered else {})
                )
    return made


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers") / "int8"
    quantize(MODEL, folder, "int8", None, lambda done, total: None)
    return folder


@pytest.fixture(scope="module")
def cases(questions: Path) -> list[Case]:
    return read_cases(questions)


def broken(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    for name in tensors:
        if name.endswith("weight_scale"):
            tensors[name] = tensors[name].flip(0) * 1.5
    save_file(tensors, to / "model.safetensors")
    write_sums(to, to / SUMS)
    return to


def test_a_good_one_answers_as_the_original(int8: Path, cases: list[Case]) -> None:
    found = compare_answers(MODEL, int8, cases, 0.5)
    right, refused = found["answers_right_less"], found["refusals_right_less"]
    assert (right["count"], refused["count"]) == (8, 4)
    assert right["original"] >= 0.5, "the demo model answers questions of its kind"
    assert right["value"] == right["original"] - right["quantized"]
    assert right["low"] <= right["value"] <= right["high"] and right["kept"]


def test_a_broken_one_is_refused_for_its_answers(int8: Path, cases: list[Case], tmp_path: Path) -> None:
    found = compare_answers(MODEL, broken(int8, tmp_path / "broken"), cases, 0.1)
    assert found["answers_right_less"]["value"] > 0.3 and not found["answers_right_less"]["kept"]


def test_the_report_has_them_and_says_when_not(int8: Path, questions: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": SOURCES[2].read_text()[:600]}) + "\n")
    loose = Limits(tokens=64, perplexity=2.0, divergence=1.0, agreement=0.1, copying=1.0, answers=0.5)
    copy = shutil.copytree(int8, tmp_path / "copy")
    report = evaluate(MODEL, copy, texts, loose, lambda done, total: None, questions)
    assert "answers_right_less" in report["measures"] and not report["answers_not_compared"]
    strict = evaluate(MODEL, copy, texts, replace(loose, answers=-1.0), lambda done, total: None, questions)
    assert report["passed"] and not strict["passed"], "answers alone can refuse it"
    plain = evaluate(MODEL, copy, texts, loose, lambda done, total: None)
    assert plain["answers_not_compared"] == "no questions were given"


def test_a_model_without_a_chat_template_is_not_asked(int8: Path, cases: list[Case], tmp_path: Path) -> None:
    silent = shutil.copytree(MODEL, tmp_path / "silent", ignore=shutil.ignore_patterns("chat_template.jinja", SUMS))
    settings = json.loads((silent / "tokenizer_config.json").read_text())
    (silent / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in settings.items() if k != "chat_template"})
    )
    assert compare_answers(silent, int8, cases, 0.5) == {}


def test_a_line_that_is_no_question_is_named(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Who?", "passages": [{"text": "He."}]}\n{"question": "Who?"}\n')
    with pytest.raises(InvalidRequest, match="line 2: not a question with its passages"):
        read_cases(path)
    path.write_text("\n")
    with pytest.raises(InvalidRequest, match="has no questions"):
        read_cases(path)
