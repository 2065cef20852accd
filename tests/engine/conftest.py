"""Tiny random checkpoints of the four families, made with transformers itself; one thread, since cores are shared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from app.engine import EngineConfig, LLMEngine

VOCAB = 199
BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 7,
    "pad_token_id": None,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, "tie_word_embeddings": True}),
    "mistral": (MistralConfig, MistralForCausalLM, {"head_dim": 16, "sliding_window": 24}),
}


def make_model(family: str, **changes: Any) -> Any:
    config_class, model_class, own = FAMILIES[family]
    torch.manual_seed(1)
    model = model_class(config_class(**BASE | own | changes)).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a mistake
        for name, parameter in model.named_parameters():
            if name.endswith(("bias", "norm.weight")):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def get(family: str) -> tuple[Path, Any]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model = make_model(family)
            model.save_pretrained(folder, max_shard_size="60KB" if family == "qwen2" else "1GB")
            made[family] = folder, model
        return made[family]

    return get


@pytest.fixture(scope="session")
def llama(checkpoint: Callable[[str], tuple[Path, Any]]) -> Path:
    return checkpoint("llama")[0]


@pytest.fixture
def engine(llama: Path) -> Callable[..., LLMEngine]:
    def make(**settings: Any) -> LLMEngine:
        return LLMEngine(config(llama, **settings))

    return make


def config(folder: Path, **settings: Any) -> EngineConfig:
    return EngineConfig(**{"model": folder, "dtype": "float32", "threads": 1} | settings)


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (n,), generator=generator).tolist() for n in lengths]
