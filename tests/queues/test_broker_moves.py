"""Items that go from one queue to another when they expire or have come back too often."""

import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import doubles
import pytest
from brokers import Data, log_to
from doubles import Disk, Silence, begin_upload

from darner._records import CHUNK_BYTES, Change
from darner.config.settings import QueueSettings
from darner.errors import JournalError
from darner.journal import segment_pool
from darner.journal.batch import STAGED_BYTES
from darner.queues import deletion
from darner.queues.opening import Opening
from darner.queues.queue import Queue
from darner.queues.upload import Upload
from darner.queues.waiters import Waiter


@pytest.fixture
def data(tmp_path):
    """`work` expires to `late`, and gives up into `dead`."""
    data = Data(tmp_path / "data")
    data.settings[b"work"] = QueueSettings(expire_to_queue="late", max_attempts=1, dead_letter_queue="dead")
    yield data
    data.close()


@pytest.fixture
def log(monkeypatch):
    silence = Silence()
    log_to(monkeypatch, silence)
    return silence


def test_an_expired_item_goes_on_as_if_it_were_set_then(data):
    data.push(b"work", b"a", exptime=5)
    data.push(b"work", b"b")
    data.now += 5000
    data.tick()
    item = data.broker.queue(b"late").pop()
    assert (item.data, item.flags, item.expires_ms, item.enqueued_ms) == (b"a", 7, 0, data.now)
    assert data.broker.queue(b"work").counts.expired_items == 1
    data.kill()
    assert data.read_all(b"work") == [b"b"]
    assert data.read_all(b"late") == []


def test_all_go_on_in_their_order_however_many(data):
    data.settings[b"work"] = QueueSettings(expire_to_queue="late", max_expire_sweep=4)
    numbers = [b"%d" % number for number in range(30)]
    data.push(b"work", *numbers, exptime=5)
    data.push(b"work", b"tail")
    data.now += 5000
    data.tick(10)
    assert data.broker.queue(b"work").counts.expired_items == 30
    assert data.read_all(b"work") == [b"tail"]
    assert data.read_all(b"late") == numbers


def test_a_reader_need_not_wait_for_that(data):
    data.push(b"work", *[b"x"] * 300, exptime=5)
    data.push(b"work", b"tail")
    data.now += 5000
    assert data.broker.queue(b"work").pop().data == b"tail"
    assert data.broker.queue(b"late").items == 300


def test_who_waits_there_gets_it(data):
    got = []
    data.broker.queue(b"late").wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
    data.push(b"work", b"a", exptime=-1)
    data.tick()
    assert got == [b"a"]


def test_a_large_item_goes_on_with_its_bytes(data):
    upload = begin_upload(data.broker.queue(b"work"), 3)
    upload.write(b"xyz")
    upload.finish(7, 5, lambda _: None, sync=False)
    data.settle()
    data.now += 5000
    data.tick()
    data.kill()
    assert data.read_all(b"work") == []
    assert data.blobs() == ["late"]
    assert data.read_all(b"late") == [b"xyz"]
    assert data.blobs() == []


def test_a_kill_in_between_leaves_an_item_in_both(data):
    data.push(b"work", b"a", exptime=5)
    data.now += 5000

    class Killed(BaseException):
        pass

    work = data.broker.queue(b"work")
    move = work.on_move

    def move_and_die(*args):
        move(*args)
        raise Killed

    work.on_move = move_and_die
    with pytest.raises(Killed):
        work.sweep()
    data.kill()
    assert data.broker.queue(b"work").items == 1
    assert data.read_all(b"late") == [b"a"]


