"""One decoder for Llama, Qwen2, Qwen3 and Mistral: what differs between them is data in DecoderSpec."""

import torch.nn.functional as F
from torch import Tensor

from app.engine.architecture import DecoderSpec, rope_table
from app.engine.batch import ForwardBatch
from app.engine.kv_cache import KVCache
from app.engine.loader import DecoderWeights
from app.engine.lora import Adapters
from app.engine.parallel.group import Alone, Group
from app.kernels.dispatch import Kernels, ReferenceKernels


class Decoder:
    """forward(batch, cache) writes the batch's keys and values and returns logits of the rows that sample.

    spec, weights: of the whole model, or of what this rank of `group` holds of each layer.  adapters: that batches may
    name.
    """

    def __init__(
        self, spec: DecoderSpec, weights: DecoderWeights, max_model_len: int, kernels: Kernels | None = None,
        group: Group | None = None,
    ) -> None:  # fmt: skip
        self.spec = spec
        self.weights = weights
        self.kernels = kernels or ReferenceKernels()
        self.group = group or Alone()
        self.windows = spec.windows  # of the whole model: a batch has an attention plan for each
        self.adapters: Adapters | None = None
        self._cos, self._sin = rope_table(spec, max_model_len, weights.embedding.dtype)

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """float32 [n, vocab] for the n tokens in batch.last."""
        stream = self.embed(batch.token_ids)
        change = self.layers(stream, batch, cache)
        return self.logits(stream, change, batch.last)

    def embed(self, token_ids: Tensor) -> Tensor:
        return self.group.embed(token_ids, self.weights.embedding)

    def layers(self, stream: Tensor, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Into stream [T, hidden], in place, but for what the last layer adds to it, which is returned."""
        norm, eps, total = self.kernels.add_rms_norm, self.spec.rms_norm_eps, self.group.sum
        rope = self.kernels.rope(self._cos, self._sin, batch.positions)
        change: Tensor | None = None
        for i, layer in enumerate(self.weights.layers):
            change = total(self._attention(norm(stream, change, layer.input_norm, eps), i, rope, batch, cache))
            change = total(self._mlp(norm(stream, change, layer.post_norm, eps), i, batch))
        assert change is not None
        return change

    def logits(self, stream: Tensor, change: Tensor, rows: Tensor) -> Tensor:
        """float32 [n, vocab]"""
        last, changed = stream.index_select(0, rows), change.index_select(0, rows)
        normed = self.kernels.add_rms_norm(last, changed, self.weights.norm, self.spec.rms_norm_eps)
        return self.group.gather(self.kernels.linear(normed, self.weights.head)).float()

    def _attention(self, x: Tensor, i: int, rope: tuple[Tensor, ...], batch: ForwardBatch, cache: KVCache) -> Tensor:
        spec, layer = self.spec, self.weights.layers[i]
        heads, dim = spec.num_heads + 2 * spec.num_kv_heads, spec.head_dim
        qkv = self._linear(x, i, "qkv", batch).view(-1, heads, dim)
        norms = (layer.q_norm, layer.k_norm) if layer.q_norm is not None and layer.k_norm is not None else None
        out = self.kernels.attend(
            qkv, rope, norms, spec.rms_norm_eps, cache.layer(i), batch.kv_rows, batch.plans[spec.windows[i]],
            dim**-0.5,
        )  # fmt: skip
        return self._linear(out.flatten(1), i, "output", batch)

    def _mlp(self, x: Tensor, i: int, batch: ForwardBatch) -> Tensor:
        gate, up = self._linear(x, i, "gate_up", batch).chunk(2, -1)
        return self._linear(F.silu(gate) * up, i, "down", batch)

    def _linear(self, x: Tensor, i: int, name: str, batch: ForwardBatch) -> Tensor:
        """name: attribute of LayerWeights."""
        layer = self.weights.layers[i]
        y = self.kernels.linear(x, getattr(layer, name), getattr(layer, f"{name}_bias"))
        return y if batch.adapters is None else batch.adapters.add(y, x, i, name)
