"""Items that are damaged on the disk, fetched in each way from a real server."""

import contextlib
import os
import threading
import time

import pytest
from running import configured, running, until

from darner.journal import leveldb
from darner.repair.check import check

pytestmark = pytest.mark.leveldb("there are no files")

LARGE = b"large " * 100_000
CURSOR = b"work/cursor=mine"


def flip(file):
    """Change a byte in the middle, which only a read of the whole file finds."""
    with file.open("r+b") as opened:
        opened.seek(len(LARGE) // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))


def flip_the_end(file):
    with file.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"x")


def miss(file):
    file.unlink()


def cut(file):
    os.truncate(file, 300_000)


DAMAGES = [flip, flip_the_end, miss, cut]


def blobs(server, name="work"):
    return sorted((server.data / name / "blobs").iterdir(), key=lambda file: int(file.name))


def fill(server, wire):
    """Set a large item that will be damaged, and a small and a large one behind it."""
    for item in (LARGE, b"small", LARGE[::-1]):
        assert wire.set(b"work", item) == b"STORED\r\n"
    return blobs(server)[0]


def get(wire):
    return [wire.get(b"work") for _ in range(3)]


def gets(wire):
    return [item and item[1] for item in (wire.gets(b"work") for _ in range(3))]


def open_and_close(wire):
    return [wire.get(b"work/close/open") for _ in range(3)]


def wait(wire):
    return [wire.get(b"work/t=2000") for _ in range(2)] + [wire.get(b"work/t=10")]


def peek(wire):
    found = []
    for _ in range(3):
        found.append(wire.get(b"work/peek"))
        wire.get(b"work")
    return found


def get_many(wire):
    found = []
    for _ in range(3):
        values = wire.values(b"get none work other")
        assert values[1:] == []
        found += [value[3] for value in values] or [None]
    return found


def monitor(wire):
    found = []
    wire.send(b"monitor work 1 2\r\n")
    for _ in range(2):
        size = int(wire.line().split()[3])
        found.append(wire.exactly(size))
        assert wire.exactly(7) == b"\r\nEND\r\n"
    assert wire.line() == b"END\r\n"
    assert wire.ask(b"confirm work 9\r\n") == b"END\r\n"
    return [*found, wire.get(b"work")]


WAYS = [get, gets, open_and_close, wait, peek, get_many, monitor]


def assert_put_aside(server, wire, name="work"):
    stats = wire.stats()
    figures = {key: int(stats[f"queue_{name}_{key}"]) for key in ("items", "bytes", "damaged_items")}
    assert figures == {"items": 0, "bytes": 0, "damaged_items": 1}
    server.wait_for_log("damage put aside")
    assert server.log.count("damage put aside") == 1
    assert f"queue={name}" in server.log
    aside = server.data / name / "damaged"
    kept = aside / "1" if (aside / "1").exists() else aside / "1.record"
    assert f"kept={kept}\n" in server.log


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("way", WAYS)
def test_a_large_item_is_put_aside_and_the_next_is_served(server, wire, way, damage):
    damage(fill(server, wire))
    assert way(wire) == [b"small", LARGE[::-1], None]
    assert_put_aside(server, wire)
    aside = server.data / "work" / "damaged"
    assert {file.name for file in aside.iterdir()} == {"1.record"} | ({"1"} if damage is not miss else set())
    server.restart()
    with contextlib.closing(server.connect()) as again:
        assert again.get(b"work") is None
        assert again.stats()["queue_work_items"] == "0"
    server.stop()
    (report,) = check(server.data, b"work")
    assert report.problems == []


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("way", [get, open_and_close, peek, wait])
def test_a_large_item_is_put_aside_by_a_cursor(server, wire, way, damage):
    damage(fill(server, wire))

    class Cursor:
        """The same requests to a cursor."""

        def get(self, key):
            return wire.get(key.replace(b"work", CURSOR))

    assert way(Cursor()) == [b"small", LARGE[::-1], None]
    assert [wire.get(b"work") for _ in range(3)] == [b"small", LARGE[::-1], None]
    assert_put_aside(server, wire)


@pytest.mark.parametrize("damage", DAMAGES)
def test_who_waits_is_served_with_the_next(server, wire, damage):
    holder, waiter = server.connect(), server.connect()
    assert wire.set(b"work", LARGE) == b"STORED\r\n"
    assert holder.get(b"work/open") == LARGE
    waiter.send(b"get work/t=10000\r\n")
    until(lambda: server.stat("queue_work_waiters") == 1)
    damage(blobs(server)[0])
    holder.close()
    until(lambda: server.stat("queue_work_damaged_items") == 1)
    assert waiter.silent(0.2)
    assert wire.set(b"work", b"next") == b"STORED\r\n"
    assert waiter.line() == b"VALUE work/t=10000 0 4\r\n"
    assert waiter.exactly(11) == b"next\r\nEND\r\n"
    assert_put_aside(server, wire)


def test_who_waits_in_vain_does_so_no_longer_than_it_wanted(server, wire):
    holder, waiter = server.connect(), server.connect()
    assert wire.set(b"work", LARGE) == b"STORED\r\n"
    assert holder.get(b"work/open") == LARGE
    begun = time.monotonic()
    waiter.send(b"get work/t=1000\r\n")
    until(lambda: server.stat("queue_work_waiters") == 1)
    flip(blobs(server)[0])
    holder.close()
    assert waiter.line() == b"END\r\n"
    assert 0.9 < time.monotonic() - begun < 5
    misses = wire.stats()
    assert (misses["get_hits"], misses["get_misses"]) == ("1", "1")


