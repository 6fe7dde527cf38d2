"""Sets with an id: each is stored once, however often it is sent, for as long as its id is remembered."""

import errno
import os
import shutil

import pytest
from brokers import Data
from doubles import Client, Disk

from darner.config.settings import QueueSettings
from darner.errors import JournalError, QueueFullError, UnavailableError
from darner.journal import blob_directory, dedup_ids
from darner.queues import dedup

WINDOW_MS = 300_000
LARGE = os.urandom(100_000)


def duplicates(data, name):
    return data.broker.queues[name].counts.duplicates


def ids(data, name=b"work"):
    """The ids that a queue on disk has in LevelDB, outdated ones among them."""
    data.write_out()
    keys = data.broker.queues[name].journal.database.open().iterator(include_value=False)
    return sum(key.startswith(b"n") and len(key) == 25 for key in keys)


class TestRepetition:
    def test_is_not_stored_and_is_counted(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        assert data.set_once(b"work", b"1", b"a") == [b"work"]
        assert data.set_once(b"work", b"2", b"a") == []
        assert data.set_once(b"work", b"3", b"b") == [b"work"]
        assert data.read_all(b"work") == [b"1", b"3"]
        assert duplicates(data, b"work") == 1

    def test_is_known_when_the_item_has_gone(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        data.set_once(b"work", b"1", b"a")
        assert data.read_all(b"work") == [b"1"]
        data.write_out()
        assert data.set_once(b"work", b"1", b"a") == []

    def test_is_known_after_a_kill_before_leveldb_has_it_and_after_it_has(self, data):
        data.set_once(b"work", b"1", b"a")
        data.kill()
        assert data.set_once(b"work", b"1", b"a") == []
        data.write_out()
        data.kill()
        assert data.set_once(b"work", b"1", b"a") == []
        assert data.set_once(b"work", b"2", b"b") == [b"work"]
        assert data.read_all(b"work") == [b"1", b"2"]

    def test_is_known_after_a_clean_restart_that_opened_no_leveldb(self, data):
        data.set_once(b"work", b"1", b"a")
        data.restart()
        assert not data.broker.queues[b"work"].journal.database.is_open
        assert data.set_once(b"work", b"1", b"a") == []

    def test_is_known_to_a_queue_that_was_closed_for_idleness(self, data):
        data.set_once(b"work", b"1", b"a")
        data.tick(40)
        assert not data.broker.queues[b"work"].journal.database.is_open
        assert data.set_once(b"work", b"1", b"a") == []
        assert data.set_once(b"work", b"2", b"b") == [b"work"]

    def test_is_known_of_a_delayed_item_before_and_after_it_is_due(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        assert data.set_once(b"work", b"1", b"a", delay_ms=1000) == [b"work"]
        assert data.set_once(b"work", b"1", b"a", delay_ms=1000) == []
        if is_durable:
            data.kill()
        assert data.set_once(b"work", b"1", b"a") == []
        data.now += 1000
        assert data.read_all(b"work") == [b"1"]
        assert data.set_once(b"work", b"1", b"a") == []

    def test_is_stored_by_a_full_queue_that_has_had_it(self, data):
        data.settings[b"work"] = QueueSettings(max_items=1)
        data.set_once(b"work", b"1", b"a")
        assert data.set_once(b"work", b"1", b"a") == []
        with pytest.raises(QueueFullError):
            data.set_once(b"work", b"2", b"b")

    def test_of_a_refused_set_is_none(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(max_items=1, durable=is_durable)
        data.set(b"work", b"0")
        with pytest.raises(QueueFullError):
            data.set_once(b"work", b"1", b"a")
        data.read(b"work")
        assert data.set_once(b"work", b"1", b"a") == [b"work"]
        assert duplicates(data, b"work") == 0

    def test_of_a_set_that_the_log_has_refused_is_none(self, data):
        data.set(b"work", b"0")
        log = data.broker.storage.log
        log.segment.refusal = JournalError("no room")
        with pytest.raises(JournalError, match="no room"):
            data.set_once(b"work", b"1", b"a")
        log.segment.refusal = None
        assert data.set_once(b"work", b"1", b"a") == [b"work"]
        data.kill()
        assert data.read_all(b"work") == [b"0", b"1"]

    def test_is_known_while_a_batch_cannot_be_written_and_after_it_was(self, data, monkeypatch):
        disk = Disk(monkeypatch)
        data.set_once(b"work", b"1", b"a")
        disk.failures = ["before", "after", "before"]
        for _ in range(4):
            data.write_out_once()
            assert data.set_once(b"work", b"1", b"a") == []
        data.write_out()
        data.kill()
        assert data.set_once(b"work", b"1", b"a") == []
        assert data.read_all(b"work") == [b"1"]

    def test_has_ids_of_any_bytes_that_are_no_others(self, data):
        names = [b"a", b"A", b"a" * 250, b"a" * 249, b"\xff\x00", b"\xff"]
        for id in names:
            assert data.set_once(b"work", id, id) == [b"work"]
        data.kill()
        assert [data.set_once(b"work", id, id) for id in names] == [[]] * len(names)


class TestWindow:
    def test_ends_to_the_millisecond(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        data.set_once(b"work", b"1", b"a")
        data.now += WINDOW_MS - 1
        data.tick()
        assert data.set_once(b"work", b"2", b"a") == []
        data.now += 1
        assert data.set_once(b"work", b"3", b"a") == [b"work"]
        data.now += WINDOW_MS - 1
        assert data.set_once(b"work", b"4", b"a") == []
        assert data.read_all(b"work") == [b"1", b"3"]

    def test_counts_from_when_the_item_was_stored_and_not_from_a_repetition(self, data):
        data.set_once(b"work", b"1", b"a")
        data.now += WINDOW_MS // 2
        assert data.set_once(b"work", b"1", b"a") == []
        data.now += WINDOW_MS // 2
        assert data.set_once(b"work", b"1", b"a") == [b"work"]

    def test_goes_on_over_restarts(self, data):
        data.set_once(b"work", b"1", b"a")
        data.now += WINDOW_MS - 1
        data.restart()
        assert data.set_once(b"work", b"1", b"a") == []
        data.now += 1
        data.kill()
        assert data.set_once(b"work", b"1", b"a") == [b"work"]

    def test_remembers_each_id_for_its_time_over_generations(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        set_ms = {}
        for number in range(60):
            id = b"%d" % (number * 7 % 20)
            is_known = id in set_ms and data.now - set_ms[id] < WINDOW_MS
            assert (data.set_once(b"work", b"x", id) == []) == is_known
            set_ms = set_ms if is_known else {**set_ms, id: data.now}
            data.now += WINDOW_MS // 9
            if number % 4 == 0:
                data.tick(4)
            if is_durable and number % 7 == 0:
                data.kill()

    def test_is_that_of_the_settings_as_they_are_now(self, data):
        data.set_once(b"work", b"1", b"a")
        data.now += 2000
        data.settings[b"work"] = QueueSettings(dedup_window_ms=1000)
        data.reconfigure()
        assert data.set_once(b"work", b"2", b"a") == [b"work"]
        data.settings[b"work"] = QueueSettings(dedup_window_ms=0)
        data.reconfigure()
        assert data.set_once(b"work", b"3", b"a") == [b"work"]
        assert data.set_once(b"work", b"3", b"a") == [b"work"]
        assert duplicates(data, b"work") == 0

    def test_is_inherited_by_a_child(self, data):
        data.settings[b"work"] = QueueSettings(dedup_window_ms=1000)
        data.broker.queue(b"work+child")
        data.set_once(b"work", b"1", b"a")
        data.now += 1000
        assert data.set_once(b"work+child", b"2", b"a") == [b"work+child"]

    def test_follows_no_step_of_the_clock(self, tmp_path):
        data = Data(tmp_path / "stepped", now=1 << 40, boot=1)
        data.set_once(b"work", b"1", b"a")
        for ahead in (WINDOW_MS * 10, -WINDOW_MS * 10):
            data.set_clock(ahead)
            assert data.set_once(b"work", b"1", b"a") == []
        data.kill()
        assert data.set_once(b"work", b"1", b"a") == []
        data.now += WINDOW_MS
        assert data.set_once(b"work", b"1", b"a") == [b"work"]
        data.close()


class TestForgetting:
    @pytest.mark.parametrize("kill", [False, True])
    def test_comes_with_a_flush(self, data, kill):
        data.set_once(b"work", b"1", b"a")
        data.write_out()
        data.set_once(b"work", b"2", b"b")
        data.broker.queues[b"work"].flush()
        if kill:
            data.kill()
        assert data.set_once(b"work", b"3", b"a") == [b"work"]
        assert data.set_once(b"work", b"4", b"b") == [b"work"]
        assert data.set_once(b"work", b"4", b"b") == []
        data.kill()
        assert data.set_once(b"work", b"4", b"b") == []
        assert data.read_all(b"work") == [b"3", b"4"]

    def test_comes_with_a_flush_in_memory(self, data):
        data.settings[b"work"] = QueueSettings(durable=False)
        data.set_once(b"work", b"1", b"a")
        data.broker.queues[b"work"].flush()
        data.tick()
        assert data.set_once(b"work", b"2", b"a") == [b"work"]

    @pytest.mark.parametrize("kill", [False, True])
    def test_comes_with_a_deletion(self, data, kill):
        data.set_once(b"work", b"1", b"a")
        data.write_out()
        data.broker.delete(b"work")
        if kill:
            data.kill()
        assert data.set_once(b"work", b"2", b"a") == [b"work"]
        assert data.set_once(b"work", b"2", b"a") == []
        assert data.read_all(b"work") == [b"2"]

    def test_comes_with_time_even_if_no_set_does(self, data):
        for number in range(3):
            data.set_once(b"work", b"x", b"%d" % number)
        assert ids(data) == 3
        data.now += WINDOW_MS
        data.tick()
        assert ids(data) == 0
        assert not data.broker.queues[b"work"].needs_upkeep
        data.restart()
        assert data.set_once(b"work", b"x", b"0") == [b"work"]

    def test_deletes_what_is_outdated_in_slices_and_goes_on_after_a_kill(self, data, monkeypatch):
        monkeypatch.setattr(dedup_ids, "TRIM_IDS", 3)
        for number in range(20):
            data.set_once(b"work", b"x", b"%d" % number)
        assert ids(data) == 20
        data.broker.queues[b"work"].flush()
        data.write_out_once()
        journal = data.broker.queues[b"work"].journal
        assert journal.dedup_ids.has_dead
        data.kill()
        data.set_once(b"work", b"x", b"new")
        data.tick(60)
        assert ids(data) == 1
        assert not data.broker.queues[b"work"].journal.dedup_ids.has_dead

    def test_leaves_on_disk_what_two_windows_have_brought_at_most(self, data):
        most = 0
        for number in range(200):
            data.set_once(b"work", b"x", b"%d" % number)
            data.now += WINDOW_MS // 10
            most = max(most, ids(data))
        # and what came while the outdated ones were deleted
        assert 10 <= most <= 22


class TestSeveralQueues:
    def test_each_know_for_themselves_what_they_have_had(self, data):
        data.set_once(b"orders", b"1", b"a")
        data.broker.queue(b"orders+audit")
        assert data.set_once(b"orders", b"1", b"a") == [b"orders+audit"]
        assert data.set_once(b"orders", b"1", b"a") == []
        assert data.read_all(b"orders") == data.read_all(b"orders+audit") == [b"1"]
        assert (duplicates(data, b"orders"), duplicates(data, b"orders+audit")) == (2, 1)

    def test_of_an_alias_get_what_they_lack(self, data):
        data.broker.routes.set_aliases({b"both": (b"one", b"two")})
        assert data.set_once(b"one", b"1", b"a") == [b"one"]
        assert data.set_once(b"both", b"1", b"a") == [b"two"]
        assert data.set_once(b"both", b"2", b"b") == [b"one", b"two"]
        data.kill()
        data.broker.routes.set_aliases({b"both": (b"one", b"two")})
        assert data.set_once(b"both", b"2", b"b") == []
        assert data.read_all(b"two") == [b"1", b"2"]

    def test_get_it_all_or_none_and_then_those_that_lack_it(self, data):
        data.settings[b"orders+audit"] = QueueSettings(max_items=1)
        data.broker.queue(b"orders+audit")
        data.set(b"orders+audit", b"0")
        with pytest.raises(QueueFullError):
            data.set_once(b"orders", b"1", b"a")
        data.read(b"orders+audit")
        assert data.set_once(b"orders+audit", b"1", b"a") == [b"orders+audit"]
        # a queue that has had it is not asked whether it is full
        assert data.set_once(b"orders", b"1", b"a") == [b"orders"]
        assert data.read_all(b"orders") == data.read_all(b"orders+audit") == [b"1"]

    def test_have_neither_item_nor_id_after_a_kill_between_them(self, data, tmp_path, monkeypatch):
        data.broker.queue(b"orders+audit")
        log = data.broker.storage.log
        copies = [tmp_path / "before", tmp_path / "between"]
        left = iter(copies)
        enter = log.enter

        def entering(life):
            shutil.copytree(data.path, next(left))
            return enter(life)

        log.roll()  # so that each queue is named in the segment just before its item
        monkeypatch.setattr(log, "enter", entering)
        data.set_once(b"orders", b"1", b"a")
        for copy in copies:
            killed = Data(copy)
            assert killed.set_once(b"orders", b"1", b"a") == [b"orders", b"orders+audit"]
            assert killed.read_all(b"orders") == killed.read_all(b"orders+audit") == [b"1"]
            killed.close()

    def test_carry_no_id_to_where_items_move(self, data):
        data.settings[b"work"] = QueueSettings(max_age_ms=10, expire_to_queue="later")
        data.set_once(b"work", b"1", b"a")
        data.now += 10
        data.tick()
        assert data.set_once(b"later", b"2", b"a") == [b"later"]
        assert data.read_all(b"later") == [b"1", b"2"]


class TestLargeItem:
    def test_is_stored_once_and_thrown_away_from_its_begin_when_it_is_repeated(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        assert data.upload(b"work", LARGE, id=b"a") == [None]
        assert data.upload(b"work", LARGE, id=b"a") == [None]
        if is_durable:
            data.write_out()
            assert len(list(data.path.glob("work/blobs/*"))) == 1
            data.kill()
            assert data.upload(b"work", LARGE, id=b"a") == [None]
        assert data.set_once(b"work", b"small", b"a") == []
        assert data.read_all(b"work") == [LARGE]
        assert data.blobs() == []

    def test_sent_by_two_at_once_is_stored_once(self, data, is_durable):
        data.settings[b"work"] = QueueSettings(durable=is_durable)
        uploads = [data.broker.routes.upload(b"work", len(LARGE), b"a") for _ in range(2)]
        for upload in uploads:
            data.write(upload, LARGE)
        assert [data.finish(upload) for upload in uploads] == [[None], [None]]
        assert data.read_all(b"work") == [LARGE]
        assert data.blobs() == []
        assert duplicates(data, b"work") == 1

    def test_sent_by_two_that_are_finished_at_once_is_stored_once(self, data):
        uploads = [data.broker.routes.upload(b"work", len(LARGE), b"a") for _ in range(2)]
        told = []
        for upload in uploads:
            data.write(upload, LARGE)
            upload.finish(0, 0, told.append, sync=True)
        data.settle()
        assert told == [None, None]
        assert data.read_all(b"work") == [LARGE]
        assert data.blobs() == []

    def test_comes_to_the_child_that_lacks_it(self, data):
        data.upload(b"orders", LARGE, id=b"a")
        data.broker.queue(b"orders+audit")
        assert data.upload(b"orders", LARGE, id=b"a") == [None]
        assert data.upload(b"orders", LARGE, id=b"a") == [None]
        assert data.read_all(b"orders") == data.read_all(b"orders+audit") == [LARGE]
        assert data.blobs() == []

    def test_that_was_abandoned_is_not_remembered(self, data):
        upload = data.broker.routes.upload(b"work", len(LARGE), b"a")
        upload.write(LARGE[:65536])
        upload.abandon()
        data.settle()
        assert data.set_once(b"work", b"1", b"a") == [b"work"]

    def test_repeated_is_stored_by_a_full_queue_that_has_had_it(self, data):
        data.settings[b"work"] = QueueSettings(max_items=1)
        data.upload(b"work", LARGE, id=b"a")
        assert data.upload(b"work", LARGE, id=b"a") == [None]
        with pytest.raises(QueueFullError):
            data.broker.routes.upload(b"work", len(LARGE), b"b")

    def test_whose_file_was_lost_with_the_machine_is_stored_when_it_is_sent_again(self, data):
        data.upload(b"work", LARGE, id=b"a")
        data.set_once(b"work", b"1", b"b")
        data.end()
        (file,) = data.path.glob("work/blobs/*")
        file.write_bytes(b"")
        data.open()
        assert data.broker.queues[b"work"].journal.lost_items == 1
        assert data.upload(b"work", LARGE, id=b"a") == [None]
        assert data.set_once(b"work", b"1", b"b") == []
        assert data.read_all(b"work") == [b"1", LARGE]


class TestSync:
    def test_of_a_repetition_has_the_file_synced_that_the_first_set_left_unsynced(self, data, monkeypatch):
        synced = []
        monkeypatch.setattr(blob_directory, "sync_file", synced.append)
        data.upload(b"work", LARGE, id=b"a")
        (file,) = data.path.glob("work/blobs/*")
        queue, client = data.broker.queues[b"work"], Client()
        assert synced == []
        data.broker.syncing.sync((queue,), client, 0, asked=True, repeated=(queue,))
        assert client.held == 2
        data.settle()
        assert (client.held, client.failed, synced) == (0, [], [file])

    def test_of_a_repetition_fails_if_that_file_cannot_be_synced(self, data, monkeypatch):
        def fail(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        data.upload(b"work", LARGE, id=b"a")
        monkeypatch.setattr(blob_directory, "sync_file", fail)
        queue, client = data.broker.queues[b"work"], Client()
        data.broker.syncing.sync((queue,), client, 0, asked=True, repeated=(queue,))
        data.settle()
        assert (client.held, client.failed) == (0, [0])

    def test_of_a_repetition_is_that_of_the_log_alone_once_leveldb_has_the_first_set(self, data):
        data.upload(b"work", LARGE, id=b"a")
        data.write_out()
        queue, client = data.broker.queues[b"work"], Client()
        data.broker.syncing.sync((queue,), client, 0, asked=True, repeated=(queue,))
        assert client.held == 1
        data.settle()
        assert client.held == 0


class TestBound:
    def test_of_ids_in_memory_refuses_new_ones_until_the_window_has_passed(self, data, monkeypatch):
        monkeypatch.setattr(dedup, "MAX_IDS_IN_MEMORY", 3)
        data.settings[b"work"] = QueueSettings(durable=False)
        for id in (b"a", b"b", b"c"):
            data.set_once(b"work", id, id)
        with pytest.raises(UnavailableError, match="3 ids"):
            data.set_once(b"work", b"d", b"d")
        data.set(b"work", b"without an id")
        assert data.set_once(b"work", b"a", b"a") == []
        assert data.read_all(b"work") == [b"a", b"b", b"c", b"without an id"]
        data.now += WINDOW_MS
        data.tick()
        assert data.set_once(b"work", b"d", b"d") == [b"work"]

    def test_of_staged_ids_is_that_of_a_batch(self, data):
        journal = data.broker.queue(b"work").journal
        most = 0
        for number in range(30_000):
            data.set_once(b"work", b"x", b"%d" % number)
            data.read(b"work")
            batches = [journal.records.batch, journal.records.sealed]
            most = max(most, sum(len(ids) for one in batches if one for ids in one.dedup_ids.values()))
            if journal.writing:
                data.settle()
        assert 1000 < most * dedup_ids.ID_BYTES < 3 << 20
        assert data.set_once(b"work", b"x", b"0") == []
        assert data.set_once(b"work", b"x", b"29999") == []
