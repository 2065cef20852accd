"""KV blocks: who owns which, which are free, which hold a prefix worth keeping. No torch.

A block is in exactly one of three states, and free + used + cached == total at all times:
  free    nobody refers to it and its content is worthless
  used    at least one running request refers to it
  cached  nobody refers to it, but its content has a key and can be taken up again; the least recently
          used is evicted first, when no free block is left
A pinned block holds a key and a reference of its own: it counts as used and is never evicted.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence

NO_SOURCES: frozenset[str] = frozenset()


class OutOfBlocks(Exception):
    """No block is free or evictable; the scheduler preempts somebody."""


class Block:
    """One page of KV memory. `prev` and `next` belong to the list it is in (intrusive, O(1) removal).

    sources: the documents that the content of a block with a key was computed from.
    """

    __slots__ = ("id", "key", "next", "pinned", "prev", "ref_count", "sources")

    def __init__(self, block_id: int) -> None:
        self.id = block_id
        self.ref_count = 0
        self.key: bytes | None = None
        self.pinned = False
        self.sources = NO_SOURCES
        self.prev: Block | None = None
        self.next: Block | None = None


class BlockList:
    """A doubly linked list through the blocks themselves; the front is the next to be taken."""

    def __init__(self) -> None:
        self._ends = Block(-1)
        self._ends.prev = self._ends.next = self._ends
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Block]:
        block = self._ends.next
        while block is not None and block is not self._ends:
            yield block
            block = block.next

    def append(self, block: Block) -> None:
        last = self._ends.prev
        assert last is not None
        block.prev, block.next = last, self._ends
        last.next = self._ends.prev = block
        self._len += 1

    def remove(self, block: Block) -> None:
        before, after = block.prev, block.next
        assert before is not None and after is not None
        before.next, after.prev = after, before
        block.prev = block.next = None
        self._len -= 1

    def popleft(self) -> Block:
        first = self._ends.next
        assert first is not None and first is not self._ends
        self.remove(first)
        return first


class BlockPool:
    """All KV blocks of the engine, and the map from prefix keys to the blocks that hold them."""

    def __init__(self, num_blocks: int) -> None:
        self._blocks = [Block(i) for i in range(num_blocks)]
        self._free, self._cached = BlockList(), BlockList()
        self._by_key: dict[bytes, Block] = {}
        self._used = 0
        self._pinned = 0
        self.evictions = 0
        for block in self._blocks:
            self._free.append(block)

    @property
    def total(self) -> int:
        return len(self._blocks)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self._used

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def pinned(self) -> int:
        """Of the used ones."""
        return self._pinned

    def runs(self) -> list[tuple[str, int]]:
        """The blocks by id as runs of one state: free, cached, used or pinned. May be asked from any thread."""
        found: list[tuple[str, int]] = []
        for state, group in itertools.groupby(map(_state, self._blocks)):
            found.append((state, sum(1 for _ in group)))
        return found

    @property
    def available(self) -> int:
        """Blocks that allocate() can hand out right now."""
        return len(self._free) + len(self._cached)

    def allocate(self) -> Block:
        """A block of our own with one reference. Takes a free one, else evicts; raises OutOfBlocks."""
        if self._free:
            block = self._free.popleft()
        elif self._cached:
            block = self._evict()
        else:
            raise OutOfBlocks
        block.ref_count = 1
        self._used += 1
        return block

    def lookup(self, key: bytes) -> Block | None:
        return self._by_key.get(key)

    def take(self, block: Block) -> None:
        """One more reference to a block found by lookup()."""
        if block.ref_count == 0:
            self._cached.remove(block)
            self._used += 1
        block.ref_count += 1

    def publish(self, block: Block, key: bytes, sources: frozenset[str] = NO_SOURCES) -> None:
        """Make a fully written block findable. The first block with a key keeps it."""
        holder = self._by_key.get(key)
        if holder is None and block.key is None:
            block.key = key
            holder = self._by_key[key] = block
        if holder is not None:
            self.attribute(holder, sources)

    def attribute(self, block: Block, sources: frozenset[str]) -> None:
        """Somebody says that this content is from these sources, too."""
        if not sources <= block.sources:
            block.sources |= sources

    def pin(self, block: Block) -> None:
        """Keep a published block for good."""
        if not block.pinned:
            assert block.key is not None
            self.take(block)
            block.pinned = True
            self._pinned += 1

    def forget(self, source_ids: Collection[str]) -> int:
        """Drop the keys and pins of everything computed from these sources; returns how many blocks that were."""
        found = [b for b in self._blocks if b.key is not None and not b.sources.isdisjoint(source_ids)]
        for block in found:
            self._drop_key(block)
            if block.pinned:
                block.pinned = False
                self._pinned -= 1
                self.release([block])
            elif block.ref_count == 0:
                self._cached.remove(block)
                self._free.append(block)
        return len(found)

    def free_ids(self) -> list[int]:
        return [block.id for block in self._free]

    def release(self, blocks: Sequence[Block]) -> None:
        """Give up one reference each. Last first, so that the tail of a chain is evicted before its head."""
        for block in reversed(blocks):
            block.ref_count -= 1
            if block.ref_count == 0:
                self._used -= 1
                (self._free if block.key is None else self._cached).append(block)

    def forget_all(self) -> None:
        """Drop every key that is not pinned; cached blocks become free. Running requests keep their blocks."""
        for block in list(self._cached):
            self._cached.remove(block)
            self._free.append(block)
        for block in [block for block in self._by_key.values() if not block.pinned]:
            self._drop_key(block)

    def is_consistent(self) -> bool:
        """The invariant, by walking everything. For tests and for the doctor, not for the hot path."""
        in_use = sum(block.ref_count > 0 for block in self._blocks)
        lists = sum(1 for _ in self._free) + sum(1 for _ in self._cached)
        keyed = all(self._by_key.get(b.key) is b for b in self._blocks if b.key is not None)
        idle = all(b.key is None for b in self._free) and all(b.key is not None for b in self._cached)
        pins = [block for block in self._blocks if block.pinned]
        kept = len(pins) == self._pinned and all(b.key is not None and b.ref_count > 0 for b in pins)
        counts = self.free + self.used + self.cached == self.total == in_use + lists
        return counts and keyed and idle and kept and in_use == self.used

    def _evict(self) -> Block:
        block = self._cached.popleft()
        self._drop_key(block)
        self.evictions += 1
        return block

    def _drop_key(self, block: Block) -> None:
        assert block.key is not None
        del self._by_key[block.key]
        block.key, block.sources = None, NO_SOURCES


def _state(block: Block) -> str:
    if block.pinned:
        return "pinned"
    if block.ref_count:
        return "used"
    return "free" if block.key is None else "cached"