@pytest.mark.parametrize("end", ["expired", "came back"])
def test_an_item_stays_where_it_is_until_the_other_queue_takes_it(data, log, end):
    data.push(b"work", b"a", exptime=5 if end == "expired" else 0)
    work, target = data.broker.queue(b"work"), b"late" if end == "expired" else b"dead"
    data.broker.queue(target).journal.failing = JournalError("disk full")
    data.now += 5000
    for _ in range(3):
        if end == "expired":
            data.broker.tick()
            with pytest.raises(JournalError):
                work.pop()
        else:
            work.abort(work.reserve())
    assert (work.items, data.broker.queue(target).items) == (1, 0)
    assert [fields["to"] for event, fields in log.lines if "cannot be moved" in event] == [target.decode()]
    data.broker.queue(target).journal.failing = None
    if end == "expired":
        data.tick()
    else:
        work.abort(work.reserve())
    assert data.read_all(b"work") == []
    assert data.read_all(target) == [b"a"]


def test_a_queue_that_cannot_be_made_is_tried_again(data, log, monkeypatch):
    data.push(b"work", b"a", exptime=-1)
    data.broker.out_of_service[b"late"] = JournalError("damaged")
    monkeypatch.setattr(Opening, "retry", lambda _: None)
    data.tick(2)
    assert [fields["to"] for event, fields in log.lines if "cannot be moved" in event] == ["late"]
    del data.broker.out_of_service[b"late"]
    data.tick()
    assert data.read_all(b"late") == [b"a"]


@pytest.mark.parametrize("limits", [{}, {"max_items": 20, "discard_old_when_full": True}])
def test_queues_that_move_their_items_to_each_other_come_to_an_end(data, limits):
    names = (b"ping", b"pong")
    for name, other in (names, reversed(names)):
        data.settings[name] = QueueSettings(expire_to_queue=other.decode(), max_age_ms=1000, **limits)
        data.push(name, *[b"%s%d" % (name, number) for number in range(20)])
    data.now += 1000
    got = []
    for name in names * 2:
        waiter = Waiter(Queue.pop, lambda _, item: got.append(item.data))
        data.broker.queue(name).wait(waiter)
    data.tick()
    for name in names:
        got += data.read_all(name)
        assert data.broker.queue(name).journal.state.items == 0
    discarded = sum(data.broker.queue(name).counts.discarded for name in names)
    assert len(got) == len(set(got)) == 40 - discarded
    assert bool(discarded) == bool(limits)


def test_a_full_queue_takes_it_all_the_same(data):
    data.settings[b"late"] = QueueSettings(max_items=1)
    data.push(b"late", b"first")
    data.push(b"work", b"a", exptime=-1)
    data.tick()
    assert data.read_all(b"late") == [b"first", b"a"]


def test_a_full_queue_that_discards_discards(data):
    data.settings[b"late"] = QueueSettings(max_items=1, discard_old_when_full=True)
    data.push(b"late", b"first")
    data.push(b"work", b"a", exptime=-1)
    data.tick()
    assert data.read_all(b"late") == [b"a"]


def test_a_full_queue_that_discards_is_first_rid_of_what_has_expired(data):
    data.settings[b"late"] = QueueSettings(
        max_items=1, discard_old_when_full=True, max_age_ms=1000, expire_to_queue="later"
    )
    data.push(b"late", b"first")
    data.push(b"work", b"a", exptime=1)
    data.now += 1000
    for _ in data.broker.queue(b"work").flush_expired():
        pass
    late = data.broker.queue(b"late")
    assert (late.counts.expired_items, late.counts.discarded) == (1, 0)
    assert data.read_all(b"late") == [b"a"]
    assert data.read_all(b"later") == [b"first"]


def test_full_queues_that_move_their_items_to_each_other_come_to_an_end(data):
    names = (b"ping", b"pong")
    count = 3000  # more than calls may be nested
    for name, other in (names, reversed(names)):
        data.settings[name] = QueueSettings(
            max_items=count, discard_old_when_full=True, max_age_ms=1000, expire_to_queue=other.decode()
        )
        data.push(name, *[b"x"] * count)
    data.now += 1000
    queue = data.broker.queue(b"ping")
    assert sum(queue.flush_expired()) >= 1


