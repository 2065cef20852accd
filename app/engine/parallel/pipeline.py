"""Pipeline parallelism: every rank has some of the layers, and hands the stream on to who has the next.

A step is one batch that goes through all stages, so that only one of them computes at a time: for models that one
device cannot hold, not for speed. Steps are not cut into micro-batches.
"""

import torch
from torch import Tensor

from app.engine.batch import ForwardBatch
from app.engine.decoder import Decoder
from app.engine.kv_cache import KVCache
from app.engine.loader import DecoderWeights
from app.engine.parallel.group import Group
from app.engine.parallel.layout import Part
from app.engine.parallel.peers import Peers
from app.kernels.dispatch import Kernels


class StageDecoder(Decoder):
    """One stage of the model: the first takes tokens, the last makes logits, which go back to the first.

    stages: the ranks at this rank's place in every stage.  samples: it is the first place, which has whole logits.
    """

    def __init__(
        self, part: Part, weights: DecoderWeights, max_model_len: int, kernels: Kernels, group: Group, stages: Peers,
        *, samples: bool,
    ) -> None:  # fmt: skip
        super().__init__(part.spec, weights, max_model_len, kernels, group)
        self.windows = part.whole.windows
        self._stages, self._samples = stages, samples
        self._mine, self._last = stages.rank, stages.size - 1

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """On rank 0 float32 [n, vocab] for the n tokens in batch.last; elsewhere nothing of use."""
        stream = self.embed(batch.token_ids) if self._mine == 0 else self._received(len(batch.token_ids))
        change = self.layers(stream, batch, cache)
        if self._mine < self._last:
            self._stages.send(stream.add_(change), self._mine + 1)
            return self._logits_of_last(len(batch.last)) if self._mine == 0 and self._samples else stream
        logits = self.logits(stream, change, batch.last)
        if self._samples:
            self._stages.send(logits, 0)
        return logits

    def _received(self, num_tokens: int) -> Tensor:
        room = self.weights.norm.new_empty(num_tokens, self.spec.hidden_size)
        return self._stages.receive(room, self._mine - 1)

    def _logits_of_last(self, count: int) -> Tensor:
        room = self.weights.norm.new_empty(count, self.spec.vocab_size, dtype=torch.float32)
        return self._stages.receive(room, self._last)
