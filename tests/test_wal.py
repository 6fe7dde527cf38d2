"""The write-ahead log: what a start finds of what was logged, whatever the end was; room, and syncs."""

import errno
import os
import shutil
from itertools import chain
from pathlib import Path

import pytest
from doubles import Client, Offload

from darner import wal
from darner._proto import Change
from darner.blob import at_once
from darner.errors import JournalError
from darner.wal import Log

SEGMENT_BYTES = 512
BEHIND = b"behind the break"


class Killed(BaseException):
    """The process is no more."""


class Writer:
    """A journal, as far as the log knows one."""

    def __init__(self, log, name=b"work", life=7, change=0):
        self.log, self.name, self.life, self.change = log, name, life, change
        self.entered = self.number = 0

    def write(self, *payloads, kind=Change.BLOB):
        segment = self.log.segment
        for payload in payloads:
            self.change += 1
            while not (self._enter() and segment.append(kind, self.number, self.change, payload)):
                self.log.roll()
        return self

    def _enter(self):
        segment = self.log.segment
        if self.entered == segment.number:
            return True
        payload = self.life.to_bytes(8, "big") + self.name
        if not segment.append(Change.ENTER, self.log.entered + 1, 0, payload):
            return False
        self.number = self.log.enter(self.life)
        self.log.pin(self)
        self.entered = segment.number
        return True


class Process:
    """A log, from its start on."""

    def __init__(self, directory, offload=at_once, keep=True):
        self.log = Log(directory, offload)
        self.lives, self.damage = self.log.recover()
        if keep and self.lives:
            self.log.keep_found("kept")
        self.log.begin()

    def writer(self, name=b"work", life=7):
        changes = self.lives[name][-1].changes if name in self.lives else []
        return Writer(self.log, name, life, changes[-1][0] if changes else 0)

    def found(self, name=b"work"):
        return [payload for life in self.lives.get(name, ()) for _, _, payload in life.changes]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(wal, "SEGMENT_BYTES", SEGMENT_BYTES)
    return tmp_path / ".log"


def segments(directory):
    return sorted(
        (path for path in directory.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)
    )


def payloads(count, start=0):
    return [b"%08d" % number for number in range(start, start + count)]


def fill_segments(directory, count):
    """Log until there are so many segments; returns what was logged, for each segment."""
    log = Process(directory).log
    writer, numbers = Writer(log), iter(payloads(1000))
    logged = []
    while len(logged) < count:
        if logged:
            log.roll()
        logged.append([])
        while log.position[1] < SEGMENT_BYTES - 60:
            logged[-1].append(next(numbers))
            writer.write(logged[-1][-1])
    return logged


class TestLog:
    def test_has_all_that_was_logged_after_a_kill(self, directory):
        log = Process(directory).log
        work, play = Writer(log), Writer(log, b"play", life=8)
        for payload in payloads(100):
            work.write(payload)
            play.write(payload + b"!")
        assert len(segments(directory)) > 5
        process = Process(directory)
        assert process.found() == payloads(100)
        assert process.found(b"play") == [payload + b"!" for payload in payloads(100)]
        (life,) = process.lives[b"work"]
        assert life.number == 7
        assert [change for change, _, _ in life.changes] == list(range(1, 101))
        assert process.damage == []

    def test_has_all_that_was_logged_before_each_of_many_kills(self, directory):
        for count in range(0, 50, 5):
            process = Process(directory)
            assert process.found() == payloads(count)
            assert process.damage == []
            process.writer().write(*payloads(5, count))

    def test_tells_the_lives_of_one_name_apart(self, directory):
        log = Process(directory).log
        Writer(log, life=1).write(b"a").write(b"", kind=Change.RETIRE)
        Writer(log, life=2).write(b"b").write(b"", kind=Change.RETIRE).write(bytes(8), kind=Change.REVIVE)
        one, two = Process(directory).lives[b"work"]
        assert (one.number, one.retired) == (1, True)
        assert (two.number, two.retired) == (2, False)

    def test_numbers_the_journals_of_each_segment_from_one_on(self, directory):
        log = Process(directory).log
        for _ in range(3):
            for number in range(1, 4):
                assert log.enter(life=1) == number
            log.roll()

    def test_has_all_of_a_group_or_none(self, directory, tmp_path):
        log = Process(directory).log
        writer = Writer(log).write(*payloads(12))
        with log.group(300):
            writer.write(b"one")
            Writer(log, b"play").write(b"other")
            shutil.copytree(directory, tmp_path / "kill")
            found = Process(tmp_path / "kill")
            assert (found.found(), found.found(b"play")) == (payloads(12), [])
        found = Process(directory)
        assert (found.found(), found.found(b"play")) == ([*payloads(12), b"one"], [b"other"])

    def test_without_room_for_a_group_does_not_begin_one(self, directory, room):
        log = Process(directory).log
        writer = Writer(log).write(*payloads(12))
        room.full = True
        log.roll()
        writer.write(*payloads(12))
        with pytest.raises(JournalError, match="cannot begin a segment"), log.group(300):
            raise AssertionError
        with log.group(50):
            writer.write(b"one")
        assert Process(directory).found()[-1] == b"one"

    def test_leaves_out_changes_of_a_queue_that_is_not_named(self, directory):
        log = Process(directory).log
        log.segment.append(Change.BLOB, 5, 1, b"whose?")
        Writer(log).write(b"mine")
        process = Process(directory)
        assert process.found() == [b"mine"]
        assert "does not name" in process.damage[0]


