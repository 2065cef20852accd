"""The moment at which ranks meet: every one of them builds its decoder here, at the same time."""

from dataclasses import dataclass
from pathlib import Path

import torch

from app.engine.decoder import Decoder
from app.engine.loader import DecoderWeights
from app.engine.parallel.group import Alone, Group
from app.engine.parallel.layout import Layout, Part
from app.engine.parallel.peers import Lost, Peers
from app.engine.parallel.pipeline import StageDecoder
from app.engine.parallel.tensor import TensorGroup
from app.kernels.dispatch import Kernels


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where and how: store names the file of Peers, timeout_s how long one waits for another in any exchange."""

    layout: Layout
    rank: int
    store: Path
    device: torch.device
    timeout_s: float
    lost: Lost

    def join(
        self, part: Part, weights: DecoderWeights, max_model_len: int, kernels: Kernels
    ) -> tuple[Decoder, list[Peers]]:
        """The decoder of this rank, and whom it exchanges tensors with. Waits for the others."""
        layout, (stage, place) = self.layout, self.layout.place(self.rank)
        group: Group = Alone()
        met: list[Peers] = []
        if layout.tensor > 1:
            met.append(self._peers(f"stage {stage}", place, layout.tensor))
            group = TensorGroup(met[0], layout.vocab_rows(part.whole.vocab_size))
        if layout.stages == 1:
            return Decoder(part.spec, weights, max_model_len, kernels, group), met
        met.append(self._peers(f"place {place}", stage, layout.stages))
        return StageDecoder(part, weights, max_model_len, kernels, group, met[-1], samples=place == 0), met

    def _peers(self, name: str, rank: int, size: int) -> Peers:
        return Peers(self.store, name, rank, size, self.device, self.timeout_s, self.lost)
