"""The models that benchmarks run on, and transformers as their peer: alone, in static batches, and continuously."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from benchmarks.workloads import Item, Result

_QWEN3 = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 151_936, "hidden_size": 1024,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "rope_theta": 1_000_000.0, "hidden_act": "silu", "attention_bias": False,
}  # fmt: skip
_LLAMA3 = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 4096,
    "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 500_000.0,
    "hidden_act": "silu", "attention_bias": False,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192},
}  # fmt: skip
MODEL_SHAPES: dict[str, dict[str, Any]] = {"qwen3-0.6b": _QWEN3, "llama-3.1-8b": _LLAMA3}


def model_shape(name: str, folder: Path, *, toy: bool) -> Path:
    """A folder with nothing but a config.json, for dummy weights; toy: two narrow layers of the same kind."""
    config = MODEL_SHAPES[name]
    if toy:
        config = config | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32}
        config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_llama(folder: Path, **changes: Any) -> Path:
    """28 million parameters: 8 layers of 512, 8 heads over 4, tied vocabulary of 8,192."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 4096,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**shape | changes)).save_pretrained(folder)
    return folder


def load_peer(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """The same weights as ours; where there are none but dummy ones, random weights of the same shape."""
    if (folder / "model.safetensors").exists() or (folder / "model.safetensors.index.json").exists():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    else:
        make: Any = AutoModelForCausalLM
        model = make.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.requires_grad_(False)
    model.generation_config.pad_token_id = 0
    return model.eval().to(device)


class StaticPeer:
    """transformers' generate on batches of a fixed size, padded on the left, each batch to its longest answer."""

    def __init__(self, model: Any, batch_size: int) -> None:
        self.model = model
        self.batch_size = batch_size

    @torch.inference_mode()
    def run(self, items: Sequence[Item]) -> Result:
        began = time.perf_counter()
        for i in range(0, len(items), self.batch_size):
            self._batch(items[i : i + self.batch_size])
        return Result(time.perf_counter() - began, sum(item.output_len for item in items))

    def _batch(self, items: Sequence[Item]) -> None:
        longest = max(len(item.prompt) for item in items)
        padding = [longest - len(item.prompt) for item in items]
        ids = torch.tensor([[0] * pad + item.prompt for pad, item in zip(padding, items, strict=True)])
        mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        new = max(item.output_len for item in items)
        out = self.model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        assert out.shape[1] == longest + new


class ContinuousPeer:
    """transformers' continuous batching, what generate_batch runs on; asked directly, since generate_batch knows
    one max_new_tokens for all. Its prefix cache is on. Starting its manager is not counted."""

    def __init__(self, model: Any, longest: int) -> None:
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        self.model = model
        self.longest = longest

    def run(self, items: Sequence[Item]) -> Result:
        pages = 1 + len(items) * -(-self.longest // 256)
        batching = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=1024, use_cuda_graph=False)
        config: Any = GenerationConfig
        greedy = config(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=self.longest)
        with self.model.continuous_batching_context_manager(
            generation_config=greedy, continuous_batching_config=batching, timeout=5, warmup=False
        ) as manager:
            began = time.perf_counter()
            for item in items:
                manager.add_request(item.prompt, max_new_tokens=item.output_len)
            tokens = _collect(manager, len(items))
            seconds = time.perf_counter() - began
        assert tokens == sum(item.output_len for item in items)
        return Result(seconds, tokens)


class VllmPeer:
    """vLLM's offline engine on the same folder, prefix cache on; dummy: random weights of its own. Installed apart:
    it brings its own torch. Never run by us so far."""

    def __init__(self, folder: Path, dtype: torch.dtype, longest: int, *, dummy: bool) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self.engine = LLM(
            str(folder), dtype=str(dtype).removeprefix("torch."), load_format="dummy" if dummy else "auto",
            skip_tokenizer_init=True, enable_prefix_caching=True, max_model_len=longest, seed=0,
        )  # fmt: skip

    def run(self, items: Sequence[Item]) -> Result:
        params = [
            self._params(temperature=0, max_tokens=item.output_len, ignore_eos=True, detokenize=False) for item in items
        ]
        self.engine.reset_prefix_cache()
        began = time.perf_counter()
        found = self.engine.generate([{"prompt_token_ids": item.prompt} for item in items], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = sum(len(one.outputs[0].token_ids) for one in found)
        assert tokens == sum(item.output_len for item in items)
        return Result(seconds, tokens)


def _collect(manager: Any, count: int) -> int:
    done = tokens = 0
    while done < count:
        result = manager.get_result(timeout=1)
        if result is None and not manager.is_running():
            raise RuntimeError("transformers' continuous batching stopped")
        if result is not None and result.is_finished():
            done, tokens = done + 1, tokens + len(result.generated_tokens)
    return tokens
