"""One decoder for Llama, Qwen2, Qwen3 and Mistral: what differs between them is data in DecoderSpec."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.architecture import DecoderSpec, rope_table
from app.engine.batch import ForwardBatch
from app.engine.loader import DecoderWeights, LayerWeights
from app.kernels.reference import paged_attention, rms_norm, rotate, store_kv


@dataclass(slots=True)
class KVCache:
    """Pages of every layer: keys and values, each [num_blocks, kv_heads, block_size, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def allocate(cls, spec: DecoderSpec, num_blocks: int, block_size: int, dtype: torch.dtype) -> "KVCache":
        shape = (num_blocks, spec.num_kv_heads, block_size, spec.head_dim)
        pages = [torch.zeros(shape, dtype=dtype) for _ in range(2 * spec.num_layers)]
        return cls(pages[: spec.num_layers], pages[spec.num_layers :])

    def clear(self, block_ids: list[int]) -> None:
        """Zero these pages: what a former owner left there, NaN perhaps, must not reach sums it has no weight in."""
        if block_ids:
            where = torch.tensor(block_ids)
            for pages in (*self.keys, *self.values):
                pages.index_fill_(0, where, 0)


class Decoder:
    """forward(batch, cache) writes the batch's keys and values and returns logits of the rows that sample."""

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, max_model_len: int) -> None:
        self.spec = spec
        self.weights = weights
        self._cos, self._sin = rope_table(spec, max_model_len, weights.embedding.dtype)

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """float32 [n, vocab] for the n tokens in batch.last."""
        x = F.embedding(batch.token_ids, self.weights.embedding)
        rope = self._cos[batch.positions].unsqueeze(1), self._sin[batch.positions].unsqueeze(1)
        for i, layer in enumerate(self.weights.layers):
            x = x + self._attention(rms_norm(x, layer.input_norm, self.spec.rms_norm_eps), i, rope, batch, cache)
            x = x + self._mlp(rms_norm(x, layer.post_norm, self.spec.rms_norm_eps), layer)
        x = rms_norm(x.index_select(0, batch.last), self.weights.norm, self.spec.rms_norm_eps)
        return F.linear(x, self.weights.head).float()

    def _attention(self, x: Tensor, i: int, rope: tuple[Tensor, Tensor], batch: ForwardBatch, cache: KVCache) -> Tensor:
        spec, layer = self.spec, self.weights.layers[i]
        heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        qkv = F.linear(x, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, dim)
        q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], 1)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = rms_norm(q, layer.q_norm, spec.rms_norm_eps), rms_norm(k, layer.k_norm, spec.rms_norm_eps)
        q, k = rotate(q, *rope), rotate(k, *rope)
        keys, values = cache.keys[i], cache.values[i]
        store_kv(k, v, keys, values, batch.kv_rows)
        out = paged_attention(q, k, v, keys, values, batch.plans[spec.windows[i]], dim**-0.5)
        return F.linear(out.flatten(1), layer.output, layer.output_bias)

    def _mlp(self, x: Tensor, layer: LayerWeights) -> Tensor:
        gate, up = F.linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
        return F.linear(F.silu(gate) * up, layer.down, layer.down_bias)
