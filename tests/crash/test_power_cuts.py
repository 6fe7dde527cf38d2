"""Power cuts on real file systems. What is on the disk at an instant is a copy of the image that the file
system lies in, taken at once (`cp --reflink`) while a server works: it is mounted, and a server starts on it.

Besides what the file system writes in its own time, pages of the log are written at random, as they are when
memory is short.
"""

import contextlib
import ctypes
import os
import random
import threading
import time
from pathlib import Path
from typing import Self

import pytest
from file_systems import mounted, mounted_image, run
from running import Server, run_darner, running

KINDS = {"ext4": (), "xfs": ("nouuid",)}
HOST_MIB = 6000
IMAGE_MIB = 1500
BUSY_BYTES = 60_000
BUSY_BYTES_PER_S = 10 << 20
LARGE_BYTES = 200_000
PAGE_BYTES = 4096
SEGMENT_PAGES = 1024
WRITE_AND_WAIT = 7  # of sync_file_range
CONFIG = """
[queues.busy]
sync = "1s"
[queues.failed]
max_attempts = 1
dead_letter_queue = "dead"
"""


def item(number: int, size: int = 12) -> bytes:
    return b"%012d" % number * (size // 12)


class Load:
    """Clients that set and fetch, each in its own thread, and the replies that they got."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._goes_on = threading.Event()
        self._goes_on.set()
        # by queue, the last number acknowledged with a sync; and the last number fetched
        self.synced = dict.fromkeys(("rare", "large", "failed"), 0)
        self.fetched = 0
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True)
            for work in (self._busy, self._fanout, self._rare, self._large, self._failed, self._write_back)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._goes_on.set()
        for thread in self._threads:
            thread.join()

    @contextlib.contextmanager
    def resting(self):
        """Set nothing meanwhile: however slow the machine is, the disk must not fill up."""
        self._goes_on.clear()
        yield
        self._goes_on.set()

    def _run(self, work) -> None:
        try:
            with contextlib.closing(self._server.connect()) as wire:
                wire.socket.settimeout(120)
                number = 0
                while not self._over.is_set():
                    number += 1
                    work(wire, number)
                    self._goes_on.wait()
        except BaseException as error:  # raised by the test
            self.errors.append(error)

    def _busy(self, wire, number):
        """Set and get at the same rate, so that segments are reused."""
        assert wire.set(b"busy", item(number, BUSY_BYTES)) == b"STORED\r\n"
        if number > 3:
            self.fetched = int(wire.get(b"busy")[:12])
        time.sleep(BUSY_BYTES / BUSY_BYTES_PER_S)

    def _fanout(self, wire, number):
        if number == 1:
            wire.get(b"orders+audit")
        assert wire.set(b"orders", item(number, 1200)) == b"STORED\r\n"
        time.sleep(0.01)

    def _set_synced(self, wire, queue, data):
        assert wire.ask(b"set %s/sync 0 0 %d\r\n%s\r\n" % (queue, len(data), data)) == b"STORED\r\n"
        self.synced[queue.decode()] = int(data[:12])

    def _rare(self, wire, number):
        self._set_synced(wire, b"rare", item(number))
        time.sleep(random.choice((0.05, 0.5, 2)))

    def _large(self, wire, number):
        self._set_synced(wire, b"large", item(number, LARGE_BYTES))
        time.sleep(0.3)

    def _failed(self, wire, number):
        """Abort each item, which moves it to another queue."""
        self._set_synced(wire, b"failed", item(number, random.choice((12, LARGE_BYTES))))
        if wire.get(b"failed/open") is not None:
            wire.get(b"failed/abort")
        time.sleep(0.1)

    def _write_back(self, _wire, _number):
        libc = ctypes.CDLL(None)
        for path in (self._server.data / ".log").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                at = random.choice((0, random.randrange(SEGMENT_PAGES))) * PAGE_BYTES
                size = random.choice((1, SEGMENT_PAGES // 4, SEGMENT_PAGES)) * PAGE_BYTES
                libc.sync_file_range(descriptor, ctypes.c_long(at), ctypes.c_long(size), WRITE_AND_WAIT)
                os.close(descriptor)
        time.sleep(0.02)


def assert_is_as_promised(server: Server, synced: dict[str, int], fetched: int) -> None:
    """Check a server after a power cut: `synced` has the last numbers synced before it, `fetched` the last
    number that was fetched."""
    with contextlib.closing(server.connect()) as wire:
        found = {}
        for queue in ("busy", "orders", "orders+audit", "rare", "large", "failed", "dead"):
            datas = [data for _, data in wire.drain(queue.encode())]
            found[queue] = [int(data[:12]) for data in datas]
            assert all(data == data[:12] * (len(data) // 12) for data in datas), queue
    for queue in ("busy", "orders", "rare", "large"):
        numbers = found[queue]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True, queue
    assert not found["busy"] or found["busy"][0] <= fetched + 1
    assert found["orders"] == found["orders+audit"]
    for queue in ("rare", "large"):
        assert len(found[queue]) >= synced[queue], queue
        assert found[queue][:1] == [1][: len(found[queue])], queue
    assert set(range(1, synced["failed"] + 1)) <= {*found["failed"], *found["dead"]}
    assert found["failed"] == sorted(found["failed"])


def assert_says_nothing_false(log: str) -> None:
    """Check that the log reports no damage. It may report changes that are left out because others before
    them are missing, and large items that were never synced."""
    for line in log.splitlines():
        is_true = "breaks off at byte" in line or "large items lost with the machine" in line
        assert "level=error" not in line or is_true, line
        assert "Traceback" not in line


def try_power_cuts(kind: str, cuts: int, tmp_path: Path) -> None:
    with mounted("xfs", HOST_MIB, tmp_path) as host, mounted(kind, IMAGE_MIB, host) as disk:
        image, at = host / f"{kind}.img", tmp_path / "copy"
        at.mkdir()
        config = tmp_path / "darner.toml"
        config.write_text(CONFIG)
        with running(disk / "data", "--config", str(config)) as server, Load(server) as load:
            time.sleep(2)  # so that segments are reused
            for cut in range(cuts):
                time.sleep(0.3 + random.random())
                # a file of its own: a loop device that still has the one before, and what it kept of it, is
                # not used again
                copy = host / f"copy-{cut}.img"
                synced = dict(load.synced)
                run("cp", "--reflink=always", image, copy)
                fetched = load.fetched + 1  # one fetch may be in progress
                assert not load.errors
                with load.resting(), mounted_image(copy, at, *KINDS[kind]):
                    said = run_darner("check", at / "data").stdout
                    assert "damage" not in said.replace("log damaged", ""), said
                    with running(at / "data", "--config", str(config)) as found:
                        try:
                            assert_is_as_promised(found, synced, fetched)
                        except AssertionError:
                            print(said, found.log, sep="\n")
                            raise
                        assert found.stop() == 0
                        assert_says_nothing_false(found.log)
                    assert run_darner("check", at / "data").returncode == 0
                copy.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_power_cuts_cost_nothing_that_was_synced_and_leave_all_queues_in_service(kind, tmp_path):
    try_power_cuts(kind, 3, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_power_cuts(kind, tmp_path):
    try_power_cuts(kind, 50, tmp_path)
