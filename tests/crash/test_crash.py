"""The server is killed: the items and counts that come back, and the files that are left."""

import contextlib
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running import Server, Wire, allocated_bytes, running, until

from darner.journal import leveldb
from darner.repair.check import check

REPLAY = Path(__file__).parents[2] / "bench" / "single" / "replay.py"
HALF_SENT_BYTES = 10 << 20


def test_counts_and_bytes_after_a_kill_are_those_of_a_full_drain(server, wire):
    chance = random.Random(3)
    holders = [server.connect() for _ in range(20)]
    for i in range(300):
        wire.set(b"jobs", chance.randbytes(chance.choice((0, 10, 5_000, 200_000 if i % 50 == 0 else 1))))
    wire.set(b"flushed", b"gone")
    wire.set(b"flushed", chance.randbytes(100_000))
    taken = [holder.gets(b"jobs/open")[0] for holder in holders]
    closed = chance.sample(range(len(holders)), 10)
    for index in closed:
        assert holders[index].ask(b"get jobs/close\r\n") == b"END\r\n"
    assert wire.ask(b"flush flushed\r\n") == b"END\r\n"
    wire.set(b"flushed", b"kept")
    for _ in range(30):
        wire.get(b"jobs")
    server.restart()
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        jobs, flushed = wire.drain(b"jobs"), wire.drain(b"flushed")
    assert stats["queue_jobs_items"] == str(len(jobs)) == str(300 - 10 - 30)
    assert stats["queue_jobs_bytes"] == str(sum(len(data) for _, data in jobs))
    assert [id for id, _ in jobs][:10] == [id for i, id in enumerate(taken) if i not in closed]
    assert [data for _, data in flushed] == [b"kept"]
    assert (stats["queue_flushed_items"], stats["queue_flushed_bytes"]) == ("1", "4")
    assert stats["curr_items"] == str(len(jobs) + 1)


