"""`darner backup`: a copy of a data directory is whole and of one moment, whatever happens meanwhile."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from brokers import Data
from running import DARNER, run_darner, until

from darner._records import Change, Segment
from darner.environment.offload import at_once
from darner.errors import BackupError
from darner.journal import live_copy, segment_file, wal
from darner.journal.copier import Copier
from darner.journal.hold import HoldRequest
from darner.journal.log_copy import copy_log
from darner.journal.segments_needed import NeededSegments
from darner.journal.wal import Log
from darner.repair import backup
from darner.repair.backup import back_up

NAMES = (b"work", b"play", b"work+copy")
# its directory is in another one
LONG = b"\xfe" * 100


class Life:
    """A broker to which something happens at random, and what its queues have."""

    def __init__(self, path, chance):
        self.data = Data(path, environment={"free_bytes": lambda: 1 << 40})
        self.chance = chance
        self.count = 0
        # by queue: what waits; and what is reserved, with its item, the oldest first
        self.waiting = {}
        self.reserved = {}

    @property
    def content(self):
        """What a start finds in each queue."""
        return {
            name: [body for body, _ in self.reserved[name]] + waiting
            for name, waiting in self.waiting.items()
        }

    def body(self):
        self.count += 1
        return b"%d " % self.count + self.chance.randbytes(self.chance.choice((0, 30, 900, 9000)))

    def act(self, times=1):
        actions = (
            self.set, self.set, self.set_many, self.set_large, self.take, self.take, self.reserve, self.close,
            self.delete, self.flush, self.write, self.write, self.data.tick, self.data.tick,
            self.run_a_thread,
        )  # fmt: skip
        for _ in range(times):
            self.chance.choice(actions)()

    def _note(self, name, body):
        for each in [name] + [child for child in self.waiting if child.startswith(name + b"+")]:
            self.waiting.setdefault(each, []).append(body)
            self.reserved.setdefault(each, [])

    def set(self):
        name, body = self.chance.choice(NAMES), self.body()
        self.data.set(name, body)
        self._note(name, body)

    def set_many(self):
        for _ in range(10):
            self.set()

    def set_large(self):
        name, body = self.chance.choice(NAMES), self.body() + self.chance.randbytes(2000)
        assert self.data.upload(name, body) == [None]
        self._note(name, body)

    def some_queue(self):
        return self.chance.choice(list(self.waiting) or [None])

    def take(self):
        name = self.some_queue()
        if name and self.waiting[name]:
            assert self.data.read(name) == self.waiting[name].pop(0)

    def reserve(self):
        name = self.some_queue()
        if name and self.waiting[name]:
            item = self.data.broker.queue(name).reserve()
            self.reserved[name].append((self.waiting[name].pop(0), item))

    def close(self):
        name = self.some_queue()
        if name and self.reserved[name]:
            _, item = self.reserved[name].pop(self.chance.randrange(len(self.reserved[name])))
            self.data.broker.queue(name).close(item)

    def delete(self):
        name = self.some_queue()
        if name and self.chance.random() < 0.5:
            assert self.data.broker.delete(name)
            del self.waiting[name], self.reserved[name]

    def flush(self):
        name = self.some_queue()
        if name and self.chance.random() < 0.3:
            self.data.broker.queue(name).flush()
            self.waiting[name].clear()

    def write(self):
        for queue in self.data.broker.queues.values():
            self.data.broker.storage.committer.checkpoint(queue.journal)

    def run_a_thread(self):
        if self.data.threads.tasks:
            self.data.threads.run(self.chance.randrange(len(self.data.threads.tasks)))

    def end(self):
        self.data.close()


def content_of(path):
    """Start a broker on a copy; return what each queue has."""
    data = Data(path)
    found = {name: data.read_all(name) for name in list(data.broker.queues)}
    data.close()
    return found


@pytest.fixture
def quick():
    """A directory in memory, where a sync takes no time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(segment_file, "SEGMENT_BYTES", 16384)
    monkeypatch.setattr(wal, "LONG_SEGMENTS", 3)
    monkeypatch.setattr(live_copy, "AT_ONCE", 1)
    monkeypatch.setattr("darner.journal.database.WRITE_BUFFER_BYTES", 1 << 16)
    monkeypatch.setattr("darner.journal.commit.WRITE_BUFFER_BYTES", 1 << 16)


