"""`sync`, `max_queue_age` and `durable`, in queue logic. The clock is a number."""

import os
from pathlib import Path

import pytest
from brokers import log_to
from doubles import Client, Silence

from darner._records import CHUNK_BYTES, ITEM_BYTES
from darner.config.settings import QueueSettings
from darner.errors import JournalError, QueueFullError
from darner.queues import item_window
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter

LARGE = b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES + b"z"


class TestSync:
    @pytest.fixture
    def synced(self, data, monkeypatch):
        """Who had the log synced."""
        clients = []
        sync = data.broker.storage.log.sync

        def note(client, slot):
            clients.append(client)
            sync(client, slot)

        monkeypatch.setattr(data.broker.storage.log, "sync", note)
        return clients

    def set(self, data, name=b"work", *, asked=False):
        """As a `set` does it; returns whether its client waits for the disk."""
        data.set(name, b"1")
        client = Client()
        data.broker.syncing.sync(data.targets(name), client, 0, asked=asked)
        waits = client.held > 0
        data.settle()
        assert client.held == 0
        return waits

    def test_is_left_to_the_system_unless_it_is_asked_for(self, data, synced):
        assert not self.set(data)
        assert not data.broker.queues[b"work"].syncs
        assert synced == data.timers == []
        assert self.set(data, asked=True)
        assert len(synced) == 1

    def test_is_with_each_set_if_it_is_always(self, data, synced):
        data.settings[b"work"] = QueueSettings(sync_ms=0)
        assert self.set(data)
        assert self.set(data)
        assert data.broker.queues[b"work"].syncs
        assert data.timers == []

    def test_of_a_child_is_enough(self, data):
        data.settings[b"work+child"] = QueueSettings(sync_ms=0)
        assert not self.set(data)
        data.broker.queue(b"work+child")
        assert self.set(data)

    def test_of_a_queue_in_memory_is_none(self, data, synced):
        data.settings[b"work"] = QueueSettings(sync_ms=0, durable=False)
        assert not self.set(data, asked=True)
        assert not data.broker.queues[b"work"].syncs
        assert synced == []

    def test_is_within_the_interval_of_the_first_set_that_was_not_synced(self, data, synced):
        data.settings[b"work"] = QueueSettings(sync_ms=100)
        assert not self.set(data)
        data.now += 30
        assert not self.set(data)
        assert synced == []
        ((due, sync),) = data.timers
        data.timers.clear()
        assert due <= 1000 + 100
        data.now = due - 1
        sync()
        data.settle()
        assert synced == []
        ((again, sync),) = data.timers
        data.timers.clear()
        assert again == due
        data.now = due
        sync()
        data.settle()
        assert len(synced) == 1
        assert data.timers == []
        self.set(data)
        assert len(data.timers) == 1

    def test_is_within_the_shortest_of_intervals_and_one_for_all_queues(self, data, synced):
        data.settings[b"work"] = QueueSettings(sync_ms=1000)
        data.settings[b"play"] = QueueSettings(sync_ms=100)
        self.set(data)
        self.set(data, b"play")
        for due, sync in sorted(data.timers, key=lambda timer: timer[0]):
            data.now = due
            sync()
        assert len(synced) == 1

    def test_that_fails_within_an_interval_is_logged(self, data, monkeypatch):
        silence = Silence()
        log_to(monkeypatch, silence)
        data.settings[b"work"] = QueueSettings(sync_ms=100)
        self.set(data)

        def refuse(_):
            raise OSError(5, "cannot write")

        ((data.now, sync),) = data.timers
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", refuse)
            sync()
            data.settle()
        assert [event for event, _ in silence.lines if "not synced" in event]

    def test_of_a_large_item_is_of_its_file_too(self, data, monkeypatch):
        data.settings[b"work"] = QueueSettings(sync_ms=100)
        files = []
        monkeypatch.setattr(os, "fsync", lambda fd: files.append(str(Path(f"/proc/self/fd/{fd}").readlink())))
        data.broker.queue(b"work+child")
        assert data.upload(b"work", LARGE) == [None]
        for directory in ("work/blobs", "work+child/blobs"):
            assert str(data.path / directory) in files
        assert any(file.startswith(str(data.path / "work" / "blobs") + "/") for file in files)


