"""Who owns which block: exact ids, and a random walk that must keep free + used + cached == total."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from app.engine.blocks import Block, BlockPool, OutOfBlocks


def counts(pool: BlockPool) -> tuple[int, int, int]:
    return pool.free, pool.used, pool.cached


def test_eviction_takes_free_blocks_first_then_the_least_recently_used_tail_before_head() -> None:
    pool = BlockPool(5)
    first, second = [pool.allocate() for _ in range(2)], [pool.allocate() for _ in range(2)]
    for block, key in zip(first + second, [b"a0", b"a1", b"b0", b"b1"], strict=True):
        pool.publish(block, key)
    pool.release(first)
    pool.release(second)
    assert counts(pool) == (1, 0, 4)
    found = pool.lookup(b"a0")
    assert found is first[0]
    pool.take(found)
    pool.release([found])  # now the most recently used
    taken = [pool.allocate().id for _ in range(5)]
    assert taken == [4, first[1].id, second[1].id, second[0].id, first[0].id]
    assert pool.evictions == 4 and pool.lookup(b"a0") is None
    with pytest.raises(OutOfBlocks):
        pool.allocate()


def test_shared_block_is_used_until_its_last_reference_goes() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.publish(block, b"k")
    pool.take(block)
    pool.release([block])
    assert counts(pool) == (1, 1, 0)
    pool.release([block])
    assert counts(pool) == (1, 0, 1)


def test_second_block_with_a_key_stays_private() -> None:
    pool = BlockPool(2)
    one, two = pool.allocate(), pool.allocate()
    pool.publish(one, b"k")
    pool.publish(two, b"k")
    assert pool.lookup(b"k") is one and two.key is None
    pool.release([one, two])
    assert counts(pool) == (1, 0, 1)


class PoolMachine(RuleBasedStateMachine):
    """Random allocate, publish, take, release, against a model that only counts references."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(7)
        self.held: list[Block] = []

    @rule()
    def allocate(self) -> None:
        if self.pool.available:
            self.held.append(self.pool.allocate())
        else:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=st.binary(min_size=1, max_size=1))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        self.pool.publish(data.draw(st.sampled_from(self.held)), key)

    @rule(key=st.binary(min_size=1, max_size=1))
    def take(self, key: bytes) -> None:
        block = self.pool.lookup(key)
        if block is not None:
            assert block.key == key
            self.pool.take(block)
            self.held.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        many = data.draw(st.integers(1, len(self.held)))
        self.pool.release(self.held[-many:])
        del self.held[-many:]

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        assert self.pool.cached == 0

    @invariant()
    def holds(self) -> None:
        assert self.pool.is_consistent()
        assert self.pool.used == len({block.id for block in self.held})


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
