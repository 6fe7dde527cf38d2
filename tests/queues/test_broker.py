"""The broker: queues that are created, deleted, opened or out of service; free space; awaited names."""

import errno
import gc
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from brokers import Data, log_to
from doubles import Disk, Silence, begin_upload
from leveldbs import open_leveldbs

from darner._records import CHUNK_BYTES
from darner.config.settings import QueueSettings
from darner.environment.environment import Environment
from darner.environment.timeline import Timeline
from darner.errors import ItemTooLargeError, JournalError, StartError
from darner.queues import factory, slices, trash
from darner.queues import names as names_module
from darner.queues.broker import Broker
from darner.queues.cursor import Cursor
from darner.queues.names import directory_of
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter


@pytest.fixture
def silence(monkeypatch):
    silence = Silence()
    log_to(monkeypatch, silence)
    return silence


def fail(*_):
    raise OverflowError("can't convert negative value")


class TestFault:
    """Of one queue: something goes wrong that nobody has provided for."""

    def sweep(self, data):
        data.settings[b"faulty"] = QueueSettings(max_age_ms=10)
        data.push(b"faulty", b"a")
        data.broker.queue(b"faulty").times = Timeline(fail)
        data.tick()

    def expire(self, data):
        data.settings[b"faulty"] = QueueSettings(max_queue_age_ms=10)
        queue = data.broker.queue(b"faulty")
        data.tick()
        queue.cursors[b"label"] = SimpleNamespace(waiters={}, clear=fail)
        data.now += 100
        data.tick()

    def move_into(self, data):
        data.settings[b"source"] = QueueSettings(expire_to_queue="faulty")
        data.broker.queue(b"faulty").times = Timeline(fail)
        data.push(b"source", b"a", exptime=-1)
        data.tick()

    def flush_all(self, data):
        data.push(b"faulty", b"a")
        data.broker.queue(b"faulty").journal.live.kept = None
        list(data.broker.flush_all([]))

    @pytest.fixture(params=["sweep", "expire", "move_into", "flush_all"])
    def meet(self, request):
        return getattr(self, request.param)

    def test_puts_that_queue_out_of_service_and_says_where_it_comes_from(self, data, silence, meet):
        data.push(b"other", b"before")
        meet(data)
        with pytest.raises(JournalError, match="internal error"):
            data.broker.queue(b"faulty")
        with pytest.raises(JournalError, match="internal error"):
            data.set(b"faulty", b"b")
        (line,) = [fields for event, fields in silence.lines if event == "queue out of service"]
        assert line["queue"] == "faulty"
        assert line["exc_info"].__traceback__ is not None

    def test_leaves_the_others_as_they_are(self, data, silence, meet):
        data.broker.queue(b"other")
        meet(data)
        data.set(b"other", b"later", delay_ms=50)
        data.push(b"other", b"now")
        data.now += 100
        data.write_out()
        assert data.read_all(b"other") == [b"now", b"later"]
        assert data.broker.queues[b"other"].journal.database.stored_change > 0

    @pytest.mark.parametrize("again", ["restart", "kill"])
    def test_ends_with_the_next_start_which_finds_all(self, data, silence, again):
        data.push(b"faulty", b"a")
        data.write_out()
        data.push(b"faulty", b"b")
        data.broker.set_aside(data.broker.queue(b"faulty"), ValueError("?"))
        data.write_out()
        getattr(data, again)()
        assert data.read_all(b"faulty") == [b"a", b"b"]
        data.push(b"faulty", b"c")
        data.kill()
        assert data.read_all(b"faulty") == [b"c"]

    def test_is_told_to_those_who_wait(self, data, silence):
        told = []
        queue = data.broker.queue(b"faulty")
        queue.wait(Waiter(Queue.pop, None, fail=told.append))
        cursor = data.broker.routes.source(b"faulty/cursor=label", takes=True, waits=True)
        cursor.wait(Waiter(Queue.pop, None, fail=told.append))
        data.broker.set_aside(queue, ValueError("?"))
        assert [str(error) for error in told] == ["internal error: ValueError: ?"] * 2

    def test_of_a_child_refuses_what_is_set_on_its_parent_and_stores_none_of_it(self, data, silence):
        data.broker.queue(b"faulty+child")
        data.broker.set_aside(data.broker.queue(b"faulty+child"), ValueError("?"))
        with pytest.raises(JournalError):
            data.set(b"faulty", b"a")
        assert data.broker.queue(b"faulty").items == 0

    def test_of_a_queue_in_memory_ends_when_it_is_deleted(self, data, silence):
        data.settings[b"faulty"] = QueueSettings(durable=False)
        data.push(b"faulty", b"a")
        data.broker.set_aside(data.broker.queue(b"faulty"), ValueError("?"))
        with pytest.raises(JournalError):
            data.broker.queue(b"faulty")
        assert data.broker.delete(b"faulty")
        data.push(b"faulty", b"b")
        assert data.read_all(b"faulty") == [b"b"]

    @pytest.mark.parametrize("vanishes", [False, True])
    def test_of_one_on_disk_does_not_end_so(self, data, silence, vanishes):
        data.push(b"faulty", b"a")
        data.broker.set_aside(data.broker.queue(b"faulty"), ValueError("?"))
        if vanishes:
            (data.path / "faulty").rmdir()
        with pytest.raises(JournalError, match="internal error"):
            data.broker.delete(b"faulty")

    def test_of_a_deleted_queue_leaves_the_other_ones_to_go(self, data, silence, monkeypatch):
        for name in (b"faulty", b"other"):
            data.push(name, b"a")
        data.write_out()
        for name in (b"faulty", b"other"):
            data.broker.delete(name)
        deletion = data.broker.deletion
        destroy = deletion.destroy
        monkeypatch.setattr(
            deletion, "destroy", lambda one: fail() if one.name == b"faulty" else destroy(one)
        )
        data.write_out()
        assert data.directories() == ["faulty"]
        with pytest.raises(JournalError, match="internal error"):
            data.broker.queue(b"faulty")
        monkeypatch.undo()
        log_to(monkeypatch, silence)
        data.restart()
        data.write_out()
        assert (data.directories(), data.broker.queues) == ([], {})

    @pytest.mark.parametrize(
        ("part", "step"),
        [
            ("routes", "enforce_status"),
            ("space", "tick"),
            ("upkeep", "_report_log_refusal"),
            ("opening", "retry"),
            ("deletion", "tick"),
            ("sweeping", "tick"),
        ],
    )
    def test_of_what_concerns_all_is_said_once_and_the_rest_is_done(
        self, data, silence, monkeypatch, part, step
    ):
        monkeypatch.setattr(getattr(data.broker, part), step, fail)
        data.push(b"work", b"a")
        data.write_out()
        said = [event for event, _ in silence.lines if event.startswith("internal error")]
        assert len(said) == 1
        assert data.broker.queue(b"work").journal.database.stored_change == 1

    def test_that_is_no_fault_but_a_full_log_is_tried_again_and_said_once(self, data, silence):
        """An empty queue is to be deleted, which has to be logged."""
        data.settings[b"old"] = QueueSettings(max_queue_age_ms=10)
        data.broker.queue(b"old")
        data.tick()
        data.now += 100
        journal, roll = data.broker.queue(b"old").journal, data.broker.storage.log.roll

        def refuse():
            raise JournalError("no room")

        data.broker.storage.log.roll = refuse
        data.broker.storage.log.segment.end()
        data.tick(5)
        assert len([fields for _, fields in silence.lines if fields.get("reason") == "no room"]) == 1
        assert b"old" in data.broker.queues
        data.broker.storage.log.roll = roll
        data.broker.storage.log.roll()
        data.tick()
        assert b"old" not in data.broker.queues
        assert journal.fault is None