def test_a_start_after_a_kill_opens_no_leveldb_that_had_nothing_to_be_written(server, wire):
    names = [b"orders%d" % number for number in range(20)]
    for name in names:
        wire.set(name, b"one")
    # a file that is there may still be empty
    until(lambda: sum(file.stat().st_size > 0 for file in server.data.glob("orders*/settled")) == len(names))
    server.restart()
    opened = [str(file.readlink()) for file in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert [file for file in opened if file.endswith("/LOCK")] == []
    with contextlib.closing(server.connect()) as wire:
        assert [wire.stats()[f"queue_{name.decode()}_items"] for name in names] == ["1"] * len(names)
        for name in names:
            wire.set(name, b"two")
            assert wire.get(name) == b"one"
        server.restart()
    with contextlib.closing(server.connect()) as wire:
        assert [wire.get(name) for name in names] == [b"two"] * len(names)


def send_half(server: Server, wire: Wire) -> None:
    """Send an item without its end, and wait until the rest is on the disk."""
    sent = random.Random(1).randbytes(HALF_SENT_BYTES - 1)
    wire.send(b"set work 0 0 %d\r\n%s" % (HALF_SENT_BYTES, sent))
    until(lambda: allocated_bytes(server.data / "work") > HALF_SENT_BYTES * 0.9)


def records(server: Server, queue: str) -> list[bytes]:
    """Return the keys in a queue's LevelDB; the server must have ended."""
    db = leveldb.DB(str(server.data / queue))
    try:
        return list(db.iterator(include_value=False))
    finally:
        db.close()


def assert_nothing_left(server: Server) -> None:
    until(lambda: allocated_bytes(server.data / "work") < HALF_SENT_BYTES / 10)
    with contextlib.closing(server.connect()) as wire:
        stats = wire.stats()
        assert (stats["queue_work_items"], stats["queue_work_bytes"]) == ("1", "3")
        assert wire.get(b"work/peek") == b"one"
    assert server.stop() == 0
    assert {key[:1] for key in records(server, "work")} == {b"i"}


def test_a_half_sent_item_leaves_nothing_behind_after_a_kill(server, wire):
    wire.set(b"work", b"one")
    send_half(server, server.connect())
    server.restart()
    assert_nothing_left(server)


def test_a_half_sent_item_leaves_nothing_behind_after_its_client_is_gone(server, wire):
    wire.set(b"work", b"one")
    sender = server.connect()
    send_half(server, sender)
    sender.close()
    assert_nothing_left(server)


@pytest.mark.parametrize(
    "after", [b"get work\r\n", b"flush work\r\n", b"delete work\r\nset work 0 0 1\r\nx\r\n", b""]
)
def test_chunks_of_an_item_gone_in_the_turn_it_came_in_leave_nothing_behind(server, wire, after):
    block = bytes(150_000)
    half = b"" if after else b"set work 0 0 %d\r\n%s" % (len(block), block[:100_000])
    for _ in range(5):
        with contextlib.closing(server.connect()) as other:
            other.send(b"set work 0 0 %d\r\n%s\r\n%s%s" % (len(block), block, after, half))
            other.socket.shutdown(socket.SHUT_WR)
            while other.line():
                pass
    wire.get(b"work")
    wire.ask(b"flush work\r\n")
    for _ in range(2):  # files that are obsolete too late are deleted at the next start
        assert server.stop() == 0
        server.start()
    assert server.stop() == 0
    assert {key[:1] for key in records(server, "work")} <= {b"i", b"k"}


def test_a_real_file_comes_out_whole_through_five_kills(tmp_path):
    chance = random.Random(5)
    file = tmp_path / "log"
    file.write_bytes(b"".join(b"%d %s\n" % (i, b"x" * chance.randrange(200)) for i in range(2_000)))
    ended = subprocess.run(
        [sys.executable, REPLAY, file, "--kills", "5", "--output", tmp_path / "drained"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (tmp_path / "drained").read_bytes() == file.read_bytes()


def test_a_server_killed_while_it_starts_starts_again(tmp_path):
    with running(tmp_path / "data") as server:
        with contextlib.closing(server.connect()) as wire:
            for i in range(50):
                wire.set(b"queue%d" % (i % 10), b"%d" % i)
        server.kill()
        for _ in range(3):
            process = subprocess.Popen(
                [Path(sys.executable).with_name("darner"), "--data", server.data, "--port", "0"],
                stderr=subprocess.PIPE,
            )
            process.stderr.read(1)  # the begin of its first line
            process.kill()
            process.communicate(timeout=10)
        server.start()
        with contextlib.closing(server.connect()) as wire:
            assert wire.stats()["curr_items"] == "50"


def test_items_that_go_back_with_a_pause_are_there_once_through_ten_kills(tmp_path):
    """Four clients reserve and defer as fast as they can; the server is killed at any instant of that."""
    chance = random.Random(17)
    items = [b"%03d" % number + bytes(chance.choice((0, 500, 30_000, 100_000))) for number in range(80)]
    with running(tmp_path / "data") as server:
        with contextlib.closing(server.connect()) as wire:
            for item in items:
                assert wire.set(b"work", item) == b"STORED\r\n"
        for _ in range(10):
            wires = [server.connect() for _ in range(4)]
            for wire in wires:
                delays = [chance.choice((0, 1, 20)) for _ in range(200)]
                wire.send(
                    b"".join(b"get work/open\r\nget work/abort/delay=%d\r\n" % delay for delay in delays)
                )
            for _ in range(chance.randrange(60)):
                defer_one(chance.choice(wires))
            server.restart()
            for wire in wires:
                wire.close()
            stats = server.connect().stats()
            figures = [int(stats[f"queue_work_{name}"]) for name in ("items", "delayed_items")]
            assert sum(figures) == len(items)
        until(lambda: server.stat("queue_work_items") == len(items))
        with contextlib.closing(server.connect()) as wire:
            assert sorted(wire.take_all(b"work")) == items
        assert server.stop() == 0
        assert "level=error" not in server.log
    (report,) = check(server.data, b"work")
    assert (report.problems, report.items) == ([], 0)
    assert not list((server.data / "work" / "blobs").iterdir())


def defer_one(wire: Wire) -> None:
    """Read the replies to one `open`, which may find nothing, and to one `abort`."""
    line = wire.line()
    if line != b"END\r\n":
        wire.exactly(int(line.split()[3]) + 7)
    assert wire.line() == b"END\r\n"
