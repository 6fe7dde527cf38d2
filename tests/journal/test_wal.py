"""The write-ahead log: the frames that a start finds after any end; space, and syncs."""

import contextlib
import errno
import itertools
import os
import shutil
from itertools import chain
from pathlib import Path
from unittest.mock import Mock

import pytest
from doubles import Client, Offload, let_go
from file_systems import mounted

from darner._records import Change, checksum, guard_memory, segment_head
from darner.environment.offload import at_once
from darner.errors import JournalError, StartError
from darner.journal import files, segment_file, segment_pool, segments_needed, wal, wal_sync
from darner.journal.segment_file import FRAME_BYTES
from darner.journal.wal import Log

SEGMENT_BYTES = 768
HEAD_BYTES = 64
BEHIND = b"behind the break"


class Killed(BaseException):
    """The process was killed."""


class Writer:
    """A journal as the log sees one."""

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
    """A log, from its recovery on."""

    def __init__(self, directory, offload=at_once, keep=True):
        self.log = Log(directory, offload)
        self.lives, self.damage = self.log.recover()
        if keep and self.lives:
            self.log.pin_found("kept")
        self.log.begin()

    def writer(self, name=b"work", life=7):
        changes = self.lives[name][-1].changes if name in self.lives else []
        return Writer(self.log, name, life, changes[-1][0] if changes else 0)

    def kill(self):
        let_go(self.log)

    def found(self, name=b"work"):
        return [payload for life in self.lives.get(name, ()) for _, _, payload in life.changes]


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(segment_file, "SEGMENT_BYTES", SEGMENT_BYTES)
    return tmp_path / ".log"


def segments(directory):
    return sorted(
        (path for path in directory.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)
    )


def payloads(count, start=0):
    return [b"%08d" % number for number in range(start, start + count)]


def fill_segments(directory, count):
    """Log until there are so many segments; return the payloads in each segment."""
    log = Process(directory).log
    writer, numbers = Writer(log), iter(payloads(1000))
    logged = []
    while len(logged) < count:
        if logged:
            log.roll()
        logged.append([])
        while log.segment.room_bytes > 2 * FRAME_BYTES:
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
        log.pin_end_of(2)
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
        process.log.pin_end_of(7)
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
        log.pin_found("one")
        log.unpin("nobody")
        log.pin_found("two")
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
    """Pages that were not on the disk at a power cut."""

    def goes_on_from(self, directory, before):
        """Check that a start finds the frames before, and that later starts find those logged since."""
        process = Process(directory)
        assert process.found() == before
        process.writer().write(BEHIND)
        process.kill()
        for _ in range(2):
            process = Process(directory)
            assert process.found() == [*before, BEHIND]
            assert process.damage == []
            process.kill()

    @pytest.mark.parametrize("loss", [lambda rest: b"", lambda rest: bytes(len(rest))])
    def test_at_any_byte_leaves_what_was_before(self, directory, tmp_path, loss):
        logged = fill_segments(directory, 1)[0]
        content = (directory / "1").read_bytes()
        ends = [
            HEAD_BYTES + FRAME_BYTES + 8 + len(b"work") + (FRAME_BYTES + 8) * n
            for n in range(len(logged) + 1)
        ]
        ends[0] = 0
        for at in range(0, ends[-1] + 30, 7):
            copy = tmp_path / str(at)
            copy.mkdir()
            (copy / "1").write_bytes(content[:at] + loss(content[at:]))
            whole = sum(end <= at for end in ends[1:])
            self.goes_on_from(copy, logged[:whole])

    def test_of_a_new_name_for_a_used_segment_loses_nothing_else(self, directory, syncs):
        log = Process(directory).log
        passing, writer = Writer(log, b"passing"), Writer(log)
        passing.write(b"a")
        log.roll()
        writer.write(b"b")
        before = syncs.directories
        log.unpin(passing)
        assert syncs.directories == before + 1  # the removal of the old name is on the disk
        log.roll()
        assert [path.name for path in segments(directory)] == ["2", "3"]
        writer.write(b"c")
        (directory / "3").rename(directory / "spare-1")
        self.goes_on_from(directory, [b"b"])

    def test_of_all_but_the_new_name_of_a_used_segment_is_the_end(self, directory):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        used = (directory / "1").read_bytes()
        log.roll()
        writer.write(b"b")
        (directory / "2").write_bytes(used)
        self.goes_on_from(directory, [b"a"])