class TestStart:
    """One queue that cannot be opened, for whatever reason, keeps no other from being served."""

    @pytest.mark.parametrize(
        "error", [OverflowError("?"), MemoryError(), RecursionError("?"), OSError(5, "?"), KeyError("?")]
    )
    def test_with_a_queue_that_fails_in_any_way(self, data, silence, monkeypatch, error):
        for name in (b"before", b"faulty", b"later"):
            data.push(name, b"a")
        data.end()
        journal = factory.open_journal

        def open_journal(name, *rest):
            if name == b"faulty":
                raise error
            return journal(name, *rest)

        monkeypatch.setattr(factory, "open_journal", open_journal)
        data.open()
        assert set(data.broker.queues) == {b"before", b"later"}
        with pytest.raises(JournalError):
            data.broker.queue(b"faulty")
        monkeypatch.setattr(factory, "open_journal", journal)
        data.tick()
        assert data.read_all(b"faulty") == [b"a"]

    @pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"%", b"%zz", b"a%"])
    def test_with_a_directory_of_a_strange_name(self, data, silence, name):
        data.push(b"work", b"a")
        data.close()
        (data.path / os.fsdecode(name)).mkdir()
        data.open()
        assert set(data.broker.queues) == {b"work"}

    @pytest.mark.parametrize("piece", [b"work", b"\xff" * 200])
    def test_with_a_directory_that_cannot_be_looked_at(self, data, silence, monkeypatch, piece):
        data.push(b"other", b"a")
        data.push(piece, b"b")
        data.close()
        refused = data.path / directory_of(piece).parts[0]

        def refuse(of):
            def refusing(path, *rest, **options):
                if path == refused or refused in path.parents:
                    raise PermissionError(13, "Permission denied", str(path))
                return of(path, *rest, **options)

            return refusing

        with monkeypatch.context() as patch:
            for name in ("iterdir", "is_dir", "stat"):
                patch.setattr(Path, name, refuse(getattr(Path, name)))
            data.open()
            assert data.read_all(b"other") == [b"a"]
        data.restart()
        assert data.read_all(piece) == [b"b"]

    def test_tries_those_again_in_turn_whichever_fail(self, data, silence, monkeypatch):
        names = [b"q%d" % n for n in range(9)]
        for name in names:
            data.push(name, name)
        data.restart()
        data.end()
        for name in names:
            (data.path / name.decode() / "CURRENT").rename(data.path / name.decode() / "away")
        data.open()
        assert len(data.broker.out_of_service) == 9
        for name in names[1::2]:
            (data.path / name.decode() / "away").rename(data.path / name.decode() / "CURRENT")
        data.tick()
        assert set(data.broker.queues) == set(names[1::2])
        # each takes longer than a slice
        tried = []

        def adopt(name):
            tried.append(name)
            data.now += slices.SLICE_MS
            raise JournalError("still not")

        monkeypatch.setattr(data.broker.opening, "_open", adopt)
        for _ in range(10):
            data.broker.tick()
        assert sorted(tried) == sorted(2 * names[::2])


