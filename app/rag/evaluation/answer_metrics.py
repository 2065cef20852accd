"""Measuring answers: SQuAD-style token F1, citations that hold, refusals where there is nothing to say."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from app.rag.answers.citations import Citation
from app.rag.documents.chunking import Chunk
from app.rag.evaluation.retrieval_metrics import read_lines, stratified

HIT_F1 = 0.5
ORACLE_PASSAGES = 5

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’–—")


@dataclass(frozen=True, slots=True)
class GoldSpan:
    """text == contract_text[start : start + len(text)]; `start` is None where the data has no offset."""

    text: str
    start: int | None = None


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """One question of one contract; no gold spans means that the contract does not answer it."""

    contract: str
    category: str
    question: str
    answers: tuple[GoldSpan, ...]


@dataclass(frozen=True, slots=True)
class AnswerResult:
    """What the answer service said; `citations` in order of appearance."""

    answer: str
    refused: bool
    citations: tuple[Citation, ...] = ()


def load_questions(path: Path, limit: int | None, seed: int) -> list[EvalQuestion]:
    """The questions of a JSON Lines file, or a sample of them stratified by answerability and category."""
    rows = [_question(row) for row in read_lines(path)]
    if limit is None:
        return rows
    return stratified(rows, lambda row: f"{bool(row.answers)} {row.category}", limit, seed)


def summarise_answers(questions: Sequence[EvalQuestion], results: Sequence[AnswerResult]) -> dict[str, Any]:
    """`answerable_hit_rate`: span F1 ≥ 0.5. `span_f1`: mean over answerable questions, 0 for a refusal.
    `citation_accuracy`: of the citations given to answerable questions, those verified that overlap a gold span.
    `refusal_accuracy`: of the unanswerable questions, those refused. `answerable_refused_rate`: of the answerable.
    """
    pairs = list(zip(questions, results, strict=True))
    answerable = [(question, result) for question, result in pairs if question.answers]
    scores = [span_f1(result, question.answers) for question, result in answerable]
    right = [_supports(citation, question.answers) for question, r in answerable for citation in r.citations]
    return {
        "answerable_hit_rate": _mean([score >= HIT_F1 for score in scores]),
        "span_f1": _mean(scores),
        "citation_accuracy": _mean(right),
        "refusal_accuracy": _mean([result.refused for question, result in pairs if not question.answers]),
        "answerable_refused_rate": _mean([result.refused for _, result in answerable]),
        "n": len(pairs),
    }


def answer_rows(questions: Sequence[EvalQuestion], results: Sequence[AnswerResult]) -> list[dict[str, Any]]:
    """The same measures for each question, None where one does not apply, so that two runs can be paired."""
    rows = []
    for question, result in zip(questions, results, strict=True):
        score = span_f1(result, question.answers) if question.answers else None
        right = [_supports(citation, question.answers) for citation in result.citations]
        measures = {
            "answerable_hit_rate": None if score is None else float(score >= HIT_F1),
            "span_f1": score,
            "citation_accuracy": _mean(right) if right and question.answers else None,
            "refusal_accuracy": None if question.answers else float(result.refused),
            "answerable_refused_rate": float(result.refused) if question.answers else None,
        }
        rows.append({"question": f"{question.contract}: {question.question}", "measures": measures})
    return rows


def span_f1(result: AnswerResult, gold: Sequence[GoldSpan]) -> float:
    """Token F1 of all that was quoted (of the answer where nothing was) against the best gold span."""
    if result.refused:
        return 0.0
    said = " ".join(citation.quote for citation in result.citations) or result.answer
    return max((token_f1(said, span.text) for span in gold), default=0.0)


def token_f1(said: str, gold: str) -> float:
    """SQuAD's F1: case, punctuation and articles do not count (Rajpurkar et al. 2016)."""
    ours, theirs = _tokens(said), _tokens(gold)
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not common:
        return float(not ours and not theirs)
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall)


def oracle_passages(text: str, gold: Sequence[GoldSpan], chunks: Sequence[Chunk], seed: int) -> list[Chunk]:
    """The chunk with most of the first gold span among others of the same contract, five in seeded order; for an
    unanswerable question five others."""
    random = Random(seed)
    inked = [chunk for chunk in chunks if text[chunk.start : chunk.end].strip()]
    best = max(inked, key=lambda chunk: _overlap(chunk, gold[0], text)) if gold and inked else None
    free = [c for c in inked if not any(_overlap(c, span, text) for span in gold)]
    count = ORACLE_PASSAGES - (best is not None)
    chosen = random.sample(free, min(count, len(free))) + ([best] if best else [])
    random.shuffle(chosen)
    return chosen


def _overlap(chunk: Chunk, span: GoldSpan, text: str) -> int:
    start = text.find(span.text) if span.start is None else span.start
    return max(0, min(chunk.end, start + len(span.text)) - max(chunk.start, start)) if start >= 0 else 0


def _supports(citation: Citation, gold: Sequence[GoldSpan]) -> bool:
    """Verified, and on the gold: by offsets where the data has them, else by tokens."""
    if not citation.verified:
        return False
    for span in gold:
        if span.start is None and token_f1(citation.quote, span.text) >= HIT_F1:
            return True
        if span.start is not None and citation.start < span.start + len(span.text) and span.start < citation.end:
            return True
    return False


def _question(row: dict[str, Any]) -> EvalQuestion:
    answers = row.get("answers") or []
    spans = tuple(GoldSpan(answer["text"], answer.get("start")) for answer in answers)
    return EvalQuestion(row["contract"], row.get("category", ""), row["question"], spans)


def _tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
