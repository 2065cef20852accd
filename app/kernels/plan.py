"""The attention work of one step as data: which tokens read which keys. Built once, used by every layer.

A token's keys fall into parts that are attended to separately and joined by their log-sum-exp:
  base parts   cover every token exactly once: the tokens of a chunk among themselves (OwnPart), or a single
               token and all keys in its row's own pages (DecodePart)
  extra parts  pages shared by several rows, read once for all of them (PrefixPart), and pages that a longer
               chunk finds already written (ContextPart)
Rows of similar lengths are padded together (a bounded number of parts), so that nothing loops over rows.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class OwnPart:
    """R chunks of up to Q tokens, each attending causally to itself.

    tokens: int64 [R, Q], flat token of each place, padding repeats a token.  places: int64 [n], the real
    ones among R * Q.  flat: int64 [n], their tokens.  window: keys a token sees including itself, or None.
    """

    tokens: Tensor
    places: Tensor
    flat: Tensor
    window: int | None = None


@dataclass(slots=True)
class DecodePart:
    """B rows of one token each against all keys in their own pages, without copying pages where possible.

    tokens: int64 [B].  pages: a range of the pool taken as a view, or int64 [N] page ids to gather.
    owner: int64 [N], the row of each selected page (any row where it has none).
    slots: int64 [B, P], the selected page at each place of a row, padding repeats its first.
    places: int64 [N], inverse of slots into B * P (0 where the page has no owner).
    bag, bag_offsets: int64, the selected pages of all rows one after the other, and where each row starts.
    mask: float32 [B, 1, 1, P * block_size], 0 or -inf.
    """

    tokens: Tensor
    pages: tuple[int, int] | Tensor
    owner: Tensor
    slots: Tensor
    places: Tensor
    bag: Tensor
    bag_offsets: Tensor
    mask: Tensor


@dataclass(slots=True)
class PrefixPart:
    """Tokens int64 [n] that all see every key in pages int64 [P]; the pages are read once."""

    tokens: Tensor
    pages: Tensor


@dataclass(slots=True)
class ContextPart:
    """R chunks against written pages. tokens, places, flat as in OwnPart; pages: int64 [R, P].

    mask: bool [R, 1 or Q, P * block_size], true where a key is visible; None: all are.
    """

    tokens: Tensor
    places: Tensor
    flat: Tensor
    pages: Tensor
    mask: Tensor | None


@dataclass(slots=True)
class AttentionPlan:
    own: list[OwnPart] = field(default_factory=list)
    decode: list[DecodePart] = field(default_factory=list)
    prefix: list[PrefixPart] = field(default_factory=list)
    context: list[ContextPart] = field(default_factory=list)

    @property
    def needs_lse(self) -> bool:
        return bool(self.prefix or self.context)
