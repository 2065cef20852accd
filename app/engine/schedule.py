"""What one step does. No torch."""

from dataclasses import dataclass, field

from app.engine.cost import StepShape
from app.engine.prefix import PrefixGroup
from app.engine.request import Sequence


@dataclass(slots=True)
class ScheduledRow:
    """tokens[start : start + num_tokens] of a sequence are computed in this step; `samples` when it catches up."""

    seq: Sequence
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        return self.start + self.num_tokens == len(self.seq.tokens)


@dataclass(slots=True)
class Schedule:
    """One step. Rows with a single token come first. shared_blocks: leading blocks of a row that groups cover.

    partial_blocks: newly allocated ones that this step does not fill; a runner must clear what is in them.
    """

    rows: list[ScheduledRow] = field(default_factory=list)
    groups: list[PrefixGroup] = field(default_factory=list)
    shared_blocks: list[int] = field(default_factory=list)
    partial_blocks: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)

    def shape(self) -> StepShape:
        decodes = [row.start for row in self.rows if row.num_tokens == 1]
        chunks = [row for row in self.rows if row.num_tokens > 1]
        depth = sum(row.num_tokens * (row.start + row.num_tokens // 2) for row in chunks)
        return StepShape(sum(row.num_tokens for row in chunks), len(decodes), sum(decodes), depth)
