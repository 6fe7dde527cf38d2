"""The data directory and those of its queues: who has it, what they are called on which file system, and
how one goes that cannot be moved."""

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from brokers import Data, log_to
from doubles import Silence
from hypothesis import given
from running import DARNER, running
from test_broker import names

from darner._records import CHUNK_BYTES
from darner.environment.environment import Environment
from darner.errors import JournalError, RepairError, StartError
from darner.journal import lock
from darner.journal.journal import Journal
from darner.queues import trash
from darner.queues.broker import Broker
from darner.queues.names import directory_of, name_of
from darner.repair.check import check
from darner.repair.repair import repair

LARGE = bytes(CHUNK_BYTES + 1)


@pytest.fixture
def said(monkeypatch):
    """What the broker has logged."""
    silence = Silence()
    log_to(monkeypatch, silence)
    return silence.lines


class TestLock:
    def is_refused(self, path: Path) -> bool:
        with pytest.raises(StartError, match="in use by another darner"):
            Broker(path, Environment(lambda: 0, lambda *_: None)).open()
        with pytest.raises(RepairError, match="a server has"):
            list(check(path))
        with pytest.raises(RepairError, match="a server has"):
            repair(path, b"work")
        return True

    def test_holds_whoever_deletes_its_file(self, data):
        data.push(b"work", b"a")
        (data.path / ".lock").unlink()
        assert self.is_refused(data.path)

    def test_goes_with_the_directory_wherever_that_is_moved(self, data, tmp_path):
        data.path.rename(tmp_path / "moved")
        (tmp_path / "link").symlink_to(tmp_path / "moved")
        assert self.is_refused(tmp_path / "link")
        (tmp_path / "moved").rename(data.path)

    def test_of_an_earlier_darner_is_heeded(self, data):
        data.close()
        with (data.path / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert self.is_refused(data.path)
        data.open()

    def test_is_one_that_an_earlier_darner_heeds(self, data):
        with (data.path / ".lock").open("a") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def test_is_gone_after_a_start_that_failed(self, data):
        data.close()
        with (data.path / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(StartError):
                data.open()
        data.open()

    def test_is_that_of_the_file_where_directories_have_none(self, tmp_path, monkeypatch, said):
        real = fcntl.flock

        def flock(descriptor, operation):
            if Path(f"/proc/self/fd/{descriptor}").is_dir():
                raise OSError(errno.EBADF, "Bad file descriptor")
            real(descriptor, operation)

        monkeypatch.setattr(lock.fcntl, "flock", flock)
        data = Data(tmp_path / "data")
        assert ["cannot lock the data directory" in text for text, _ in said] == [True]
        assert self.is_refused(data.path)
        data.close()

    def test_that_cannot_be_had_for_another_reason_is_not_taken_for_another_server(
        self, tmp_path, monkeypatch
    ):
        def flock(descriptor, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(lock.fcntl, "flock", flock)
        with pytest.raises(StartError, match=r"cannot use the data directory .*: No locks available"):
            Data(tmp_path / "data")

    def test_check_makes_nothing_where_no_server_has_been(self, tmp_path):
        assert list(check(tmp_path)) == []
        assert list(tmp_path.iterdir()) == []


class TestCase:
    """On a file system that takes `Work` for `work`, which here is one that has the lock by both names."""

    NAMES = (b"work", b"Work", b"WORK", b"a.B+C", b"~\xffA", b"Xy" * 120, b"xy" * 120)

    @pytest.fixture
    def folding(self, data):
        data.close()
        (data.path / ".LOCK").touch()
        data.open()
        return data

    @given(names, names)
    def test_tells_no_two_queues_apart_there(self, one, other):
        first, second = (directory_of(name, folds_case=True) for name in (one, other))
        assert (str(first).lower() == str(second).lower()) == (one == other)
        assert name_of(first) == one
        assert all(len(os.fsencode(piece)) <= 255 for piece in first.parts)

    def test_of_a_plain_name_is_as_ever(self):
        assert str(directory_of(b"work-1.a+b", folds_case=True)) == "work-1.a+b"
        assert str(directory_of(b"Work", folds_case=True)) == "%57ork"

    def test_is_found_out_at_the_start(self, folding):
        for name in self.NAMES:
            folding.push(name, name)
        assert len({str(directory).lower() for directory in folding.directories()}) == len(self.NAMES)
        assert {"work", "%57ork", "%57%4F%52%4B"} <= set(folding.directories())
        folding.restart()
        assert [folding.broker.queue(name).pop().data for name in self.NAMES] == list(self.NAMES)

    @pytest.mark.parametrize("ends", ["close", "end"])
    def test_may_change_with_a_move_to_another_file_system_and_back(self, data, ends):
        for name in self.NAMES:
            data.push(name, name)
            data.upload(name, LARGE)
        if ends == "close":
            data.write_out()
        getattr(data, ends)()
        before = data.directories()
        (data.path / ".LOCK").touch()
        data.open()
        assert set(data.directories()).isdisjoint({"Work", "WORK", "a.B+C"})
        assert data.broker.out_of_service == {}
        assert all(data.broker.queue(name).items == 2 for name in self.NAMES)
        getattr(data, ends)()
        (data.path / ".LOCK").unlink()
        data.open()
        assert data.directories() == before
        for name in self.NAMES:
            assert [data.read(name), data.read(name)] == [name, LARGE]

    def test_is_heeded_by_check_and_repair_before_any_server_is(self, data):
        data.push(b"Work", b"a")
        data.restart()
        data.close()
        (data.path / "Work").rename(data.path / "%57ork")
        assert [report.where for report in check(data.path)] == ["Work"]
        assert [report.problems for report in check(data.path, b"Work")] == [[]]
        (data.path / "%57ork" / "CURRENT").unlink()
        repair(data.path, b"Work")
        data.open()
        assert data.broker.queue(b"Work").pop().data == b"a"

    def test_leaves_no_two_directories_to_one_queue(self, data, said):
        data.push(b"Work", b"a")
        data.write_out()
        data.close()
        shutil.copytree(data.path / "Work", data.path / "%57ork")
        data.open()
        assert data.broker.queue(b"Work").pop().data == b"a"
        assert (data.path / "%57ork" / "CURRENT").exists()
        assert any(fields.get("directory") == str(data.path / "%57ork") for _, fields in said)


class TestLongName:
    """Of two queues whose names share their first bytes, the directories lie in one."""

    ONE, OTHER = b"\xff" * 200 + b"a", b"\xff" * 200 + b"b"

    def test_is_made_while_its_neighbour_goes(self, data, monkeypatch):
        data.push(self.ONE, b"a")
        data.broker.delete(self.ONE)
        real, path = Path.mkdir, data.path / directory_of(self.OTHER)

        def mkdir(directory, *args, **options):
            if directory == path and data.threads.tasks:
                data.threads.run_all()
                assert not path.parent.exists()
            real(directory, *args, **options)

        data.broker.deletion.tick()
        data.threads.run()
        data.broker.tick()
        monkeypatch.setattr(Path, "mkdir", mkdir)
        while not path.exists():
            data.broker.tick()
            data.push(self.OTHER, b"b")
        assert data.restart().queue(self.OTHER).pop().data == b"b"

    def test_goes_after_its_neighbour_has_taken_their_directory_along(self, data):
        for name in (self.ONE, self.OTHER):
            data.push(name, b"a")
        journals = [data.broker.queues[name].journal for name in (self.ONE, self.OTHER)]
        let_go = []
        unpin = data.broker.storage.log.unpin
        data.broker.storage.log.unpin = lambda pin, *more: (let_go.append(pin), unpin(pin, *more))
        for name in (self.ONE, self.OTHER):
            data.broker.delete(name)
        data.write_out()
        assert set(journals) <= set(let_go)
        assert data.directories() == []


class TestImmovable:
    """A directory that cannot be renamed: a mount point, or one in a lower layer of an overlay."""

    @pytest.fixture(params=[errno.EXDEV, errno.EBUSY])
    def immovable(self, data, monkeypatch, request):
        real = Path.rename

        def rename(path, target):
            if Path(target).parent.name == trash.TRASH_NAME:
                raise OSError(request.param, os.strerror(request.param))
            return real(path, target)

        monkeypatch.setattr(Path, "rename", rename)
        return data

    def delete(self, data, *, times=1):
        """Delete the queue, up to where its directory is marked, and what is in it is not deleted yet."""
        data.broker.delete(b"work")
        data.broker.deletion.tick()
        while not (data.path / "work" / "deleted").exists():
            data.threads.run()
            data.broker.tick()

    def fill(self, data):
        data.push(b"work", b"a")
        data.upload(b"work", LARGE)
        data.write_out()

    def test_is_emptied_and_goes(self, immovable):
        self.fill(immovable)
        immovable.broker.delete(b"work")
        immovable.write_out()
        assert immovable.directories() == []
        immovable.push(b"work", b"b")
        assert immovable.restart().queue(b"work").pop().data == b"b"

    def test_keeps_its_queue_from_being_made_until_that_is_done(self, immovable):
        self.fill(immovable)
        self.delete(immovable)
        with pytest.raises(JournalError, match="try again"):
            immovable.broker.queue(b"work")
        immovable.settle()
        immovable.push(b"work", b"b")
        assert immovable.read_all(b"work") == [b"b"]

    @pytest.mark.parametrize("left", ["all", "half"])
    def test_is_no_queue_after_a_kill_meanwhile(self, immovable, left):
        self.fill(immovable)
        self.delete(immovable)
        if left == "half":
            (immovable.path / "work" / "CURRENT").unlink()
        immovable.end()
        assert [report.where for report in check(immovable.path)] == []
        immovable.open()
        assert immovable.broker.queues == immovable.broker.out_of_service == {}
        immovable.settle()
        assert immovable.directories() == []
        immovable.push(b"work", b"b")
        assert immovable.restart().queue(b"work").pop().data == b"b"

    @pytest.mark.parametrize("restarts", ["restart", "kill"])
    def test_stays_marked_as_a_mount_point_until_its_queue_is_made_anew(
        self, immovable, monkeypatch, restarts
    ):
        self.fill(immovable)
        (immovable.path / "work" / "lost+found").mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "work")
        immovable.broker.delete(b"work")
        immovable.write_out()
        left = sorted(file.name for file in (immovable.path / "work").iterdir())
        assert left == ["deleted", "lost+found"]
        assert getattr(immovable, restarts)().queues == {}
        immovable.settle()
        immovable.push(b"work", b"b")
        immovable.upload(b"work", LARGE)
        getattr(immovable, restarts)()
        assert immovable.read_all(b"work") == [b"b", LARGE]

    def test_that_cannot_be_emptied_is_said(self, immovable, monkeypatch, said):
        self.fill(immovable)
        self.delete(immovable)

        def fail(path, **_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(trash.shutil, "rmtree", fail)
        immovable.settle()
        assert [fields["directory"] for text, fields in said if "cannot delete" in text] == [
            str(immovable.path / "work")
        ]

    def test_is_a_lower_layer_of_an_overlay(self, tmp_path):
        lower = Data(tmp_path / "lower")
        self.fill(lower)
        lower.close()
        for name in ("upper", "work", "data"):
            (tmp_path / name).mkdir()
        layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        mount = ["mount", "-t", "overlay", "overlay", "-o", layers, str(tmp_path / "data")]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no overlay to be had: {done.stderr.strip()}")
        try:
            data = Data(tmp_path / "data")
            data.broker.delete(b"work")
            data.write_out()
            assert data.directories() == []
            data.push(b"work", b"b")
            assert data.restart().queue(b"work").pop().data == b"b"
            data.close()
        finally:
            subprocess.run(["umount", "--lazy", str(tmp_path / "data")], check=True)


class TestLink:
    """A queue's directory that is elsewhere, and has a symbolic link in its place."""

    def test_goes_with_what_it_leads_to(self, data, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (data.path / "work").symlink_to(tmp_path / "elsewhere")
        data.restart()
        data.push(b"work", b"a")
        data.write_out()
        assert (tmp_path / "elsewhere" / "CURRENT").exists()
        data.broker.delete(b"work")
        data.write_out()
        assert data.directories() == []
        assert not (tmp_path / "elsewhere").exists()
        assert list((data.path / trash.TRASH_NAME).iterdir()) == []
        data.push(b"work", b"b")
        assert data.restart().queue(b"work").pop().data == b"b"

    def test_that_leads_nowhere_is_not_in_the_way_of_a_new_queue(self, data, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (data.path / "work").symlink_to(tmp_path / "elsewhere")
        data.restart()
        data.broker.queue(b"work")
        shutil.rmtree(tmp_path / "elsewhere")
        data.broker.delete(b"work")
        data.write_out()
        data.push(b"work", b"b")
        assert data.restart().queue(b"work").pop().data == b"b"


@pytest.mark.parametrize("sync", [False, True])
def test_a_large_item_comes_to_a_queue_on_another_file_system_too(data, monkeypatch, sync):
    def link(path, file):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", link)
    data.broker.queue(b"work+child")
    content = os.urandom(3 * CHUNK_BYTES)
    assert data.upload(b"work", content, sync=sync) == [None]
    data.restart()
    assert data.read_all(b"work") == data.read_all(b"work+child") == [content]
    assert data.blobs() == []


def test_a_large_item_is_moved_to_a_queue_on_another_file_system_too(data, monkeypatch):
    def link(path, file):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", link)
    journal = data.broker.queue(b"other").journal
    assert isinstance(journal, Journal)
    data.upload(b"work", LARGE)
    work = data.broker.queue(b"work")
    data.broker.transfers.move(work, work.pop(), b"other")
    assert data.read_all(b"other") == [LARGE]


@pytest.mark.parametrize("name", [b"gr\xf6\xdfe", b"two\nlines", "\u00e9 \u4e2d".encode(), b"%41%"])
def test_the_path_of_the_data_may_be_any_bytes(tmp_path, name):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    with running(path) as server:
        wire = server.connect()
        wire.get(b"work+child")
        assert wire.set(b"work/sync", b"1") == b"STORED\r\n"
        assert wire.set(b"work", LARGE) == b"STORED\r\n"
        server.stop()
        server.start()
        wire = server.connect()
        assert wire.set(b"work/sync", b"2") == b"STORED\r\n"
        assert [wire.get(b"work") for _ in range(3)] == [b"1", LARGE, b"2"]
        assert server.stop() == 0
        (path / "work+child" / "CURRENT").unlink()
        # said in the log and to the client, whatever bytes the path has
        server.start()
        wire = server.connect()
        assert wire.ask(b"get work+child\r\n").startswith(b"SERVER_ERROR ")
        assert wire.ask(b"version\r\n").startswith(b"VERSION ")
        assert server.stop() == 0
    assert "Traceback" not in server.log
    for command, status in ((["check"], 1), (["repair", "work+child"], 0), (["check", "none"], 1)):
        done = subprocess.run(
            [DARNER, command[0], path, *command[1:]], capture_output=True, timeout=20, check=False
        )
        assert (done.returncode, b"Traceback" in done.stderr) == (status, False)
