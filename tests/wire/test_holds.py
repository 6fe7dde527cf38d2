"""The items that one client has reserved."""

import itertools
import random

import pytest
from doubles import reserve
from lone_queue import LoneQueue

from darner._records import Item
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter
from darner.wire.holds import Holds

pytestmark = pytest.mark.leveldb("of queues of LevelDB without a server")


@pytest.fixture
def queue(tmp_path):
    it = LoneQueue(tmp_path / "data")
    it.push(*[b"%d" % number for number in range(6)])
    yield it.queue
    it.close()


@pytest.fixture
def holds():
    return Holds()


class CountingSource:
    """A queue without end, which counts how often it was asked whether an item is reserved."""

    name = b"work"

    def __init__(self):
        self.ids = itertools.count(1)
        self.reserved = {}
        self.steps = 0

    def reserve(self):
        item = Item(next(self.ids), 0, 0, 0, b"")
        self.reserved[item.id] = item
        return item

    def is_reserved(self, item):
        self.steps += 1
        return item.id in self.reserved

    def close(self, item):
        del self.reserved[item.id]


def drained(queue):
    return [item.data for item in iter(queue.pop, None)]


def test_counts_what_is_held_by_queue(holds, queue):
    reserve(holds, queue, 6)
    assert holds.count(b"work") == 6
    assert holds.count(b"play") == 0


def test_closes_what_was_reserved_longest(holds, queue):
    reserve(holds, queue, 4)
    assert holds.close(b"work", 2) == 2
    assert next(iter(queue.reserved.by_id.values())).data == b"2"
    assert holds.close(b"work", 9) == 2
    assert holds.close(b"work") == 0
    assert not holds.held
    assert drained(queue) == [b"4", b"5"]


def test_puts_back_what_was_reserved_longest(holds, queue):
    reserve(holds, queue, 2)
    holds.abort(b"work")
    assert queue.peek().data == b"0"
    assert holds.count(b"work") == 1
    holds.abort(b"play")
    assert holds.count(b"work") == 1


class TestToken:
    def test_of_a_first_delivery_is_the_id(self, holds, queue):
        (item,) = reserve(holds, queue, 1)
        assert item.token == item.id == 1
        holds.abort(b"work")
        (again,) = reserve(holds, queue, 1)
        assert again.token == (1 << 48) + 1

    @pytest.mark.parametrize("end", [Holds.close_item, Holds.abort])
    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
    def test_ends_one_item_of_several_in_any_order(self, holds, queue, end, order):
        items = reserve(holds, queue, 4)
        for n, place in enumerate(order, 1):
            assert holds.has_item(b"work", items[place].token)
            end(holds, b"work", items[place].token)
            assert not holds.has_item(b"work", items[place].token)
            end(holds, b"work", items[place].token)
            assert holds.count(b"work") == len(queue.reserved) == 4 - n
        assert not holds.held
        left = (
            [item.data for item in (items[place] for place in reversed(order))] if end is Holds.abort else []
        )
        assert drained(queue) == [*left, b"4", b"5"]

    def test_leaves_the_order_of_the_others_as_it_is(self, holds, queue):
        items = reserve(holds, queue, 6)
        assert holds.close_item(b"work", items[3].token)
        assert list(holds.tokens(b"work")) == [items[place].token for place in (0, 1, 2, 4, 5)]
        assert holds.close(b"work", 3) == 3
        assert holds.count(b"work") == 2
        list(holds.release())
        assert drained(queue) == [b"4", b"5"]

    def test_of_another_queue_or_of_nothing_is_not_held(self, holds, queue):
        reserve(holds, queue, 2)
        assert not holds.has_item(b"play", 1)
        for token in (3, (1 << 48) + 1, (1 << 64) - 1):
            assert not holds.has_item(b"work", token)
            assert not holds.close_item(b"work", token)
        assert holds.count(b"work") == 2

    def test_is_of_one_delivery_alone(self, holds, queue):
        first, second = reserve(holds, queue, 2)
        queue.abort(second)
        assert not holds.has_item(b"work", second.token)
        (again,) = reserve(holds, queue, 1)
        assert (again.id, again.attempts) == (second.id, 1)
        assert not holds.close_item(b"work", second.token)
        assert holds.close_item(b"work", again.token)
        assert list(holds.tokens(b"work")) == [first.token]

    def test_of_an_item_that_came_after_others_were_asked_for_is_found(self, holds, queue):
        items = reserve(holds, queue, 3)
        assert holds.has_item(b"work", items[2].token)
        items += reserve(holds, queue, 1)
        assert holds.close_item(b"work", items[3].token)
        assert holds.count(b"work") == 3

    def test_of_the_item_of_a_deleted_queue_is_not_held(self, holds, queue):
        _, second = reserve(holds, queue, 2)
        assert holds.has_item(b"work", second.token)
        queue.retire()
        assert not holds.has_item(b"work", second.token)
        assert not holds.held

    def test_is_found_in_few_steps_among_10_000(self, holds):
        source = CountingSource()
        for _ in range(10_000):
            assert not holds.has_as_many(b"work", 10_000)
            reserve(holds, source, 1)
        tokens = list(source.reserved)
        random.Random(1).shuffle(tokens)
        while tokens:
            assert holds.close_item(b"work", tokens.pop())
            assert not holds.has_as_many(b"work", 10_000)
            # those that are closed take no room for long
            assert not tokens or len(holds.held[b"work"]) <= 2 * len(tokens)
        assert not holds.held
        assert source.steps <= 4 * 10_000

    def test_closes_the_youngest_of_many_in_few_steps(self, holds):
        source = CountingSource()
        reserve(holds, source, 1000)
        for _ in range(1000):
            assert holds.close_item(b"work", max(source.reserved))
            assert not holds.has_as_many(b"work", 1000)
            reserve(holds, source, 1)
        assert source.steps <= 4 * 1000


@pytest.mark.parametrize(("count", "has"), [(0, True), (1, True), (3, True), (4, False)])
def test_says_whether_so_many_are_held(holds, queue, count, has):
    reserve(holds, queue, 3)
    assert holds.has_as_many(b"work", count) == has
    assert holds.has_as_many(b"play", count) == (count == 0)


def test_does_not_count_what_the_queue_took_back(holds, queue):
    first, *_ = reserve(holds, queue, 3)
    queue.abort(first)
    assert not holds.has_as_many(b"work", 3)
    assert holds.has_as_many(b"work", 2)


def test_releases_everything_in_the_order_it_was_set(holds, queue):
    reserve(holds, queue, 2)
    holds.abort(b"work")
    reserve(holds, queue, 2)  # now the second one is the longest reserved
    list(holds.release())
    assert not holds.held
    assert drained(queue) == [b"%d" % number for number in range(6)]


def test_forgets_what_the_queue_took_back(holds, queue):
    first, _ = reserve(holds, queue, 2)
    queue.abort(first)
    assert holds.count(b"work") == 1
    assert holds.close(b"work", 2) == 1
    assert not holds.held
    assert queue.peek().data == b"0"


def test_forgets_the_items_of_a_deleted_queue(holds, queue):
    reserve(holds, queue, 2)
    queue.retire()
    assert holds.close(b"work") == 0
    assert not holds.held


def test_can_be_used_while_an_item_put_back_goes_to_a_waiter(holds, queue):
    reserve(holds, queue, 6)
    queue.wait(Waiter(Queue.reserve, holds.add))
    holds.abort(b"work")
    assert holds.count(b"work") == 6
    list(holds.release())
    assert drained(queue) == [b"%d" % number for number in range(6)]
