"""`precedent eval` says what is wrong with its files before it asks anything."""

import asyncio
import json
from pathlib import Path

import pytest
from rich.console import Console

from app import evaluation
from app.errors import InvalidRequest
from tests.conftest import fake_settings


async def test_a_question_about_an_unknown_contract_is_refused(tmp_path: Path) -> None:
    contracts, questions = tmp_path / "c.jsonl", tmp_path / "q.jsonl"
    contracts.write_text(json.dumps({"contract": "lease", "text": "The rent is EUR 100."}))
    questions.write_text(json.dumps({"contract": "deed", "category": "rent", "question": "What rent?", "answers": []}))
    settings = fake_settings(tmp_path)
    with pytest.raises(InvalidRequest, match="'deed', which is not in"):
        await asyncio.to_thread(evaluation.answers, contracts, questions, None, False, Console(), settings)