class TestAwaited:
    """A name of no queue."""

    LARGE = bytes(CHUNK_BYTES + 1)

    @pytest.fixture(autouse=True)
    def _without_collector(self):
        """Here nothing else refers to a waiter and where it waits, as a connection does."""
        gc.disable()
        yield
        gc.enable()

    @pytest.fixture
    def data(self, tmp_path):
        data = Data(tmp_path / "data", aliases={b"all": (b"work", b"other")})
        data.settings[b"source"] = QueueSettings(expire_to_queue="work")
        yield data
        data.close()

    @pytest.fixture
    def served(self):
        return []

    def wait(self, data, served, who, name=b"work", fetch=Queue.pop):
        """Returns the waiter; nothing else knows of where it waits."""
        waiter = Waiter(fetch, lambda _, item: served.append((who, item.size)), fail=served.append)
        data.broker.routes.source(name, takes=fetch is not Queue.peek, waits=True).wait(waiter)
        return waiter

    def shown(self, data):
        return {name: queue.waiting_clients for name, queue in data.broker.visible.items()}

    def set(self, data):
        data.set(b"work", b"abc")

    def set_later(self, data):
        data.set(b"work", b"abc", delay_ms=10)
        data.now += 10
        data.tick()

    def set_large(self, data):
        assert data.upload(b"work", self.LARGE) == [None]

    def set_alias(self, data):
        data.set(b"all", b"abc")

    def move(self, data):
        data.push(b"source", b"abc", exptime=-1)
        data.tick()

    @pytest.mark.parametrize("takes", [True, False])
    @pytest.mark.parametrize("name", [b"work", b"work/cursor=label", b"work+child/cursor=label"])
    def test_is_not_made_by_who_asks_for_it(self, data, takes, name):
        assert data.broker.routes.source(name, takes=takes, waits=False) is None
        assert not data.broker.delete(name)
        assert data.broker.visible == {}
        assert data.directories() == []
        assert data.broker.totals.queue_creates == 0

    def test_is_shown_with_those_who_wait_for_it_for_as_long_as_they_do(self, data, served):
        names = [b"a", b"a", b"a/cursor=c", b"b"]
        waiters = [self.wait(data, served, who, name) for who, name in enumerate(names)]
        assert self.shown(data) == {b"a": 3, b"b": 1}
        assert data.broker.queues == {}
        assert data.directories() == []
        waiters.pop(2).cancel()
        waiters.pop().cancel()
        assert self.shown(data) == {b"a": 2}
        while waiters:
            waiters.pop().cancel()
        assert len(data.broker._placeholders._queues) == len(data.broker.cursors.in_use) == 0

    @pytest.mark.parametrize("how", [set, set_later, set_large, set_alias, move])
    def test_serves_those_who_wait_for_it_in_their_order_however_it_comes(self, data, served, how):
        size = len(self.LARGE) if how is TestAwaited.set_large else 3
        self.wait(data, served, "looks", fetch=Queue.peek)
        gone = self.wait(data, served, "gone")
        for who in ("first", "second"):
            self.wait(data, served, who)
        self.wait(data, served, "reader", b"work/cursor=label", fetch=Cursor.peek)
        gone.cancel()
        how(self, data)
        assert served == [("looks", size), ("first", size)]
        assert self.shown(data)[b"work"] == 2
        how(self, data)
        assert [who for who, _ in served].count("second") == 1

    def test_counts_the_reservations_of_those_who_wait_when_it_comes(self, data, served):
        waiter = self.wait(data, served, "first", fetch=Queue.reserve)
        next(iter(waiter.sources)).counts.transactions += 1
        data.set(b"work", b"abc")
        assert data.broker.queues[b"work"].counts.transactions == 1

    def test_of_a_deleted_queue_is_waited_for_on(self, data, served):
        data.set(b"work", b"abc")
        data.read_all(b"work")
        for who in ("first", "second"):
            self.wait(data, served, who)
        self.wait(data, served, "reader", b"work/cursor=label", fetch=Cursor.pop)
        data.broker.delete(b"work")
        data.tick(8)
        assert data.broker.queues == {}
        assert data.directories() == []
        assert self.shown(data) == {b"work": 3}
        data.set(b"work", b"abcd")
        assert served == [("first", 4)]
        data.set(b"work", b"abcde")
        assert served[1:] == [("second", 5)]
        data.set(b"work", b"abcdef")
        assert served[2:] == [("reader", 6)]

    def test_of_a_child_is_one_of_a_queue_once_somebody_takes_from_it(self, data, served):
        looks = self.wait(data, served, "looks", b"work+child", fetch=Queue.peek)
        assert data.broker.queues == {}
        assert (
            data.broker.routes.source(b"work+child", takes=True, waits=False)
            is data.broker.queues[b"work+child"]
        )
        assert list(looks.sources) == [data.broker.queues[b"work+child"]]
        data.set(b"work", b"abc")
        assert served == [("looks", 3)]
        assert data.kill().queues[b"work+child"].items == 1

    def test_of_a_child_that_is_deleted_while_somebody_waits_stays_one_of_a_queue(self, data, served):
        self.wait(data, served, "first", b"work+child")
        data.broker.delete(b"work+child")
        data.set(b"work", b"abc")
        assert served == [("first", 3)]

    def test_of_a_deleted_queue_that_something_goes_wrong_with_tells_who_waits(self, data, served, silence):
        data.set(b"work", b"abc")
        journal = data.broker.queues[b"work"].journal
        data.broker.delete(b"work")
        self.wait(data, served, "first")
        data.broker.storage.committer.set_aside(journal, ValueError("?"))
        assert [str(error) for error in served] == ["internal error: ValueError: ?"]
        assert self.shown(data) == {}

    def test_is_not_waited_for_any_more_after_a_set_that_is_refused(self, data, served):
        """A set has named it."""
        data.settings[b"work"] = QueueSettings(max_item_size=1)
        self.wait(data, served, "first")
        with pytest.raises(ItemTooLargeError):
            data.set(b"work", b"abc")
        data.set(b"work", b"a")
        assert served == [("first", 1)]

    def test_of_parents_leaves_nothing_when_their_children_go(self, data):
        for n in range(10):
            data.broker.routes.source(b"%d+child" % n, takes=True, waits=False)
            data.broker.delete(b"%d+child" % n)
        assert data.broker.registry._children == {}


