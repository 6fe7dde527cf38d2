"""`delete`, `flush`, `flush_all`, `version`, `verbosity`, `stats`, `quit`, and the two dialects."""

import os
import re
import time

import pytest
from running import running, until

from darner import __version__
from darner._records import CHUNK_BYTES

GLOBAL = [
    "pid",
    "uptime",
    "time",
    "version",
    "curr_items",
    "total_items",
    "bytes",
    "curr_connections",
    "total_connections",
    "cmd_get",
    "cmd_set",
    "cmd_peek",
    "get_hits",
    "get_misses",
    "bytes_read",
    "bytes_written",
    "queue_creates",
    "queue_deletes",
    "queue_expires",
]
PER_QUEUE = [
    "items",
    "bytes",
    "total_items",
    "logsize",
    "expired_items",
    "mem_items",
    "mem_bytes",
    "age",
    "discarded",
    "waiters",
    "open_transactions",
    "transactions",
    "canceled_transactions",
    "total_flushes",
    "create_time",
]


def of_queue(wire, queue: bytes) -> dict[str, int]:
    """Return the figures of one queue in `stats`."""
    prefix = f"queue_{queue.decode()}_"
    return {k.removeprefix(prefix): int(v) for k, v in wire.stats().items() if k.startswith(prefix)}


