"""How well a quantized model answers beside the original: the same questions from the same passages.

Prompt, refusal and scores are those of the answer service; quotes are constrained to the passages as there. Both models
compute in float32 and take the likeliest token, so that what differs is the quantization.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.engine import EngineConfig, LLMEngine, Request, SamplingParams
from app.errors import InvalidRequest
from app.gateway.providers.local_request import RequestBuilder
from app.gateway.schemas import ChatRequest, Message, Segment
from app.rag.answers.prompts import REFUSAL, user_text
from app.rag.answers.service import LEGAL_PROMPT
from app.rag.evaluation.answer_metrics import AnswerResult, EvalQuestion, GoldSpan, answer_rows
from app.rag.evaluation.comparison import interval

_SAMPLING = SamplingParams(temperature=0, max_tokens=256)
_QUOTED = re.compile(r'"([^"]+)"')
# What may be lost of each measure, and what its loss is called.
LOST = {"answerable_hit_rate": "answers_right_less", "refusal_accuracy": "refusals_right_less"}


@dataclass(frozen=True, slots=True)
class Case:
    """passages: (title, section, text) in the order in which they are shown."""

    question: EvalQuestion
    passages: tuple[tuple[str, str, str], ...]


def read_cases(path: Path) -> list[Case]:
    """JSON Lines of {"question", "passages": [{"title", "section", "text"}], "answers": [{"text"}]}; no answers where
    the passages hold none. Raises InvalidRequest naming the line that is something else."""
    cases = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                cases.append(_case(json.loads(line)))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InvalidRequest(f"{path}, line {number}: not a question with its passages ({error!r}).") from error
    if not cases:
        raise InvalidRequest(f"{path} has no questions.")
    return cases


def _case(row: dict[str, Any]) -> Case:
    gold = tuple(GoldSpan(answer["text"]) for answer in row.get("answers", ()))
    passages = tuple((one.get("title", ""), one.get("section", ""), one["text"]) for one in row["passages"])
    return Case(EvalQuestion("", row.get("category", ""), row["question"], gold), passages)


def compare_answers(original: Path, quantized: Path, cases: list[Case], limit: float) -> dict[str, Any]:
    """Loss of right answers and of right refusals, each as a share of the questions that it applies to, with a paired
    bootstrap interval over questions; limit: the most that its bad end may be. Empty without a chat template."""
    rows = []
    for folder in (original, quantized):
        results = _answered(folder, cases)
        if results is None:
            return {}
        rows.append(answer_rows([case.question for case in cases], results))
    measures = {}
    for name, lost in LOST.items():
        pairs = [(a["measures"][name], b["measures"][name]) for a, b in zip(*rows, strict=True)]
        both = np.asarray([pair for pair in pairs if None not in pair], dtype=np.float64)
        if len(both):
            measures[lost] = _loss(both, limit)
    return measures


def _loss(both: Any, limit: float) -> dict[str, Any]:
    low, high = interval(both[:, 0] - both[:, 1])
    first, second = (float(mean) for mean in both.mean(axis=0))
    shares = {"count": len(both), "original": first, "quantized": second, "value": first - second}
    return shares | {"low": low, "high": high, "limit": limit, "kept": high <= limit}


def _answered(folder: Path, cases: list[Case]) -> list[AnswerResult] | None:
    engine = LLMEngine(EngineConfig(folder, dtype="float32"))
    if engine.tokenizer is None or not engine.tokenizer.chat_template:
        return None
    builder = RequestBuilder(engine.tokenizer, None)
    requests = [_request(builder, i, case) for i, case in enumerate(cases)]
    outputs = {output.request_id: output.text for output in engine.generate_requests(requests)}
    return [_result(outputs[str(i)]) for i in range(len(cases))]


def _request(builder: RequestBuilder, number: int, case: Case) -> Request:
    texts = (("system", LEGAL_PROMPT), ("user", user_text(case.passages, case.question.question)))
    messages = tuple(Message(role, (Segment(text),)) for role, text in texts)
    segments = builder.prompt(ChatRequest(model="", messages=messages)).segments
    sources = tuple(text for _, _, text in case.passages)
    return Request(str(number), tuple(segments), _SAMPLING, quote_sources=sources)


def _result(text: str) -> AnswerResult:
    """What is quoted counts, as in the answer service; the engine lets nothing else than passages be quoted."""
    quoted = " ".join(_QUOTED.findall(text))
    return AnswerResult(quoted or text, refused=REFUSAL in text or not quoted)
