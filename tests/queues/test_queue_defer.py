"""Reserved items that are put back with a pause: `abort/delay`. The clock is a number."""

import pytest
from doubles import Disk

from darner._records import CHUNK_BYTES, item_key
from darner.config.settings import QueueSettings
from darner.errors import JournalError, NotReadyError
from darner.journal import lookup, tidying
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter

CHUNKS = b"x" * CHUNK_BYTES, b"yz"
LARGE = b"".join(CHUNKS)


def reserve(it):
    """Reserve an item as a `get` does, whose reply has the bytes."""
    item = it.queue.reserve()
    item.forget_data()
    return item


def defer(it, delay_ms=1000):
    it.queue.defer(reserve(it), delay_ms)


def counts(it):
    queue = it.queue
    return queue.items, queue.waiting_bytes, queue.delayed_items, len(queue.reserved)


def blob_bytes(it, item):
    """Read the file of a large item."""
    reader = it.queue.open_blob(item)
    data = b""
    while (piece := reader.read(lambda: None)) != b"":
        data += piece or b""
        it.threads.run_all()
    reader.close()
    return data


def files(it):
    return {path.name: path.stat().st_ino for path in (it.journal.path / "blobs").iterdir()}


@pytest.mark.parametrize("written", ["not", "half", "all"])
def test_is_out_of_sight_and_then_joins_the_end(it, written):
    it.push(b"a")
    it.push(b"b")
    if written != "not":
        it.commit()
    defer(it)
    if written == "all":
        it.commit()
    assert counts(it) == (1, 1, 1, 0)
    it.push(b"c")
    it.now += 999
    it.sweep()
    assert counts(it) == (2, 2, 1, 0)
    it.now += 1
    it.sweep()
    assert it.waiting() == [b"b", b"c", b"a"]


def test_comes_back_with_all_it_had_and_one_more_attempt(it):
    it.queue.push(bytes(28) + b"a", 7, 3600)
    for attempts in range(1, 4):
        item = reserve(it)
        expires_ms = item.expires_ms
        it.queue.defer(item, 1000)
        it.now += 1000
        it.restart()
        item = it.queue.peek()
        assert (item.data, item.flags, item.expires_ms, item.attempts) == (b"a", 7, expires_ms, attempts)


def test_without_a_delay_joins_the_end_at_once(it):
    it.push(b"a", b"b")
    it.delay(0, b"c")
    defer(it, 0)
    assert counts(it) == (3, 3, 0, 0)
    assert it.waiting() == [b"b", b"c", b"a"]


def test_without_a_delay_goes_to_who_waits(it):
    it.push(b"a")
    item = reserve(it)
    got = []
    it.queue.wait(Waiter(Queue.pop, lambda _, item: got.append((item.data, item.attempts))))
    it.queue.defer(item, 0)
    assert got == [(b"a", 1)]


def test_that_cannot_join_at_once_does_so_later(it, monkeypatch):
    it.push(b"a")
    item = reserve(it)

    def refuse(*_):
        raise JournalError("not now")

    monkeypatch.setattr(lookup, "due", refuse)
    it.queue.defer(item, 0)
    assert counts(it) == (0, 0, 1, 0)
    monkeypatch.undo()
    it.sweep()
    assert it.waiting() == [b"a"]


def test_counts_as_one_item_and_as_a_canceled_transaction_each_time(it):
    it.push(b"a")
    for _ in range(3):
        defer(it, 0)
    assert (it.queue.counts.total_items, it.queue.counts.canceled_transactions) == (1, 3)


def test_counts_attempts_together_with_other_aborts(it):
    it.push(b"a")
    it.queue.abort(reserve(it))
    it.kill()
    defer(it)
    it.now += 1000
    it.queue.abort(reserve(it))
    it.kill()
    assert reserve(it).attempts == 3


@pytest.mark.parametrize("target", [None, "dead"])
def test_leaves_the_queue_at_once_after_max_attempts(it, target):
    it.set(max_attempts=2, dead_letter_queue=target)
    it.push(b"a")
    defer(it, 0)
    defer(it)
    assert counts(it) == (0, 0, 0, 0)
    assert it.moved == ([] if target is None else [(b"a", b"dead")])
    assert it.queue.counts.discarded == (target is None)
    assert it.queue.counts.canceled_transactions == 2
    it.kill()
    assert counts(it) == (0, 0, 0, 0)


def test_that_its_dead_letter_queue_does_not_take_is_delayed_and_goes_there_the_next_time(it):
    it.set(max_attempts=1, dead_letter_queue="dead")
    it.moves_left = 0
    it.push(b"a")
    defer(it)
    assert counts(it) == (0, 0, 1, 0)
    it.moves_left = None
    it.now += 1000
    defer(it)
    assert (it.moved, counts(it)) == ([(b"a", b"dead")], (0, 0, 0, 0))