class TestSegments:
    def test_that_nobody_needs_are_used_again_and_what_they_had_is_not_read(self, directory):
        log = Process(directory).log
        writer = Writer(log)
        for payload in payloads(200):
            writer.write(payload)
            log.unpin(writer, log.segment.number)
            assert len(segments(directory)) <= 2
        found = Process(directory).found()
        assert found == payloads(200)[-len(found) :]
        assert len(found) < 30

    def test_that_are_needed_stay_whatever_comes_after_them(self, directory):
        log = Process(directory).log
        old, new = Writer(log), Writer(log, b"play")
        old.write(b"a")
        new.write(*payloads(100))
        log.unpin(new)
        log.roll()
        process = Process(directory)
        assert process.found() == [b"a"]
        assert [path.name for path in segments(directory)][:1] == ["1"]

    def test_with_the_end_of_a_life_stay_as_long_as_any_that_tells_of_it(self, directory):
        log = Process(directory).log
        keeper, dead = Writer(log, b"keeper", 1), Writer(log, b"dead", 2)
        keeper.write(b"a")
        dead.write(b"b")
        log.roll()
        dead.write(b"", kind=Change.RETIRE)
        log.outlast(2)
        log.unpin(dead)
        log.roll()
        log.roll()
        assert Process(directory).lives[b"dead"][-1].retired
        log.unpin(keeper)
        assert Process(directory).lives == {}

    def test_with_the_end_of_a_life_outlast_the_found_ones_that_tell_of_it(self, directory):
        Process(directory).writer().write(b"a")
        process = Process(directory)
        process.writer(life=7).write(b"", kind=Change.RETIRE)
        process.log.outlast(7)
        process.log.unpin(None)
        for pin in list(process.log._files[-1].pins):
            if isinstance(pin, Writer):
                process.log.unpin(pin)
        process.log.roll()
        process.log.roll()
        assert len(segments(directory)) == 3
        process.log.unpin("kept")
        assert len(segments(directory)) == 1

    def test_that_were_found_are_kept_until_all_who_need_them_have_said_so(self, directory):
        Process(directory).writer().write(b"a")
        log = Log(directory, at_once)
        log.recover()
        log.keep_found("one")
        log.unpin("nobody")
        log.keep_found("two")
        log.begin()
        log.unpin("one")
        assert Process(directory).found() == [b"a"]
        log.unpin("two")
        assert Process(directory).found() == []

    def test_that_were_found_are_not_deleted_before_logging_begins(self, directory):
        Process(directory).writer().write(b"a")
        log = Log(directory, at_once)
        log.recover()
        log.unpin("somebody that was deleted")
        assert Process(directory).found() == [b"a"]

    def test_that_nobody_needs_are_gone_once_logging_begins(self, directory):
        Process(directory).writer().write(b"a")
        log = Process(directory, keep=False).log
        assert [path.name for path in segments(directory)] == [str(log.segment.number)]
        assert Process(directory).found() == []

    def test_have_numbers_that_go_on_after_a_start(self, directory):
        first = Process(directory).log
        first.roll()
        assert Process(directory, keep=False).log.segment.number == first.segment.number + 1

    def test_too_many_are_told_with_who_needs_the_oldest(self, directory):
        log = Process(directory).log
        told = []
        log.on_long = lambda pins: told.append(set(pins))
        one = Writer(log).write(b"a")
        other = Writer(log, b"play")
        for payload in payloads(300):
            other.write(payload)
        assert told[0] == {one, other}


