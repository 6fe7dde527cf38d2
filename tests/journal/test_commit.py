"""Group commit: when what is staged is written to LevelDB, who waits for that, and what a failure does."""

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from doubles import Client, Disk, Offload

from darner._records import ITEM_BYTES, Item
from darner.environment.environment import Environment
from darner.errors import JournalError
from darner.journal import commit, journal_upkeep, lookup, reading, recovery, resting, writing
from darner.journal.commit import MAX_TICKS, REST_TICKS, Committer
from darner.journal.disk_reserve import Reserve
from darner.journal.journal import Journal
from darner.journal.layout import STATE_NAME, is_state_key, state_key
from darner.journal.recovery import open_journal
from darner.journal.wal import Log


class Bench:
    """A committer with its log, its journals, and threads that run when they are told to."""

    def __init__(self, data, disk):
        self.data = data
        self.disk = disk
        self.threads = Offload()
        self.log = Log(data / ".log", self.threads)
        self.log.begin()
        self.threads.run_all()
        self.committer = Committer(self.log, Environment(lambda: 0, self.threads))
        self.told = []
        self.committer.on_failure = lambda journal, error: self.told.append((journal.name, str(error)))
        self.committer.on_recovery = lambda journal: self.told.append((journal.name, "recovered"))

    def journal(self, name=b"work"):
        return open_journal(name, self.data / name.decode(), self.committer, self.log, 1)

    def put(self, journal, *datas):
        for data in datas:
            journal.put(Item(0, 0, 0, 0, data))
        return journal

    def tick(self, times=1):
        for _ in range(times):
            self.committer.tick()

    def segments(self):
        return sorted(int(path.name) for path in (self.data / ".log").glob("[0-9]*"))

    @staticmethod
    def datas(journal):
        items, _ = reading.read(journal, journal.state.floor, 1000, 1 << 20)
        return [item.data for item in items]

    def in_leveldb(self, journal):
        keys = journal.database.open().iterator(start=b"i", stop=b"j", include_value=False)
        return sum(not is_state_key(key) for key in keys)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(monkeypatch)
    yield disk
    disk.drop()


@pytest.fixture
def bench(tmp_path, disk):
    return Bench(tmp_path, disk)


@pytest.fixture
def work(bench):
    return bench.journal()


class TestClose:
    def test_leaves_a_file_that_cannot_be_deleted_to_the_next_start(self, bench, work, monkeypatch):
        file = work.blobs.path_of(work.begin_blob())
        file.parent.mkdir()
        file.write_bytes(b"half an item")
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        work.abandon_blob(int(file.name))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", Mock(side_effect=OSError(errno.EIO, "no")))
            bench.committer.close()
        bench.log.close()
        assert file.exists()
        again = type(bench)(bench.data, bench.disk)
        again.journal()
        for _ in range(3):
            again.tick()
            again.threads.run_all()
        assert not file.exists()


