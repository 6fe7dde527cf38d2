"""A disk that fails, becomes read-only or is unmounted under a running server."""

import contextlib
import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from file_systems import mounted, run, run_or_skip
from running import Wire, run_darner, running, until

# An ioctl of Linux, after which a file system with a journal fails every access.
SHUTDOWN = 0x8004587D
WITHOUT_WRITING_THE_JOURNAL = 2
DISK_MIB = 96
ITEM = bytes(5000)


class Disk:
    """An ext4 of its own that becomes read-only at an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.device = Path(run_or_skip("findmnt", "--noheadings", "--output", "SOURCE", path)).name

    def become_read_only(self) -> None:
        """Become read-only, as the kernel has it after an error."""
        trigger = Path("/sys/fs/ext4") / self.device / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("this kernel triggers no error of ext4")
        trigger.write_text("test")

    def fail(self) -> None:
        """Fail every access to the disk with EIO."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_WRITING_THE_JOURNAL))
        finally:
            os.close(descriptor)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    with mounted("ext4", DISK_MIB, tmp_path, "errors=remount-ro") as path:
        yield Disk(path)


@contextlib.contextmanager
def read_only(directory: Path) -> Iterator[Callable[[], None]]:
    """Make a directory read-only; yield a function that ends this."""
    run_or_skip("mount", "--bind", directory, directory)

    def end() -> None:
        run("umount", "--lazy", directory)

    with contextlib.ExitStack() as stack:
        stack.callback(end)
        run_or_skip("mount", "-o", "remount,ro,bind", directory)
        yield stack.close


def begin(wire: Wire, *queues: bytes) -> None:
    """Set one item on each queue."""
    for queue in queues:
        assert wire.set(queue, b"first of " + queue) == b"STORED\r\n"


def is_written(directory: Path) -> bool:
    """Return whether LevelDB has been written."""
    return any(file.stat().st_size for file in directory.glob("*.log"))


def set_until_refused(wire: Wire, queue: bytes) -> list[bytes]:
    """Set items until one is refused; return the acknowledged ones."""
    stored = []
    for number in range(100_000):
        item = b"%d" % number + ITEM
        reply = wire.set(queue, item)
        if reply.startswith(b"SERVER_ERROR "):
            return stored
        assert reply == b"STORED\r\n"
        stored.append(item)
    raise AssertionError("nothing was refused")


def assert_serves(wire: Wire, queue: bytes, items: list[bytes]) -> None:
    for item in items:
        assert wire.get(queue) == item
    assert wire.get(queue) is None


# The whole disk


@pytest.mark.parametrize(
    ("strike", "reason"),
    [(Disk.become_read_only, errno.EROFS), (Disk.fail, errno.EIO)],
    ids=["read-only", "input-output-error"],
)
def test_a_disk_that_fails_refuses_what_is_set_and_lets_out_what_is_there(disk, strike, reason):
    with running(disk.path / "data") as server, contextlib.closing(server.connect()) as wire:
        begin(wire, b"work", b"other")
        strike(disk)
        stored = set_until_refused(wire, b"work")
        said = server.wait_for_log("queue=work")
        assert "journal failure" in said
        assert os.strerror(reason) in said
        assert "action=" in said
        refused = wire.ask(b"set other/sync 0 0 1\r\nx\r\n")
        assert refused.startswith(b"SERVER_ERROR ")
        if "log failure" not in server.log:  # a change that LevelDB does not get in time is synced, too
            server.wait_for_log("log failure")
        assert wire.ask(b"set new 0 0 1\r\nx\r\n").startswith(b"SERVER_ERROR ")
        assert wire.set(b"work", bytes(200_000)).startswith(b"SERVER_ERROR ")
        assert_serves(wire, b"work", [b"first of work", *stored])
        assert wire.get(b"other/open") == b"first of other"
        assert wire.get(b"other/close") is None
        assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_server_does_not_start_on_a_disk_that_is_read_only_and_says_why(tmp_path):
    with running(tmp_path / "data") as server:
        with contextlib.closing(server.connect()) as wire:
            begin(wire, b"work")
        server.kill()
        with read_only(server.data):
            done = run_darner("--data", server.data, "--port", "0")
            assert done.returncode != 0
            assert "Read-only file system" in done.stderr
            assert "Traceback" not in done.stderr
        server.start()
        with contextlib.closing(server.connect()) as wire:
            assert_serves(wire, b"work", [b"first of work"])