class TestClosing:
    def test_leaves_nothing_that_nobody_needs(self, directory):
        log = Process(directory).log
        writer = Writer(log).write(*payloads(50))
        log.unpin(writer)
        log.close()
        assert list(directory.iterdir()) == []

    def test_leaves_what_somebody_needs(self, directory):
        log = Process(directory).log
        Writer(log).write(*payloads(50))
        log.close()
        process = Process(directory)
        assert process.found() == payloads(50)
        assert process.damage == []


class TestBreak:
    """What was not on the disk when the machine lost its power."""

    def goes_on_from(self, directory, before):
        """A start has found that, and what is logged from there on is found by each later one."""
        process = Process(directory)
        assert process.found() == before
        process.writer().write(BEHIND)
        for _ in range(2):
            process = Process(directory)
            assert process.found() == [*before, BEHIND]
            assert process.damage == []

    @pytest.mark.parametrize("loss", [lambda rest: b"", lambda rest: bytes(len(rest))])
    def test_at_any_byte_leaves_what_was_before(self, directory, tmp_path, loss):
        logged = fill_segments(directory, 1)[0]
        content = (directory / "1").read_bytes()
        ends = [37 + len(b"work") + 8 + 29 * count for count in range(len(logged) + 1)]
        ends[0] = 0
        for at in range(0, ends[-1] + 30, 3):
            copy = tmp_path / str(at)
            copy.mkdir()
            (copy / "1").write_bytes(content[:at] + loss(content[at:]))
            whole = sum(end <= at for end in ends[1:])
            self.goes_on_from(copy, logged[:whole])

    @pytest.mark.parametrize("at", [0, 15, 20, 100, 300])
    def test_by_a_flipped_bit_leaves_what_was_before(self, directory, at):
        logged = fill_segments(directory, 1)[0]
        content = bytearray((directory / "1").read_bytes())
        content[at] ^= 1
        (directory / "1").write_bytes(content)
        found = len(Process(directory).found())
        assert found < len(logged)
        self.goes_on_from(directory, logged[:found])

    @pytest.mark.parametrize("broken", [0, 1, 2])
    @pytest.mark.parametrize("loss", [0, 200])
    def test_in_an_earlier_segment_leaves_out_the_later_ones_and_keeps_them_aside(
        self, directory, broken, loss
    ):
        logged = fill_segments(directory, 3)
        path = segments(directory)[broken]
        content = path.read_bytes()
        path.write_bytes(content[:loss] + bytes(len(content) - loss))
        process = Process(directory)
        before = list(chain(*logged[:broken]))
        assert process.found()[: len(before)] == before
        assert set(process.found()) < set(before + logged[broken])
        if broken < 2:
            assert str(path) in process.damage[0]
            assert (directory / f"lost-{broken + 2}").exists()
        else:
            assert process.damage == []
        self.goes_on_from(directory, process.found())

    def test_of_a_new_name_for_a_used_segment_loses_nothing_else(self, directory):
        log = Process(directory).log
        passing, writer = Writer(log, b"passing"), Writer(log)
        passing.write(b"a")
        log.roll()
        writer.write(b"b")
        log.unpin(passing)
        log.roll()
        assert [path.name for path in segments(directory)] == ["2", "3"]
        writer.write(b"c")
        (directory / "3").rename(directory / "1")
        self.goes_on_from(directory, [b"b", b"c"])

    def test_of_all_but_the_new_name_of_a_used_segment_is_the_end(self, directory):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        used = (directory / "1").read_bytes()
        log.roll()
        writer.write(b"b")
        (directory / "2").write_bytes(used)
        self.goes_on_from(directory, [b"a"])