def test_does_nothing_to_an_item_that_is_reserved_no_more(it):
    it.push(b"a", b"b")
    closed, returned = reserve(it), reserve(it)
    it.queue.close(closed)
    it.queue.abort(returned)
    for item in (closed, returned):
        it.queue.defer(item, 1000)
    assert counts(it) == (1, 1, 0, 0)
    item = reserve(it)
    it.queue.retire()
    it.queue.defer(item, 1000)
    assert it.queue.delayed_items == 0


def test_is_one_change_in_the_log(it):
    it.push(b"a")
    it.commit()
    item = reserve(it)
    before = it.journal.state.change
    it.queue.defer(item, 1000)
    assert it.journal.state.change == before + 1


def refuse(it, by, error=None):
    """Have nothing taken in, for want of space or by the log."""
    if by == "space":
        it.committer.space_is_short = error is not None
    else:
        it.log.segment.refusal = error


@pytest.mark.parametrize("by", ["space", "log"])
@pytest.mark.parametrize("ends", ["close", "abort", "open_timeout", "defer"])
def test_is_refused_while_nothing_is_taken_in_and_stays_reserved(it, ends, by):
    it.set(open_timeout_ms=5000)
    it.push(b"a", b"b")
    it.commit()
    item = reserve(it)
    refuse(it, by, JournalError("space on the disk"))
    change = it.journal.state.change
    with pytest.raises(JournalError, match="space on the disk"):
        it.queue.defer(item, 1000)
    assert (counts(it), it.journal.state.change) == ((1, 1, 0, 1), change)
    assert it.queue.counts.canceled_transactions == 0
    assert it.queue.is_reserved(item)
    if ends == "open_timeout":
        it.now += 4999
        it.queue.sweep()
        assert it.queue.is_reserved(item)
        it.now += 1
        it.queue.sweep()
    elif ends == "defer":
        refuse(it, by)
        it.queue.defer(item, 1000)
    else:
        getattr(it.queue, ends)(item)
    refuse(it, by)
    assert counts(it) == {"close": (1, 1, 0, 0), "defer": (1, 1, 1, 0)}.get(ends, (2, 2, 0, 0))


def test_is_refused_while_leveldb_cannot_be_written(it, monkeypatch):
    disk = Disk(monkeypatch)
    it.restart()
    it.push(b"a")
    item = reserve(it)
    disk.failures = ["before"]
    it.commit()
    with pytest.raises(JournalError, match="no space"):
        it.queue.defer(item, 1000)
    it.commit()
    it.queue.defer(item, 1000)
    it.kill()
    assert counts(it) == (0, 0, 1, 0)


def test_that_is_dropped_after_max_attempts_is_so_on_a_full_disk_too(it):
    it.set(max_attempts=1)
    it.push(b"a")
    item = reserve(it)
    it.log.segment.refusal = JournalError("the disk is full")
    it.queue.defer(item, 1000)
    assert counts(it) == (0, 0, 0, 0)


def test_may_expire_before_it_joins(it):
    it.set(expire_to_queue="late")
    it.push(b"a", exptime=1)
    defer(it, 5000)
    it.now += 4999
    it.sweep()
    assert (it.moved, it.queue.delayed_items) == ([], 1)
    it.now += 1
    it.sweep()
    assert (it.moved, counts(it)) == ([(b"a", b"late")], (0, 0, 0, 0))


def test_is_flushed_with_the_queue(it):
    it.push(b"a", b"b")
    defer(it)
    it.queue.flush()
    it.kill()
    it.now += 1000
    it.sweep()
    assert it.waiting() == []


@pytest.mark.parametrize("joins", [False, True])
def test_is_there_once_whatever_was_written_when_the_process_is_killed(it, joins):
    """Kill it after each step of the write of each batch."""
    for steps in range(8):
        it.push(b"%d" % steps)
        for step in range(4):
            if step == steps & 3:
                defer(it, 0 if joins else 1000)
            it.committer.checkpoint(it.journal)
            if step >= steps >> 1 and it.threads.tasks:
                it.threads.run()
        it.kill()
        it.now += 1000
        item = it.queue.pop()
        assert (item.data, item.attempts) == (b"%d" % steps, 1)
        assert counts(it) == (0, 0, 0, 0)
    it.sweep()
    it.tick()
    assert it.records(b"d") == []
    assert [key for key in it.records(b"i") if len(key) == 9] == []


