"""`get <queue>/abort/delay=<ms>`: a retry with a pause, over the wire."""

import time

import pytest
from running import configured, until

from darner._records import CHUNK_BYTES

LARGE = b"large " * CHUNK_BYTES


def figures(wire, queue: bytes) -> dict[str, int]:
    names = ("items", "delayed_items", "open_transactions", "canceled_transactions", "total_items")
    stats = wire.stats()
    return {name: int(stats[f"queue_{queue.decode()}_{name}"]) for name in names}


class TestAbortWithADelay:
    @pytest.mark.parametrize("data", [b"", b"a", LARGE])
    @pytest.mark.leveldb("it counts as reserved until then, and comes at the head")
    def test_puts_the_item_at_the_end_once_its_time_is_over(self, client, queue, data):
        for item in (data, b"next"):
            assert client.set(queue, item, flags=5) == b"STORED\r\n"
        assert client.get(queue + b"/open") == data
        before = time.monotonic()
        assert client.ask(b"get %s/abort/delay=300\r\n" % queue) == b"END\r\n"
        assert figures(client, queue) == {
            "items": 1, "delayed_items": 1, "open_transactions": 0, "canceled_transactions": 1,
            "total_items": 2,
        }  # fmt: skip
        assert client.get(queue) == b"next"
        assert client.get(queue) is None
        key = queue + b"/open/t=5000"
        assert client.values(b"get " + key) == [(key, 5, None, data)]
        assert 0.3 <= time.monotonic() - before < 3
        assert client.ask(b"get %s/close\r\n" % queue) == b"END\r\n"
        assert figures(client, queue)["total_items"] == 2

    @pytest.mark.leveldb("it counts as reserved until then, and comes at the head")
    def test_of_no_time_puts_it_at_the_end_at_once(self, client, queue):
        for item in (b"a", b"b"):
            client.set(queue, item)
        assert client.get(queue + b"/open") == b"a"
        assert client.ask(b"get %s/abort/delay=0\r\n" % queue) == b"END\r\n"
        assert client.take_all(queue) == [b"b", b"a"]

    def test_of_no_time_goes_to_who_waits(self, client, other, standing, queue):
        client.set(queue, b"a")
        assert client.get(queue + b"/open") == b"a"
        other.send(b"get %s/open/t=5000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        assert client.ask(b"get %s/abort/delay=0\r\n" % queue) == b"END\r\n"
        assert other.line() == b"VALUE %s/open/t=5000 0 1\r\n" % queue

    @pytest.mark.leveldb("it counts as reserved until then, and comes at the head")
    def test_of_the_longest_time_there_is_is_taken(self, client, queue):
        client.set(queue, b"a")
        client.get(queue + b"/open")
        assert client.ask(b"get %s/abort/delay=%d\r\n" % (queue, 10**18 - 1)) == b"END\r\n"
        assert figures(client, queue)["delayed_items"] == 1

    def test_counts_an_attempt(self, client, queue):
        client.set(queue, b"a")
        for attempts in range(3):
            assert client.ask(b"mg %s/open f h\r\n" % queue) == b"HD f0 h%d\r\n" % (attempts > 0)
            assert client.ask(b"get %s/abort/delay=0\r\n" % queue) == b"END\r\n"

    @pytest.mark.parametrize("request_", [b"get %s/abort/delay=5", b"get %s/abort/delay=5 %s/abort/delay=5"])
    def test_of_nothing_does_nothing(self, client, queue, request_):
        client.set(queue, b"a")
        assert client.ask(request_.replace(b"%s", queue) + b"\r\n") == b"END\r\n"
        assert figures(client, queue)["delayed_items"] == 0

    @pytest.mark.leveldb("it counts as reserved until then, and comes at the head")
    def test_may_be_one_of_several_keys(self, client, queue):
        second = queue + b"2"
        for name in (queue, second):
            client.set(name, name)
        assert client.get(queue + b"/open") == queue
        assert [data for *_, data in client.values(b"get %s/abort/delay=60000 %s" % (queue, second))] == [
            second
        ]
        assert figures(client, queue)["delayed_items"] == 1

    @pytest.mark.parametrize("key", [b"%s/cursor=c/abort/delay=5", b"%s/abort/cursor=c/delay=0"])
    @pytest.mark.leveldb("cursors are refused")
    def test_is_refused_at_a_cursor_and_changes_nothing(self, client, queue, key):
        client.set(queue, b"a")
        assert client.get(queue + b"/cursor=c/open") == b"a"
        before = figures(client, queue)
        refusal = client.ask(b"get " + key.replace(b"%s", queue) + b"\r\n")
        assert refusal == (
            b"CLIENT_ERROR a cursor takes no delay: it removes nothing from its queue, so it has nothing to "
            b"put back\r\n"
        )
        assert figures(client, queue) == before
        assert client.ask(b"get %s/cursor=c/open\r\n" % queue) == b"CLIENT_ERROR close current item first\r\n"

    def test_leaves_an_item_alone_whose_queue_was_deleted(self, client, other, queue):
        client.set(queue, b"a")
        client.get(queue + b"/open")
        assert other.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        other.set(queue, b"new")
        assert client.ask(b"get %s/abort/delay=5\r\n" % queue) == b"END\r\n"
        assert figures(client, queue)["delayed_items"] == 0
        assert client.take_all(queue) == [b"new"]


@pytest.mark.leveldb("it counts as reserved until then, and comes at the head")
def test_an_item_that_came_back_too_often_goes_to_the_dead_letter_queue_at_once(tmp_path):
    config = '[queues.work]\nmax_attempts = 2\ndead_letter_queue = "dead"\n'
    with configured(tmp_path, config) as server:
        wire = server.connect()
        wire.set(b"work", b"task")
        for _ in range(2):
            assert wire.get(b"work/open/t=5000") == b"task"
            assert wire.ask(b"get work/abort/delay=100\r\n") == b"END\r\n"
        assert wire.get(b"dead") == b"task"
        assert figures(wire, b"work")["delayed_items"] == 0
        assert wire.stats()["queue_work_canceled_transactions"] == "2"


@pytest.mark.parametrize("request_", [b"get work/abort/delay=5", b"get work/abort/delay=5 other"])
@pytest.mark.leveldb("there are no files")
def test_an_item_whose_bytes_are_found_damaged_then_is_put_aside(server, wire, request_):
    """The client waits while LevelDB's table is looked over."""
    for item in (b"damaged", b"next"):
        wire.set(b"work", item)
    wire.set(b"other", b"else")
    assert server.stop() == 0
    server.start()  # which makes a table of LevelDB's log
    wire = server.connect()
    assert wire.get(b"work/open") == b"damaged"
    (table,) = (server.data / "work").glob("*.ldb")
    table.write_bytes(table.read_bytes().replace(b"damaged", b"damageD"))
    found = wire.values(request_)
    assert [data for *_, data in found] == [b"else"] * (b"other" in request_)
    server.wait_for_log("damage put aside")
    stats = wire.stats()
    names = ("items", "delayed_items", "open_transactions", "damaged_items")
    assert [stats[f"queue_work_{name}"] for name in names] == ["1", "0", "0", "1"]
    assert wire.take_all(b"work") == [b"next"]


@pytest.mark.leveldb("nothing is staged")
def test_items_that_go_back_faster_than_they_are_written_hold_their_client_up(tmp_path):
    """They are staged in memory until they are written: the client waits as one that sets does."""
    count, size, most_bytes = 2000, 60_000, 64 << 20
    with configured(tmp_path, f"[queues.work]\nmax_open_reads = {count}\n") as server:
        wire = server.connect()
        for number in range(count):
            assert wire.set(b"work", b"%06d" % number + bytes(size)) == b"STORED\r\n"
        for _ in range(count):
            assert wire.get(b"work/open") is not None
        before = server.resident_bytes
        wire.send(b"get work/abort/delay=1\r\n" * count)
        for _ in range(count):
            assert wire.line() == b"END\r\n"
            assert server.resident_bytes < before + most_bytes
        until(lambda: figures(wire, b"work")["items"] == count)
        server.restart()
        found = [data[:6] for data in server.connect().take_all(b"work")]
        assert found == [b"%06d" % number for number in range(count)]