def interrupted(monkeypatch, calls, start):
    """Kill the process at that system call; returns whether it came so far."""
    left = [calls]
    names = ("open", "rename", "unlink", "fsync", "fdatasync", "pwrite", "posix_fallocate")

    def wrapped(call):
        def count(*args, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return call(*args, **options)

        return count

    with monkeypatch.context() as patch:
        for name in names:
            patch.setattr(os, name, wrapped(getattr(os, name)))
        try:
            start()
        except Killed:
            return True
    return False


class TestKill:
    def test_at_any_call_of_a_start_changes_nothing_of_what_is_found(self, directory, monkeypatch):
        logged = list(chain(*fill_segments(directory, 4)))
        third = segments(directory)[2]
        third.write_bytes(third.read_bytes()[:100] + bytes(SEGMENT_BYTES - 100))
        content = {path.name: path.read_bytes() for path in directory.iterdir()}
        found = Process(directory).found()
        assert logged[: len(found)] == found
        calls = 0
        more = True
        while more:
            calls += 1
            for path in directory.iterdir():
                path.unlink()
            for name, data in content.items():
                (directory / name).write_bytes(data)
            more = interrupted(monkeypatch, calls, lambda: Process(directory))
            process = Process(directory)
            assert process.found() == found
            process.writer().write(BEHIND)
            assert Process(directory).found() == [*found, BEHIND]
        assert calls > 10

    @pytest.mark.parametrize(("reserve", "least"), [(0, 2), (wal.RESERVE, 1)])  # none is made with a reserve
    def test_at_any_call_of_going_on_in_a_new_segment_loses_nothing(
        self, tmp_path, monkeypatch, reserve, least
    ):
        monkeypatch.setattr(wal, "RESERVE", reserve)
        calls = 0
        more = True
        while more:
            calls += 1
            log = Process(tmp_path / str(calls)).log
            writer = Writer(log).write(b"a")
            used = Writer(log, b"play").write(b"b")
            log.roll()
            log.unpin(used)
            writer.write(b"c")
            log.unpin(writer, 2)
            more = interrupted(monkeypatch, calls, log.roll)
            if not more:
                writer.write(b"d")
            assert Process(tmp_path / str(calls)).found()[-2:] == ([b"c"] if more else [b"c", b"d"])
        assert calls > least


class Room:
    """Whether segments can be made."""

    def __init__(self, monkeypatch):
        self.full = False
        make = os.posix_fallocate

        def posix_fallocate(*args):
            if self.full:
                raise OSError(errno.ENOSPC, "no space left")
            make(*args)

        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)


@pytest.fixture
def room(monkeypatch):
    return Room(monkeypatch)