class TestTicks:
    def test_have_all_that_is_staged_for_a_journal_written_as_one(self, bench, work, disk):
        other = bench.journal(b"other")
        bench.put(work, *(b"%d" % n for n in range(10)))
        bench.put(other, b"x")
        bench.tick(MAX_TICKS)
        assert bench.threads.tasks == []
        bench.tick()
        bench.threads.run_all()
        assert (disk.writes, bench.in_leveldb(work), bench.in_leveldb(other)) == (2, 10, 1)
        assert bench.segments() == [1]
        bench.tick()
        bench.threads.run_all()  # memory is given back, once
        bench.tick(2 * MAX_TICKS)
        assert (bench.threads.tasks, disk.writes) == ([], 2)

    def test_have_what_came_meanwhile_written_next(self, bench, work, disk):
        bench.put(work, b"a")
        bench.tick(MAX_TICKS + 1)
        bench.put(work, b"b")
        bench.tick(2 * MAX_TICKS)
        assert sum("Committer._checkpoint" in each.__qualname__ for each, _ in bench.threads.tasks) == 1
        bench.threads.run()
        assert (bench.in_leveldb(work), work.dirty) == (1, True)
        bench.tick(MAX_TICKS + 1)
        bench.threads.run_all()
        assert (bench.in_leveldb(work), work.dirty) == (2, False)

    def test_begin_no_more_writes_at_once_than_the_disk_takes(self, bench, monkeypatch):
        monkeypatch.setattr(commit, "WRITES_PER_TICK", 2)
        for number in range(5):
            bench.put(bench.journal(b"queue%d" % number), b"a")
        bench.tick(MAX_TICKS)
        begun = []
        for _ in range(3):
            bench.tick()
            begun.append(len(bench.threads.tasks))
        assert begun == [2, 4, 5]

    def test_delete_dead_records_until_there_are_none(self, bench, work, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 3)
        bench.put(work, *[b"x"] * 10)
        bench.committer.checkpoint(work)
        work.flush(())
        for _ in range(MAX_TICKS + 7):
            bench.tick()
            bench.threads.run_all()
        assert bench.in_leveldb(work) == 0

    def test_close_the_leveldb_of_a_journal_with_nothing_to_do_until_it_is_asked_for(self, bench, work, disk):
        bench.put(work, b"a")
        for _ in range(MAX_TICKS + REST_TICKS + 1):
            bench.tick()
            bench.threads.run_all()
        (handle,) = disk.handles
        assert not handle.closed
        bench.tick()
        assert bench.committer._active == {}
        bench.put(work, b"b")  # while it is being closed
        bench.threads.run_all()
        assert handle.closed
        assert (work.path / STATE_NAME).exists()
        assert bench.datas(work) == [b"a", b"b"]
        bench.tick(MAX_TICKS + 1)
        bench.threads.run_all()
        assert not (work.path / STATE_NAME).exists()
        assert bench.in_leveldb(work) == 2

    def test_leave_what_can_wait_to_its_own_threads(self, bench):
        soon, later = Offload(), Offload()
        committer = Committer(bench.log, Environment(lambda: 0, soon, defer=later))
        work = open_journal(b"work", bench.data / "work", committer, bench.log, 1)
        bench.put(work, b"a")
        for _ in range(MAX_TICKS + REST_TICKS + 3):
            committer.tick()
            assert soon.tasks == []
            later.run_all()
        assert (work.database.is_open, bench.in_leveldb(work)) == (False, 1)

    def test_compact_few_journals_at_a_time(self, bench, disk, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.COMPACT_RECORDS", 0)
        journals = [
            bench.put(bench.journal(b"q%d" % n), b"x") for n in range(journal_upkeep.MAX_COMPACTIONS + 1)
        ]
        for each in journals:
            bench.committer.checkpoint(each)
        bench.threads.run_all()
        compacted = []
        for at, handle in enumerate(disk.handles):
            handle.compact_range = lambda at=at, **_: compacted.append(at)
        for each in journals:
            each.remove(lookup.find(each, 1))
        together = []
        for _ in range(MAX_TICKS + 4):
            before = len(compacted)
            bench.tick()
            bench.threads.run_all()
            together.append(len(compacted) - before)
        assert max(together) == journal_upkeep.MAX_COMPACTIONS
        assert sorted(compacted) == list(range(len(journals)))

    def test_compact_what_was_deleted(self, bench, work, disk, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.COMPACT_RECORDS", 10)
        bench.put(work, *[b"x"] * 20)
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        compacted = []
        (handle,) = disk.handles
        handle.compact_range = lambda **span: compacted.append(span)
        for id in range(1, 16):
            work.remove(lookup.find(work, id))
        for _ in range(MAX_TICKS + 3):
            bench.tick()
            bench.threads.run_all()
        assert compacted == [{"start": b"i" + bytes(7) + b"\x01", "stop": b"i" + bytes(7) + b"\x10"}]


class TestTurns:
    def test_come_to_every_journal_however_busy_the_others_are(self, bench, monkeypatch):
        monkeypatch.setattr(commit, "WRITES_PER_TICK", 2)
        journals = [bench.journal(b"q%d" % n) for n in range(15)]
        for _ in range(4 * MAX_TICKS):
            for each in journals:
                bench.put(each, b"x")
            bench.tick()
            bench.threads.run_all()
        assert [bool(each.database.stored_change) for each in journals] == [True] * len(journals)

    def in_the_log_alone(self, bench, count):
        for number in range(count):
            bench.put(bench.journal(b"q%d" % number), b"x")
        return bench.log.position

    def test_that_come_late_have_the_log_synced_for_all_that_wait(self, bench, monkeypatch):
        monkeypatch.setattr(commit, "WRITES_PER_TICK", 1)
        position = self.in_the_log_alone(bench, 40)
        for _ in range(MAX_TICKS):
            bench.tick()
            bench.threads.run_all()
        assert bench.log.synced < position
        for _ in range(MAX_TICKS):
            bench.tick()
            bench.threads.run_all()
        assert bench.log.synced >= position

    def test_that_come_in_time_have_not(self, bench):
        position = self.in_the_log_alone(bench, 40)
        for _ in range(3 * MAX_TICKS):
            bench.tick()
            bench.threads.run_all()
        assert bench.log.synced < position

    def test_that_wait_for_a_slow_disk_have_the_log_synced(self, bench, work):
        bench.put(work, b"a")
        bench.tick(MAX_TICKS + 1)
        position = bench.log.position
        bench.tick(2 * MAX_TICKS)
        write, sync = bench.threads.tasks
        assert "Committer._checkpoint" in write[0].__qualname__
        bench.threads.tasks = [sync]
        bench.threads.run_all()
        assert bench.log.synced >= position

    def test_that_lead_to_nothing_have_the_log_synced(self, bench, work, disk):
        bench.put(work, b"a")
        disk.failures = ["before"] * 100
        position = bench.log.position
        for _ in range(3 * MAX_TICKS):
            bench.tick()
            bench.threads.run_all()
        assert work.failing is not None
        assert bench.log.synced >= position


class TestLog:
    def test_is_let_go_of_once_leveldb_has_what_was_in_it(self, bench, work):
        bench.put(work, b"a")
        bench.log.roll()
        bench.threads.run_all()
        bench.put(work, b"b")
        assert bench.segments() == [1, 2]
        bench.committer.checkpoint(work)
        bench.put(work, b"c")
        bench.threads.run_all()
        assert bench.segments() == [2]
        bench.log.roll()
        assert bench.segments() == [2, 3]
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        assert bench.segments() == [3]

    def test_that_is_long_has_written_what_keeps_it_so(self, bench, work):
        other = bench.put(bench.journal(b"other"), b"b")
        bench.put(work, b"a")
        for _ in range(20):
            bench.log.roll()
            bench.put(other, b"c")
            bench.threads.run_all()
        assert bench.in_leveldb(work) == 1
        assert len(bench.segments()) < 10

    def test_that_is_long_has_no_journal_written_that_was_discarded(self, bench, work):
        bench.put(work, b"a")
        bench.committer.discard(work)
        other = bench.journal(b"other")
        for _ in range(20):
            bench.log.roll()
            bench.put(other, b"b")
            bench.threads.run_all()
        assert (work.failing, bench.told) == (None, [])
        assert not any((bench.data / "work").iterdir())
        assert work not in bench.committer._active


class TestCrowd:
    def test_has_a_large_batch_written_without_waiting_for_a_tick(self, bench, monkeypatch):
        monkeypatch.setattr("darner.journal.batch.STAGED_BYTES", 3 * ITEM_BYTES)
        work = bench.put(bench.journal(), b"a", b"b")
        assert bench.threads.tasks == []
        bench.put(work, b"c")
        assert len(bench.threads.tasks) == 1
        assert not work.is_backlogged

    @pytest.mark.parametrize("failures", [[], ["before"]])
    def test_holds_clients_while_items_come_faster_than_they_are_written(
        self, bench, disk, monkeypatch, failures
    ):
        monkeypatch.setattr("darner.journal.batch.STAGED_BYTES", 3 * ITEM_BYTES)
        monkeypatch.setattr("darner.journal.journal.AHEAD_BYTES", 2 * ITEM_BYTES)
        disk.failures = failures
        work = bench.put(bench.journal(), *[b"x"] * 7)
        assert not work.is_backlogged
        bench.put(work, b"y")
        assert work.is_backlogged
        client = Client()
        client.hold()
        work.held_back.append(client)
        bench.threads.run_all()
        assert (client.held, work.is_backlogged) == (0, False)


class TestFailure:
    def test_is_told_once_and_so_is_its_end(self, bench, work, disk):
        disk.failures = ["before"] * 3
        bench.put(work, b"a")
        bench.tick(MAX_TICKS + 1)
        for _ in range(6):
            bench.threads.run_all()
            bench.tick()
        assert [name for name, _ in bench.told] == [b"work", b"work"]
        assert "no space left" in bench.told[0][1]
        assert bench.told[1][1] == "recovered"
        assert bench.in_leveldb(work) == 1

    def test_of_one_journal_leaves_the_others_alone(self, bench, work, disk):
        other = bench.journal(b"other")
        disk.failures = ["before"]
        bench.put(work, b"a")
        bench.put(other, b"b")
        bench.tick(MAX_TICKS + 1)
        bench.threads.run_all()
        assert (work.failing is None, other.failing) == (False, None)
        bench.put(other, b"c")
        assert bench.datas(other) == [b"b", b"c"]

    def test_keeps_the_log_until_it_is_over(self, bench, work, disk):
        disk.failures = ["before"] * 2
        bench.put(work, b"a")
        bench.committer.checkpoint(work)
        bench.log.roll()
        bench.threads.run_all()
        bench.tick()
        bench.threads.run_all()
        assert bench.segments() == [1, 2]
        bench.tick()
        bench.threads.run_all()
        assert bench.segments() == [2]

    def test_of_any_other_kind_is_a_failure_too(self, bench, work, disk):
        bench.put(work, b"a")
        bench.committer.checkpoint(work)
        _, done = bench.threads.tasks.pop()
        done(MemoryError("no memory"))
        assert "no memory" in str(work.failing)
        bench.tick()
        bench.threads.run_all()
        assert (work.failing, bench.in_leveldb(work)) == (None, 1)

    def test_to_delete_the_file_of_an_item_is_told(self, bench, work):
        blob = work.begin_blob()
        work.blobs.path_of(blob).mkdir(parents=True)
        work.abandon_blob(blob)
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        bench.tick()
        bench.threads.run_all()
        assert "cannot delete an item's file" in bench.told[0][1]

    def test_of_several_is_tried_again_one_after_the_other(self, bench, disk):
        journals = [bench.put(bench.journal(b"queue%d" % number), b"a") for number in range(3)]
        disk.failures = ["before"] * 6
        bench.tick(MAX_TICKS + 1)
        bench.threads.run_all()
        bench.tick()
        tried = []
        while bench.threads.tasks:
            tried.append(len(bench.threads.tasks))
            bench.threads.run()
        assert tried == [1, 1, 1]
        assert all(each.failing is not None for each in journals)
        bench.tick()
        bench.threads.run_all()
        assert all(each.failing is None for each in journals)

    def test_of_many_is_tried_again_for_a_few_in_each_tick_and_for_each_in_its_turn(
        self, bench, disk, monkeypatch
    ):
        monkeypatch.setattr(commit, "RETRIES_PER_TICK", 2)
        journals = [bench.put(bench.journal(b"queue%d" % number), b"a") for number in range(5)]
        disk.failures = ["before"] * 7
        bench.tick(MAX_TICKS + 1)
        bench.threads.run_all()
        well = []
        for _ in range(4):
            bench.tick()
            bench.threads.run_all()
            well.append([at for at, each in enumerate(journals) if each.failing is None])
        assert well == [[], [2, 3], [0, 2, 3, 4], [0, 1, 2, 3, 4]]

    def test_to_delete_files_is_told_once_and_tried_again_and_keeps_no_others(self, bench, work):
        paths = []
        for make in (lambda path: path.mkdir(), lambda path: path.touch()):
            blob = work.begin_blob()
            paths.append(work.blobs.path_of(blob))
            paths[-1].parent.mkdir(exist_ok=True, parents=True)
            make(paths[-1])
            work.abandon_blob(blob)
        bench.committer.checkpoint(work)
        for _ in range(5):
            bench.threads.run_all()
            bench.tick()
        assert len(bench.told) == 1
        assert [path.exists() for path in paths] == [True, False]
        paths[0].rmdir()
        for _ in range(MAX_TICKS + 3):
            bench.tick()
            bench.threads.run_all()
        assert [key for key, _ in work.database.open().iterator()] == [state_key(1)]


class TestFullDisk:
    @pytest.fixture
    def reserve(self, tmp_path, bench):
        reserve = Reserve(tmp_path / ".reserve", 1 << 20)
        reserve.hold()
        bench.committer._reserve = reserve
        return reserve

    def test_has_the_reserve_let_go_of_and_is_no_matter_of_one_queue(self, bench, work, disk, reserve):
        looked = []
        bench.committer.on_staged = lambda: looked.append(reserve.is_held)
        work.put(Item(0, 0, 0, 0, b"a"))
        bench.committer.checkpoint(work)
        disk.full = iter(
            [False, True, False, False]
        ).__next__  # opened, not written; opened again, and written
        bench.threads.run_all()
        assert (looked, bench.told) == ([False], [])
        assert work.failing is not None
        bench.tick()
        bench.threads.run_all()
        assert (work.failing, bench.told, bench.in_leveldb(work)) == (None, [], 1)

    def test_that_is_met_when_leveldb_is_opened_to_be_read_is_got_over(self, bench, work, disk, reserve):
        bench.put(work, b"a")
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        work.close()
        disk.full = lambda: reserve._held > 0
        assert bench.datas(work) == [b"a"]
        assert (work.failing, reserve.is_held) == (None, False)

    def test_has_nothing_wait_that_gives_room_back(self, bench, work, disk, reserve, monkeypatch):
        for _ in range(2):
            bench.put(work, *[bytes(40_000)] * 20)
            bench.committer.checkpoint(work)
            bench.threads.run_all()
        compacted = []
        (handle,) = disk.handles
        handle.compact_range = lambda **span: compacted.append(span)
        bench.committer.space_is_short = True
        for id in range(1, 35):
            work.remove(lookup.find(work, id))
            if id > 32:
                bench.tick()
                bench.threads.run_all()
        assert bench.in_leveldb(work) == 6
        bench.tick()
        bench.threads.run_all()
        assert len(compacted) == 1

    def test_of_which_the_rest_is_used_up_costs_no_opening_until_there_is_some(
        self, bench, work, disk, reserve, monkeypatch
    ):
        bench.put(work, b"a")
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        (handle,) = disk.handles
        bench.put(work, b"b")
        disk.full = lambda: True
        with monkeypatch.context() as patch:

            def refuse(*_):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            patch.setattr(os, "posix_fallocate", refuse)
            with reserve.lend(0):
                pass  # and somebody else takes it
            for _ in range(20):
                bench.tick(MAX_TICKS + 1)
                bench.threads.run_all()
            assert disk.handles == [handle]
            assert bench.datas(work) == [b"a", b"b"]
            assert [text for _, text in bench.told] == []
        disk.full = lambda: False
        bench.tick()
        bench.threads.run_all()
        assert (work.failing, bench.in_leveldb(work)) == (None, 2)

    def test_leaves_no_files_of_a_failed_compaction_when_leveldb_is_closed(self, bench, work, reserve):
        bench.put(work, b"a")
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        bench.committer.space_is_short = True
        left = work.path / "000099.ldb"
        left.touch()
        for _ in range(MAX_TICKS + REST_TICKS + 3):
            bench.tick()
            bench.threads.run_all()
        assert not work.database.is_open
        assert not left.exists()
        assert bench.datas(work) == [b"a"]


class TestCompaction:
    @pytest.fixture
    def compacted(self, bench, work, disk, monkeypatch):
        """Of what is dead, as LevelDB was told, which does not say whether that worked."""
        monkeypatch.setattr("darner.journal.tidying.COMPACT_RECORDS", 10)
        bench.put(work, *[b"x"] * 20)
        bench.committer.checkpoint(work)
        bench.threads.run_all()
        compacted = []
        monkeypatch.setattr(
            "doubles.Handle.compact_range", lambda _, **span: compacted.append(span), raising=False
        )
        for id in range(1, 16):
            work.remove(lookup.find(work, id))
        return compacted

    def go_on(self, bench, ticks=MAX_TICKS + 3):
        for _ in range(ticks):
            bench.tick()
            bench.threads.run_all()

    def test_that_worked_is_over(self, bench, work, compacted):
        self.go_on(bench)
        self.go_on(bench)
        assert len(compacted) == 1
        assert not work.compaction.is_wanted

    def test_that_failed_is_known_by_the_next_write_and_done_again(self, bench, work, disk, compacted):
        while not compacted:
            self.go_on(bench, 1)
        disk.failures = ["before"]
        self.go_on(bench)
        assert len(compacted) == 2
        self.go_on(bench)
        assert compacted == compacted[:1] * 2

    def test_that_a_failed_write_comes_before_is_done_again(self, bench, work, disk, compacted):
        while not any("JournalUpkeep.compact" in work.__qualname__ for work, _ in bench.threads.tasks):
            bench.threads.run_all()
            bench.tick()
        disk.failures = ["before"]
        bench.put(work, b"y")
        bench.committer.checkpoint(work)
        bench.threads.tasks.reverse()
        bench.threads.run_all()
        self.go_on(bench)
        self.go_on(bench)
        assert len(compacted) == 2


class Faulty(Journal):
    """A journal with a fault, in the method, or the function on it, of the name in `fault_in`."""

    fault_in = None

    def _meet(self, name):
        if self.fault_in == name:
            raise OverflowError("can't convert negative value")

    def forget_blobs(self, blobs):
        self._meet("forget_blobs")
        super().forget_blobs(blobs)

    def close(self, state=b""):
        self._meet("close")
        super().close(state)


class TestFault:
    @pytest.fixture
    def faulty(self, bench, monkeypatch):
        bench.committer.on_fault = lambda journal, fault: bench.told.append((journal.name, str(fault)))
        with monkeypatch.context() as patch:
            patch.setattr(recovery, "Journal", Faulty)
            faulty = open_journal(b"faulty", bench.data / "faulty", bench.committer, bench.log, 1)
        for part, name in (("compaction", "is_due"), ("blobs", "take_obsolete")):
            of = getattr(faulty, part)
            monkeypatch.setattr(type(of), name, self.watched(faulty, of, name))
        for room, name in ((writing, "seal"), (writing, "end_write"), (resting, "resting_state")):
            monkeypatch.setattr(room, name, self.watched(faulty, faulty, name, room))
        return faulty

    @staticmethod
    def watched(faulty, part, name, room=None):
        """A method of a part of the faulty journal, or a function of a room, where there may be the fault."""
        method = getattr(room or type(part), name)

        def meet(self, *args, **kwargs):
            if self is part:
                faulty._meet(name)
            return method(self, *args, **kwargs)

        return meet

    @pytest.mark.parametrize(
        "fault_in",
        ["seal", "end_write", "is_due", "take_obsolete", "forget_blobs", "resting_state", "close"],
    )
    def test_of_one_journal_sets_it_aside_and_the_others_go_on(self, bench, faulty, fault_in):
        others = [bench.put(bench.journal(name), b"a") for name in (b"before", b"after")]
        faulty.fault_in = fault_in
        blob = faulty.begin_blob()
        faulty.abandon_blob(blob)
        for _ in range(3 * (MAX_TICKS + REST_TICKS)):
            bench.tick()
            bench.threads.run_all()
        fault = "internal error: OverflowError: can't convert negative value"
        assert bench.told == [(b"faulty", fault)]
        assert [bench.in_leveldb(each) for each in others] == [1, 1]
        with pytest.raises(JournalError, match=fault):
            bench.put(faulty, b"b")
        bench.put(others[0], b"b")
        bench.tick(MAX_TICKS + 1)
        bench.threads.run_all()
        assert bench.in_leveldb(others[0]) == 2

    def test_that_comes_while_a_client_sets_is_told_and_harms_no_client(self, bench, faulty, monkeypatch):
        monkeypatch.setattr("darner.journal.batch.STAGED_BYTES", 0)
        bench.put(faulty, b"a")
        bench.committer.checkpoint(faulty)
        bench.threads.run_all()
        faulty.fault_in = "seal"
        bench.put(faulty, b"b")
        assert bench.told
        with pytest.raises(JournalError, match="internal error"):
            bench.put(faulty, b"c")

    def test_when_it_is_tried_again_keeps_no_other_from_being_tried(self, bench, faulty, disk):
        other = bench.journal(b"other")
        for each in (faulty, other):
            bench.put(each, b"a")
        disk.failures = ["before", "before"]
        for _ in range(MAX_TICKS + 1):
            bench.tick()
        faulty.fault_in = "seal"
        for _ in range(4):
            bench.threads.run_all()
            bench.tick()
        bench.threads.run_all()
        assert (other.failing, bench.in_leveldb(other)) == (None, 1)

    def test_when_all_is_closed_keeps_no_other_from_being_written(self, bench, faulty):
        others = [bench.journal(b"before"), bench.journal(b"after")]
        for each in (others[0], faulty, others[1]):
            bench.put(each, b"a")
        faulty.fault_in = "seal"
        bench.committer.close()
        assert [bench.in_leveldb(each) for each in others] == [1, 1]

    def test_in_a_write_is_a_failure_that_says_where_it_comes_from(self, bench, work):
        bench.put(work, b"a")
        bench.committer.checkpoint(work)
        _, done = bench.threads.tasks.pop()
        error = OverflowError("too large")
        done(error)
        assert work.failing.__cause__ is error


class TestClosing:
    def test_writes_all_that_is_staged_and_leaves_no_log(self, bench, work):
        other = bench.put(bench.journal(b"other"), b"b")
        bench.put(work, b"a")
        bench.committer.close()
        assert (bench.in_leveldb(work), bench.in_leveldb(other)) == (1, 1)
        bench.log.close()
        assert list((bench.data / ".log").iterdir()) == []

    def test_deletes_the_files_of_items_that_are_gone(self, bench, work):
        blob = work.begin_blob()
        path = work.blobs.path_of(blob)
        path.parent.mkdir(parents=True)
        path.touch()
        work.abandon_blob(blob)
        bench.committer.close()
        assert not path.exists()
        assert [key for key, _ in work.database.open().iterator()] == [state_key(1)]

    def test_leaves_in_the_log_what_cannot_be_written(self, bench, work, disk):
        bench.put(work, b"a")
        disk.failures = ["before"]
        bench.committer.close()
        work.close()
        bench.log.close()
        again = Log(bench.data / ".log", bench.threads)
        lives, damage = again.recover()
        assert (list(lives), damage) == ([b"work"], [])
        again.begin()
        found = open_journal(b"work", bench.data / "work", bench.committer, again, 1, lives[b"work"])
        assert bench.datas(found) == [b"a"]
