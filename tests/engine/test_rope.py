"""Rope scaling against transformers, beyond the original context."""

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine import LLMEngine
from tests.engine.conftest import config, make_model, prompts
from tests.engine.test_parity import GREEDY, reference

YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
SCALINGS: dict[str, dict[str, Any]] = {
    "yarn": YARN,
    "yarn with its own scale": YARN | {"attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2},
    "yarn with mscale": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS.keys())
def test_scaled_rope_equals_transformers(scaling: dict[str, Any], tmp_path: Path) -> None:
    model = make_model("llama", rope_parameters=scaling)
    model.save_pretrained(tmp_path / "scaled")
    many = prompts(20, 150)
    engine = LLMEngine(config(tmp_path / "scaled"))
    outputs = [output.token_ids for output in engine.generate(many, GREEDY)]
    assert outputs == [reference(model, prompt, 64) for prompt in many]
    plain = make_model("llama", rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    plain.load_state_dict(model.state_dict())
    assert outputs != [reference(plain, prompt, 64) for prompt in many], "negative control: scaling matters here"
    assert torch.get_num_threads() == 1