class TestMaxQueueAge:
    AGE_MS = 60_000

    @pytest.fixture
    def data(self, data):
        data.settings[b"work"] = QueueSettings(max_queue_age_ms=self.AGE_MS)
        return data

    def sweep(self, data, ms=0):
        data.now += ms
        data.tick()
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
        assert (data.broker.totals.queue_expires, data.broker.totals.queue_deletes) == (1, 1)

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

    def test_counts_from_the_reload_that_sets_it(self, data):
        # it is looked after for another reason
        data.settings[b"work"] = QueueSettings(max_age_ms=1)
        data.broker.queue(b"work")
        self.sweep(data)
        data.settings[b"work"] = QueueSettings(max_queue_age_ms=self.AGE_MS)
        data.now += self.AGE_MS
        data.reconfigure()
        assert self.sweep(data)
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
        data.set(b"work", b"1", delay_ms=2 * self.AGE_MS)
        self.sweep(data)
        assert self.sweep(data, self.AGE_MS)
        self.sweep(data, self.AGE_MS)
        assert data.read_all(b"work") == [b"1"]

    @pytest.fixture
    def forgotten(self, data):
        """A child that holds two items at most, and whose parent is set to, at each call."""
        data.settings[b"work+dead"] = QueueSettings(
            max_queue_age_ms=self.AGE_MS, max_items=2, discard_old_when_full=True, max_age_ms=self.AGE_MS * 10
        )
        data.broker.queue(b"work+dead")

        def sweep(ms=0, items=1):
            for _ in range(items):
                data.set(b"work", b"x")
            self.sweep(data, ms)
            return b"work+dead" in data.broker.queues

        return sweep

    def test_ends_a_child_that_nobody_reads_and_that_loses_items(self, data, forgotten):
        assert forgotten(items=2)
        assert forgotten(self.AGE_MS * 5)
        assert forgotten(self.AGE_MS - 1)
        assert not forgotten(1)
        assert data.targets(b"work")[0].name == b"work"
        assert data.broker.totals.queue_expires == 1

    def test_ends_a_child_whose_items_expire_unread(self, data, forgotten):
        data.settings[b"work+dead"] = QueueSettings(max_queue_age_ms=self.AGE_MS, max_age_ms=self.AGE_MS // 2)
        data.reconfigure()
        assert forgotten()
        assert forgotten(self.AGE_MS // 2)  # they expire after this look
        assert forgotten(1)
        assert forgotten(self.AGE_MS - 1)
        assert not forgotten(1)

    def test_does_not_end_a_child_that_keeps_all_its_items(self, data, forgotten):
        assert forgotten(items=2)
        for _ in range(3):
            assert forgotten(self.AGE_MS, items=0)
        assert forgotten(items=1)
        data.broker.reset_stats()
        assert forgotten(self.AGE_MS - 1, items=0)
        assert not forgotten(1, items=0)

    def test_does_not_end_a_child_that_is_read(self, data, forgotten):
        assert forgotten(items=3)
        assert forgotten(self.AGE_MS - 1)
        item = data.broker.queues[b"work+dead"].reserve()
        assert forgotten(1)
        assert forgotten(self.AGE_MS, items=3)
        data.broker.queues[b"work+dead"].close(item)
        assert forgotten(1, items=3)
        assert forgotten(self.AGE_MS - 1, items=3)
        data.read(b"work+dead")
        assert forgotten(1, items=3)
        assert forgotten(1, items=3)
        assert forgotten(self.AGE_MS - 1, items=3)
        data.read_all(b"work+dead")
        waiter = Waiter(Queue.pop, lambda *_: None)
        data.broker.queues[b"work+dead"].wait(waiter)
        assert forgotten(1, items=0)
        waiter.cancel()
        assert forgotten(1, items=3)
        assert forgotten(self.AGE_MS - 1, items=3)
        assert not forgotten(1, items=3)

    def test_does_not_end_a_child_with_a_cursor_or_whose_items_move_when_they_expire(self, data, forgotten):
        data.broker.routes.source(b"work+dead/cursor=c", takes=True, waits=False)
        data.set(b"work", b"x")
        data.broker.routes.source(b"work+dead/cursor=c", takes=True, waits=False).take()
        assert forgotten(items=3)
        assert forgotten(self.AGE_MS)
        data.broker.delete(b"work+dead/cursor=c")
        data.settings[b"work+dead"] = QueueSettings(
            max_queue_age_ms=self.AGE_MS, max_age_ms=self.AGE_MS, expire_to_queue="late"
        )
        data.reconfigure()
        assert forgotten()
        assert forgotten(self.AGE_MS)
        assert forgotten(self.AGE_MS)

    def test_does_not_end_a_parent_as_long_as_it_has_a_child(self, data):
        data.settings[b"work"] = QueueSettings(max_queue_age_ms=self.AGE_MS, fanout_only=True)
        data.settings[b"work+child"] = QueueSettings()
        data.set(b"work+child", b"x")
        data.set(b"work", b"x")
        for _ in range(3):
            assert self.sweep(data, self.AGE_MS)
        data.broker.delete(b"work+child")
        assert self.sweep(data)
        assert self.sweep(data, self.AGE_MS - 1)
        assert not self.sweep(data, 1)

    def test_does_not_end_a_plain_queue_that_loses_items(self, data):
        data.settings[b"work"] = QueueSettings(
            max_queue_age_ms=self.AGE_MS, max_items=1, discard_old_when_full=True
        )
        for _ in range(3):
            data.set(b"work", b"x")
            assert self.sweep(data, self.AGE_MS)

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
        monkeypatch.setattr(item_window, "WINDOW_BYTES", 2 * ITEM_BYTES)
        monkeypatch.setattr(item_window, "READ_ITEMS", 3)
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
        data.tick()
        data.settle()
        data.set(b"work", b"2")
        assert data.read_all(b"old") == [LARGE]
        assert data.read_all(b"work") == [b"2"]
        data.tick()
        assert data.broker.queues[b"work"].journal.state.items == 0

    def test_delays_items(self, data):
        work = data.broker.queue(b"work")
        for name, delay_ms in ((b"late", 20), (b"soon", 10), (b"never", 99)):
            data.set(b"work", name, delay_ms)
        assert (work.journal.delayed.items, work.journal.delayed.bytes, work.pop()) == (3, 13, None)
        data.now += 20
        assert data.read_all(b"work") == [b"soon", b"late"]
        work.flush()
        data.now += 99
        assert data.read_all(b"work") == []

    def test_goes_on_for_who_waits_when_it_is_deleted(self, data):
        delivered = []
        data.broker.queue(b"work").wait(Waiter(Queue.pop, lambda _, item: delivered.append(item.data)))
        data.broker.delete(b"work")
        data.set(b"work", b"1")
        assert delivered == [b"1"]

    def test_has_its_large_items_in_memory(self, data):
        assert data.upload(b"work", LARGE, sync=True) == [None]
        assert data.broker.queues[b"work"].waiting_bytes == len(LARGE)
        assert data.read_all(b"work") == [LARGE]
        upload = data.broker.routes.upload(b"work", len(LARGE))
        data.write(upload, LARGE)
        upload.abandon()
        assert data.read_all(b"work") == []
        upload = data.broker.routes.upload(b"work", len(LARGE))
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
        upload = data.broker.routes.upload(b"work", len(LARGE))
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
        data.tick(2)
        data.set(b"work", b"3")
        assert data.directories() == []