class TestDelete:
    @pytest.mark.leveldb("there are no files")
    def test_drops_the_queue_and_its_files(self, standing, client, queue):
        client.set(queue, b"x")
        client.set(queue, bytes(CHUNK_BYTES * 20))
        directory = standing.data / queue.decode()
        assert directory.exists()
        assert client.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        assert of_queue(client, queue) == {}
        until(lambda: not directory.exists())
        assert client.get(queue) is None

    def test_of_a_queue_that_is_not_there_answers_the_same(self, client, queue):
        assert client.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        assert client.ask(b"delete %s 0\r\n" % queue) == b"DELETED\r\n"

    def test_lasts_over_a_kill(self, server, wire):
        for n in range(100):
            wire.set(b"q", b"%d" % n)
        wire.set(b"r", b"x")
        wire.ask(b"delete q\r\n")
        server.restart()
        again = server.connect()
        assert of_queue(again, b"q") == {}
        assert again.get(b"r") == b"x"

    def test_lets_the_name_be_used_again_at_once(self, client, queue):
        for n in range(50):
            client.send(b"set %s 0 0 2\r\n%02d\r\ndelete %s\r\n" % (queue, n, queue))
        client.send(b"set %s 0 0 3\r\nnew\r\n" % queue)
        assert client.exactly(50 * 17 + 8) == b"STORED\r\nDELETED\r\n" * 50 + b"STORED\r\n"
        assert client.get(queue) == b"new"
        assert client.get(queue) is None

    def test_lets_the_name_be_used_again_after_a_restart(self, server, wire):
        wire.send(b"set q 0 0 1\r\na\r\ndelete q\r\nset q 0 0 1\r\nb\r\n")
        assert wire.exactly(25) == b"STORED\r\nDELETED\r\nSTORED\r\n"
        server.restart()
        again = server.connect()
        assert again.get(b"q") == b"b"
        assert again.get(b"q") is None

    def test_lets_waiters_wait_on(self, standing, client, other, queue):
        client.send(b"get %s/t=20000\r\n" % queue)
        until(lambda: of_queue(other, queue)["waiters"] == 1)
        other.ask(b"delete %s\r\n" % queue)
        assert of_queue(other, queue)["waiters"] == 1
        other.set(queue, b"x")
        assert client.line().startswith(b"VALUE ")
        assert client.exactly(8) == b"x\r\nEND\r\n"

    def test_lets_waiters_time_out(self, client, other, queue):
        client.send(b"get %s/t=300\r\n" % queue)
        until(lambda: of_queue(other, queue)["waiters"] == 1)
        other.ask(b"delete %s\r\n" % queue)
        assert client.line() == b"END\r\n"
        assert of_queue(other, queue) == {}

    @pytest.mark.parametrize("end", [b"close", b"abort"])
    def test_lets_holders_close_or_abort(self, client, other, queue, end):
        client.set(queue, b"x")
        client.get(queue + b"/open")
        assert other.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        other.set(queue, b"new")
        assert client.ask(b"get %s/%s\r\n" % (queue, end)) == b"END\r\n"
        assert client.get(queue + b"/open") == b"new"
        stats = of_queue(client, queue)
        assert (stats["items"], stats["open_transactions"]) == (0, 1)

    def test_lets_holders_go(self, standing, client, other, queue):
        client.set(queue, b"x")
        client.get(queue + b"/open")
        other.ask(b"delete %s\r\n" % queue)
        before = standing.stat("curr_connections")
        client.close()
        until(lambda: standing.stat("curr_connections") < before)
        assert other.get(queue) is None

    @pytest.mark.leveldb("above max_payload")
    def test_lets_a_large_item_be_sent_to_its_end(self, standing, client, other, queue):
        data = os.urandom(1 << 20) * 32
        client.set(queue, data)
        client.send(b"get %s/open\r\n" % queue)
        header = b"VALUE %s/open 0 %d\r\n" % (queue, len(data))
        assert client.exactly(len(header)) == header
        assert other.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        other.set(queue, b"new")
        assert client.exactly(len(data) + 7) == data + b"\r\nEND\r\n"
        assert client.ask(b"get %s/close\r\n" % queue) == b"END\r\n"
        assert other.get(queue) == b"new"

    @pytest.mark.leveldb("a large item makes its queue when it is there")
    def test_while_a_large_item_arrives_leaves_the_connection_in_step(self, client, other, queue):
        size = CHUNK_BYTES * 10
        client.send(b"set %s 0 0 %d\r\n" % (queue, size) + bytes(size // 2))
        until(lambda: of_queue(other, queue))
        assert other.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        client.send(bytes(size // 2) + b"\r\n")
        stored = client.line() == b"STORED\r\n"
        assert client.ask(b"version\r\n").startswith(b"VERSION ")
        assert (other.get(queue) == bytes(size)) is stored

    @pytest.mark.alone
    def test_of_a_large_queue_takes_no_time(self, server, wire):
        data = os.urandom(1000)
        for _ in range(100):
            wire.send(b"set q 0 0 1000 noreply\r\n%s\r\n" % data * 1000)
        wire.ask(b"version\r\n")
        assert of_queue(wire, b"q")["items"] == 100_000
        start = time.monotonic()
        wire.ask(b"delete q\r\n")
        assert time.monotonic() - start < 0.2


class TestFlush:
    def test_discards_what_waits_and_keeps_the_queue(self, client, queue):
        for size in (1, 100, CHUNK_BYTES * 3):
            client.set(queue, bytes(size))
        assert client.ask(b"flush %s\r\n" % queue) == b"END\r\n"
        stats = of_queue(client, queue)
        assert (stats["items"], stats["bytes"], stats["total_flushes"]) == (0, 0, 1)
        assert client.get(queue) is None
        client.set(queue, b"new")
        assert client.get(queue) == b"new"

    def test_of_a_queue_that_is_not_there_answers_the_same(self, client, queue):
        assert client.ask(b"flush %s\r\n" % queue) == b"END\r\n"

    @pytest.mark.leveldb("a flush discards what is reserved, too")
    def test_leaves_what_is_held_to_its_holder(self, standing, client, other, queue):
        for data in (b"a", b"b", b"c"):
            client.set(queue, data)
        client.get(queue + b"/open")
        other.ask(b"flush %s\r\n" % queue)
        client.get(queue + b"/abort")
        assert other.get(queue) == b"a"
        assert other.get(queue) is None

    @pytest.mark.leveldb("a flush discards what is reserved, too")
    def test_lasts_over_a_kill(self, server, wire):
        for n in range(1000):
            wire.set(b"q", b"%d" % n)
        wire.set(b"q", bytes(CHUNK_BYTES * 3))
        wire.get(b"q/open")
        wire.ask(b"flush q\r\n")
        wire.set(b"q", b"new")
        server.restart()
        again = server.connect()
        assert of_queue(again, b"q")["items"] == 2
        assert [again.get(b"q"), again.get(b"q"), again.get(b"q")] == [b"0", b"new", None]

    def test_lets_waiters_wait_on(self, client, other, queue):
        client.send(b"get %s/t=20000\r\n" % queue)
        until(lambda: of_queue(other, queue)["waiters"] == 1)
        other.ask(b"flush %s\r\n" % queue)
        other.set(queue, b"x")
        assert client.line().startswith(b"VALUE ")

    @pytest.mark.alone
    def test_time_does_not_grow_with_the_queue(self, server, wire):
        data = os.urandom(1000)
        for _ in range(100):
            wire.send(b"set q 0 0 1000 noreply\r\n%s\r\n" % data * 1000)
        wire.ask(b"version\r\n")
        start = time.monotonic()
        wire.ask(b"flush q\r\n")
        assert time.monotonic() - start < 0.1
        start = time.monotonic()
        assert wire.get(b"q") is None
        assert time.monotonic() - start < 0.1


class TestFlushAll:
    @pytest.mark.parametrize("line", [b"flush_all", b"flush_all ", b"flush_all 0", b"FLUSH_ALL"])
    def test_flushes_every_queue(self, server, wire, line):
        for queue in (b"a", b"b", b"c"):
            wire.set(queue, b"x")
        assert wire.ask(line + b"\r\n") == b"OK\r\n"
        assert [wire.get(queue) for queue in (b"a", b"b", b"c")] == [None] * 3
        assert of_queue(wire, b"a")["total_flushes"] == 1

    def test_says_nothing_with_noreply(self, server, wire):
        wire.set(b"q", b"x")
        wire.send(b"flush_all noreply\r\n")
        assert wire.get(b"q") is None

    def test_with_a_number_flushes_so_many_seconds_later(self, server, wire):
        wire.set(b"q", b"early")
        assert wire.ask(b"flush_all 1\r\n") == b"OK\r\n"
        wire.set(b"q", b"late")
        assert wire.get(b"q/peek") == b"early"
        until(lambda: wire.get(b"q/peek") is None, 3)
        wire.set(b"q", b"after")
        assert wire.get(b"q") == b"after"

    def test_now_takes_back_one_for_later(self, server, wire):
        wire.ask(b"flush_all 1\r\n")
        wire.ask(b"flush_all\r\n")
        wire.set(b"q", b"x")
        wire.ask(b"get nothing/t=1200\r\n")
        assert wire.get(b"q") == b"x"

    def test_for_later_is_not_kept_over_a_restart(self, server, wire):
        wire.set(b"q", b"x")
        wire.ask(b"flush_all 1\r\n")
        server.restart()
        again = server.connect()
        again.ask(b"get nothing/t=1200\r\n")
        assert again.get(b"q") == b"x"


class TestVersion:
    def test_is_three_numbers_the_first_at_least_1(self, client):
        reply = client.ask(b"version\r\n")
        assert re.fullmatch(rb"VERSION [1-9]\d*\.\d+\.\d+\r\n", reply)
        assert reply == f"VERSION {__version__}\r\n".encode()


class TestVerbosity:
    @pytest.mark.parametrize("level", [0, 1, 2, 999_999_999])
    def test_is_ok(self, client, level):
        assert client.ask(b"verbosity %d\r\n" % level) == b"OK\r\n"
        client.ask(b"verbosity 1\r\n")

    def test_sets_the_log_level(self, server, wire):
        wire.set(b"unheard", b"x")
        wire.ask(b"verbosity 2\r\n")
        wire.set(b"heard", b"x")
        server.wait_for_log("queue=heard")
        assert "unheard" not in server.log
        wire.ask(b"verbosity 0\r\n")
        server.stop()
        assert "event=closed" not in server.log


class TestQuit:
    def test_closes_behind_what_was_asked_before(self, client, queue):
        client.send(b"set %s 0 0 1\r\nx\r\nget %s\r\nquit\r\nversion\r\n" % (queue, queue))
        assert client.line() == b"STORED\r\n"
        assert client.line().startswith(b"VALUE ")
        assert client.exactly(8) == b"x\r\nEND\r\n"
        assert client.closed()


class TestStats:
    def test_name_all_there_is(self, server, wire):
        wire.set(b"q", b"x")
        stats = wire.stats()
        assert set(GLOBAL) <= set(stats)
        assert {f"queue_q_{name}" for name in PER_QUEUE} <= set(stats)
        assert "noreply_errors" in stats

    def test_tell_of_the_process(self, server, wire):
        stats = wire.stats()
        assert int(stats["pid"]) == server.process.pid
        assert abs(int(stats["time"]) - time.time()) < 5
        assert 0 <= int(stats["uptime"]) < 60
        assert stats["version"] == __version__
        until(lambda: int(wire.stats()["uptime"]) > int(stats["uptime"]), 3)

    def test_count_connections(self, server, wire):
        others = [server.connect() for _ in range(3)]
        for other in others:
            other.ask(b"version\r\n")
        stats = wire.stats()
        assert (stats["curr_connections"], stats["total_connections"]) == ("4", "4")
        for other in others:
            other.close()
        until(lambda: wire.stats()["curr_connections"] == "1")
        assert wire.stats()["total_connections"] == "4"

    def test_count_commands(self, server, wire):
        for _ in range(3):
            wire.set(b"q", b"x")
        wire.set(b"q", bytes(CHUNK_BYTES + 1))
        wire.get(b"q/peek")
        wire.get(b"q")
        wire.get(b"q/open")
        wire.ask(b"get q/close\r\n")
        wire.get(b"nothing")
        wire.values(b"get q nothing")
        stats = wire.stats()
        counted = {
            name: int(stats[name]) for name in ["cmd_set", "cmd_get", "cmd_peek", "get_hits", "get_misses"]
        }
        assert counted == {"cmd_set": 4, "cmd_get": 5, "cmd_peek": 1, "get_hits": 3, "get_misses": 2}

    @pytest.mark.leveldb("bytes are those that the stream takes")
    def test_count_items_and_bytes(self, server, wire):
        wire.set(b"q", b"12345")
        wire.set(b"q", bytes(CHUNK_BYTES * 2))
        wire.set(b"r", b"12")
        stats = wire.stats()
        size = CHUNK_BYTES * 2 + 7
        assert [int(stats[name]) for name in ("curr_items", "total_items", "bytes")] == [3, 3, size]
        wire.get(b"q/open")
        wire.get(b"r")
        stats = wire.stats()
        size = CHUNK_BYTES * 2
        assert [int(stats[name]) for name in ("curr_items", "total_items", "bytes")] == [1, 3, size]
        wire.ask(b"delete q\r\n")
        stats = wire.stats()
        assert [int(stats[name]) for name in ("curr_items", "total_items", "bytes")] == [0, 3, 0]

    @pytest.mark.leveldb("bytes are those that the stream takes")
    def test_count_items_and_bytes_after_a_kill(self, server, wire):
        for n in range(500):
            wire.set(b"q", b"x" * n)
        for _ in range(100):
            wire.get(b"q")
        wire.get(b"q/open")
        server.restart()
        stats = server.connect().stats()
        size = sum(range(100, 500))
        assert [int(stats[name]) for name in ("curr_items", "bytes")] == [400, size]
        assert [int(stats[f"queue_q_{name}"]) for name in ("items", "bytes")] == [400, size]

    def test_count_queues(self, server, wire):
        wire.set(b"a", b"x")
        wire.set(b"b", b"x")
        wire.ask(b"delete a\r\n")
        wire.ask(b"delete nothing\r\n")
        stats = wire.stats()
        assert [stats[f"queue_{name}"] for name in ("creates", "deletes", "expires")] == ["2", "1", "0"]

    def test_count_the_bytes_of_connections(self, server, wire):
        request = b"set q 0 0 5\r\n12345\r\nget q\r\n"
        wire.send(request)
        reply = b"STORED\r\nVALUE q 0 5\r\n12345\r\nEND\r\n"
        assert wire.exactly(len(reply)) == reply
        stats = wire.stats()
        assert int(stats["bytes_read"]) == len(request) + len(b"stats\r\n")
        assert int(stats["bytes_written"]) == len(reply)
        data = bytes(1_000_000)
        before = wire.stats()
        wire.set(b"q", data)
        wire.get(b"q")
        after = wire.stats()
        for name in ("bytes_read", "bytes_written"):
            assert 1_000_000 < int(after[name]) - int(before[name]) < 1_010_000

    @pytest.mark.leveldb("bytes are those that the stream takes, and the cluster counts no expired items")
    def test_tell_of_a_queue(self, server, wire):
        before_ms = time.time() * 1000
        for data in (b"1", b"22", b"333", b"4444"):
            wire.set(b"q", data)
        wire.set(b"q", b"old", exptime=-1)
        wire.get(b"q")
        wire.get(b"q/open")
        wire.get(b"q/abort")
        wire.get(b"q/open")
        waiter = server.connect()
        waiter.send(b"get r/t=20000\r\n")
        until(lambda: of_queue(wire, b"r").get("waiters") == 1)
        until(lambda: of_queue(wire, b"q").get("expired_items") == 1)
        until(lambda: of_queue(wire, b"q").get("logsize") > 0)
        stats = of_queue(wire, b"q")
        create_time = stats.pop("create_time")
        assert abs(create_time - before_ms) < 5000
        assert 0 < stats.pop("logsize") < 1_000_000
        assert 0 <= stats.pop("age") < 5000
        assert 0 <= stats.pop("head_age") < 5000
        assert stats == {
            "items": 2, "bytes": 7, "total_items": 5, "expired_items": 1, "mem_items": 2, "mem_bytes": 7,
            "discarded": 0, "duplicates": 0, "damaged_items": 0, "waiters": 0, "open_transactions": 1,
            "transactions": 2, "canceled_transactions": 1, "total_flushes": 0, "delayed_items": 0,
            "max_items": 0, "max_bytes": 0,
        }  # fmt: skip

    def test_age_is_how_long_the_last_fetched_item_had_waited(self, server, wire):
        wire.set(b"q", b"a")
        wire.set(b"q", b"b")
        wire.ask(b"get nothing/t=300\r\n")
        wire.get(b"q")
        assert 290 <= of_queue(wire, b"q")["age"] < 3000
        wire.get(b"q")
        assert of_queue(wire, b"q")["age"] == 0

    @pytest.mark.leveldb("no item is in memory")
    def test_memory_of_a_deep_queue_is_not_all_of_it(self, server, wire):
        wire.send(b"set q 0 0 1000 noreply\r\n%s\r\n" % bytes(1000) * 5000)
        stats = of_queue(wire, b"q")
        assert stats["items"] == 5000
        assert 0 < stats["mem_items"] < 5000
        assert 0 < stats["mem_bytes"] < 5_000_000

    def test_reset_zeroes_what_counts_events(self, server, wire):
        wire.set(b"q", b"x")
        wire.set(b"q", b"y")
        wire.get(b"q")
        wire.ask(b"delete nothing\r\n")
        wire.send(b"touch a 1 noreply\r\n")
        before = wire.stats()
        assert wire.ask(b"stats reset\r\n") == b"RESET\r\n"
        stats = wire.stats()
        zero = "total_items total_connections cmd_get cmd_set cmd_peek get_hits get_misses queue_creates"
        for name in [*zero.split(), "noreply_errors", "queue_q_total_items", "queue_q_transactions"]:
            assert stats[name] == "0", name
        assert (stats["curr_items"], stats["curr_connections"]) == ("1", "1")
        assert stats["bytes"] == before["bytes"] != "0"
        assert wire.get(b"q") == b"y"

    @pytest.mark.parametrize("line", [b"stats items", b"stats slabs", b"stats reset now", b"stats a b c"])
    def test_of_anything_else_are_empty(self, client, line):
        assert client.ask(line + b"\r\n") == b"END\r\n"


class TestKestrelDialect:
    @pytest.fixture
    def kestrel(self, tmp_path):
        config = tmp_path / "darner.toml"
        config.write_text('dialect = "kestrel"\n')
        with running(tmp_path / "data", "-c", str(config)) as server:
            yield server.connect()

    def test_replies_with_the_bare_queue(self, kestrel):
        for data in (b"a", b"b", bytes(CHUNK_BYTES + 1)):
            kestrel.set(b"q", data)
        assert kestrel.values(b"get q/peek") == [(b"q", 0, None, b"a")]
        assert kestrel.values(b"gets q/open/t=10") == [(b"q", 0, 1, b"a")]
        assert kestrel.values(b"get q/close/open r") == [(b"q", 0, None, b"b")]
        assert kestrel.values(b"get q/close/open") == [(b"q", 0, None, bytes(CHUNK_BYTES + 1))]

    def test_of_flush_all_says_so(self, kestrel):
        assert kestrel.ask(b"flush_all\r\n") == b"Flushed all queues.\r\n"
        assert kestrel.ask(b"flush_all 10\r\n") == b"Flushed all queues.\r\n"
        kestrel.send(b"flush_all noreply\r\n")
        assert kestrel.ask(b"version\r\n").startswith(b"VERSION ")

    def test_else_is_the_same(self, kestrel):
        assert kestrel.set(b"q", b"x") == b"STORED\r\n"
        assert kestrel.ask(b"delete q\r\n") == b"DELETED\r\n"
        assert kestrel.ask(b"flush q\r\n") == b"END\r\n"
        assert kestrel.ask(b"verbosity 1\r\n") == b"OK\r\n"
        assert kestrel.ask(b"add q 0 0 1\r\nx\r\n") == b"CLIENT_ERROR add is not supported\r\n"
