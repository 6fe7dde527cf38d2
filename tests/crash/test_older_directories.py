"""Data directories that older servers have written are served whole: see directories/README.md."""

import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Server, run_darner, running

DIRECTORIES = Path(__file__).with_name("directories")


def unpack(name: str, path: Path) -> Path:
    """Unpack a data directory, in which `darner check` must find no damage."""
    with tarfile.open(DIRECTORIES / f"{name}.tar.gz") as archive:
        archive.extractall(path, filter="data")
    (data,) = path.iterdir()
    report = run_darner("check", data)
    assert (report.returncode, re.findall("damage|lost", report.stdout)) == (0, [])
    return data


class TestDirectoryOfAnOlderDarner:
    """The log of commit 4ec12cf has version 1. The README of the directories says how they were made."""

    @pytest.fixture(
        params=["4ec12cf-closed", "4ec12cf-killed", "fb6a02b-closed", "fb6a02b-killed"],
        ids=["closed", "killed", "fb6a02b-closed", "fb6a02b-killed"],
    )
    def old(self, request, tmp_path) -> Iterator[tuple[Server, bool]]:
        data = unpack(request.param, tmp_path)
        with running(data) as server:
            yield server, data.name == "killed"

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


class TestDirectoryOfFb6a02b:
    """Attempts, expiry and delays of the last server before the modules moved into packages."""

    CONFIG = """
[queues.kept]
max_open_reads = 100
[queues.failing]
max_attempts = 4
dead_letter_queue = "dead"
[queues.short]
expire_to_queue = "late"
"""

    @pytest.fixture(params=["closed", "killed"])
    def killed(self, request) -> bool:
        return request.param == "killed"

    @pytest.fixture
    def server(self, killed, tmp_path) -> Iterator[Server]:
        data = unpack("fb6a02b-killed" if killed else "fb6a02b-closed", tmp_path)
        config = tmp_path / "darner.toml"
        config.write_text(self.CONFIG)
        with running(data, "--config", str(config)) as server:
            yield server
        assert "level=error" not in server.log

    def test_counts_attempts_on(self, server, wire, killed):
        for _ in range(1 if killed else 2):
            assert wire.get(b"failing/open") == b"task 0"
            assert wire.get(b"dead/peek") is None
            assert wire.ask(b"get failing/abort\r\n") == b"END\r\n"
        assert wire.get(b"dead") == b"task 0"
        assert wire.take_all(b"failing") == [b"task 1", b"task 2"]

    def test_has_items_that_have_expired_and_items_that_are_due(self, server, wire, killed):
        large = bytes(range(256)) * 300
        assert wire.take_all(b"due") == [
            b"is due while the server is down", large, *([b"is due in the log"] if killed else [])
        ]  # fmt: skip
        assert wire.take_all(b"short") == [b"stays"]
        expired = [b"expires while the server is down", *([b"expires in the log"] if killed else [])]
        assert wire.take_all(b"late") == expired
        assert wire.stats()["queue_later_delayed_items"] == "1"

    def test_has_reserved_items_first_and_each_cursor_at_its_place(self, server, wire, killed):
        reserved = [wire.gets(b"kept/open") for _ in range(5)]
        assert [data for _, data in reserved] == [b"kept %d" % number for number in range(5)]
        for label, place in ((b"billing", 1), (b"shipping", 2 if killed else 1)):
            assert wire.get(b"orders/cursor=" + label) == b"order %d" % place
            lag = wire.stats()[f"queue_orders_cursor_{label.decode()}_lag"]
            assert int(lag) == 3 + killed - place - 1

    def test_has_the_counts_of_its_queues(self, server, wire, killed):
        counts = {
            b"work": 219 if killed else 200, b"large": 3 if killed else 2, b"kept": 10, b"failing": 3,
            b"orders": 3 + killed, b"orders+audit": 3 + killed, b"dated": 1, b"n" * 250: 1,
        }  # fmt: skip
        stats = wire.stats()
        assert {name: int(stats[f"queue_{name.decode()}_items"]) for name in counts} == counts
        for name in counts:
            size = int(stats[f"queue_{name.decode()}_bytes"])
            assert sum(map(len, wire.take_all(name))) == size
