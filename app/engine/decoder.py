"""One decoder for Llama, Qwen2, Qwen3 and Mistral: what differs between them is data in DecoderSpec."""

import torch.nn.functional as F
from torch import Tensor

from app.engine.architecture import DecoderSpec, rope_table
from app.engine.batch import ForwardBatch
from app.engine.kv_cache import KVCache
from app.engine.loader import DecoderWeights, LayerWeights
from app.kernels.dispatch import Kernels, ReferenceKernels


class Decoder:
    """forward(batch, cache) writes the batch's keys and values and returns logits of the rows that sample."""

    def __init__(
        self, spec: DecoderSpec, weights: DecoderWeights, max_model_len: int, kernels: Kernels | None = None
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.kernels = kernels or ReferenceKernels()
        self._cos, self._sin = rope_table(spec, max_model_len, weights.embedding.dtype)

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """float32 [n, vocab] for the n tokens in batch.last."""
        norm, eps = self.kernels.add_rms_norm, self.spec.rms_norm_eps
        stream = F.embedding(batch.token_ids, self.weights.embedding)
        rope = self.kernels.rope(self._cos, self._sin, batch.positions)
        change: Tensor | None = None
        for i, layer in enumerate(self.weights.layers):
            change = self._attention(norm(stream, change, layer.input_norm, eps), i, rope, batch, cache)
            change = self._mlp(norm(stream, change, layer.post_norm, eps), layer)
        assert change is not None
        last, changed = stream.index_select(0, batch.last), change.index_select(0, batch.last)
        return self.kernels.linear(norm(last, changed, self.weights.norm, eps), self.weights.head).float()

    def _attention(self, x: Tensor, i: int, rope: tuple[Tensor, ...], batch: ForwardBatch, cache: KVCache) -> Tensor:
        spec, layer = self.spec, self.weights.layers[i]
        heads, dim = spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim
        qkv = self.kernels.linear(x, layer.qkv, layer.qkv_bias).view(-1, heads, dim)
        norms = (layer.q_norm, layer.k_norm) if layer.q_norm is not None and layer.k_norm is not None else None
        out = self.kernels.attend(
            qkv, rope, norms, spec.rms_norm_eps, cache.keys[i], cache.values[i], batch.kv_rows,
            batch.plans[spec.windows[i]], dim**-0.5,
        )  # fmt: skip
        return self.kernels.linear(out.flatten(1), layer.output, layer.output_bias)

    def _mlp(self, x: Tensor, layer: LayerWeights) -> Tensor:
        linear = self.kernels.linear
        gate, up = linear(x, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
        return linear(F.silu(gate) * up, layer.down, layer.down_bias)
