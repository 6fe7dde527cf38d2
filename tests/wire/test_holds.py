"""What one client holds reserved."""

import pytest
from benches import Bench
from doubles import reserve

from darner.queues.queue import Queue
from darner.queues.waiters import Waiter
from darner.wire.holds import Holds


@pytest.fixture
def queue(tmp_path):
    it = Bench(tmp_path / "data")
    it.push(*[b"%d" % number for number in range(6)])
    yield it.queue
    it.close()


@pytest.fixture
def holds():
    return Holds()


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
    assert holds.abort(b"work")
    assert queue.peek().data == b"0"
    assert holds.count(b"work") == 1
    assert not holds.abort(b"play")


def test_releases_everything_in_the_order_it_was_set(holds, queue):
    reserve(holds, queue, 2)
    holds.abort(b"work")
    reserve(holds, queue, 2)  # now the second one has been held longest
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
    assert holds.abort(b"work")
    assert holds.count(b"work") == 6
    list(holds.release())
    assert drained(queue) == [b"%d" % number for number in range(6)]
