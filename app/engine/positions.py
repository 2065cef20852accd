"""Where a step samples: behind the last token of each row that caught up, and behind each token of its draft.

What a row asks of the sampler holds at all of its positions; penalties also count the draft up to there.
"""

from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.engine.sampler import Pairs, Penalties, SamplingBatch


class Positions:
    """owners: int64 [n], the row of each position.  places: uint64 [n], how many draft tokens are before it."""

    def __init__(self, drafts: Seq[Seq[int]]) -> None:
        counts = np.array([1 + len(draft) for draft in drafts])
        self.owners: npt.NDArray[np.int64] = np.repeat(np.arange(len(drafts)), counts)
        starts = np.repeat(np.cumsum(counts) - counts, counts)
        self.places = (np.arange(len(self.owners)) - starts).astype(np.uint64)
        self.starts: list[int] = (np.cumsum(counts) - counts).tolist()
        self._drafts = drafts
        self._owners = torch.from_numpy(self.owners)

    def batch(self, rows: SamplingBatch) -> SamplingBatch:
        """What was asked by row, by position. uniform, banned and locked are left for the caller."""
        at = self._owners
        biased, bias = self._biased(rows.biased, rows.bias)
        return SamplingBatch(
            temperature=rows.temperature[at],
            top_k=rows.top_k[at],
            top_p=rows.top_p[at],
            min_p=rows.min_p[at],
            uniform=rows.uniform,
            sampled=self._of(rows.sampled),
            filtered=self._of(rows.filtered),
            with_logprobs=self._of(rows.with_logprobs),
            num_top=rows.num_top,
            biased=biased,
            bias=bias,
            penalties=self._penalties(rows.penalties) if rows.penalties is not None else None,
        )

    def _of(self, rows: Tensor) -> Tensor:
        """The positions of these rows, in order."""
        return torch.nonzero(torch.isin(self._owners, rows)).squeeze(1)

    def _biased(self, pairs: Pairs | None, bias: Tensor | None) -> tuple[Pairs | None, Tensor | None]:
        if pairs is None or bias is None:
            return None, None
        at, which = torch.nonzero(self._owners.unsqueeze(1) == pairs[0], as_tuple=True)
        return (at, pairs[1][which]), bias[which]

    def _penalties(self, rows: Penalties) -> Penalties:
        at, which = torch.nonzero(self._owners.unsqueeze(1) == rows.rows, as_tuple=True)
        counts, seen = rows.counts[which], rows.seen[which]
        for i, position in enumerate(at.tolist()):
            place = int(self.places[position])
            tokens = torch.tensor(self._drafts[self.owners[position]][:place], dtype=torch.int64)
            counts[i].index_add_(0, tokens, torch.ones(place))
            seen[i, tokens] = True
        return Penalties(at, counts, seen, rows.presence[which], rows.frequency[which], rows.repetition[which])