class TestDamage:
    """Damage to the disk's content: what is left is never deleted, and the loss is reported."""

    def kept(self, directory):
        return sorted(path.name for path in directory.glob("lost-*"))

    def found_and_said(self, directory, *parts):
        """Return the payloads that a start finds, whose report must have these parts; later starts find the
        same and report nothing."""
        process = Process(directory)
        (text,) = process.damage
        assert [part for part in parts if part not in text] == []
        found, kept = process.found(), self.kept(directory)
        process.writer().write(BEHIND)
        process.kill()
        again = Process(directory)
        assert (again.found(), again.damage) == ([*found, BEHIND], [])
        again.kill()
        assert self.kept(directory) == kept
        return found

    @pytest.mark.parametrize("at", [0, 15, 20, 63])
    def test_in_the_head_of_a_segment_is_made_up_for_by_its_copy(self, directory, at):
        logged = fill_segments(directory, 1)[0]
        flip(directory / "1", at)
        process = Process(directory)
        assert (process.found(), process.damage) == (logged, [])

    @pytest.mark.parametrize("bits", [1, 0xFF])
    def test_of_a_frame_keeps_what_is_whole_behind_it_and_says_so(self, directory, tmp_path, bits):
        logged = fill_segments(directory, 1)[0]
        content = (directory / "1").read_bytes()
        entered = HEAD_BYTES + FRAME_BYTES + 8 + len(b"work")
        last = entered + (FRAME_BYTES + 8) * (len(logged) - 1)
        for at in range(HEAD_BYTES, last, 5):
            copy = tmp_path / str(at)
            copy.mkdir()
            (copy / "1").write_bytes(content)
            flip(copy / "1", at, bits)
            number = (at - entered) // (FRAME_BYTES + 8)
            behind = len(logged) - max(number, -1) - 1
            found = self.found_and_said(copy, "/1 breaks off", f"{behind} whole change", "lost-*")
            assert found == logged[: max(number, 0)]
            assert logged[-1] in (copy / "lost-1").read_bytes()

    def test_names_the_queues_of_which_changes_are_lost(self, directory):
        log = Process(directory).log
        work, play = Writer(log, life=1), Writer(log, b"play", life=2)
        work.write(b"a")
        play.write(b"b")
        log.roll()
        work.write(b"c")
        play.write(b"d")
        flip(directory / "1", HEAD_BYTES)
        assert self.found_and_said(directory, "4 whole changes of play, work,") == []

    @pytest.mark.parametrize("content", [b"", bytes(SEGMENT_BYTES), b"nonsense" * (SEGMENT_BYTES // 8)])
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_of_all_of_a_segment_leaves_out_the_later_ones_and_keeps_them(self, directory, number, content):
        logged = fill_segments(directory, 3)
        (directory / str(number)).write_bytes(content)
        said = [f"/{number} ", "lost-*", *([f"{sum(map(len, logged[number:]))} whole"] if number < 3 else [])]
        assert self.found_and_said(directory, *said) == list(chain(*logged[: number - 1]))
        assert self.kept(directory) == [f"lost-{each}" for each in range(number, 4)]

    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_of_a_segment_that_is_cut_short_leaves_what_was_before(self, directory, number):
        logged = fill_segments(directory, 3)
        os.truncate(directory / str(number), 300)
        found = self.found_and_said(directory, f"/{number} is cut short")
        before = list(chain(*logged[: number - 1]))
        assert found == [*before, *logged[number - 1][: len(found) - len(before)]]
        assert len(found) > len(before)

    @pytest.mark.parametrize("number", [1, 2])
    def test_of_a_segment_that_is_missing_is_no_gap_that_had_to_be(self, directory, number):
        logged = fill_segments(directory, 3)
        (directory / str(number)).unlink()
        said = f"/{number} is missing", f"{sum(map(len, logged[number:]))} whole"
        assert self.found_and_said(directory, *said) == list(chain(*logged[: number - 1]))
        assert self.kept(directory) == [f"lost-{each}" for each in range(number + 1, 4)]

    def test_is_no_gap_where_a_segment_was_needed_no_more(self, directory):
        log = Process(directory).log
        old, passing = Writer(log), Writer(log, b"passing", life=8)
        old.write(b"a")
        log.roll()
        passing.write(b"x")
        log.roll()
        old.write(b"b")
        log.unpin(passing)
        assert [path.name for path in segments(directory)] == ["1", "3"]
        process = Process(directory)
        assert (process.found(), process.damage) == ([b"a", b"b"], [])

    def test_of_the_name_that_says_what_is_needed_is_mended(self, directory):
        log = Process(directory).log
        writer = Writer(log)
        for _ in range(3):
            (needed,) = directory.glob("needed-*")
            needed.unlink()
            writer.write(b"a")
            log.roll()
            log.unpin(writer, log.segment.number)
        assert [path.name for path in segments(directory)] == ["4"]
        process = Process(directory)
        assert (process.found(), process.damage) == ([], [])

    def test_is_said_of_each_time_and_what_was_kept_before_stays(self, directory):
        for count in (1, 2):
            fill_segments(directory, 1)
            flip(directory / str(min(int(path.name) for path in segments(directory))), 120)
            process = Process(directory, keep=False)
            assert process.damage
            process.log.close()
            assert len(self.kept(directory)) == count

    def test_does_not_stop_a_start_where_a_newer_darner_has_written(self, directory):
        fill_segments(directory, 2)
        content = (directory / "2").read_bytes()
        (directory / "2").write_bytes(b"darner 3" + content[8:])
        with pytest.raises(StartError, match="newer darner"):
            Process(directory)
        assert (directory / "2").read_bytes() == b"darner 3" + content[8:]

    @pytest.mark.parametrize(
        "name", ["needed-1-99999999999999+5", "needed-5-1+7", "needed-1-2", "needed-x+1"]
    )
    def test_of_a_name_that_no_darner_has_given_is_no_gap(self, directory, name):
        fill_segments(directory, 2)
        for needed in directory.glob("needed-*"):
            needed.rename(directory / name)
        assert Process(directory).found()

    @pytest.mark.parametrize("number", [2**40, 2**61, 2**62, 2**64 - 1])
    def test_in_a_head_that_no_darner_has_written_is_said_without_counting_up_to_it(self, directory, number):
        logged = fill_segments(directory, 1)
        head = segment_head(number, 5, 1, 0, segment_file.SEGMENT_BYTES)
        (directory / "2").write_bytes(head + bytes(segment_file.SEGMENT_BYTES - 2 * len(head)) + head)
        process = Process(directory)
        assert process.found()[:1] == logged[0][:1]
        process.log.close()

    def test_to_many_gaps_has_a_segment_stay_until_there_are_fewer(self, directory, monkeypatch):
        monkeypatch.setattr(segments_needed, "NEEDED_BYTES", 16)
        log = Process(directory).log
        pins = []
        for number in range(1, 9):
            log.pin(number)
            pins.append(number)
            log.roll()
        for number in (2, 4, 6):
            log.unpin(number)
        assert [path.name for path in segments(directory)] == ["1", "3", "4", "5", "6", "7", "8", "9"]
        assert Process(directory).damage == []


def flip(path, at, bits=1):
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


class TestForgery:
    """A client that may set items on one queue chooses bytes of the log, and must not be able to forge
    changes of another queue."""

    def frame(self, kind, journal, change, payload, number, marker=b""):
        """Return a frame as a client can forge it that knows everything but the marker."""
        head = (
            len(payload).to_bytes(4, "big")
            + bytes([kind])
            + journal.to_bytes(4, "big")
            + change.to_bytes(8, "big")
        )
        return marker + checksum(head + payload, number).to_bytes(4, "big") + head + payload

    def emptied(self, number, marker=b""):
        """Return frames that flush the queue `secret`, whose life the client knows, too."""
        enter = (1).to_bytes(8, "big") + b"secret"
        return self.frame(Change.ENTER, 2, 0, enter, number, marker) + self.frame(
            Change.DISCARD, 2, 2, b"", number, marker
        )

    @pytest.mark.parametrize("marker", [b"", bytes(8), b"\xff" * 8, b"darner 2"])
    def test_by_item_bytes_that_an_earlier_use_has_left_is_of_no_use_at_any_offset(self, directory, marker):
        for offset in range(FRAME_BYTES + 40):
            killed = Process(directory)
            log = killed.log
            secret, mine = Writer(log, b"secret", life=1), Writer(log, b"mine", life=2)
            later = log.segment.number + 1
            crafted = bytes(offset) + b"".join(self.emptied(number, marker) for number in (later, later + 1))
            mine.write(crafted)
            secret.write(b"precious")
            log.roll()
            log.unpin(mine)
            log.unpin(secret, log.segment.number)  # the forged segment is reused
            secret.write(b"more")
            log.roll()
            secret.write(b"still")
            killed.kill()
            process = Process(directory)
            assert (process.found(b"secret"), process.damage) == ([b"more", b"still"], [])
            process.log.close()
            shutil.rmtree(directory)

    def test_by_item_bytes_behind_damage_is_not_counted_as_whole(self, directory):
        log = Process(directory).log
        mine = Writer(log, b"mine", life=2).write(b"a")
        marker = log.segment.marker.to_bytes(8, "big")
        wrong = (log.segment.marker ^ 1).to_bytes(8, "big")
        at = log.position[1]
        mine.write(self.emptied(1, wrong))
        flip(directory / "1", at)
        assert Process(directory).damage == []
        # with the marker a client could: that is why it is random
        log = Process(directory).log
        at, marker = log.position[1], log.segment.marker.to_bytes(8, "big")
        Writer(log, b"mine", life=2).write(self.emptied(log.segment.number, marker))
        flip(directory / str(log.segment.number), at)
        assert Process(directory).damage

    def test_is_kept_from_by_a_marker_that_each_use_has_anew(self, directory):
        log = Process(directory).log
        markers = set()
        for _ in range(20):
            log.roll()
            markers.add(log.segment.marker)
        assert len(markers) == 20


class TestGroup:
    def test_that_is_larger_than_a_segment_is_found_whole_or_not_at_all(self, directory, tmp_path):
        log = Process(directory).log
        writers = [Writer(log, b"queue %d" % n, life=n) for n in range(1, 6)]
        writers[0].write(b"before")
        states = []
        with log.group(20 * (segment_file.GROUP_BYTES + 300)):
            for count in range(20):
                writers[count % 5].write(b"%d" % count * 100)
                if count < 19:
                    states.append(shutil.copytree(directory, tmp_path / str(count)))
        assert len(segments(directory)) > 3
        writers[0].write(b"after")
        for state in states:
            process = Process(state)
            assert ([process.found(b"queue %d" % n) for n in range(1, 6)], process.damage) == (
                [[b"before"], [], [], [], []],
                [],
            )
            process.writer(b"queue 1", life=1).write(b"on")
            assert Process(state).found(b"queue 1") == [b"before", b"on"]
        process = Process(directory)
        assert [len(process.found(b"queue %d" % n)) for n in range(1, 6)] == [6, 4, 4, 4, 4]

    def test_that_reaches_over_several_segments_is_no_damage(self, directory):
        log = Process(directory).log
        writer = Writer(log)
        with log.group(4 * SEGMENT_BYTES):
            writer.write(*payloads(40))
        assert len(segments(directory)) > 2
        process = Process(directory)
        assert (process.found(), process.damage) == (payloads(40), [])

    def test_that_reaches_over_several_segments_keeps_the_one_with_its_end(self, directory):
        log = Process(directory).log
        work, play = Writer(log), Writer(log, b"play", life=8)
        with log.group(SEGMENT_BYTES // 2):
            work.write(b"a")
            log.roll()
            play.write(b"b")
        log.roll()
        log.unpin(play)  # LevelDB has its changes
        assert Process(directory).found() == [b"a"]

    def test_has_nothing_done_that_is_for_its_end(self, directory):
        log = Process(directory).log
        writer = Writer(log)
        done = []
        with contextlib.suppress(JournalError), log.group(100):
            log.after_group.append(lambda: done.append(log.segment.in_group))
            writer.write(b"a")
            assert log.segment.in_group
            assert not done
            raise JournalError("no")
        assert done == [False]

    def test_that_is_larger_than_the_room_there_is_is_not_begun(self, directory, room):
        log = Process(directory).log
        room.full = True
        with pytest.raises(JournalError, match="cannot begin a segment"), log.group(5 * SEGMENT_BYTES):
            raise AssertionError
        Writer(log).write(b"a")
        assert Process(directory).found() == [b"a"]

    def test_that_fails_midway_leaves_what_was_done_of_it(self, directory):
        log = Process(directory).log
        writer = Writer(log)
        with contextlib.suppress(JournalError), log.group(100):
            writer.write(b"a")
            raise JournalError("no")
        writer.write(b"b")
        assert Process(directory).found() == [b"a", b"b"]


def interrupted(monkeypatch, calls, start):
    """Kill the process at this system call; return whether it was reached."""
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


def put_back(directory, content):
    """Restore these files in the directory, and delete all others."""
    for path in directory.iterdir():
        path.unlink()
    for name, data in content.items():
        (directory / name).write_bytes(data)


class TestKill:
    @pytest.mark.parametrize("number", [1, 3])
    @pytest.mark.parametrize("loss", ["bit", "pages"])
    def test_at_any_call_of_a_start_changes_nothing_of_what_is_found(
        self, directory, monkeypatch, number, loss
    ):
        logged = list(chain(*fill_segments(directory, 4)))
        if loss == "bit":
            flip(directory / str(number), 200)
        else:  # all pages written since it was made
            head = segment_head(0, 1, 0, 0, SEGMENT_BYTES)
            (directory / str(number)).write_bytes(head.ljust(SEGMENT_BYTES, b"\0"))
            # and the later ones are not noted as needed yet
            (needed,) = directory.glob("needed-*")
            needed.rename(directory / f"needed-1-{number}+{number + 1}")
        content = {path.name: path.read_bytes() for path in directory.iterdir()}
        found = Process(directory).found()
        assert logged[: len(found)] == found
        calls = 0
        more = True
        while more:
            calls += 1
            put_back(directory, content)
            more = interrupted(monkeypatch, calls, lambda: Process(directory))
            process = Process(directory)
            assert process.found() == found
            process.writer().write(BEHIND)
            assert Process(directory).found() == [*found, BEHIND]
        assert calls > 10

    def test_at_any_call_of_a_start_after_a_power_cut_is_no_damage(self, directory, monkeypatch):
        fill_segments(directory, 3)
        log = Process(directory).log
        Writer(log, b"play", life=8).write(b"a")
        log.roll()
        # the last pages of the third one, and all of those behind it, were not on the disk yet
        torn, *empty = segments(directory)[2:]
        content = torn.read_bytes()
        torn.write_bytes(content[:300].ljust(SEGMENT_BYTES - HEAD_BYTES, b"\0") + content[-64:])
        for path in empty:
            path.write_bytes(segment_head(0, 1, 0, 0, SEGMENT_BYTES).ljust(SEGMENT_BYTES, b"\0"))
        content = {path.name: path.read_bytes() for path in directory.iterdir()}
        found = Process(directory).found()
        for calls in itertools.count(1):
            put_back(directory, content)
            more = interrupted(monkeypatch, calls, lambda: Process(directory))
            process = Process(directory)
            assert (process.found(), process.damage) == (found, [])
            if not more:
                break
        assert calls > 10

    @pytest.mark.parametrize(  # none is made with a reserve
        ("reserve", "least"), [(0, 2), (segment_pool.MAX_USED, 1)]
    )
    def test_at_any_call_of_going_on_in_a_new_segment_loses_nothing(
        self, tmp_path, monkeypatch, reserve, least
    ):
        monkeypatch.setattr(segment_pool, "MAX_USED", reserve)
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
    """The space in which segments can be made."""

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
        log.pin_end_of(told.life)
        log.roll()
        offload.run_all()
        assert [path.name for path in segments(directory)] == ["1", "2", "3"]
        log.unpin(told)
        assert [path.name for path in segments(directory)] == ["1", "2", "3"]
        offload.run()  # which notes that the segment is no longer needed
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
        log.roll()  # there is no spare segment yet
        assert asked == [errno.ENOSPC]
        room.full = True
        threads.run_all()  # makes the spare segment
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
        log.space_is_short = True
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


class TestMemory:
    """A page that cannot be written: the disk is full and copies on write, or the file was truncated."""

    @pytest.fixture(autouse=True)
    def guarded(self):
        guard_memory()

    def cut_short(self, log):
        os.truncate(log._files[-1].path, 0)

    def test_has_a_change_go_to_the_next_segment_and_no_item_taken_in_until_the_journals_have_the_rest(
        self, directory
    ):
        log = Process(directory).log
        asked = []
        log.on_long = asked.extend
        writer = Writer(log).write(b"a")
        self.cut_short(log)
        writer.write(b"b")
        assert log.segment.number == 2
        assert "cannot write" in str(log.segment.refusal)
        log.tick()
        assert asked == [writer]
        assert log.segment.refusal is not None
        assert waiting(log).failed == [3]
        log.unpin(writer, 2)
        log.tick()
        assert log.segment.refusal is None
        process = Process(directory)
        assert (process.found(), process.damage) == ([b"b"], [])

    def test_that_was_lost_is_no_reason_to_refuse_once_its_segment_goes_though_it_did_not_go_at_first(
        self, directory, monkeypatch
    ):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        self.cut_short(log)
        writer.write(b"b")
        with monkeypatch.context() as patch:
            patch.setattr(
                segments_needed.NeededSegments, "remove", Mock(side_effect=OSError(errno.ENOSPC, ""))
            )
            log.unpin(writer, 2)
            log.tick()
            assert log.segment.refusal is not None
        log.tick()
        log.tick()
        assert log.segment.refusal is None
        assert [path.name for path in segments(directory)] == ["2"]

    def test_that_is_missed_before_anything_is_written_to_it_is_not_trusted(self, directory):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        self.cut_short(log)
        log.tick()
        assert "cut short" in str(log.segment.refusal)
        assert log.segment.number == 2
        log.unpin(writer, 2)
        log.tick()
        assert log.segment.refusal is None

    def test_that_is_given_up_before_anything_is_in_it_breaks_nothing_off(self, directory):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        log.roll()
        head = (directory / "2").read_bytes()
        self.cut_short(log)
        writer.write(b"b")
        assert log.segment.number == 3
        (directory / "2").write_bytes(head)  # as if it was not deleted before a power cut
        process = Process(directory)
        assert (process.found(), process.damage) == ([b"a", b"b"], [])

    def test_of_which_the_head_cannot_be_written_is_not_begun(self, directory, monkeypatch):
        log = Process(directory).log
        writer = Writer(log).write(b"a")
        with monkeypatch.context() as patch:
            patch.setattr(segment_file, "populate", Mock(side_effect=OSError(errno.ENOSPC, "no room")))
            with pytest.raises(JournalError, match="no room"):
                log.roll()
        assert [path.name for path in segments(directory)] == ["1"]
        log.roll()
        writer.write(b"b")
        process = Process(directory)
        assert (process.found(), process.damage) == ([b"a", b"b"], [])

    def test_that_is_full_in_the_middle_loses_nothing_that_was_written_before(self, tmp_path, monkeypatch):
        """Reserved space that does not exist: the pages of a file with holes on a full disk."""
        monkeypatch.setattr(segment_file, "SEGMENT_BYTES", 1 << 20)
        monkeypatch.setattr(segment_file, "populate", lambda _: None)
        monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, _, size: os.ftruncate(descriptor, size))
        with mounted("tmpfs", 4, tmp_path) as disk:
            log = Process(disk / ".log", keep=False).log
            writer = Writer(log)
            written = []
            with (disk / "fill").open("wb", buffering=0) as fill, contextlib.suppress(OSError):
                while True:
                    fill.write(bytes(4096))
            os.truncate(disk / "fill", (disk / "fill").stat().st_size - 40_000)
            with contextlib.suppress(JournalError):
                while log.segment.refusal is None:
                    writer.write(b"%08d" % len(written) * 100)
                    written.append(b"%08d" % len(written) * 100)
            assert len(written) > 40
            assert log.segment.refusal is not None
            process = Process(disk / ".log")
            assert (process.found(), process.damage) == (written, [])


class Syncs:
    """The files that were synced, and whether a sync fails."""

    def __init__(self, monkeypatch):
        self.fails = False
        self.files = []
        self.directories = 0
        sync, sync_directory = os.fdatasync, files.sync_directory

        def fdatasync(descriptor):
            if self.fails:
                raise OSError(errno.EIO, "cannot write")
            name = Path(f"/proc/self/fd/{descriptor}").readlink().name
            if name.isdecimal():  # and no segment that is being made
                self.files.append(name)
            sync(descriptor)

        def count(directory):
            self.directories += 1
            sync_directory(directory)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        for module in (wal, wal_sync, segment_pool):
            monkeypatch.setattr(module, "sync_directory", count)


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

    def test_takes_in_a_segment_of_which_the_disk_does_not_have_that_nobody_needs_it(self, directory, syncs):
        offload = Offload()
        log = Process(directory, offload).log
        told = Writer(log).write(b"a")
        log.roll()
        Writer(log, b"play", life=8).write(b"b")
        offload.run_all()
        log.unpin(told)  # which a thread notes
        client = waiting(log)
        offload.run(1)
        assert syncs.files == ["1", "2"]
        assert not client.held
        offload.run_all()
        directories = syncs.directories
        waiting(log)
        offload.run_all()
        assert syncs.files == ["1", "2", "2"]
        assert syncs.directories == directories + 1

    def test_takes_in_a_segment_of_which_it_cannot_be_said_that_nobody_needs_it(
        self, directory, syncs, monkeypatch
    ):
        offload = Offload()
        log = Process(directory, offload).log
        told = Writer(log).write(b"a")
        log.roll()
        Writer(log, b"play", life=8).write(b"b")
        offload.run_all()
        monkeypatch.setattr(segments_needed, "NEEDED_BYTES", 0)
        log.unpin(told)
        offload.run_all()
        waiting(log)
        offload.run_all()
        assert syncs.files == ["1", "2"]

    def test_has_the_head_of_a_new_segment_on_the_disk_before_it_has_its_number(self, directory, monkeypatch):
        synced, named = [], []
        sync, rename = os.fdatasync, segment_file.SegmentFile.rename

        def fdatasync(descriptor):
            synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
            sync(descriptor)

        def note(file, name):
            named.append((file.path.name, name))
            assert file.path.name in synced
            rename(file, name)

        monkeypatch.setattr(os, "fdatasync", fdatasync)
        monkeypatch.setattr(segment_file.SegmentFile, "rename", note)
        offload = Offload()  # so that no segment is made ahead
        log = Process(directory, offload).log
        log.roll()
        assert [name for _, name in named] == ["1", "2"]

    def test_has_the_name_of_each_segment_on_the_disk_even_of_one_used_again(self, directory, syncs):
        log = Process(directory).log
        for _ in range(6):
            for new in (1, 0):
                before = syncs.directories
                waiting(log)
                assert syncs.directories == before + new
            log.roll()

    def test_has_what_was_found_on_the_disk_before_anything_is_logged(self, directory, syncs, monkeypatch):
        Process(directory).writer().write(b"a")
        written = []
        pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda *args: written.append(args[1:]) or pwrite(*args))
        Process(directory)
        assert syncs.files == ["1"]
        # all pages once more: after a failed sync the kernel takes pages for written that are not
        assert ((directory / "1").read_bytes(), 0) in written

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
        # its frames may be in the segment that failed, whose next sync would prove nothing
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
