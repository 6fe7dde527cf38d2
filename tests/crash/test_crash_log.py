"""The write-ahead log of a real server after damage, on file systems that copy on write, and of an older
darner."""

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounting import mounted, run
from running import DARNER, Server, Wire, running, until

from darner.journal.segment_file import SEGMENT_BYTES

OLD = Path(__file__).parent / "directories"


def check(data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DARNER, "check", str(data)], check=False, capture_output=True, text=True, timeout=60
    )


def set_many(wire: Wire, queue: bytes, count: int, size: int) -> None:
    for number in range(count):
        assert wire.set(queue, b"%07d;" % number * (size // 8)) == b"STORED\r\n"


class TestDamage:
    """A server is killed before LevelDB has what was set; then the disk has lost some of the log."""

    @pytest.fixture
    def killed(self, tmp_path) -> Server:
        with running(tmp_path / "data") as server:
            wire = server.connect()
            set_many(wire, b"work", 1000, 508)
            assert wire.set(b"small", b"x") == b"STORED\r\n"
            server.kill()
            yield server

    def segment(self, server: Server) -> Path:
        (path,) = (server.data / ".log").glob("[0-9]*")
        return path

    @pytest.mark.parametrize("damage", ["flipped", "zeros", "emptied", "cut", "gone"])
    def test_of_the_newest_segment_is_said_by_check_and_start_and_what_is_left_is_kept(self, killed, damage):
        path = self.segment(killed)
        content = path.read_bytes()
        if damage == "flipped":
            path.write_bytes(content[:100_000] + bytes([content[100_000] ^ 0x10]) + content[100_001:])
        elif damage == "zeros":
            path.write_bytes(content[:100_000] + bytes(50_000) + content[150_000:])
        elif damage == "emptied":
            path.write_bytes(b"")
        elif damage == "cut":
            path.write_bytes(content[:100_000])
        else:
            path.unlink()
        report = check(killed.data)
        assert report.returncode == 1
        assert str(path) in report.stdout
        killed.start()
        (line,) = [line for line in killed.log.splitlines() if "log damaged" in line]
        assert "level=error" in line
        assert str(path) in line
        wire = killed.connect()
        if damage in ("flipped", "zeros"):
            lost = (killed.data / ".log" / "lost-1").read_bytes()
            assert b"%07d;" % 999 in lost
            assert "of small" in line
        if damage in ("flipped", "zeros", "cut"):
            found = [data[:8] for _, data in wire.drain(b"work")]
            assert 100 < len(found) < 200
            assert found == [b"%07d;" % number for number in range(len(found))]
        assert wire.set(b"work", b"goes on") == b"STORED\r\n"
        killed.kill()
        killed.start()
        assert killed.connect().get(b"work") == b"goes on"

    def test_that_is_none_is_not_spoken_of(self, killed):
        path = self.segment(killed)
        content = path.read_bytes()
        # as it is cut off by a kill in the middle of a frame
        end = content.index(b"%07d;" % 900) + 100
        path.write_bytes(content[:end] + bytes(SEGMENT_BYTES - end - 64) + content[-64:])
        assert check(killed.data).returncode == 0
        killed.start()
        assert "level=error" not in killed.log
        assert len(killed.connect().drain(b"work")) == 900
        assert not list((killed.data / ".log").glob("lost-*"))


class TestSegmentUnderTheServer:
    def test_that_is_cut_short_costs_no_answer_and_nothing_that_was_acknowledged(self, server):
        wire = server.connect()
        set_many(wire, b"work", 100, 500)
        (path,) = (server.data / ".log").glob("[0-9]*")
        os.truncate(path, 0)
        replies = [wire.set(b"work", b"%08d" % number) for number in range(100, 150)]
        assert all(reply == b"STORED\r\n" or reply.startswith(b"SERVER_ERROR") for reply in replies)
        until(lambda: wire.set(b"work", b"again") == b"STORED\r\n")
        kept = 100 + sum(reply == b"STORED\r\n" for reply in replies)
        server.kill()
        server.start()
        found = [data for _, data in server.connect().drain(b"work")]
        assert len(found) == kept + 1
        assert found[-1] == b"again"


class TestCopyOnWrite:
    """A file system on which to write again to a block that is there takes room: reserved room is not
    enough."""

    @pytest.fixture(params=["btrfs", "btrfs-snapshot", "xfs-reflink"])
    def full(self, request, tmp_path) -> Iterator[Server]:
        kind, _, copied = request.param.partition("-")
        with (
            mounted(kind, 400, tmp_path, *(["commit=1"] if kind == "btrfs" else [])) as disk,
            running(disk / "data") as server,
        ):
            wire = server.connect()
            set_many(wire, b"work", 200, 1000)
            if copied == "snapshot":
                run("btrfs", "subvolume", "snapshot", disk, disk / "snapshot")
            elif copied:
                run("cp", "-r", "--reflink=always", disk / "data", disk / "copy")
            with (disk / "fill").open("wb", buffering=0) as fill:
                for size in (1 << 20, 1 << 16, 4096):
                    with contextlib.suppress(OSError):
                        while True:
                            fill.write(bytes(size))
                            os.fsync(fill.fileno())
            yield server

    def test_that_is_full_has_sets_refused_and_ends_no_server(self, full):
        wire = full.connect()
        stored, refused = 200, 0
        while refused < 20 and stored < 10_000:
            reply = wire.set(b"work", b"%07d;" % stored * 125)
            stored += reply == b"STORED\r\n"
            refused += reply.startswith(b"SERVER_ERROR")
        assert refused, stored
        assert full.process.poll() is None
        full.kill()
        os.truncate(full.data.parent / "fill", 0)
        run("sync", "--file-system", full.data)
        full.start()
        wire = full.connect()
        until(lambda: wire.set(b"work", b"again") == b"STORED\r\n", 60)
        found = [data[:8] for _, data in full.connect().drain(b"work")]
        assert found[:stored] == [b"%07d;" % number for number in range(stored)]


class TestDirectoryOfAnOlderDarner:
    """Commit 4ec12cf has a log of version 1. How the directories were made stands in their README."""

    @pytest.fixture(params=["closed", "killed"])
    def old(self, request, tmp_path) -> Iterator[tuple[Server, bool]]:
        with tarfile.open(OLD / f"4ec12cf-{request.param}.tar.gz") as archive:
            archive.extractall(tmp_path, filter="data")
        data = tmp_path / request.param
        report = check(data)
        assert (report.returncode, re.findall("damage|lost", report.stdout)) == (0, [])
        with running(data) as server:
            yield server, request.param == "killed"

    def test_is_served_whether_it_was_closed_or_killed(self, old):
        server, killed = old
        assert "level=error" not in server.log
        wire = server.connect()
        last = 320 if killed else 300
        assert [data for _, data in wire.drain(b"work")] == [
            b"item %d" % number for number in range(100 + killed, last)
        ]
        assert [len(data) for _, data in wire.drain(b"large")] == [
            256 * 600,
            5,
            *([100_000] if killed else []),
        ]
        assert [data for _, data in wire.drain(b"kept")] == [b"kept %d" % number for number in range(10)]
        orders = [b"order %d" % number for number in range(3 + killed)]
        assert wire.get(b"orders/cursor=billing") == b"order 1"
        assert [data for _, data in wire.drain(b"orders")] == orders
        assert [data for _, data in wire.drain(b"orders+audit")] == orders
        assert wire.get(b"dated") == b"never gone"
        assert wire.get("queue-größe".encode()) == b"name"
        assert wire.get(b"n" * 250) == b"long"
        stats = wire.stats()
        assert stats["queue_later_delayed_items"] == "1"
        assert not [name for name in stats if name.startswith("queue_deleted")]
        assert wire.get(b"new") == (b"only in the log" if killed else None)

    def test_is_served_again_after_each_kill(self, old):
        server, killed = old
        for _ in range(2):
            server.kill()
            server.start()
        assert "level=error" not in server.log
        wire = server.connect()
        assert len(wire.drain(b"work")) == (219 if killed else 200)
        assert wire.set(b"work", b"more") == b"STORED\r\n"
        server.kill()
        server.start()
        assert server.connect().get(b"work") == b"more"
        server.stop()
        assert not [path for path in (server.data / ".log").iterdir() if path.name.isdecimal()]
        shutil.rmtree(server.data)