class TestQueue:
    def test_comes_to_be_when_first_named(self, data):
        queue = data.broker.queue(b"work")
        assert data.broker.queue(b"work") is queue
        assert data.broker.find(b"work") is queue
        assert data.broker.totals.queue_creates == 1
        assert queue.journal.state.created_ms == 1000
        assert data.restart().find(b"work") is not None

    def test_that_is_not_there_is_not_found_or_deleted(self, data):
        assert data.broker.find(b"work") is None
        assert not data.broker.delete(b"work")
        assert data.broker.totals.queue_deletes == 0
        assert data.directories() == []

    def test_keeps_its_case(self, data):
        data.push(b"work", b"a")
        data.push(b"Work", b"b")
        data.restart()
        assert data.broker.queue(b"Work").pop().data == b"b"

    def test_once_deleted_leaves_no_file(self, data):
        data.push(b"work", b"a")
        data.settle()
        data.broker.delete(b"work")
        assert data.broker.find(b"work") is None
        data.broker.deletion.tick()
        assert data.directories() == ["work"]  # the log does not have its end on the disk yet
        data.settle()
        assert data.directories() == []
        assert list((data.path / ".trash").iterdir()) == []
        assert (data.broker.totals.queue_creates, data.broker.totals.queue_deletes) == (1, 1)

    def test_once_deleted_is_gone_even_if_the_process_ends_before_its_files_are(self, data):
        data.push(b"work", b"a")
        data.broker.delete(b"work")
        assert data.kill().queues == {}
        data.tick()
        assert data.directories() == []

    def test_deleted_and_named_again_is_there_after_a_kill_with_nothing_set_on_it(self, data):
        data.push(b"work+child", b"a")
        data.broker.delete(b"work+child")
        data.tick()
        assert data.directories() == []
        data.broker.queue(b"work+child")
        assert data.kill().queues.keys() == {b"work+child"}
        assert [queue.name for queue in data.targets(b"work")] == [b"work", b"work+child"]

    def test_deleted_and_named_again_after_a_kill_has_after_the_next_what_was_set_on_it(self, data):
        data.push(b"work", b"a")
        data.broker.queue(b"work").journal.database.open()  # and nothing is written before the kill
        data.broker.delete(b"work")
        data.kill()
        data.push(b"work", b"b")
        data.kill()
        assert data.read_all(b"work") == [b"b"]

    def test_deleted_and_named_again_is_new_and_empty(self, data):
        data.push(b"work", b"a")
        data.settle()
        data.now = 2000
        data.broker.delete(b"work")
        data.push(b"work", b"b")
        data.tick()
        data.restart()
        assert data.broker.queue(b"work").pop().data == b"b"
        assert data.broker.queue(b"work").pop() is None
        assert data.broker.queue(b"work").journal.state.created_ms == 2000

    def test_once_deleted_hands_its_waiters_to_the_next(self, data):
        got = []
        queue = data.broker.queue(b"work")
        first, second = (
            Waiter(Queue.pop, lambda queue, item: got.append((queue, item.data))) for _ in range(2)
        )
        queue.wait(first)
        queue.wait(second)
        data.broker.delete(b"work")
        heir = data.broker.queue(b"work")
        assert heir is not queue
        first.cancel()
        data.push(b"work", b"a")
        assert got == [(heir, b"a")]

    def test_once_deleted_does_not_hurt_who_holds_its_items(self, data):
        data.push(b"work", b"a", b"b")
        queue = data.broker.queue(b"work")
        one, other = queue.reserve(), queue.reserve()
        data.broker.delete(b"work")
        data.push(b"work", b"new")
        queue.close(one)
        queue.abort(other)
        data.restart()
        assert data.broker.queue(b"work").items == 1
        assert data.broker.queue(b"work").pop().data == b"new"

    def test_deleted_whose_files_cannot_be_deleted_can_be_made_again(self, data):
        (data.path / ".trash").write_text("in the way")
        data.push(b"work", b"a")
        data.broker.delete(b"work")
        data.tick()
        assert data.broker.queue(b"work").pop() is None
        data.push(b"work", b"b")
        (data.path / ".trash").unlink()
        assert data.restart().queues[b"work"].pop().data == b"b"

    def test_flushed_with_all_others_is_empty(self, data):
        data.push(b"a", b"1", b"2")
        data.push(b"b", b"3")
        errors = []
        list(data.broker.flush_all(errors))
        assert errors == []
        data.restart()
        assert data.broker.totals.waiting() == (2, 0, 0)

    def test_that_cannot_be_written_takes_nothing_and_comes_back_by_itself(self, data, monkeypatch):
        silence = Silence()
        log_to(monkeypatch, silence)
        disk = Disk(monkeypatch)
        data.restart()
        data.push(b"work", b"a", b"b")
        disk.failures = ["before", "after"]
        data.write_out_once()
        with pytest.raises(JournalError):
            data.push(b"work", b"c")
        assert data.broker.queue(b"work").pop().data == b"a"
        data.write_out()
        assert ["failure" in event or "back" in event for event, _ in silence.lines].count(True) == 2
        data.push(b"work", b"d")
        data.kill()
        assert data.read_all(b"work") == [b"b", b"d"]