def lives_through_backups(path, seed, monkeypatch, backups=3):
    chance = random.Random(seed)
    life = Life(path / "data", chance)
    expected = {}

    def noting_copy_log(*args, **options):
        expected.update(life.content)  # the moment: what is logged from now on is in no copy
        return original(*args, **options)

    original = backup.copy_log
    monkeypatch.setattr(backup, "copy_log", noting_copy_log)
    for number in range(backups):
        life.act(chance.randrange(60))
        expected.clear()

        def meanwhile(what, *_):
            if what == "copied":
                life.act(chance.randrange(8))

        made = back_up(path / "data", path / str(number), life.data.tick, meanwhile)
        found = content_of(path / str(number))
        assert found == expected
        assert made.problems == []
        assert made.items == sum(map(len, expected.values()))
        shutil.rmtree(path / str(number))
    life.data.tick(9)
    assert not (path / "data" / ".log" / "backup").exists()
    last = life.content
    life.end()
    assert content_of(path / "data") == last


@pytest.mark.parametrize("seed", range(6))
def test_a_backup_is_what_a_kill_at_its_moment_leaves_whatever_happens_meanwhile(
    quick, seed, monkeypatch, small
):
    lives_through_backups(quick, seed, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1300))
def test_so_are_many_backups(quick, seed, monkeypatch, small):
    lives_through_backups(quick, seed, monkeypatch)


@pytest.fixture
def life(quick, monkeypatch, small):
    """A broker whose log is in many segments, as soon as something is set."""
    life = Life(quick / "data", random.Random(0))
    life.set()
    yield life
    life.end()


def segments(life):
    return [path for path in (life.data.path / ".log").iterdir() if path.name.isdecimal()]


def turn_over(life):
    """Fill the log, and have LevelDB get all of it."""
    for _ in range(6):
        life.set_many()
        life.data.write_out()


def nothing_is_left(life):
    life.data.tick(3)
    names = sorted(path.name for path in life.data.path.parent.iterdir())
    return names == ["data"] and not (life.data.path / ".log" / "backup").exists() and len(segments(life)) < 5


class TestHold:
    def test_ends_with_a_backup_that_is_killed(self, life):
        request = HoldRequest(life.data.path / ".log", life.data.tick)
        turn_over(life)
        assert len(segments(life)) > 10
        os.close(request._descriptor)
        assert nothing_is_left(life)

    def test_keeps_what_is_taken_or_deleted_until_it_ends(self, life):
        assert life.data.upload(b"large", bytes(3000)) == [None]
        life.data.write_out()
        with contextlib.closing(HoldRequest(life.data.path / ".log", life.data.tick)):
            assert life.data.read(b"large") == bytes(3000)
            assert life.data.broker.delete(b"large")
            life.data.write_out()
            assert len(list(life.data.path.glob("large/blobs/*"))) == 1
        life.data.write_out()
        assert not (life.data.path / "large").exists()

    @pytest.mark.parametrize("end", ["restart", "kill"])
    def test_ends_with_the_server_whose_next_start_reads_nothing_of_what_was_held(self, life, end):
        request = HoldRequest(life.data.path / ".log", life.data.tick)
        turn_over(life)
        getattr(life.data, end)()
        with pytest.raises(BackupError, match="it ended; try again"):
            request.check()
        request.close()
        assert nothing_is_left(life)

    def test_ends_before_space_is_short(self, life):
        def meanwhile(what, *_):
            life.data.broker.environment.free_bytes = lambda: 1 << 20
            life.data.broker.storage.reserve.size = 1 << 20
            life.data.tick()
            life.data.broker.environment.free_bytes = lambda: 1 << 40

        turn_over(life)
        with pytest.raises(BackupError, match="too little room"):
            back_up(life.data.path, life.data.path.parent / "copy", life.data.tick, meanwhile)
        assert nothing_is_left(life)

    def test_is_of_one_backup_at_a_time(self, life):
        refusals = []

        def meanwhile(*_):
            if (life.data.path / ".log" / "backup").exists():
                with pytest.raises(BackupError) as refusal:
                    back_up(life.data.path, life.data.path.parent / "other", life.data.tick)
                refusals.append(str(refusal.value))

        back_up(life.data.path, life.data.path.parent / "copy", life.data.tick, meanwhile)
        assert set(refusals) == {f"another backup of {life.data.path} is being made"}

    def test_is_missed_of_a_server_that_does_not_answer(self, life):
        with pytest.raises(BackupError, match="does not answer"):
            back_up(life.data.path, life.data.path.parent / "copy", lambda: None)
        assert nothing_is_left(life)


