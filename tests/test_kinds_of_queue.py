"""`sync`, `max_queue_age` and `durable`, in queue logic. The clock is a number."""

import os
from pathlib import Path

import pytest
from brokers import Data

from darner import queue
from darner._proto import CHUNK_BYTES
from darner.config import QueueSettings
from darner.errors import JournalError, QueueFullError
from darner.journal import Journal
from darner.queue import Queue, Waiter

LARGE = b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES + b"z"


@pytest.fixture
def data(tmp_path):
    data = Data(tmp_path / "data")
    yield data
    data.settle()
    data.broker.close()


class TestSync:
    @pytest.fixture
    def synced(self, monkeypatch):
        """The queues whose batches were synced, in order."""
        names = []
        seal = Journal.seal

        def note(journal, *, held):
            if journal.batch.sync:
                names.append(journal.path.name)
            return seal(journal, held=held)

        monkeypatch.setattr(Journal, "seal", note)
        return names

    @pytest.fixture
    def timers(self, data):
        """What is to be called, and when."""
        timers = []
        data.broker.call_later = lambda ms, work: timers.append((data.now + ms, work))
        return timers

    def test_is_left_to_the_system_by_default(self, data, synced, timers):
        data.set(b"work", b"1")
        data.settle()
        assert synced == timers == []

    def test_is_with_each_set_if_it_is_always(self, data, synced, timers):
        data.settings[b"work"] = QueueSettings(sync_ms=0)
        for _ in range(2):
            data.set(b"work", b"1")
            data.settle()
        data.upload(b"work", LARGE)
        assert synced == ["work"] * 3
        data.broker.queues[b"work"].pop()
        data.settle()
        assert len(synced) == 3
        assert timers == []

    def test_of_a_child_alone_is_for_the_child_alone(self, data, synced):
        data.settings[b"work+child"] = QueueSettings(sync_ms=0)
        data.broker.queue(b"work+child")
        data.set(b"work", b"1")
        data.settle()
        assert synced == ["work+child"]

    def test_is_within_the_interval_of_the_first_set_that_was_not_synced(self, data, synced, timers):
        data.settings[b"work"] = QueueSettings(sync_ms=100)
        data.set(b"work", b"1")
        data.settle()
        data.now += 30
        data.set(b"work", b"2")
        data.settle()
        assert synced == []
        ((due, sync),) = timers
        timers.clear()
        assert due <= 1000 + 100
        data.now = due - 1
        sync()
        data.settle()
        assert synced == []
        ((again, sync),) = timers
        timers.clear()
        assert again == due
        data.now = due
        sync()
        data.settle()
        assert synced == ["work"]
        assert timers == []
        data.set(b"work", b"3")
        assert len(timers) == 1

    def test_of_a_large_item_is_of_its_file_too(self, data, timers, monkeypatch):
        data.settings[b"work"] = QueueSettings(sync_ms=100)
        files = []
        monkeypatch.setattr(os, "fsync", lambda fd: files.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
        data.broker.queue(b"work+child")
        assert data.upload(b"work", LARGE) == [None]
        assert len(timers) == 2
        for directory in ("work/blobs", "work+child/blobs"):
            assert str(data.path / directory) in files
        assert any(file.startswith(str(data.path / "work" / "blobs") + "/") for file in files)

    def test_that_is_due_for_a_queue_deleted_since_is_nothing(self, data, synced, timers):
        data.settings[b"work"] = QueueSettings(sync_ms=100)
        data.set(b"work", b"1")
        data.broker.delete(b"work")
        data.settle()
        data.now += 100
        timers[0][1]()
        data.settle()
        assert synced == []


class TestMaxQueueAge:
    AGE_MS = 60_000

    @pytest.fixture
    def data(self, data):
        data.settings[b"work"] = QueueSettings(max_queue_age_ms=self.AGE_MS)
        return data

    def sweep(self, data, ms=0):
        data.now += ms
        data.broker.tidy()
        data.settle()
        return b"work" in data.broker.queues

    def test_ends_a_queue_that_was_empty_and_alone_for_so_long(self, data):
        data.broker.queue(b"work")
        data.broker.queue(b"other")
        assert self.sweep(data)
        assert self.sweep(data, self.AGE_MS - 1)
        assert not self.sweep(data, 1)
        self.sweep(data)
        assert data.directories() == ["other"]
        assert (data.broker.queue_expires, data.broker.queue_deletes) == (1, 1)

    def test_begins_anew_with_each_item(self, data):
        data.broker.queue(b"work")
        self.sweep(data)
        data.set(b"work", b"1")
        data.read_all(b"work")
        assert self.sweep(data, self.AGE_MS)
        assert self.sweep(data, self.AGE_MS - 1)
        data.set(b"work", b"2")
        assert self.sweep(data, self.AGE_MS)
        data.read_all(b"work")
        assert self.sweep(data, 1)
        assert not self.sweep(data, self.AGE_MS)

    def test_does_not_end_a_queue_with_an_item_held(self, data):
        data.set(b"work", b"1")
        item = data.broker.queues[b"work"].reserve()
        self.sweep(data)
        assert self.sweep(data, self.AGE_MS)
        data.broker.queues[b"work"].close(item)
        assert self.sweep(data, 1)
        assert not self.sweep(data, self.AGE_MS)

    def test_does_not_end_a_queue_with_a_delayed_item(self, data):
        data.broker.queue(b"work").push_delayed(b"1", 0, 0, 2 * self.AGE_MS, sync=False)
        self.sweep(data)
        assert self.sweep(data, self.AGE_MS)
        self.sweep(data, self.AGE_MS)
        assert data.read_all(b"work") == [b"1"]

    def test_does_not_end_a_queue_somebody_waits_on(self, data):
        waiter = Waiter(Queue.pop, lambda *_: None)
        data.broker.queue(b"work").wait(waiter)
        self.sweep(data)
        assert self.sweep(data, self.AGE_MS)
        waiter.cancel()
        assert self.sweep(data, 1)
        assert not self.sweep(data, self.AGE_MS)


class TestInMemory:
    """`durable = false`."""

    @pytest.fixture
    def data(self, data):
        data.settings[b"work"] = QueueSettings(durable=False)
        return data

    def test_is_a_queue_like_any_but_for_the_disk(self, data):
        work = data.broker.queue(b"work")
        for n in range(5):
            data.set(b"work", b"%d" % n)
        held = work.reserve()
        assert (work.items, work.waiting_bytes, work.peek().data) == (4, 4, b"1")
        assert work.pop().data == b"1"
        other = work.reserve()
        work.abort(held)
        work.close(other)
        assert data.read_all(b"work") == [b"0", b"3", b"4"]
        data.set(b"work", b"5")
        kept = work.reserve()
        data.set(b"work", b"6")
        work.flush()
        assert (work.items, work.waiting_bytes) == (0, 0)
        work.abort(kept)
        assert data.read_all(b"work") == [b"5"]
        assert work.journal.disk_bytes == 0
        assert data.directories() == []

    def test_may_be_longer_than_the_window(self, data, monkeypatch):
        monkeypatch.setattr(queue, "WINDOW_BYTES", 2 * queue.ITEM_BYTES)
        monkeypatch.setattr(queue, "READ_ITEMS", 3)
        work = data.broker.queue(b"work")
        for n in range(20):
            data.set(b"work", b"%d" % n)
        held = work.reserve()
        assert data.read_all(b"work") == [b"%d" % n for n in range(1, 20)]
        work.abort(held)
        assert data.read_all(b"work") == [b"0"]
        assert work.journal.state.items == 0

    def test_is_gone_with_the_server(self, data):
        data.set(b"work", b"1")
        data.set(b"kept", b"1")
        data.restart()
        assert list(data.broker.queues) == [b"kept"]

    def test_has_limits_expiry_and_a_queue_for_what_expired(self, data):
        data.settings[b"work"] = QueueSettings(
            durable=False, max_bytes=len(LARGE), max_age_ms=10, expire_to_queue="old"
        )
        assert data.upload(b"work", LARGE) == [None]
        with pytest.raises(QueueFullError):
            data.set(b"work", b"1")
        data.now += 10
        data.broker.tidy()
        data.settle()
        data.set(b"work", b"2")
        assert data.read_all(b"old") == [LARGE]
        assert data.read_all(b"work") == [b"2"]
        data.broker.tidy()
        assert data.broker.queues[b"work"].journal.state.items == 0

    def test_delays_items(self, data):
        work = data.broker.queue(b"work")
        for name, delay_ms in ((b"late", 20), (b"soon", 10), (b"never", 99)):
            work.push_delayed(name, 0, 0, delay_ms, sync=False)
        assert (work.journal.delayed_items, work.journal.delayed_bytes, work.pop()) == (3, 13, None)
        data.now += 20
        assert data.read_all(b"work") == [b"soon", b"late"]
        work.flush()
        data.now += 99
        assert data.read_all(b"work") == []

    def test_goes_on_for_who_waits_when_it_is_deleted(self, data):
        delivered = []
        data.broker.queue(b"work").wait(Waiter(Queue.pop, lambda _, item: delivered.append(item.data)))
        held_by = data.broker.queue(b"work")
        data.broker.delete(b"work")
        assert held_by.failure is not None
        data.set(b"work", b"1")
        assert delivered == [b"1"]

    def test_has_its_large_items_in_memory(self, data):
        assert data.upload(b"work", LARGE, sync=True) == [None]
        assert data.broker.queues[b"work"].waiting_bytes == len(LARGE)
        assert data.read_all(b"work") == [LARGE]
        upload = data.broker.upload(b"work", len(LARGE))
        data.write(upload, LARGE)
        upload.abandon()
        assert data.read_all(b"work") == []
        upload = data.broker.upload(b"work", len(LARGE))
        data.broker.delete(b"work")
        with pytest.raises(JournalError, match="deleted"):
            upload.write(LARGE)

    @pytest.mark.parametrize("parent_is_durable", [False, True])
    def test_shares_large_items_with_queues_on_disk(self, data, parent_is_durable):
        data.settings[b"work"] = QueueSettings(durable=parent_is_durable)
        data.settings[b"work+child"] = QueueSettings(durable=not parent_is_durable)
        data.broker.queue(b"work+child")
        assert data.upload(b"work", LARGE) == [None]
        assert data.upload(b"work", LARGE, sync=True) == [None]
        data.settle()
        assert len(list(data.path.glob("*/blobs/*"))) == 2
        assert data.read_all(b"work") == data.read_all(b"work+child") == [LARGE, LARGE]
        assert data.blobs() == []

    def test_gets_a_child_on_disk_while_a_large_item_is_on_its_way(self, data):
        data.settings[b"work+child"] = QueueSettings(durable=True)
        upload = data.broker.upload(b"work", len(LARGE))
        data.write(upload, LARGE)
        data.broker.queue(b"work+child")
        assert data.finish(upload) == [None]
        data.restart()
        assert data.read_all(b"work+child") == [LARGE]

    def test_stays_on_disk_if_it_is_there_from_before(self, data):
        data.settings[b"work"] = QueueSettings()
        data.set(b"work", b"1")
        data.settings[b"work"] = QueueSettings(durable=False)
        data.restart()
        data.set(b"work", b"2")
        data.restart()
        assert data.read_all(b"work") == [b"1", b"2"]
        data.broker.delete(b"work")
        data.settle()
        data.broker.reap()
        data.set(b"work", b"3")
        assert data.directories() == []