def test_the_files_of_a_queue_deleted_before_the_start_go_once_the_log_is_on_the_disk(data):
    # the disk may have an older log, which tells of the queue, and not of its end
    data.push(b"work", b"a")
    data.write_out()
    data.broker.delete(b"work")
    data.restart()
    assert (data.path / "work").exists()
    data.tick()
    assert not (data.path / "work").exists()
    assert data.broker.storage.log.synced >= (0, 0)


class TestLargeItem:
    """Its file must not be mistaken for one of a later queue of the same name."""

    @staticmethod
    def upload(data, *chunks):
        upload = begin_upload(data.broker.queue(b"work"), CHUNK_BYTES)
        for chunk in chunks:
            upload.write(chunk)
        return upload

    @staticmethod
    def finish(data, upload):
        told = []
        upload.finish(0, 0, told.append, sync=False)
        data.settle()
        return told

    @staticmethod
    def files(data):
        return list((data.path / "work" / "blobs").glob("*"))

    def delete_queue(self, data):
        data.broker.delete(b"work")
        data.broker.deletion.tick()
        data.now += 1

    @staticmethod
    def deletions(data):
        """Let the threads run, but for those that delete files of items, which are returned."""
        late = []
        for _ in range(8):
            data.broker.tick()
            while data.threads.tasks:
                if "delete_blobs" in data.threads.tasks[0][0].__qualname__:
                    late.append(data.threads.tasks.pop(0))
                else:
                    data.threads.run()
        assert late
        return late

    def test_begun_before_its_queue_was_deleted_does_not_harm_one_set_after(self, data):
        old = self.upload(data, b"x" * CHUNK_BYTES)
        data.settle()
        self.delete_queue(data)
        new = self.upload(data, b"y" * CHUNK_BYTES)
        assert self.finish(data, new) == [None]
        with pytest.raises(JournalError):
            old.write(b"x")
        old.abandon()
        data.settle()
        (file,) = self.files(data)
        assert b"y" * CHUNK_BYTES in file.read_bytes()

    def test_deleted_late_does_not_harm_a_later_queue_of_this_name(self, data):
        assert self.finish(data, self.upload(data, b"x" * CHUNK_BYTES, b"x")) == [None]
        data.broker.queue(b"work").pop()
        late = self.deletions(data)
        self.delete_queue(data)
        assert self.finish(data, self.upload(data, b"y" * CHUNK_BYTES)) == [None]
        data.threads.tasks += late
        data.settle()
        assert len(self.files(data)) == 1
        data.push(b"work", b"z")
        data.settle()
        assert data.restart().queue(b"work").items == 2

    def test_deleted_late_does_not_bring_its_deleted_queue_back(self, data):
        assert self.finish(data, self.upload(data, b"x" * CHUNK_BYTES, b"x")) == [None]
        data.broker.queue(b"work").pop()
        late = self.deletions(data)
        self.delete_queue(data)
        data.threads.tasks += late
        data.tick()
        assert data.directories() == []
        data.push(b"work", b"a")
        assert data.restart().queue(b"work").pop().data == b"a"


