"""The advert of the in-process engine: with what it knows of its queue, and which prompts it still has in memory."""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from app.gateway.prefixes import fingerprints
from app.gateway.providers.advert import Advert
from app.gateway.schemas import ChatRequest

if TYPE_CHECKING:
    from app.engine import AsyncEngine
    from app.engine.facts import PromptKeys
    from app.engine.resident import Resident

Beginning = tuple[str | None, str]  # adapter and fingerprint: with another adapter keys and values are others

MAX_REMEMBERED = 20_000  # beginnings of prompts
LONG = 512  # tokens of the prompt by which the speed of prefill is told


class Residency:
    """Remembers where prompts' segments ended, and tells which of these beginnings are still in KV memory."""

    def __init__(self) -> None:
        self._ends: OrderedDict[Beginning, tuple[bytes, int]] = OrderedDict()  # key of the last whole block, tokens

    def served(
        self, request: ChatRequest, adapter: str | None, ends: list[int], prompt: "PromptKeys", block_size: int
    ) -> None:
        """ends: tokens up to the end of each segment of content.  prompt: its keys with the adapter."""
        names = fingerprints(request.messages)
        if len(names) != len(ends):  # a chat template that leaves out or repeats a message
            return
        for name, end in zip(names, ends, strict=True):
            blocks = end // block_size
            if 0 < blocks <= len(prompt.keys):
                self._ends[adapter, name] = prompt.keys[blocks - 1], blocks * block_size
                self._ends.move_to_end((adapter, name))
        while len(self._ends) > MAX_REMEMBERED:
            self._ends.popitem(last=False)

    def resident(self, engine: "AsyncEngine", adapters: Collection[str | None]) -> dict[str | None, dict[str, int]]:
        """By adapter, None without. A block is evicted before those it stands on, so that the last one in memory
        vouches for all before it."""
        lookup = engine.engine.pool.lookup
        found: dict[str | None, dict[str, int]] = {adapter: {} for adapter in adapters}
        for (adapter, name), (key, tokens) in self._ends.items():
            if adapter in found and lookup(key) is not None:
                found[adapter][name] = tokens
        return found


def queue_ms(engine: "AsyncEngine", tokens: int = 1) -> float:
    """When the first token of a prompt of so many tokens would come, none of them in memory; nine of ten stay below."""
    from app.engine import TokenSegment

    return engine.predict_ttft([TokenSegment([0] * tokens)], quantile=0.9).quantile_s * 1000


def asleep(resident: "Resident", takes: frozenset[str]) -> Advert:
    """Of a model that has to wake first."""
    short, long = (resident.first_token_s(tokens) * 1000 for tokens in (1, LONG))
    return Advert(takes, None, short, max(0.0, long - short) / (LONG - 1), 0, resident.waiting)


def advertise(
    engine: "AsyncEngine", takes: frozenset[str], residency: Residency, adapters: Mapping[str, str]
) -> Advert:
    """adapters: by the model that each is served as."""
    short, long = (queue_ms(engine, tokens) for tokens in (1, LONG))
    load, held = engine.load(), residency.resident(engine, {None, *adapters.values()})
    own = {model: held[adapter] for model, adapter in adapters.items()}
    each = max(0.0, long - short) / (LONG - 1)
    return Advert(takes, None, short, each, load.running, load.waiting, held[None], own)
