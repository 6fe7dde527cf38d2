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

from darner import _proto, leveldb
from darner.broker import Broker
from darner.errors import JournalError
from darner.journal import STATE_KEY, Journal

SMALL_MIB = 16
LARGE_MIB = 96
DRAINED = 200_000


def wait_until(holds, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def drained(wire: Wire, queue: bytes) -> list[bytes]:
    """All items of a queue. One get may be refused: LevelDB tells the next write of what failed in its
    own thread before there was room."""
    found = []
    refused = False
    while True:
        wire.send(b"get %s\r\n" % queue)
        line = wire.line()
        if line.startswith(b"SERVER_ERROR") and not refused:
            refused = True
        elif line == b"END\r\n":
            return found
        else:
            assert line.startswith(b"VALUE "), line
            found.append(wire.exactly(int(line.split()[3])))
            assert wire.exactly(7) == b"\r\nEND\r\n"


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


def test_what_a_full_disk_cut_off_leaves_no_chunks_behind(disk, small):
    with contextlib.closing(small.connect()) as wire:
        stored = fill(wire, 3 << 20, random.Random(1))
        disk.resize(LARGE_MIB)
        wait_until(lambda: wire.set(b"work", b"late") == b"STORED\r\n")
        assert drained(wire, b"work") == [*stored, b"late"]
        wait_until(lambda: disk.used_bytes < 1 << 20)
        # a turn for the trimming that waited for the last batch
        wire.set(b"work", b"later")
        wire.set(b"work", b"last")
    assert small.stop() == 0
    with contextlib.closing(leveldb.DB(str(small.data / "work"))) as db:
        assert {key[:1] for key in db.iterator(include_value=False)} == {b"i", b"s"}


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
    (disk.path / "ballast").write_bytes(bytes(int(SMALL_MIB * 0.9) << 20))
    refused = []
    with contextlib.closing(small.connect()) as wire:
        for number in range(10_000):
            queue = b"queue%d" % number
            reply = wire.set(queue, bytes(500))
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


class Client:
    """Whose reply waits for a batch."""

    def __init__(self) -> None:
        self.held = 0
        self.failed: list[int] = []

    def hold(self) -> None:
        self.held += 1

    def release(self) -> None:
        self.held -= 1

    def fail(self, slot: int, error: JournalError) -> None:
        self.failed.append(slot)


def at_once(work, done) -> None:
    """Offload to nowhere."""
    try:
        work()
    except JournalError as error:
        done(error)
    else:
        done(None)


def refuse(*_) -> None:
    raise JournalError("no space left")


def items_of(queue) -> list[bytes]:
    found = []
    while (item := queue.pop()) is not None:
        found.append(item.data)
    return found


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("opens", [False, True])
def test_a_failed_write_is_acknowledged_only_if_it_is_found_on_disk(
    tmp_path, monkeypatch, sync, written, opens
):
    client, write = Client(), Journal.write
    broker = Broker(tmp_path / "data", lambda: 0, at_once)
    broker.open()
    queue = broker.queue(b"work")
    queue.push(b"before", 0, 0, sync=False)
    broker.committer.commit()

    def fail(journal: Journal, batch) -> None:
        if written:
            write(journal, batch)
        refuse()

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", fail)
        if not opens:
            patch.setattr(Journal, "_open", refuse)
        queue.push(b"refused", 0, 0, sync=sync)
        queue.acknowledge(client, 7)
        broker.committer.commit()
        found = written and opens
        assert client.failed == ([] if found else [7])
        assert client.held == 0
        if not opens:
            for request in (queue.pop, queue.peek, queue.reserve, queue.flush):
                with pytest.raises(JournalError):
                    request()
            with pytest.raises(JournalError):
                queue.push(b"refused too", 0, 0, sync=False)
            broker.tidy()  # tries, in vain
    broker.tidy()
    queue.push(b"after", 0, 0, sync=sync)
    queue.acknowledge(client, 8)
    broker.committer.commit()
    broker.close()

    assert client.failed == ([] if found else [7])
    broker = Broker(tmp_path / "data", lambda: 0, at_once)
    broker.open()
    middle = [b"refused"] if written else []
    assert broker.totals()[1] == 2 + len(middle)
    assert items_of(broker.queue(b"work")) == [b"before", *middle, b"after"]
    broker.close()


# Trap 2: LevelDB empties a directory that has lost its CURRENT


def files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_queue_without_its_current_is_out_of_service_and_untouched(server, wire):
    for queue in (b"broken", b"sound"):
        assert wire.set(queue, b"one") == b"STORED\r\n"
    # twice, so that there is a table, and a log
    server.restart()
    server.kill()
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
    server.kill()
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
    server.kill()
    copy = server.data.with_name("copy")
    shutil.copytree(server.data / "work", copy)
    with contextlib.closing(leveldb.DB(str(copy))) as db:
        state = _proto.decode_state(db.get(STATE_KEY))
    assert (state.floor, state.next_id, state.items) == (DRAINED + 1, DRAINED + 1, 0)
    started = time.monotonic()
    server.start()
    with contextlib.closing(server.connect()) as wire:
        assert wire.get(b"work") is None
        assert wire.set(b"work", b"next") == b"STORED\r\n"
        assert wire.get(b"work") == b"next"
    assert time.monotonic() - started < 3.0


# A log that was cut short, as by a machine that lost its power


def test_a_queue_whose_log_is_cut_serves_what_it_once_held(server, wire):
    queues = [b"cut%d" % number for number in range(16)]
    chance = random.Random(4)
    # the ids of the first and behind the last item, after each operation
    history = [(1, 1)]
    for _ in range(300):
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
    server.kill()
    for number, queue in enumerate(queues):
        log = max((server.data / queue.decode()).glob("*.log"), key=lambda file: file.name)
        size = log.stat().st_size
        cut = size if number == 0 else 0 if number == 1 else chance.randrange(size)
        with log.open("r+b") as file:
            file.truncate(cut)
    server.start()
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        for number, queue in enumerate(queues):
            found = drained(wire, queue)
            ids = [int(item.split()[0]) for item in found]
            if number == 0:
                assert ids == list(range(*history[-1]))
            assert not ids or ((ids[0], ids[-1] + 1) in history and ids == list(range(ids[0], ids[-1] + 1)))
            assert stats[f"queue_{queue.decode()}_items"] == str(len(found))
            assert stats[f"queue_{queue.decode()}_bytes"] == str(sum(map(len, found)))
            assert wire.set(queue, b"next") == b"STORED\r\n"
            assert wire.get(queue) == b"next"


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