def test_many_queues_are_swept_in_slices_and_each_has_its_turn(data):
    names = [b"q%d" % number for number in range(30)]
    for name in names:
        data.push(name, b"x", exptime=1)
    data.now += 1000

    def clock():
        data.now += 1  # each look at the clock takes so long
        return data.now

    data.broker.environment.budget._clock = clock
    data.broker.tick()
    swept = sum(data.broker.queue(name).counts.expired_items for name in names)
    assert 0 < swept < 10
    data.tick()
    assert all(data.broker.queue(name).counts.expired_items == 1 for name in names)
    assert not data.broker.sweeping.queues


def test_a_queue_deleted_between_two_slices_is_passed_by(data):
    data.settings[b"work"] = QueueSettings(max_expire_sweep=1)
    data.push(b"work", *[b"x"] * 5, exptime=1)
    data.now += 1000
    data.broker.tick()
    assert data.broker.queue(b"work").has_more_upkeep
    data.broker.delete(b"work")
    data.tick()
    assert data.directories() == []


def test_nobody_looks_after_a_queue_to_which_nothing_happens_with_time(data):
    data.push(b"work", b"a")
    data.push(b"gone", b"a", exptime=1)
    data.set(b"late", b"a", delay_ms=1000)
    data.settings[b"held"] = QueueSettings(open_timeout_ms=1000)
    data.push(b"held", b"a")
    data.tick()
    assert {queue.name for queue in data.broker.sweeping.queues} == {b"gone", b"late"}
    held = data.broker.queue(b"held")
    held.close(held.reserve())
    assert held in data.broker.sweeping.queues
    data.now += 1000
    data.tick(2)
    assert not data.broker.sweeping.queues
    data.restart()
    assert not data.broker.sweeping.queues


def test_a_poisonous_item_goes_to_the_dead_letter_queue(data):
    data.push(b"work", b"poison", exptime=60)
    queue = data.broker.queue(b"work")
    queue.abort(queue.reserve())
    data.tick()
    data.now += 60_000
    assert (queue.items, len(queue.reserved), queue.counts.expired_items) == (0, 0, 0)
    assert data.read_all(b"dead") == [b"poison"]
    data.kill()
    assert data.read_all(b"work") == []


def test_deleting_either_queue_harms_nobody(data):
    data.push(b"work", b"a", b"b", exptime=-1)
    data.broker.queue(b"work").sweep()
    data.broker.delete(b"late")
    data.broker.delete(b"work")
    data.tick()
    assert data.directories() == []