class TestRoom:
    def test_is_reserved_ahead(self, directory):
        offload = Offload()
        log = Process(directory, offload).log
        assert len(segments(directory)) == 1
        offload.run_all()
        (spare,) = directory.glob("spare-*")
        assert spare.stat().st_blocks * 512 >= SEGMENT_BYTES
        log.roll()
        assert [path.name for path in segments(directory)] == ["1", "2"]
        offload.run_all()
        assert [path.name for path in segments(directory)] == ["2"]

    def test_of_a_segment_is_taken_back_before_what_must_outlast_it_goes(self, directory):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        told = Writer(log).write(b"a")
        log.roll()
        offload.run_all()
        log.outlast(told.life)
        log.roll()
        offload.run_all()
        assert [path.name for path in segments(directory)] == ["1", "2", "3"]
        log.unpin(told)
        assert [path.name for path in segments(directory)] == ["1", "2", "3"]
        offload.run()
        assert [path.name for path in segments(directory)] == ["2", "3"]
        offload.run_all()
        assert [path.name for path in segments(directory)] == ["3"]

    def test_that_runs_out_refuses_what_is_to_be_taken_in_until_there_is_some(self, directory, room):
        log = Process(directory).log
        Writer(log).write(b"a")
        room.full = True
        log.roll()
        assert "cannot begin a segment" in str(log.segment.refusal)
        log.tick()
        assert log.segment.refusal is not None
        room.full = False
        log.tick()
        log.tick()
        assert log.segment.refusal is None

    def test_that_ran_out_changes_nothing_of_the_segment_that_is_there(self, directory, room):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        room.full = True
        log.roll()
        writer.write(b"b")
        used = log.position
        for _ in range(3):
            with pytest.raises(JournalError, match="cannot begin a segment"):
                log.roll()
        assert log.position == used
        writer.write(b"c")
        assert Process(directory).found() == [b"a", b"b", b"c"]

    def test_that_is_missing_at_the_start_is_waited_for(self, directory, room):
        Process(directory).writer().write(b"a")
        room.full = True
        process = Process(directory)
        assert process.found() == [b"a"]
        assert process.log.segment.refusal is not None
        with pytest.raises(JournalError):
            process.log.roll()
        process.log.pin("somebody")
        room.full = False
        process.log.tick()
        process.log.tick()
        assert process.log.segment.refusal is None
        process.writer().write(b"b")
        assert Process(directory).found() == [b"a", b"b"]

    def test_that_is_made_when_it_is_asked_for_is_used_at_once(self, directory, room):
        threads = Offload()
        log = Process(directory, threads).log
        asked = []

        def make_room(error):
            asked.append(error.errno)
            room.full = False
            return True

        log.on_full = make_room
        room.full = True
        log.roll()  # there is no spare one yet
        assert asked == [errno.ENOSPC]
        room.full = True
        threads.run_all()  # the spare one
        assert asked == [errno.ENOSPC] * 2
        assert log.segment.refusal is None

    def test_that_cannot_be_made_is_asked_for_once(self, directory, room):
        threads = Offload()
        log = Process(directory, threads).log
        asked = []
        log.on_full = asked.append
        room.full = True
        with pytest.raises(JournalError, match="cannot begin a segment"):
            log.roll()
        assert len(asked) == 1
        threads.run_all()
        assert len(asked) == 2
        assert log.segment.refusal is not None

    def test_that_is_short_has_written_what_keeps_more_than_a_segment(self, directory):
        log = Process(directory).log
        asked = []
        log.on_long = asked.extend
        writers = [Writer(log, name) for name in (b"work", b"play", b"rest")]
        for writer in writers[:2]:
            writer.write(b"a")
            log.roll()
        assert asked == []
        log.is_short = True
        writers[2].write(b"a")
        log.roll()
        assert asked == [writers[0]]

    def test_of_a_name_that_cannot_be_given_is_kept(self, directory, monkeypatch):
        log = Process(directory).log
        writer = Writer(log).write(b"a")

        def refuse(*_):
            raise OSError(errno.EIO, "cannot rename")

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", refuse)
            for _ in range(3):
                with pytest.raises(JournalError):
                    log.roll()
        writer.write(*payloads(30))
        assert Process(directory).found() == [b"a", *payloads(30)]


class Syncs:
    """Which files were synced, and whether that works."""

    def __init__(self, monkeypatch):
        self.fails = False
        self.files = []
        self.directories = 0
        sync, sync_directory = os.fdatasync, wal.sync_directory

        def fdatasync(descriptor):
            if self.fails:
                raise OSError(errno.EIO, "cannot write")
            self.files.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            sync(descriptor)

        def count(directory):
            self.directories += 1
            sync_directory(directory)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        monkeypatch.setattr(wal, "sync_directory", count)


@pytest.fixture
def syncs(monkeypatch):
    return Syncs(monkeypatch)


def waiting(log):
    client = Client()
    log.sync(client, 3)
    return client