def test_a_data_directory_that_is_writable_again_takes_in_by_itself_and_has_all(server, wire):
    begin(wire, b"work", b"other")
    with read_only(server.data) as end:
        stored = set_until_refused(wire, b"work")
        assert wire.set(b"new", b"one").startswith(b"SERVER_ERROR ")
        assert wire.get(b"other") == b"first of other"
        end()
    server.wait_for_log("queue back in service")
    for queue in (b"work", b"other", b"new"):
        until(lambda queue=queue: wire.set(queue, b"late") == b"STORED\r\n")
    server.restart()
    with contextlib.closing(server.connect()) as wire:
        assert_serves(wire, b"work", [b"first of work", *stored, b"late"])
        assert_serves(wire, b"other", [b"late"])
        assert_serves(wire, b"new", [b"late"])


def test_a_data_directory_that_vanished_takes_nothing_in_until_it_is_put_back(server, wire):
    begin(wire, b"work", b"other")
    away = server.data.with_name("away")
    server.data.rename(away)
    until(lambda: wire.set(b"work", b"x").startswith(b"SERVER_ERROR "))
    until(lambda: wire.set(b"new", b"x").startswith(b"SERVER_ERROR "))
    assert "is not there any more" in server.wait_for_log("log failure")
    assert wire.get(b"other") == b"first of other"
    away.rename(server.data)
    until(lambda: wire.set(b"other", b"late") == b"STORED\r\n")
    server.wait_for_log("log back in service")
    server.restart()
    with contextlib.closing(server.connect()) as wire:
        assert wire.get(b"work") == b"first of work"
        assert_serves(wire, b"other", [b"late"])


# One queue's directory


def test_a_queue_whose_directory_is_read_only_is_out_of_service_and_no_other(server, wire):
    begin(wire, b"work", b"other")
    until(lambda: is_written(server.data / "work"))
    with read_only(server.data / "work") as end:
        stored = set_until_refused(wire, b"work")
        said = server.wait_for_log("journal failure")
        assert "queue=work" in said
        assert "Read-only file system" in said
        assert wire.set(b"other", b"more") == b"STORED\r\n"
        assert_serves(wire, b"work", [b"first of work", *stored])
        server.restart()
        # its LevelDB cannot be opened, while the log has the changes
        with contextlib.closing(server.connect()) as wire:
            assert "queue=work" in server.log.rpartition("queue out of service")[2]
            assert wire.set(b"work", b"x").startswith(b"SERVER_ERROR ")
            assert_serves(wire, b"other", [b"first of other", b"more"])
            end()
            server.wait_for_log("queue back in service")
            assert_serves(wire, b"work", [])
            assert wire.set(b"work", b"late") == b"STORED\r\n"


def test_a_queue_whose_directory_vanished_is_out_of_service_until_it_is_put_back(server, wire):
    begin(wire, b"work", b"other")
    work, away = server.data / "work", server.data.with_name("away")
    until(lambda: is_written(work))
    work.rename(away)
    stored = set_until_refused(wire, b"work")
    said = server.wait_for_log("journal failure")
    assert "queue=work" in said
    assert "has vanished: put it back as it was, or delete the queue" in said
    assert wire.set(b"other", b"more") == b"STORED\r\n"
    assert wire.get(b"work") == b"first of work"
    away.rename(work)
    server.wait_for_log("queue back in service")
    server.restart()
    with contextlib.closing(server.connect()) as wire:
        assert_serves(wire, b"work", stored)


def test_a_queue_whose_directory_is_lost_is_deleted_and_made_anew(server, wire):
    begin(wire, b"work", b"other")
    until(lambda: is_written(server.data / "work"))
    # at once, for the server may be writing to it
    lost = (server.data / "work").rename(server.data.with_name("lost"))
    shutil.rmtree(lost)
    set_until_refused(wire, b"work")
    assert wire.ask(b"delete work\r\n") == b"DELETED\r\n"
    until(lambda: wire.set(b"work", b"anew") == b"STORED\r\n")
    server.restart()
    with contextlib.closing(server.connect()) as wire:
        assert_serves(wire, b"work", [b"anew"])
        assert_serves(wire, b"other", [b"first of other"])