class TestDirectory:
    def test_is_made_if_missing_for_its_owner_alone(self, data):
        assert data.path.stat().st_mode & 0o777 == 0o700

    def test_is_used_by_one_broker_at_a_time(self, data):
        with pytest.raises(StartError, match="in use by another darner"):
            Broker(data.path, Environment(lambda: 0, lambda *_: None)).open()
        data.push(b"work", b"a")
        assert data.restart().queue(b"work").pop().data == b"a"

    def test_that_is_a_file_is_refused(self, tmp_path):
        path = tmp_path / "file"
        path.touch()
        with pytest.raises(StartError, match="cannot use the data directory"):
            Broker(path, Environment(lambda: 0, lambda *_: None)).open()

    def test_may_hold_stray_files_which_are_left_alone(self, data, monkeypatch):
        data.push(b"work", b"a")
        stray = [
            "notes.txt",
            ".hidden/file",
            "not%encoded/file",
            "two words/file",
            "%41/file",
            "a%20b/CURRENT",
        ]
        for name in stray:
            (data.path / name).parent.mkdir(exist_ok=True)
            (data.path / name).write_text("mine")
        said = []
        monkeypatch.setattr(names_module.log, "warning", lambda text, **_: said.append(text), raising=False)
        assert set(data.restart().queues) == {b"work"}
        assert data.broker.out_of_service == {}
        assert len(said) == 5
        assert all((data.path / name).read_text() == "mine" for name in stray)

    def test_may_be_the_root_of_a_file_system(self, data):
        (data.path / "lost+found").mkdir()
        assert data.restart().queues == {}
        data.push(b"lost+found", b"a")
        assert data.restart().queues[b"lost+found"].pop().data == b"a"

    def test_with_a_damaged_queue_serves_the_others(self, data):
        data.push(b"bad", b"a")
        data.push(b"good", b"b")
        data.close()
        current = data.path / "bad" / "CURRENT"
        content = current.read_bytes()
        current.unlink()
        data.open()
        assert data.broker.totals.waiting() == (1, 1, 1)
        for use in (data.broker.queue, data.broker.find, data.broker.delete):
            with pytest.raises(JournalError, match="no CURRENT"):
                use(b"bad")
        errors = []
        list(data.broker.flush_all(errors))
        assert [str(error) for error in errors] == [str(data.broker.out_of_service[b"bad"])]
        data.push(b"good", b"c")
        current.write_bytes(content)
        data.tick()
        assert data.broker.queue(b"bad").pop().data == b"a"

    def test_left_with_trash_is_emptied(self, data):
        trash = data.path / ".trash" / "1-0"
        trash.mkdir(parents=True)
        (trash / "000005.ldb").touch()
        data.restart()
        data.settle()
        assert not trash.exists()


def test_totals_are_those_of_what_waits(data):
    data.push(b"a", b"1", b"22", b"333")
    data.push(b"b", b"4444")
    data.broker.queue(b"a").reserve()
    data.broker.queue(b"a").pop()
    assert data.broker.totals.waiting() == (2, 2, 7)
    assert data.broker.totals.items == 4
    data.broker.delete(b"a")
    assert data.broker.totals.items == 4
    data.broker.reset_stats()
    assert (data.broker.totals.items, data.broker.totals.queue_creates, data.broker.totals.queue_deletes) == (
        0,
        0,
        0,
    )
    assert data.restart().totals.waiting() == (1, 1, 4)


class Free:
    """How many bytes are free."""

    def __init__(self):
        self.bytes = 0

    def __call__(self):
        if self.bytes is None:
            raise OSError("gone")
        return self.bytes


