"""What a request costs: integers of micro-dollars, each line rounded up, the sum of the lines and nothing else."""

from collections.abc import Iterable
from dataclasses import dataclass

from app.config import PriceSettings
from app.gateway.schemas import Usage

MILLION = 1_000_000


@dataclass(frozen=True)
class Cost:
    """The lines of one request's bill, in micro-dollars."""

    input: int = 0
    cached_input: int = 0
    output: int = 0
    computing: int = 0

    @property
    def total(self) -> int:
        return self.input + self.cached_input + self.output + self.computing

    def lines(self) -> dict[str, int]:
        return {
            "input": self.input,
            "cached_input": self.cached_input,
            "output": self.output,
            "computing": self.computing,
        }


class PriceTable:
    """Prices by target and model; a target without a price costs nothing."""

    def __init__(self, prices: Iterable[PriceSettings]) -> None:
        self._prices = {(price.target, price.model): price for price in prices}

    def find(self, target: str, model: str) -> PriceSettings:
        """The model's own price on the target, else the target's."""
        return self._prices.get((target, model)) or self._prices.get((target, "")) or PriceSettings(target=target)

    def cost(self, target: str, model: str, usage: Usage, computed_ms: int = 0) -> Cost:
        """`computed_ms`: how long the target computed, for prices by the second."""
        price = self.find(target, model)
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cached_price = price.input if price.cached_input < 0 else price.cached_input
        return Cost(
            input=_up(price.input * (usage.prompt_tokens - cached), MILLION),
            cached_input=_up(cached_price * cached, MILLION),
            output=_up(price.output * usage.completion_tokens, MILLION),
            computing=_up(price.second * computed_ms, 1000),
        )

    def most(self, targets: Iterable[str], model: str, usage: Usage) -> int:
        """The highest that any of the targets would take for the tokens; computing time is not known before."""
        return max((self.cost(target, model, usage).total for target in targets), default=0)


def _up(amount: int, per: int) -> int:
    """Division that rounds up: nothing that has a price is ever free."""
    return -(-amount // per)


def dollars(micros: int) -> str:
    """For headers and people: $12.500000 without the sign."""
    sign = "-" if micros < 0 else ""
    return f"{sign}{abs(micros) // MILLION}.{abs(micros) % MILLION:06d}"
