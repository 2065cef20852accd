"""What speculation brought a request. No torch."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class SpeculationCounts:
    """steps: with a draft.  drafted, accepted: tokens, the latter also by draft position and by source."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    by_position: list[int] = field(default_factory=list)
    by_source: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def acceptance(self) -> float:
        """The share of draft tokens that held."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted(self) -> float:
        """Tokens that a step with a draft brought beside its own."""
        return self.accepted / self.steps if self.steps else 0.0

    def count(self, source: str, drafted: int, accepted: int) -> None:
        self.steps += 1
        self.drafted += drafted
        self.accepted += accepted
        self.by_position += [0] * (drafted - len(self.by_position))
        for position in range(accepted):
            self.by_position[position] += 1
        before = self.by_source.get(source, (0, 0))
        self.by_source[source] = (before[0] + drafted, before[1] + accepted)