class TestMinFreeSpace:
    @pytest.fixture
    def free(self):
        return Free()

    @pytest.fixture
    def data(self, tmp_path, free):
        data = Data(tmp_path / "data", min_free_bytes=100, environment={"free_bytes": free})
        free.bytes = 100
        data.tick()
        yield data
        data.close()

    def test_refuses_sets_while_less_is_free_and_nothing_else(self, data, free):
        data.push(b"work", b"one", b"two")
        free.bytes = 99
        data.tick()
        for request in (data.broker.routes.sink, lambda name: data.broker.routes.upload(name, 100_000)):
            with pytest.raises(JournalError, match="min_free_space"):
                request(b"work")
        assert data.broker.sinks == {}
        assert data.read(b"work") == b"one"
        data.broker.queue(b"work").flush()
        assert data.broker.delete(b"work")
        free.bytes = 100
        data.tick()
        data.set(b"work", b"three")
        assert data.read(b"work") == b"three"

    def test_refuses_sets_from_the_start(self, data, free):
        free.bytes = 0
        data.restart()
        with pytest.raises(JournalError, match="min_free_space"):
            data.broker.routes.sink(b"work")

    def test_gives_up_a_large_item_on_its_way(self, data, free):
        upload = data.broker.routes.upload(b"work", 2 * CHUNK_BYTES)
        upload.write(bytes(CHUNK_BYTES))
        free.bytes = 99
        data.tick()
        with pytest.raises(JournalError, match="min_free_space"):
            upload.write(bytes(CHUNK_BYTES))
        upload.abandon()
        data.write_out()
        assert list(data.path.glob("*/blobs/*")) == []

    def test_says_once_that_it_begins_and_once_that_it_ends(self, data, free, monkeypatch):
        silence = Silence()
        log_to(monkeypatch, silence)
        for free.bytes in (99, 50, None, 99, 100, 200):
            data.tick()
        assert silence.lines == [
            (
                "disk too full, sets are refused",
                {"free_bytes": 99, "min_free_bytes": 100, "action": "make room, or let clients get"},
            ),
            ("room on the disk again, sets are taken", {"free_bytes": 100, "min_free_bytes": 100}),
        ]


class TestFullDisk:
    RESERVE = 120

    @pytest.fixture
    def free(self):
        free = Free()
        free.bytes = 1 << 20
        return free

    @pytest.fixture
    def data(self, tmp_path, free):
        data = Data(
            tmp_path / "data", environment={"free_bytes": free, "reserve_bytes": lambda: self.RESERVE}
        )
        yield data
        data.close()

    @pytest.fixture
    def said(self, monkeypatch):
        silence = Silence()
        log_to(monkeypatch, silence)
        return silence.lines

    def assert_refused(self, data):
        for request in (data.broker.routes.sink, lambda name: data.broker.routes.upload(name, 100_000)):
            with pytest.raises(JournalError, match="refused: the disk is full"):
                request(b"work")

    def test_is_held_off_by_a_reserve_on_the_disk(self, data):
        assert (data.path / ".reserve").stat().st_size == self.RESERVE
        assert data.restart().queues == {}
        assert (data.path / ".reserve").stat().st_size == self.RESERVE

    def test_refuses_sets_while_there_is_no_room_for_what_is_staged_and_some_more(self, data, free):
        data.push(b"work", b"one")
        staged = data.broker.storage.committer.staged_bytes
        free.bytes = staged + self.RESERVE // 2
        data.broker.tick()
        data.set(b"work", b"two")
        data.broker.tick()
        self.assert_refused(data)
        assert data.read_all(b"work") == [b"one", b"two"]

    def test_is_looked_for_when_much_was_set_since_the_last_tick(self, data, free, monkeypatch):
        monkeypatch.setattr("darner.journal.commit.STAGED_BYTES", 1000)
        monkeypatch.setattr("darner.journal.batch.STAGED_BYTES", 1000)
        data.tick()
        free.bytes = 0
        data.push(b"work", *[bytes(100)] * 10)
        self.assert_refused(data)

    def test_ends_an_upload_before_the_next_tick(self, data, free):
        upload = data.broker.routes.upload(b"work", 2 * CHUNK_BYTES)
        upload.write(bytes(CHUNK_BYTES))
        free.bytes = self.RESERVE // 2 - 1
        with pytest.raises(JournalError, match="refused: the disk is full"):
            upload.write(bytes(CHUNK_BYTES))
        upload.abandon()

    def test_is_over_once_there_is_clearly_more_room(self, data, free, said):
        for free.bytes in (59, 60, 89, 90, 60, 59, 90):
            data.tick()
        assert [event for event, _ in said] == [
            "disk too full, sets are refused",
            "room on the disk again, sets are taken",
        ] * 2
        assert said[0][1]["needed_bytes"] == 60

    def test_that_was_met_has_the_reserve_let_go_of_until_it_can_be_held_again(self, data, free, said):
        free.bytes = 60
        data.broker.storage.reserve.release()
        data.tick()
        self.assert_refused(data)
        free.bytes = 149  # what is missing of the reserve, and then more than it takes to go on
        data.tick(3)
        self.assert_refused(data)
        assert (data.path / ".reserve").stat().st_size == self.RESERVE // 2
        free.bytes = 150
        data.tick()
        assert (data.path / ".reserve").stat().st_size == self.RESERVE
        data.set(b"work", b"one")
        assert [event for event, _ in said] == [
            "disk too full, sets are refused",
            "room on the disk again, sets are taken",
            "queue created",
        ]

    def test_is_not_over_as_long_as_somebody_meets_it(self, data):
        data.broker.storage.reserve.release()
        for _ in range(3):
            data.broker.storage.reserve.release()
            data.tick()
            self.assert_refused(data)
        data.tick()
        data.set(b"work", b"one")

    def test_without_room_for_a_segment_is_said_once_and_what_is_fetched_goes_on(
        self, data, free, said, monkeypatch
    ):
        monkeypatch.setattr("darner.journal.segment_file.SEGMENT_BYTES", 4096)
        data.restart()
        data.push(b"work", *[b"x"] * 300)
        make, left = os.posix_fallocate, [0]

        def posix_fallocate(descriptor, start, size):
            left[0] -= size == 4096
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            make(descriptor, start, size)

        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)
        release = data.broker.storage.reserve.release

        def released():
            made = release()
            left[0] += 10 * made
            return made

        data.broker.storage.reserve.release = released
        free.bytes = 60
        assert len(data.read_all(b"work")) == 300
        data.tick(4)
        left[0] = 100
        free.bytes = 1000
        data.tick(4)
        data.set(b"work", b"one")
        assert [event for event, _ in said if event != "queue created"] == [
            "disk too full, sets are refused",
            "room on the disk again, sets are taken",
        ]

    def test_gives_a_reader_what_was_delayed_and_leaves_the_rest_of_it_out_of_sight(self, data, free):
        for _ in range(600):
            data.set(b"work", b"later", 1000)
        data.tick()
        data.now += 1000
        free.bytes = 0
        data.tick(3)
        assert data.broker.queues[b"work"].items == 0
        assert data.read(b"work") == b"later"
        data.tick(3)
        assert data.broker.queues[b"work"].delayed_items > 300
        assert len(data.read_all(b"work")) == 599

    def test_lets_items_move_with_what_the_reserve_has(self, data, free):
        data.settings[b"work"] = QueueSettings(expire_to_queue="dead")
        data.push(b"work", b"one", exptime=1)
        data.now += 2000
        free.bytes = 0
        data.broker.space.look()
        release = data.broker.storage.reserve.release

        def released():
            free.bytes = 200
            return release()

        data.broker.storage.reserve.release = released
        data.tick()
        assert data.read_all(b"dead") == [b"one"]

    def test_keeps_what_cannot_be_moved_until_there_is_room(self, data, free):
        data.settings[b"work"] = QueueSettings(expire_to_queue="dead")
        data.push(b"work", b"one", exptime=1)
        data.now += 2000
        free.bytes = 0
        data.tick(3)
        assert b"dead" not in data.broker.queues
        free.bytes = 1000
        data.tick(3)
        assert data.read_all(b"dead") == [b"one"]