class TestSync:
    def test_holds_its_client_until_the_disk_has_what_was_logged(self, directory, syncs):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        Writer(log).write(b"a")
        client = waiting(log)
        assert (client.held, syncs.files) == (1, [])
        offload.run()
        assert (client.held, client.failed, syncs.files) == (0, [], ["1"])

    def test_is_shared_by_all_who_come_while_one_is_under_way(self, directory, syncs):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        first = waiting(log)
        others = [waiting(log) for _ in range(50)]
        offload.run()
        assert first.held == 0
        assert all(client.held for client in others)
        offload.run()
        assert not any(client.held for client in others)
        assert (len(syncs.files), offload.tasks) == (2, [])

    def test_takes_in_every_segment_that_is_not_on_the_disk(self, directory, syncs):
        log = Process(directory).log
        writer = Writer(log).write(*payloads(20))
        waiting(log)
        assert syncs.files == ["1", "2"]
        writer.write(b"b")
        waiting(log)
        assert syncs.files[2:] == ["2"]

    def test_leaves_out_segments_that_nobody_needs_any_more(self, directory, syncs):
        log = Process(directory).log
        writer = Writer(log).write(*payloads(20))
        log.unpin(writer, log.segment.number)
        waiting(log)
        assert syncs.files == ["2"]

    def test_has_the_name_of_each_segment_on_the_disk_even_of_one_used_again(self, directory, syncs):
        log = Process(directory).log
        syncs.directories = 0
        names = []
        for _ in range(6):
            waiting(log)
            waiting(log)
            names.append(syncs.directories)
            log.roll()
        assert names == [1, 2, 3, 4, 5, 6]

    def test_has_what_was_found_on_the_disk_before_anything_is_logged(self, directory, syncs, monkeypatch):
        Process(directory).writer().write(b"a")
        written = []
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *args: written.append(args[1:]) or pwrite(*args))
        Process(directory)
        assert syncs.files == ["1"]
        # all of it anew: if an earlier sync has failed, the system takes for written what is not
        assert written[-1] == ((directory / "1").read_bytes(), 0)

    def test_knows_how_far_it_came(self, directory):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        writer = Writer(log).write(b"a")
        position = log.position
        waiting(log)
        writer.write(b"b")
        assert log.synced < position
        offload.run()
        assert position == log.synced < log.position

    def test_that_failed_fails_all_who_wait(self, directory, syncs):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        Writer(log).write(b"a")
        syncs.fails = True
        first, second = waiting(log), waiting(log)
        offload.run_all()
        assert (first.held, first.failed) == (0, [3])
        # what it waited for may be in the segment that failed, whose next sync would tell nothing
        assert (second.held, second.failed) == (0, [3])

    def test_that_failed_has_nothing_taken_in_until_the_journals_have_what_it_was_for(self, directory, syncs):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        asked = []
        log.on_long = asked.extend
        syncs.fails = True
        assert waiting(log).failed == [3]
        syncs.fails = False
        log.tick()
        assert "cannot write" in str(log.segment.refusal)
        assert asked == [writer]
        assert waiting(log).failed == [3]
        log.unpin(writer, log.segment.number)
        assert not (directory / "1").exists()
        log.tick()
        assert log.segment.refusal is None
        assert waiting(log).failed == []

    def test_that_failed_has_no_segment_used_again(self, directory, syncs):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        writer = Writer(log).write(b"a")
        syncs.fails = True
        waiting(log)
        offload.run()
        with (directory / "1").open("rb") as doubtful:
            log.unpin(writer)
            offload.run_all()
            assert os.fstat(doubtful.fileno()).st_nlink == 0

    def test_that_failed_on_a_full_disk_is_got_over(self, directory, syncs, room):
        log = Process(directory).log
        room.full = True
        log.roll()
        writer = Writer(log).write(b"a")
        syncs.fails = True
        assert waiting(log).failed == [3]
        assert waiting(log).failed == [3]
        log.tick()
        room.full = syncs.fails = False
        log.tick()
        log.tick()
        log.unpin(writer, log.segment.number)
        log.tick()
        assert log.segment.refusal is None
        assert waiting(log).failed == []

    def test_under_way_keeps_its_segments(self, directory):
        offload = Offload()
        log = Process(directory, offload).log
        offload.run_all()
        writer = Writer(log).write(*payloads(20))
        client = waiting(log)
        log.unpin(writer)
        log.roll()
        assert len(segments(directory)) == 3
        offload.run_all()
        assert client.held == 0
        assert len(segments(directory)) == 1