def test_is_there_once_after_a_write_that_failed(it, monkeypatch):
    disk = Disk(monkeypatch)
    it.restart()
    it.push(b"a")
    it.committer.checkpoint(it.journal)
    defer(it)
    disk.failures = ["before"]
    it.threads.run_all()
    it.commit()
    it.kill()
    it.now += 1000
    assert it.waiting() == [b"a"]


def test_works_in_memory_alone(data):
    data.settings[b"m"] = QueueSettings(durable=False)
    data.push(b"m", b"a")
    data.push(b"m", b"b")
    queue = data.broker.queue(b"m")
    item = queue.reserve()
    item.forget_data()
    queue.defer(item, 1000)
    assert (queue.items, queue.delayed_items) == (1, 1)
    data.now += 1000
    data.tick()
    assert [(item.data, item.attempts) for item in iter(queue.pop, None)] == [(b"b", 0), (b"a", 1)]


@pytest.mark.parametrize("lost", ["damaged", "missing"])
def test_whose_bytes_are_lost_is_put_aside_and_the_others_go_on(it, lost):
    it.push(b"a", b"b")
    it.commit()
    item = reserve(it)
    db = it.journal.database.open()
    if lost == "missing":
        db.delete(item_key(1))
    else:
        record = bytearray(db.get(item_key(1)))
        record[-1] ^= 1
        db.put(item_key(1), bytes(record))
    with pytest.raises(NotReadyError):
        it.queue.defer(item, 1000)
    assert it.queue.is_reserved(item)
    it.threads.run_all()
    it.queue.defer(item, 1000)
    assert (counts(it), it.journal.damaged_items) == ((1, 1, 0, 0), 1)
    it.kill()
    assert it.waiting() == [b"b"]


class TestLarge:
    """An item in a file."""

    @pytest.fixture
    def large(self, it):
        """The file, by name and inode, once the item is in LevelDB."""
        assert it.upload(*CHUNKS) == [None]
        it.commit()
        return files(it)

    def deferred(self, it):
        item = reserve(it)
        it.queue.defer(item, 1000)

    def assert_comes_from(self, it, large):
        """Check that the item comes whole from the same file, which goes with it."""
        it.tick()
        assert files(it) == large
        it.now += 1000
        item = it.queue.take()
        assert blob_bytes(it, item) == LARGE
        it.queue.close(item)
        it.tick()
        assert files(it) == {}

    @pytest.mark.parametrize("ends", ["not", "restart", "kill"])
    @pytest.mark.parametrize("is_written", [False, True])
    def test_keeps_its_file(self, it, large, ends, is_written):
        self.deferred(it)
        if is_written:
            it.commit()
        if ends != "not":
            getattr(it, ends)()
        self.assert_comes_from(it, large)

    def test_keeps_its_file_if_all_of_it_is_in_the_log_alone(self, it):
        assert it.upload(*CHUNKS) == [None]
        large = files(it)
        self.deferred(it)
        it.kill()
        self.assert_comes_from(it, large)

    def test_keeps_its_file_when_the_record_that_it_had_is_trimmed(self, it, large, monkeypatch):
        """A flush and a start have trimming look for the files of dead records."""
        monkeypatch.setattr(tidying, "DEAD_RECORDS", 0)
        it.push(b"a", b"b")
        it.commit()
        item = reserve(it)
        it.queue.flush()
        it.queue.defer(item, 1000)
        self.assert_comes_from(it, large)

    def test_keeps_its_file_if_it_was_kept_over_a_start(self, it, large):
        item = reserve(it)
        it.push(b"a")
        it.queue.flush()
        assert it.queue.is_reserved(item)
        it.restart()
        self.deferred(it)
        self.assert_comes_from(it, large)

    def test_keeps_its_file_after_a_write_that_failed(self, it, monkeypatch):
        """What was being written has the item; it is staged again, with what came after."""
        disk = Disk(monkeypatch)
        it.restart()
        assert it.upload(*CHUNKS) == [None]
        large = files(it)
        it.committer.checkpoint(it.journal)
        self.deferred(it)
        disk.failures = ["before"]
        it.threads.run_all()
        self.assert_comes_from(it, large)

    def test_that_is_flushed_goes_with_its_file(self, it, large):
        self.deferred(it)
        it.queue.flush()
        it.tick()
        it.now += 1000
        it.sweep()
        it.tick()
        assert files(it) == {}

    def test_whose_file_is_damaged_is_put_aside_when_it_is_fetched(self, it, large):
        self.deferred(it)
        (it.journal.path / "blobs" / next(iter(large))).unlink()
        it.now += 1000
        assert it.queue.pop() is None
        assert (counts(it), it.journal.damaged_items) == ((0, 0, 0, 0), 1)