def test_what_a_sweep_cannot_do_is_said_once(data, monkeypatch):
    silence = Silence()
    log_to(monkeypatch, silence)
    data.settings[b"work"] = QueueSettings(expire_to_queue="dead")
    move = data.broker.queue(b"work").on_move

    def refuse(*_):
        raise JournalError("no room")

    for _ in range(2):
        data.push(b"work", b"one", exptime=1)
        data.now += 2000
        data.broker.queue(b"work").on_move = refuse
        data.tick(5)
        data.broker.queue(b"work").on_move = move
        data.tick()
    assert len(data.read_all(b"dead")) == 2
    assert [event for event, _ in silence.lines if event.startswith("upkeep failure")] == [
        "upkeep failure, something of a queue stays as it was; it is tried again by itself"
    ] * 2


def test_the_files_of_a_deleted_queue_that_cannot_be_removed_are_tried_again_and_keep_the_log_no_longer(
    data, monkeypatch
):
    silence = Silence()
    log_to(monkeypatch, silence)
    data.push(b"work", b"one")
    data.write_out()
    journal = data.broker.queues[b"work"].journal
    assert data.broker.delete(b"work")

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        patch.setattr(trash.shutil, "rmtree", refuse)
        data.tick(5)
    assert any(journal in file.pins for file in data.broker.storage.log._files)
    data.tick(2)
    assert not any(journal in file.pins for file in data.broker.storage.log._files)
    assert list((data.path / ".trash").iterdir()) == []
    events = [event for event, _ in silence.lines]
    assert events.count("cannot delete the files of a deleted queue; tried again by itself") == 1


def test_of_many_queues_that_are_read_or_written_a_bounded_number_is_open(tmp_path):
    names = [b"queue%d" % number for number in range(12)]
    data = Data(tmp_path / "data", max_open=3)

    for name in names:
        data.push(name, b"x", b"y")
    data.write_out_once()
    assert len(open_leveldbs()) <= 3
    data.kill()
    assert len(open_leveldbs()) <= 3
    data.write_out()
    data.restart()
    for name in names:
        assert data.read(name) == b"x"
        assert len(open_leveldbs()) <= 3
    data.write_out()
    assert len(open_leveldbs()) <= 3
    for name in names:
        assert data.read_all(name) == [b"y"]
    data.close()