class TestFailure:
    """A move that fails leaves everything as it was, however often it is tried."""

    LARGE = b"x" * 2 * CHUNK_BYTES

    @pytest.fixture
    def data(self, tmp_path):
        data = Data(tmp_path / "data", aliases={b"both": (b"late", b"other")})
        for to in ("late", "both"):
            data.settings[to.encode()] = QueueSettings()
            data.settings[b"expires-to-" + to.encode()] = QueueSettings(expire_to_queue=to)
            data.settings[b"gives-up-to-" + to.encode()] = QueueSettings(max_attempts=1, dead_letter_queue=to)
        yield data
        data.close()

    @staticmethod
    def take_nothing_in(data, target):
        target.journal.failing = JournalError("disk full")
        return lambda: setattr(target.journal, "failing", None)

    @staticmethod
    def have_no_links(data, target):
        blobs = target.journal.path / "blobs"
        blobs.write_bytes(b"in the way")
        return blobs.unlink

    @staticmethod
    def be_out_of_service(data, target):
        data.broker.registry.remove(target.name)
        data.broker.registry.add_child(target.name)
        data.broker.out_of_service[target.name] = JournalError("damaged")

        def end():
            del data.broker.out_of_service[target.name]
            data.broker.registry.add(target)

        return end

    @staticmethod
    def have_no_log(data, target):
        """There is no room in the log for what is moved, nor for its removal."""
        log, room = data.broker.storage.log, segment_pool.SegmentFile
        segment_pool.SegmentFile = Mock(side_effect=OSError("no room"))
        if log._pool.ready is not None:
            log._pool.used.append(log._pool.ready)
            log._pool.ready = None
        while log._pool.used:
            log._pool.used.pop().delete()
        while log.segment.append(Change.BLOB, 0, 0, bytes(8)):
            pass

        def end():
            segment_pool.SegmentFile = room

        return end

    @pytest.mark.parametrize("large", [False, True])
    @pytest.mark.parametrize("ends", ["expires-to", "gives-up-to"])
    @pytest.mark.parametrize(
        ("to", "names"),
        [
            (b"late", [b"late", b"late+a", b"late+memory", b"late+z"]),
            (b"both", [b"late", b"late+z", b"other"]),
        ],
    )
    @pytest.mark.parametrize(
        "trouble", ["take_nothing_in", "have_no_links", "be_out_of_service", "have_no_log"]
    )
    def test_at_any_target_leaves_the_item_in_none(
        self, data, log, monkeypatch, trouble, to, names, ends, large
    ):
        if trouble == "have_no_links" and not large:
            return
        monkeypatch.setattr(Opening, "retry", lambda _: None)
        data.settings[b"late+memory"] = QueueSettings(durable=False)
        queues = [data.broker.queue(name) for name in names]
        name = ends.encode() + b"-" + to
        content = self.LARGE if large else b"small"
        source = data.broker.queue(name)
        upload = Upload(source)
        data.write(upload, content)
        upload.finish(0, 5 if ends == "expires-to" else 0, lambda _: None, sync=False)
        data.settle()
        data.now += 5000
        for target in queues if trouble != "have_no_log" else queues[:1]:
            if not target.is_durable:
                continue
            end = getattr(self, trouble)(data, target)
            for _ in range(3):
                if ends == "expires-to":
                    data.tick()
                else:
                    source.abort(source.reserve())
                held = [source.items, *(queue.items for queue in queues)]
                assert held == [1] + [0] * len(queues)
            end()
        if ends == "expires-to":
            data.tick(2)
        else:
            data.tick()
            source.abort(source.reserve())
        assert (source.items, source.journal.state.items) == (0, 0)
        for target in names:
            assert data.read_all(target) == [content]
        assert data.blobs() == []

    def test_of_the_removal_alone_does_not_repeat_the_move(self, data, monkeypatch):
        work, late = data.broker.queue(b"expires-to-late"), data.broker.queue(b"late")
        data.push(b"expires-to-late", b"a", b"b", exptime=1)
        data.now += 1000
        full = []
        move = work.on_move

        def move_and_fill(*args):
            moved = move(*args)
            full.append(self.have_no_log(data, late))
            return moved

        work.on_move = move_and_fill
        for _ in range(3):
            data.broker.tick()
            assert (work.items + len(work.reserved), late.items) == (2, 1)
        full[0]()
        work.on_move = move
        data.tick(4)
        assert (work.items, work.journal.state.items) == (0, 0)
        assert data.read_all(b"late") == [b"a", b"b"]

    def test_at_a_kill_leaves_the_item_in_all_targets_or_in_none(self, data, tmp_path, monkeypatch):
        names = [b"late", b"late+a", b"late+z"]
        for name in names:
            data.broker.queue(name)
        data.push(b"expires-to-late", b"a", exptime=1)
        data.now += 1000
        broker_log, killed = data.broker.storage.log, []
        enter = broker_log.enter

        def entering(life):
            killed.append(tmp_path / f"killed-{len(killed)}")
            shutil.copytree(data.path, killed[-1])
            return enter(life)

        monkeypatch.setattr(broker_log, "enter", entering)
        broker_log.roll()
        data.broker.queue(b"expires-to-late").sweep()
        assert len(killed) == 4  # the last is about to be removed
        for at, path in enumerate(killed):
            found = Data(path, now=0)
            held = [found.broker.queue(name).items for name in (b"expires-to-late", *names)]
            assert held == ([1, 0, 0, 0] if at < 3 else [1, 1, 1, 1])
            found.close()


