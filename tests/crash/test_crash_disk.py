"""A disk that is full, a directory that is damaged, a queue full of deleted records: then kill -9."""

import contextlib
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Server, Wire, running

from darner import _records
from darner.journal import leveldb
from darner.journal.layout import stored_state
from darner.journal.segment_file import SEGMENT_BYTES

SMALL_MIB = 16
LARGE_MIB = 96
DRAINED = 200_000


def wait_until(holds, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def drained(wire: Wire, queue: bytes) -> list[bytes]:
    """All items of a queue."""
    return list(iter(lambda: wire.get(queue), None))


def assert_holds(server: Server, queue: str, items: list[bytes]) -> None:
    """The queue has these items, and its counts say so."""
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        found = drained(wire, queue.encode())
    assert [item[:20] for item in found] == [item[:20] for item in items]
    assert found == items
    assert stats[f"queue_{queue}_items"] == str(len(items))
    assert stats[f"queue_{queue}_bytes"] == str(sum(map(len, items)))


# Trap 1: a failed write poisons LevelDB's handle


class Disk:
    """A small file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, mib: int) -> None:
        subprocess.run(
            ["mount", "-o", f"remount,size={mib}m", self.path], check=True, capture_output=True, timeout=10
        )

    @property
    def used_bytes(self) -> int:
        return shutil.disk_usage(self.path).used


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "darner-test", path]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a tmpfs is not allowed here: {error}")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=10)


@pytest.fixture
def small(disk) -> Iterator[Server]:
    """A server whose disk is soon full."""
    with running(disk.path / "data") as server:
        yield server


def bytes_of(directory: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in directory.iterdir())


def taken_by_items(disk: Disk, server: Server) -> int:
    """How much room is taken, but for the log's and the reserve's."""
    reserve = (server.data / ".reserve").stat().st_blocks * 512
    return disk.used_bytes - reserve - bytes_of(server.data / ".log")


def fill(wire: Wire, size: int, chance: random.Random, refusals: int = 20) -> list[bytes]:
    """Set items until so many were refused; returns those that were acknowledged."""
    stored = []
    for number in range(1_000_000):
        item = b"%08d" % number + chance.randbytes(size)
        reply = wire.set(b"work", item)
        if reply == b"STORED\r\n":
            stored.append(item)
        else:
            assert reply.startswith(b"SERVER_ERROR ")
            refusals -= 1
            if not refusals:
                break
    return stored


# inline items; a few chunks, which go with their item in one batch; many chunks, written as they come
SIZES = pytest.mark.parametrize("size", [5_000, 150_000, 3 << 20])


@SIZES
def test_a_full_disk_loses_nothing_acknowledged_and_keeps_nothing_refused(disk, small, size):
    with contextlib.closing(small.connect()) as wire:
        stored = fill(wire, size, random.Random(size))
    assert stored
    small.kill()
    disk.resize(LARGE_MIB)
    small.start()
    assert_holds(small, "work", stored)


@SIZES
def test_a_server_whose_disk_has_room_again_recovers_by_itself(disk, small, size):
    with contextlib.closing(small.connect()) as wire:
        stored = fill(wire, size, random.Random(size))
        disk.resize(LARGE_MIB)
        late = b"late" + bytes(size)
        wait_until(lambda: wire.set(b"work", late) == b"STORED\r\n")
        more = [b"more %d" % number + bytes(size) for number in range(10)]
        for item in more:  # a refused one leaves nothing, so it may be tried again
            wait_until(lambda item=item: wire.set(b"work", item) == b"STORED\r\n")
    small.kill()
    small.start()
    assert_holds(small, "work", [*stored, late, *more])


def test_a_full_disk_lets_all_items_out(disk, small):
    with contextlib.closing(small.connect()) as wire:
        stored = fill(wire, 5_000, random.Random(6))
        for item in stored:
            assert wire.get(b"work") == item
        assert wire.get(b"work") is None
    small.kill()
    disk.resize(LARGE_MIB)
    small.start()
    assert_holds(small, "work", [])


def test_what_a_full_disk_cut_off_leaves_no_chunks_behind(disk, small):
    with contextlib.closing(small.connect()) as wire:
        stored = fill(wire, 3 << 20, random.Random(1))
        disk.resize(LARGE_MIB)
        wait_until(lambda: wire.set(b"work", b"late") == b"STORED\r\n")
        assert drained(wire, b"work") == [*stored, b"late"]
        wait_until(lambda: taken_by_items(disk, small) < 1 << 20)
    assert small.stop() == 0
    with contextlib.closing(leveldb.DB(str(small.data / "work"))) as db:
        assert {key[:1] for key in db.iterator(include_value=False)} == {b"i"}


def test_pipelined_sets_on_a_full_disk_are_answered_as_they_are_stored(disk, small):
    chance, stored, refused = random.Random(2), [], 0
    with contextlib.closing(small.connect()) as wire:
        while refused < 100:
            items = [b"%06d" % (len(stored) + refused + i) + chance.randbytes(2_000) for i in range(32)]
            wire.send(b"".join(b"set work 0 0 %d\r\n%s\r\n" % (len(item), item) for item in items))
            for item in items:
                if wire.line() == b"STORED\r\n":
                    stored.append(item)
                else:
                    refused += 1
    small.kill()
    disk.resize(LARGE_MIB)
    small.start()
    assert_holds(small, "work", stored)


def test_a_server_started_on_a_full_disk_serves_once_there_is_room(disk, small):
    with contextlib.closing(small.connect()) as wire:
        stored = fill(wire, 5_000, random.Random(3))
    small.restart()
    with contextlib.closing(small.connect()) as wire:
        disk.resize(LARGE_MIB)
        wait_until(lambda: wire.set(b"work", b"late") == b"STORED\r\n")
    assert_holds(small, "work", [*stored, b"late"])


def test_a_queue_that_a_full_disk_did_not_let_be_is_made_once_there_is_room(disk, small):
    # but for the segment of the log that is written, and the spare one
    wait_until(lambda: bytes_of(small.data / ".log") == 2 * SEGMENT_BYTES)
    with contextlib.suppress(OSError), (disk.path / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    refused = []
    with contextlib.closing(small.connect()) as wire:
        for number in range(10_000):
            queue = b"queue%d" % number
            reply = wire.set(queue, bytes(50_000))
            if reply != b"STORED\r\n":
                assert reply.startswith(b"SERVER_ERROR ")
                refused.append(queue)
                if len(refused) == 5:
                    break
        (disk.path / "ballast").unlink()
        for queue in refused:
            wait_until(lambda queue=queue: wire.set(queue, b"one") == b"STORED\r\n")
        small.restart()
    for queue in refused:
        assert_holds(small, queue.decode(), [b"one"])


# Trap 2: LevelDB empties a directory that has lost its CURRENT


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_queue_without_its_current_is_out_of_service_and_untouched(server, wire):
    for queue in (b"broken", b"sound"):
        assert wire.set(queue, b"one") == b"STORED\r\n"
    # twice, so that there is a table, and a log
    assert server.stop() == 0
    server.start()
    with contextlib.closing(server.connect()) as wire:
        assert wire.set(b"broken", b"two") == b"STORED\r\n"
    assert server.stop() == 0
    (server.data / "broken" / "CURRENT").unlink()
    before = files(server.data / "broken")
    assert any(name.endswith(".ldb") for name in before)
    server.start()
    with contextlib.closing(server.connect()) as wire:
        for request in (
            b"set broken 0 0 3\r\ntwo\r\n",
            b"get broken\r\n",
            b"get broken/open\r\n",
            b"flush broken\r\n",
            b"flush_all\r\n",
            b"delete broken\r\n",
        ):
            assert wire.ask(request).startswith(b"SERVER_ERROR ")
        assert wire.set(b"sound", b"two") == b"STORED\r\n"
        assert drained(wire, b"sound") == [b"two"]
    assert server.stop() == 0
    assert files(server.data / "broken") == before
    assert "broken" in server.log


def test_a_directory_repaired_in_place_is_served_again_by_itself(server, wire):
    assert wire.set(b"work", b"one") == b"STORED\r\n"
    assert server.stop() == 0
    current = server.data / "work" / "CURRENT"
    content = current.read_bytes()
    current.unlink()
    server.start()
    with contextlib.closing(server.connect()) as wire:
        assert wire.ask(b"get work\r\n").startswith(b"SERVER_ERROR ")
        current.write_bytes(content)
        wait_until(lambda: "queue_work_items" in wire.stats())
        assert wire.get(b"work") == b"one"


def test_a_directory_whose_making_was_cut_off_is_made_anew(tmp_path):
    path = tmp_path / "data" / "work"
    path.mkdir(parents=True)
    for name in ("LOCK", "LOG", "MANIFEST-000001", "000001.dbtmp"):
        (path / name).touch()
    with running(tmp_path / "data") as server, contextlib.closing(server.connect()) as wire:
        assert wire.set(b"work", b"one") == b"STORED\r\n"
        server.restart()
        assert_holds(server, "work", [b"one"])


# Trap 3: LevelDB walks over what was deleted


def test_a_queue_of_deleted_records_starts_and_serves_at_once(server, wire):
    step, sets = 2_000, b"set work 0 0 4\r\nitem\r\n"
    reply = b"VALUE work 0 4\r\nitem\r\nEND\r\n"
    for _ in range(DRAINED // step):
        wire.send(sets * step)
        assert wire.exactly(len(b"STORED\r\n") * step) == b"STORED\r\n" * step
    for _ in range(DRAINED // step):
        wire.send(b"get work\r\n" * step)
        assert wire.exactly(len(reply) * step) == reply * step
    assert server.stop() == 0
    copy = server.data.with_name("copy")
    shutil.copytree(server.data / "work", copy)
    with contextlib.closing(leveldb.DB(str(copy))) as db:
        state = _records.decode_state(stored_state(db)[1])
    assert (state.floor, state.next_id, state.items) == (DRAINED + 1, DRAINED + 1, 0)
    started = time.monotonic()
    server.start()
    with contextlib.closing(server.connect()) as wire:
        assert wire.get(b"work") is None
        assert wire.set(b"work", b"next") == b"STORED\r\n"
        assert wire.get(b"work") == b"next"
    assert time.monotonic() - started < 3.0


# A log that was cut short, as by a machine that lost its power


def work_on(wire: Wire, queues: list[bytes], chance: random.Random, steps: int) -> list[tuple[int, int]]:
    """Set and get on all queues alike; returns the ids of the first item and behind the last after each."""
    history = [(1, 1)]
    for _ in range(steps):
        head, tail = history[-1]
        if chance.random() < 0.6 or head == tail:
            tail += 1
            for queue in queues:
                size = chance.choice((0, 50, 3_000))
                assert wire.set(queue, b"%d " % (tail - 1) + bytes(size)) == b"STORED\r\n"
        else:
            for queue in queues:
                assert wire.get(queue).startswith(b"%d " % head)
            head += 1
        history.append((head, tail))
    return history


def test_queues_whose_log_is_cut_serve_what_they_once_held(server, wire):
    queues = [b"cut%d" % number for number in range(4)]
    chance = random.Random(4)
    history = work_on(wire, queues, chance, 150)
    server.kill()
    segment = max((server.data / ".log").glob("[0-9]*"), key=lambda file: int(file.name))
    size, used_bytes = segment.stat().st_size, len(segment.read_bytes().rstrip(b"\0"))
    whole = server.data.with_name("whole")
    shutil.copytree(server.data, whole)
    for cut in (size, 0, *(chance.randrange(used_bytes) for _ in range(4))):
        shutil.rmtree(server.data)
        shutil.copytree(whole, server.data)
        with (server.data / ".log" / segment.name).open("r+b") as file:
            file.truncate(cut)
        server.start()
        with contextlib.closing(server.connect()) as wire:
            first = wire.stats()
        server.restart()
        with contextlib.closing(server.connect()) as wire:
            stats = wire.stats()
            for queue in queues:
                found = drained(wire, queue)
                ids = [int(item.split()[0]) for item in found]
                if cut == size:
                    assert ids == list(range(*history[-1]))
                elif ids:  # it was empty at first
                    assert (ids[0], ids[-1] + 1) in history
                    assert ids == list(range(ids[0], ids[-1] + 1))
                for found_by in (first, stats):  # what is found once is found again
                    assert int(found_by.get(f"queue_{queue.decode()}_items", 0)) == len(found)
                assert int(stats.get(f"queue_{queue.decode()}_bytes", 0)) == sum(map(len, found))
                assert wire.set(queue, b"next") == b"STORED\r\n"
                assert wire.get(queue) == b"next"
        server.kill()
    server.start()


# A floor under what is free


def test_sets_are_refused_before_the_disk_is_full_and_gets_go_on(tmp_path, disk):
    disk.resize(LARGE_MIB)
    config = tmp_path / "darner.toml"
    config.write_text('min_free_space = "48 MiB"')
    with (
        running(disk.path / "data", "--config", str(config)) as server,
        contextlib.closing(server.connect()) as wire,
    ):
        assert wire.set(b"work", b"one") == b"STORED\r\n"
        ballast = disk.path / "ballast"
        ballast.write_bytes(bytes(40 << 20))
        refusal = b"SERVER_ERROR refused: less is free on the disk than min_free_space\r\n"
        wait_until(lambda: wire.set(b"other", b"two") == refusal)
        server.wait_for_log("disk too full")
        assert wire.set(b"work", bytes(100_000)) == refusal
        assert wire.get(b"work") == b"one"
        ballast.unlink()
        wait_until(lambda: wire.set(b"work", b"three") == b"STORED\r\n")
        server.wait_for_log("room on the disk again")
