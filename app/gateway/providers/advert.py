"""What an engine replica says of itself to gateways that route by it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Advert:
    """takes: capabilities.  ttft_ms: when a prompt of one token would be answered, which nine of ten stay below;
    ms_per_token: more for each token that is not in memory.  prefixes: tokens in memory by fingerprint, of the model
    itself.  adapters: the same of each adapter, by the name of the model that it is served as."""

    takes: frozenset[str]
    unhealthy: str | None
    ttft_ms: float = 0.0
    ms_per_token: float = 0.0
    running: int = 0
    waiting: int = 0
    prefixes: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, dict[str, int]] = field(default_factory=dict)

    def resident(self, model: str) -> dict[str, int]:
        """What is in memory for requests of that model, however the replica's own is named here."""
        return self.adapters.get(model, self.prefixes)
