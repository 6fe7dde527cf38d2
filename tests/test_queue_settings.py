"""`sync` and `max_queue_age`, in queue logic. The clock is a number."""

import pytest
from brokers import Data

from darner._proto import CHUNK_BYTES
from darner.config import QueueSettings
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

    def test_does_not_end_a_queue_somebody_waits_on(self, data):
        waiter = Waiter(Queue.pop, lambda *_: None)
        data.broker.queue(b"work").wait(waiter)
        self.sweep(data)
        assert self.sweep(data, self.AGE_MS)
        waiter.cancel()
        assert self.sweep(data, 1)
        assert not self.sweep(data, self.AGE_MS)