def test_a_queue_whose_items_go_to_its_parent_does_not_get_them_back(data):
    data.settings[b"p+child"] = QueueSettings(expire_to_queue="p", max_age_ms=1000)
    data.broker.queue(b"p+other")
    data.push(b"p+child", b"a")
    for _ in range(5):
        data.now += 1000
        data.tick()
    assert [data.read_all(name) for name in (b"p", b"p+other", b"p+child")] == [[b"a"], [b"a"], []]


class TestPowerCut:
    """What is moved is in the log, and the removal soon in LevelDB, which may have it on the disk before."""

    @pytest.fixture
    def written(self, monkeypatch):
        """What is written to the disk, so that it is there: the log, or a LevelDB."""
        written = []
        Disk(monkeypatch)
        sync, write = os.fdatasync, doubles.WriteBatch.write

        def sync_log(descriptor):
            if Path(f"/proc/self/fd/{descriptor}").readlink().name.isdecimal():
                written.append("log")
            sync(descriptor)

        def write_leveldb(batch):
            written.append("leveldb")
            write(batch)

        monkeypatch.setattr(os, "fdatasync", sync_log)
        monkeypatch.setattr(doubles.WriteBatch, "write", write_leveldb)
        return written

    @pytest.fixture
    def work(self, data, written):
        data.push(b"work", b"a")
        data.write_out()
        work = data.broker.queue(b"work")
        work.abort(work.reserve())
        written.clear()
        return work

    def test_has_no_removal_without_the_item_in_the_other_queue(self, data, work, written):
        data.broker.storage.committer.checkpoint(work.journal)
        data.settle()
        assert written == ["log", "leveldb"]

    def test_has_none_when_the_server_ends_either(self, data, work, written):
        data.close()
        assert written == ["log", "leveldb", "leveldb"]
        data.open()

    def test_has_an_item_in_each_queue_that_it_was_set_on_or_in_none(self, data, written):
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"x" * (STAGED_BYTES + 1))  # so much is written at once
        position = data.broker.storage.log.position
        while not written:
            data.threads.run()
        assert written == ["log"]
        assert data.broker.storage.log.synced == position
        data.settle()
        assert written.count("leveldb") == 2

    @pytest.mark.parametrize("end", ["expires", "comes back"])
    def test_that_takes_the_new_name_of_a_large_item_leaves_it_by_its_old_one(self, data, end):
        content = b"x" * (CHUNK_BYTES + 1)
        data.now += 1
        upload = data.broker.routes.upload(b"work", len(content))
        data.write(upload, content)
        upload.finish(0, 5 if end == "expires" else 0, lambda _: None, sync=True)
        data.settle()
        name = "late" if end == "expires" else "dead"
        if end == "expires":
            data.now += 5000
            data.broker.queue(b"work").sweep()
        else:
            work = data.broker.queue(b"work")
            work.abort(work.reserve())
        (link,) = (data.path / name / "blobs").iterdir()
        data.end()
        link.unlink()
        data.open()
        assert data.broker.queue(b"work").items == 0
        data.write_out()
        assert data.blobs() == [name]
        data.restart()
        assert data.read_all(name.encode()) == [content]

    def test_comes_after_the_names_of_large_items_when_their_old_queue_is_deleted(self, data, monkeypatch):
        content = b"x" * (CHUNK_BYTES + 1)
        data.upload(b"work", content, sync=True)
        work = data.broker.queue(b"work")
        work.abort(work.reserve())
        (link,) = (data.path / "dead" / "blobs").iterdir()
        synced = []

        def sync_blobs(paths):
            synced.extend(paths)
            assert (data.path / "work").exists()

        monkeypatch.setattr(deletion, "sync_blobs", sync_blobs)
        data.broker.delete(b"work")
        data.tick()
        assert synced == [link]
        assert not (data.path / "work").exists()