def test_requests_behind_it_are_answered_in_order(server, wire):
    flip(fill(server, wire))
    wire.send(b"get work\r\nversion\r\nget work\r\nget none\r\n")
    assert wire.line() == b"VALUE work 0 5\r\n"
    assert wire.exactly(12) == b"small\r\nEND\r\n"
    assert wire.line().startswith(b"VERSION")
    assert wire.line().startswith(b"VALUE work 0 600000")
    wire.exactly(600_000 + 7)
    assert wire.line() == b"END\r\n"


def test_whole_items_of_many_clients_are_sent_once_each(server):
    """Damaged items are checked before they are removed; meanwhile each client has its own."""
    wires = [server.connect() for _ in range(6)]
    for number in range(12):
        assert wires[0].set(b"work", b"%06d" % number + LARGE) == b"STORED\r\n"
    for at in (2, 5, 11):
        flip(blobs(server)[at])
    found = []

    def fetch(wire):
        while (item := wire.get(b"work")) is not None:
            found.append(int(item[:6]))

    threads = [threading.Thread(target=fetch, args=(wire,)) for wire in wires]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1, 3, 4, 6, 7, 8, 9, 10]
    assert server.stat("queue_work_damaged_items") == 3
    assert server.stat("queue_work_items") == 0
    for wire in wires:
        wire.close()


def test_a_client_that_goes_while_its_item_is_looked_over_leaves_it_where_it_was(server, wire):
    items = [b"%06d" % number + LARGE for number in range(20)]
    for item in items:
        assert wire.set(b"work", item) == b"STORED\r\n"
    for _ in range(10):
        gone = server.connect()
        gone.send(b"get work\r\n")
        gone.reset()
    until(lambda: server.stat("curr_connections") == 2)
    rest = [item for _, item in wire.drain(b"work")]
    # some clients had theirs already
    assert [item for item in items if item in rest] == rest
    assert len(rest) >= 10


def test_a_monitor_goes_on_behind_it(server, wire):
    flip(fill(server, wire))
    wire.send(b"monitor work 1 5\r\n")
    assert wire.line() == b"VALUE work 0 5\r\n"
    assert wire.exactly(12) == b"small\r\nEND\r\n"
    assert wire.line().startswith(b"VALUE")
    wire.exactly(600_007)
    assert wire.line() == b"END\r\n"
    assert wire.ask(b"confirm work 2\r\n") == b"END\r\n"
    assert_put_aside(server, wire)


def test_an_item_that_moves_is_put_aside_where_it_was(tmp_path):
    config = """
    [queues."work"]
    expire_to_queue = "sink"
    [queues."sink+child"]
    durable = false
    """
    with configured(tmp_path, config) as server, contextlib.closing(server.connect()) as wire:
        for name in (b"sink", b"sink+child"):
            wire.get(name)
        assert wire.set(b"work", LARGE, exptime=1) == b"STORED\r\n"
        flip(blobs(server)[0])
        until(lambda: server.stat("queue_work_damaged_items") == 1)
        stats = wire.stats()
        assert [stats[f"queue_{name}_items"] for name in ("work", "sink", "sink+child")] == ["0", "0", "0"]


def test_items_in_a_damaged_table_are_passed_by_whole_ones_served(tmp_path):
    with running(tmp_path / "data") as server:
        wire = server.connect()
        for start in range(0, 9000, 500):
            numbers = range(start, start + 500)
            wire.send(b"".join(b"set work 0 0 506\r\n%06d%s\r\n" % (n, bytes(500)) for n in numbers))
            assert {wire.line() for _ in range(500)} == {b"STORED\r\n"}
        assert server.stop() == 0
        leveldb.DB(str(tmp_path / "data" / "work"), compression=None).close()  # makes tables of its log
        table = max((tmp_path / "data" / "work").glob("*.ldb"), key=lambda file: file.stat().st_size)
        content = bytearray(table.read_bytes())
        content[200_000:210_000] = bytes(10_000)
        content[400_000] ^= 1
        table.write_bytes(content)
        server.start()
        wire = server.connect()
        found = [int(item[:6]) for _, item in wire.drain(b"work")]
        lost = sorted(set(range(9000)) - set(found))
        assert found == sorted(found)
        assert 1 < len(lost) < 60
        stats = wire.stats()
        assert int(stats["queue_work_damaged_items"]) == len(lost)
        assert (stats["queue_work_items"], stats["queue_work_bytes"]) == ("0", "0")
        assert (table.parent / "damaged" / table.name).read_bytes() == content
        assert wire.set(b"work", b"again") == b"STORED\r\n"
        server.restart()
        with contextlib.closing(server.connect()) as again:
            assert again.drain(b"work") == [(9001, b"again")]


def test_a_large_item_that_cannot_be_read_now_stays(server, wire):
    """As when there is no descriptor left: here the file may not be opened."""
    file = fill(server, wire)
    if os.geteuid() == 0:
        pytest.skip("root may open everything")
    file.chmod(0)
    for key in (b"work", b"work/open", b"work/peek"):
        assert wire.ask(b"get %s\r\n" % key).startswith(b"SERVER_ERROR cannot read")
    file.chmod(0o600)
    assert wire.get(b"work") == LARGE
