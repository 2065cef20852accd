"""A model that reads texts: logits of every position, and what its linear layers are given. For measuring a model."""

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from app.engine.architecture import read_spec
from app.engine.batch import build_batch
from app.engine.config import SamplingParams
from app.engine.decoder import Decoder
from app.engine.kv_cache import KVCache
from app.engine.loader import DecoderWeights, load_weights
from app.engine.quant.kv_scales import measured_scales
from app.engine.request import Request, Sequence, TokenSegment
from app.engine.schedule import Schedule, ScheduledRow
from app.kernels.dispatch import Kernels, ReferenceKernels
from app.kernels.fp8 import E4M3
from app.kernels.packed import Weight

_BLOCK = 16
_ROWS_PER_TEXT = 32


class Reader:
    """On the CPU, one text of at most `longest` tokens at a time."""

    def __init__(self, folder: Path, dtype: torch.dtype, longest: int) -> None:
        self.spec = read_spec(folder)
        self.longest = min(longest, self.spec.max_position)
        self.weights = load_weights(folder, self.spec, dtype)
        self._cache = KVCache.allocate(self.spec, -(-self.longest // _BLOCK), _BLOCK, dtype)

    @torch.inference_mode()
    def keep_in_8_bits(self) -> None:
        """From now on texts are read with pages as kv_cache_dtype="fp8" has them."""
        scales = self.weights.kv_scales
        if scales is None:
            scales = measured_scales(self._read, self._cache, self.longest, _BLOCK, self.spec.vocab_size)
        self._cache = KVCache.allocate(self.spec, len(self._cache.keys[0]), _BLOCK, E4M3, scales=scales)

    @torch.inference_mode()
    def logits(self, tokens: list[int], kernels: Kernels | None = None) -> Tensor:
        """float32 [n, vocab]: what follows each of the n tokens."""
        if not 0 < len(tokens) <= self.longest:
            raise ValueError(f"a text of {len(tokens)} tokens does not fit {self.longest}")
        request = Request("read", (TokenSegment(tokens),), SamplingParams(max_tokens=1))
        seq = Sequence(request, 0, 1)
        seq.block_ids = list(range(-(-len(tokens) // _BLOCK)))
        return self._read(Schedule([ScheduledRow(seq, 0, len(tokens))], shared_blocks=[0]), kernels)

    def _read(self, schedule: Schedule, kernels: Kernels | None = None) -> Tensor:
        heads, windows = self.spec.num_kv_heads, set(self.spec.windows)
        batch = build_batch(schedule, block_size=_BLOCK, num_kv_heads=heads, windows=windows)
        batch.last = torch.arange(len(batch.token_ids))
        return Decoder(self.spec, self.weights, self.longest, kernels).forward(batch, self._cache)

    def linear_inputs(self, texts: list[list[int]]) -> list[dict[str, Tensor]]:
        """Of every layer: samples [n, K] of what its linear layers are given, by attribute of LayerWeights."""
        recording = _Recording(self.weights)
        for tokens in texts:
            self.logits(tokens, recording)
        return [{name: torch.cat(parts) for name, parts in layer.items()} for layer in recording.layers]


class _Recording(ReferenceKernels):
    def __init__(self, weights: DecoderWeights) -> None:
        self.layers: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in weights.layers]
        self._places = {
            id(getattr(layer, name)): (i, name)
            for i, layer in enumerate(weights.layers)
            for name in ("qkv", "output", "gate_up", "down")
        }

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        if id(weight) in self._places:
            i, name = self._places[id(weight)]
            self.layers[i][name].append(x[:: max(1, len(x) // _ROWS_PER_TEXT)].clone())
        return super().linear(x, weight, bias)
