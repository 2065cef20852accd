"""What one step does. No torch."""

from dataclasses import dataclass, field

from app.engine.cost import StepShape
from app.engine.prefix import PrefixGroup
from app.engine.request import Sequence


@dataclass(slots=True)
class ScheduledRow:
    """tokens[start :] of a sequence and then `draft`, num_tokens in all, are computed in this step.

    It `samples` when it catches up: one token behind its last one and one behind each of its draft.
    """

    seq: Sequence
    start: int
    num_tokens: int
    draft: list[int] = field(default_factory=list)

    @property
    def samples(self) -> bool:
        return self.start + self.num_tokens >= len(self.seq.tokens)

    @property
    def num_samples(self) -> int:
        return min(self.num_tokens, 1 + len(self.draft)) if self.samples else 0

    @property
    def decodes(self) -> bool:
        """One token of its own, whatever is tried behind it."""
        return self.num_tokens - len(self.draft) == 1


@dataclass(slots=True)
class Schedule:
    """One step. Rows that decode come first. shared_blocks: leading blocks of a row that groups cover.

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
        """Draft tokens cost what tokens of a chunk cost."""
        decodes = [row.start for row in self.rows if row.decodes]
        longer = [row for row in self.rows if row.num_tokens > 1]
        chunks = [(len(row.draft) if row.decodes else row.num_tokens, row.start) for row in longer]
        depth = sum(count * (start + count // 2) for count, start in chunks)
        drafts = sum(len(row.draft) for row in self.rows if row.draft)
        return StepShape(sum(count for count, _ in chunks), len(decodes), sum(decodes), depth, drafts)
