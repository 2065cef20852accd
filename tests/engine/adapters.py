"""Random LoRA adapters in PEFT's format, and what a model is with one merged into its weights."""

import copy
import json
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

EVERY = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path, model: Any, targets: Sequence[str] = EVERY, rank: int = 4, seed: int = 0, **said: Any
) -> Path:
    """For a model of transformers. said: over what its config says."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            rows, columns = module.weight.shape
            for half, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = torch.randn(shape, generator=generator) * 0.2
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets), "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config | said))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@torch.no_grad()
def merged(model: Any, folder: Path) -> Any:
    """A copy with W + scale * B @ A for every layer that the adapter changes."""
    model, config = copy.deepcopy(model), json.loads((folder / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (sqrt(rank) if config.get("use_rslora") else rank)
    stored = load_file(folder / "adapter_model.safetensors")
    for name, module in model.named_modules():
        start = f"base_model.model.{name}.lora_"
        if f"{start}A.weight" in stored:
            module.weight += scale * stored[f"{start}B.weight"] @ stored[f"{start}A.weight"]
    return model
