"""KV blocks: who owns which, which are free, which hold a prefix worth keeping. No torch.

A block is in exactly one of three states, and free + used + cached == total at all times:
  free    nobody refers to it and its content is worthless
  used    at least one running request refers to it
  cached  nobody refers to it, but its content has a key and can be taken up again; the least recently
          used is evicted first, when no free block is left
"""

from collections.abc import Iterator, Sequence


class OutOfBlocks(Exception):
    """No block is free or evictable; the scheduler preempts somebody."""


class Block:
    """One page of KV memory. `prev` and `next` belong to the list it is in (intrusive, O(1) removal)."""

    __slots__ = ("id", "key", "next", "prev", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.id = block_id
        self.ref_count = 0
        self.key: bytes | None = None
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

    def publish(self, block: Block, key: bytes) -> None:
        """Make a fully written block findable. The first block with a key keeps it."""
        if block.key is None and key not in self._by_key:
            block.key = key
            self._by_key[key] = block

    def release(self, blocks: Sequence[Block]) -> None:
        """Give up one reference each. Last first, so that the tail of a chain is evicted before its head."""
        for block in reversed(blocks):
            block.ref_count -= 1
            if block.ref_count == 0:
                self._used -= 1
                (self._free if block.key is None else self._cached).append(block)

    def forget_all(self) -> None:
        """Drop every key; cached blocks become free. Running requests keep their blocks."""
        for block in list(self._cached):
            self._cached.remove(block)
            self._free.append(block)
        for block in self._by_key.values():
            block.key = None
        self._by_key.clear()

    def is_consistent(self) -> bool:
        """The invariant, by walking everything. For tests and for the doctor, not for the hot path."""
        in_use = sum(block.ref_count > 0 for block in self._blocks)
        lists = sum(1 for _ in self._free) + sum(1 for _ in self._cached)
        keyed = all(self._by_key.get(b.key) is b for b in self._blocks if b.key is not None)
        idle = all(b.key is None for b in self._free) and all(b.key is not None for b in self._cached)
        counts = self.free + self.used + self.cached == self.total == in_use + lists
        return counts and keyed and idle and in_use == self.used

    def _evict(self) -> Block:
        block = self._cached.popleft()
        assert block.key is not None
        del self._by_key[block.key]
        block.key = None
        self.evictions += 1
        return block
