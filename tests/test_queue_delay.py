"""Items that are out of sight until they are due. The clock is a number."""

import pytest
from test_queue_settings import Bench

from darner import queue
from darner.errors import JournalError, QueueFullError
from darner.journal import Journal
from darner.queue import Queue, Waiter


@pytest.fixture
def it(tmp_path):
    bench = Bench(tmp_path / "work")
    yield bench
    bench.commit()
    bench.journal.close()


def delay(it, delay_ms, *datas, exptime=0, sync=False):
    for data in datas:
        it.queue.push_delayed(data, 7, exptime, delay_ms, sync=sync)


def test_is_out_of_sight_until_it_is_due(it):
    delay(it, 1000, b"a")
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
    monkeypatch.setattr(queue, "JOIN_ITEMS", 2)
    delay(it, 3000, b"d")
    delay(it, 1000, b"a", b"b", b"c")
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
    monkeypatch.setattr(queue, "JOIN_ITEMS", 2)
    delay(it, 1000, b"a", b"b", b"c")
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
    delay(it, 1000, b"a")
    delay(it, 1001, b"b")
    it.commit()
    it.sweep()
    assert not got
    it.now += 2000
    it.sweep()
    assert got == [b"a", b"b"]


def test_goes_to_many_who_wait_in_its_order(it, monkeypatch):
    monkeypatch.setattr(queue, "JOIN_ITEMS", 2)
    got = []
    for _ in range(4):
        it.queue.wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
    delay(it, 1000, b"a", b"b", b"c", b"d")
    it.commit()
    it.now += 1000
    it.sweep()
    assert got == [b"a", b"b", b"c", b"d"]


def test_counts_against_the_limits_and_is_not_discarded(it):
    it.set(max_items=2, discard_old_when_full=True)
    it.push(b"old")
    delay(it, 1000, b"a")
    it.push(b"new")
    assert it.queue.peek().data == b"new"
    delay(it, 1000, b"b")
    with pytest.raises(QueueFullError):
        it.push(b"c")
    it.commit()
    it.now += 1000
    assert it.waiting() == [b"a", b"b"]


def test_may_expire_before_it_is_due(it):
    delay(it, 5000, b"a", exptime=1)
    it.commit()
    it.now += 5000
    it.sweep()
    assert (it.queue.items, it.queue.expired_items) == (0, 1)


def test_ages_from_the_time_it_joins(it):
    it.set(max_age_ms=1000)
    delay(it, 5000, b"a")
    it.commit()
    it.now += 5000
    it.sweep()
    it.now += 999
    assert it.waiting() == [b"a"]


def test_is_flushed_with_the_queue_and_leaves_nothing(it):
    delay(it, 1000, b"a")
    it.queue.flush()
    delay(it, 1000, b"b")
    assert it.queue.delayed_items == 1
    it.restart()
    it.now += 1000
    it.sweep()
    assert it.waiting() == [b"b"]
    it.commit()
    assert not list(it.journal._db.iterator(start=b"d", stop=b"e"))


def test_joins_once_while_its_end_is_being_written(it, monkeypatch):
    delay(it, 1000, b"a")
    it.commit()
    it.queue.push(b"synced", 0, 0, sync=True)
    it.committer.commit()
    it.now += 1000
    for _ in range(3):
        it.queue.sweep()
        it.committer.commit()
    assert it.queue.items == 2
    it.restart()
    assert it.waiting() == [b"synced", b"a"]


def test_that_is_still_being_written_joins_later(it):
    delay(it, 1000, b"a", sync=True)
    it.committer.commit()
    it.now += 1000
    it.queue.sweep()
    assert it.queue.pop() is None
    it.commit()
    assert it.waiting() == [b"a"]


def test_whose_write_failed_is_not_there(it, monkeypatch):
    def refuse(*_):
        raise JournalError("disk full")

    it.commit()
    delay(it, 1000, b"a")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", refuse)
        it.commit()
    it.now += 1000
    it.sweep()
    assert (it.queue.items, it.queue.delayed_items) == (0, 0)


def test_of_any_size_comes_with_its_bytes(it):
    upload = it.queue.upload(3)
    upload.write(b"xyz")
    upload.finish(7, 0, lambda _: None, sync=False, delay_ms=1000)
    it.restart()
    assert it.queue.pop() is None
    it.now += 1000
    item = it.queue.pop()
    assert (item.size, item.flags) == (3, 7)
    it.commit()
    doomed = it.journal.take_doomed()
    assert it.journal.blob_path(item.blob).name in map(str, doomed)


def test_that_is_large_and_flushed_goes_with_its_file(it):
    upload = it.queue.upload(3)
    upload.write(b"xyz")
    upload.finish(7, 0, lambda _: None, sync=False, delay_ms=1000)
    it.commit()
    it.queue.flush()
    it.now += 1000
    it.sweep()
    assert len(it.journal.take_doomed()) == 1


def test_costs_nobody_a_missing_id(it):
    delay(it, 1000, b"a")
    it.push(b"b")
    assert [item.id for item in it.queue.window] == [1]


def test_is_not_passed_over_when_a_later_one_is_on_disk_first(it):
    delay(it, 3000, b"late")
    it.commit()
    delay(it, 2000, b"soon")
    it.now += 3000
    it.queue.sweep()
    it.commit()
    it.queue.sweep()
    assert it.waiting() == [b"late", b"soon"]