class TestPlace:
    def test_must_be_free_and_outside(self, life, quick):
        (quick / "full").mkdir()
        (quick / "full" / "file").touch()
        for target, reason in ((quick / "full", "no empty directory"), (life.data.path / "copy", "is in ")):
            with pytest.raises(BackupError, match=reason):
                back_up(life.data.path, target, life.data.tick)
        with pytest.raises(BackupError, match="no data directory"):
            back_up(quick / "full", quick / "copy", life.data.tick)
        (quick / "copy").mkdir()
        assert back_up(life.data.path, quick / "copy", life.data.tick).items == 1

    def test_has_nothing_left_of_a_backup_that_was_killed(self, life, quick):
        left = quick / ".copy.darner-backup-abc"
        (left / "data").mkdir(parents=True)
        back_up(life.data.path, quick / "copy", life.data.tick)
        assert not left.exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_that_is_ended_by_a_signal_leaves_nothing(self, quick, number):
        data = Data(quick / "data")  # it does not answer
        command = [DARNER, "backup", data.path, quick / "copy"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            until((data.path / ".log" / "backup").exists)
            process.send_signal(number)
            assert process.communicate(timeout=20)[1] == b""
        assert process.returncode == 128 + number
        assert sorted(path.name for path in quick.iterdir()) == ["data"]
        assert not (data.path / ".log" / "backup").exists()
        data.close()

    def test_of_a_server_is_that_of_its_directory(self, server, wire, quick):
        wire.set(b"work", b"one")
        done = run_darner("backup", f"darner://127.0.0.1:{server.port}", quick / "copy")
        assert (done.returncode, done.stderr) == (0, "")
        assert "ok, queues=1 items=1 bytes=3" in done.stdout
        assert content_of(quick / "copy") == {b"work": [b"one"]}

    def test_of_a_server_on_another_machine_is_refused(self, server, quick):
        away = server.data.rename(server.data.with_name("away"))  # so that it is not to be seen here
        for _ in range(2):
            done = run_darner("backup", f"darner://127.0.0.1:{server.port}", quick / "copy")
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.count("\n") == 1
            assert f"darner: that server has its data in {server.data}, on another machine" in done.stderr
            assert f"run `darner backup {server.data} DIR` where it runs, as over ssh\n" in done.stderr
            # the next time there is one of that name here, of another server
            Data(server.data).end()
        assert not (quick / "copy").exists()
        shutil.rmtree(server.data)
        away.rename(server.data)

    def test_of_a_server_that_is_down_is_refused(self, tmp_path):
        done = run_darner("backup", "darner://127.0.0.1:1", tmp_path / "copy")
        assert done.returncode == 3
        assert not (tmp_path / "copy").exists()


def test_a_data_directory_without_a_server_is_copied_as_it_is(quick):
    data = Data(quick / "data")
    data.push(b"work", b"one", b"two")
    data.upload(LONG, bytes(100_000))
    data.broker.status.change(1, 0)
    data.end()
    made = back_up(data.path, quick / "copy", lambda: None)
    assert (made.queues, made.items, made.bytes) == (2, 3, 100_006)
    assert (quick / "copy").stat().st_mode & 0o777 == 0o700
    assert (quick / "copy" / ".status").read_bytes() == b"readonly\n"
    assert content_of(quick / "copy") == {b"work": [b"one", b"two"], LONG: [bytes(100_000)]}


def test_a_copy_of_a_damaged_queue_is_kept_if_that_is_asked_for(quick):
    data = Data(quick / "data")
    data.push(b"work", b"one")
    data.push(b"sound", b"two")
    data.restart()
    data.close()
    (data.path / "work" / "CURRENT").unlink()
    made = back_up(data.path, quick / "copy", lambda: None)
    assert [(each.where, "no CURRENT" in str(each.problems)) for each in made.problems] == [("work", True)]
    assert str(data.path / "work") in str(made.problems)
    assert sorted(path.name for path in quick.iterdir()) == ["data"]
    back_up(data.path, quick / "copy", lambda: None, keep_damaged=True)
    assert content_of(quick / "copy") == {b"sound": [b"two"]}


@pytest.mark.parametrize("is_live", [True, False])
def test_a_frame_that_was_half_written_when_it_was_copied_ends_the_log(tmp_path, is_live):
    memory, segment = bytearray(segment_file.SEGMENT_BYTES), Segment()
    segment.begin(memory, 1, 5)
    segment.append(Change.ENTER, 1, 0, bytes(8) + b"work")
    segment.append(Change.BLOB, 1, 1, b"before")
    torn = segment.used_bytes
    segment.append(Change.BLOB, 1, 2, b"torn")
    segment.append(Change.BLOB, 1, 3, b"behind")
    memory[torn + 10] ^= 1
    source = tmp_path / ".log"
    source.mkdir()
    (source / "1").write_bytes(memory)
    needed = NeededSegments(source)
    needed.add(1)
    needed.write()
    assert copy_log(source, tmp_path / "copy", Copier(lambda _: None), is_live=is_live) == {b"work"}
    lives, damage = Log(tmp_path / "copy", at_once).recover()
    assert [payload for _, _, payload in lives[b"work"][0].changes] == [b"before"]
    assert bool(damage) is not is_live
