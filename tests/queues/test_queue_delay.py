"""Items that are out of sight until they are due. The clock is a number."""

import pytest
from doubles import Disk, begin_upload

from darner.errors import JournalError, QueueFullError
from darner.queues import due_items
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter


def test_is_out_of_sight_until_it_is_due(it):
    it.delay(1000, b"a")
    it.commit()
    assert (it.queue.items, it.queue.waiting_bytes, it.queue.delayed_items) == (0, 0, 1)
    it.now += 999
    it.sweep()
    assert it.queue.pop() is None
    it.now += 1
    item = it.queue.pop()
    assert (item.data, item.flags) == (b"a", 7)
    assert it.queue.delayed_items == 0


def test_joins_the_end_in_the_order_of_the_times(it, monkeypatch):
    monkeypatch.setattr(due_items, "JOIN_ITEMS", 2)
    it.delay(3000, b"d")
    it.delay(1000, b"a", b"b", b"c")
    it.push(b"before")
    it.commit()
    it.now += 1000
    it.sweep()
    it.push(b"between")
    it.now += 2000
    it.sweep()
    assert it.waiting() == [b"before", b"a", b"b", b"c", b"between", b"d"]


@pytest.mark.parametrize("restarts", ["before", "after"])
def test_survives_a_restart(it, restarts, monkeypatch):
    monkeypatch.setattr(due_items, "JOIN_ITEMS", 2)
    it.delay(1000, b"a", b"b", b"c")
    if restarts == "before":
        it.restart()
    it.now += 1000
    it.commit()
    it.queue.sweep()
    if restarts == "after":
        it.restart()
    it.sweep()
    it.restart()
    assert it.queue.delayed_items == 0
    assert it.waiting() == [b"a", b"b", b"c"]


def test_goes_to_who_waits(it):
    got = []
    for _ in range(2):
        it.queue.wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
    it.delay(1000, b"a")
    it.delay(1001, b"b")
    it.commit()
    it.sweep()
    assert not got
    it.now += 2000
    it.sweep()
    assert got == [b"a", b"b"]


def test_goes_to_many_who_wait_in_its_order(it, monkeypatch):
    monkeypatch.setattr(due_items, "JOIN_ITEMS", 2)
    got = []
    for _ in range(4):
        it.queue.wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
    it.delay(1000, b"a", b"b", b"c", b"d")
    it.commit()
    it.now += 1000
    it.sweep()
    assert got == [b"a", b"b", b"c", b"d"]


def test_counts_against_the_limits_and_is_not_discarded(it):
    it.set(max_items=2, discard_old_when_full=True)
    it.push(b"old")
    it.delay(1000, b"a")
    it.push(b"new")
    assert it.queue.peek().data == b"new"
    it.delay(1000, b"b")
    with pytest.raises(QueueFullError):
        it.push(b"c")
    it.commit()
    it.now += 1000
    assert it.waiting() == [b"a", b"b"]


def test_may_expire_before_it_is_due(it):
    it.delay(5000, b"a", exptime=1)
    it.commit()
    it.now += 5000
    it.sweep()
    assert (it.queue.items, it.queue.counts.expired_items) == (0, 1)


def test_ages_from_the_time_it_joins(it):
    it.set(max_age_ms=1000)
    it.delay(5000, b"a")
    it.commit()
    it.now += 5000
    it.sweep()
    it.now += 999
    assert it.waiting() == [b"a"]


def test_is_flushed_with_the_queue_and_leaves_nothing(it):
    it.delay(1000, b"a")
    it.queue.flush()
    it.delay(1000, b"b")
    assert it.queue.delayed_items == 1
    it.restart()
    it.now += 1000
    it.sweep()
    assert it.waiting() == [b"b"]
    assert it.records(b"d") == []


@pytest.mark.parametrize("written", ["while it joins", "while it is delayed"])
def test_joins_once_while_that_is_being_written(it, written):
    it.delay(1000, b"a")
    if written == "while it joins":
        it.commit()
    it.committer.checkpoint(it.journal)
    it.now += 1000
    for _ in range(3):
        it.queue.sweep()
        it.committer.checkpoint(it.journal)
    assert it.queue.items == 1
    it.restart()
    assert it.waiting() == [b"a"]
    assert it.records(b"d") == []


@pytest.mark.parametrize("committed", [False, True])
def test_survives_a_kill_and_joins_once(it, committed, monkeypatch):
    monkeypatch.setattr(due_items, "JOIN_ITEMS", 2)
    it.delay(1000, b"a", b"b", b"c")
    if committed:
        it.commit()
    it.kill()
    it.now += 1000
    it.queue.sweep()
    it.kill()
    assert (it.queue.items, it.queue.delayed_items) == (2, 1)
    it.sweep()
    it.kill()
    assert it.waiting() == [b"a", b"b", b"c"]
    assert it.records(b"d") == []


def test_that_was_flushed_does_not_come_back_with_a_kill(it):
    it.delay(1000, b"a")
    it.commit()
    it.queue.flush()
    it.delay(500, b"b")
    it.kill()
    it.now += 1000
    it.sweep()
    assert it.waiting() == [b"b"]


def test_that_was_flushed_does_not_come_back_with_a_later_one(it):
    it.delay(1000, b"a")
    it.commit()
    it.queue.flush()
    it.restart()
    it.restart()
    it.delay(500, b"b")
    it.now += 1000
    it.sweep()
    assert it.waiting() == [b"b"]


def test_comes_in_its_order_out_of_memory_and_from_the_disk(it):
    it.delay(3000, b"c")
    it.delay(1000, b"a")
    it.commit()
    it.delay(2000, b"b")
    it.committer.checkpoint(it.journal)
    it.delay(4000, b"d")
    it.now += 4000
    assert it.waiting() == [b"a", b"b", b"c", b"d"]


def test_is_written_again_after_a_write_that_failed(it, monkeypatch):
    disk = Disk(monkeypatch)
    it.restart()
    it.delay(1000, b"a")
    disk.failures = ["before"]
    it.commit()
    it.now += 1000
    with pytest.raises(JournalError, match="no space"):
        it.queue.sweep()
    it.commit()
    assert it.waiting() == [b"a"]


def test_of_any_size_comes_with_its_bytes(it):
    upload = begin_upload(it.queue, 3)
    upload.write(b"xyz")
    upload.finish(7, 0, lambda _: None, sync=False, delay_ms=1000)
    it.restart()
    assert it.queue.pop() is None
    it.now += 1000
    item = it.queue.pop()
    assert (item.size, item.flags) == (3, 7)
    it.commit()
    obsolete_blobs = it.journal.blobs.take_obsolete(it.journal.database.stored_change)
    assert it.journal.blobs.path_of(item.blob).name in map(str, obsolete_blobs)


def test_that_is_large_and_flushed_goes_with_its_file(it):
    upload = begin_upload(it.queue, 3)
    upload.write(b"xyz")
    upload.finish(7, 0, lambda _: None, sync=False, delay_ms=1000)
    it.commit()
    it.queue.flush()
    it.now += 1000
    it.sweep()
    assert len(it.journal.blobs.take_obsolete(it.journal.database.stored_change)) == 1


def test_costs_nobody_a_missing_id(it):
    it.delay(1000, b"a")
    it.push(b"b")
    assert [item.id for item in it.queue.window] == [1]
