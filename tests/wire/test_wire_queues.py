"""Fanout, `monitor`, `confirm`, `status`, `dump_stats`, `dump_config`, over the wire."""

import pytest
from running import until

from darner._records import CHUNK_BYTES

LARGE = b"x" * (3 * CHUNK_BYTES + 5)
NO_CURSORS = pytest.mark.leveldb("cursors are refused")


class TestFanout:
    def test_gives_each_child_every_item_set_since_it_came(self, client, queue):
        child = queue + b"+child"
        client.set(queue, b"before")
        assert client.get(child) is None
        assert client.set(queue, b"1", 7) == b"STORED\r\n"
        assert client.set(queue + b"/sync", b"2") == b"STORED\r\n"
        assert client.set(queue, LARGE) == b"STORED\r\n"
        assert client.set(queue + b"/sync", LARGE) == b"STORED\r\n"
        assert client.values(b"get " + child) == [(child, 7, None, b"1")]
        assert client.take_all(child) == [b"2", LARGE, LARGE]
        assert client.take_all(queue) == [b"before", b"1", b"2", LARGE, LARGE]

    def test_serves_who_waits_on_a_child(self, standing, client, other, queue):
        child = queue + b"+child"
        client.send(b"get %s/t=10000\r\n" % child)
        until(lambda: standing.waiters(child) == 1)
        other.set(queue, b"x")
        assert client.line() == b"VALUE %s/t=10000 0 1\r\n" % child
        assert other.get(queue) == b"x"

    def test_survives_a_kill_in_parent_and_children(self, server, wire):
        wire.get(b"orders+audit")
        wire.set(b"orders", b"1")
        wire.set(b"orders", LARGE)
        server.restart()
        wire = server.connect()
        assert wire.take_all(b"orders") == [b"1", LARGE]
        assert wire.take_all(b"orders+audit") == [b"1", LARGE]
        wire.set(b"orders", b"2")
        assert wire.take_all(b"orders+audit") == [b"2"]


class TestMonitor:
    def next(self, wire, queue):
        """Read the next item of a monitor; None at its end."""
        line = wire.line()
        if line == b"END\r\n":
            return None
        assert line.startswith(b"VALUE %s 0 " % queue), line
        data = wire.exactly(int(line.split()[3]))
        assert wire.exactly(7) == b"\r\nEND\r\n"
        return data

    def test_reserves_what_is_there_and_what_comes(self, standing, client, other, queue):
        other.set(queue, b"1")
        other.set(queue, LARGE)
        client.send(b"monitor %s 60 4\r\n" % queue)
        assert self.next(client, queue) == b"1"
        assert self.next(client, queue) == LARGE
        until(lambda: standing.waiters(queue) == 1)
        other.set(queue, LARGE)
        assert self.next(client, queue) == LARGE
        other.set(queue, b"4")
        assert self.next(client, queue) == b"4"
        assert self.next(client, queue) is None
        assert standing.stat(f"queue_{queue.decode()}_open_transactions") == 4
        assert client.ask(b"confirm %s 3\r\n" % queue) == b"END\r\n"
        assert client.ask(b"confirm %s 3\r\n" % queue) == b"END\r\n"
        assert client.ask(b"confirm %s 3\r\n" % queue) == b"ERROR\r\n"
        assert client.get(queue) is None

    def test_ends_when_its_time_is_over(self, client, queue):
        client.set(queue, b"x")
        client.send(b"monitor %s 1 5\r\n" % queue)
        assert self.next(client, queue) == b"x"
        assert self.next(client, queue) is None
        assert client.ask(b"monitor %s 0\r\n" % queue) == b"END\r\n"

    def test_without_a_number_takes_as_many_as_may_be_open(self, client, queue):
        client.set(queue, b"1")
        client.set(queue, b"2")
        client.send(b"monitor %s 60\r\n" % queue)
        assert self.next(client, queue) == b"1"
        assert self.next(client, queue) is None
        assert client.ask(b"monitor %s 60\r\n" % queue) == b"END\r\n"
        client.send(b"monitor %s 60 2\r\n" % queue)
        assert self.next(client, queue) == b"2"
        assert self.next(client, queue) is None
        assert client.ask(b"get %s\r\n" % queue) == b"CLIENT_ERROR close current item first\r\n"
        assert client.ask(b"confirm %s 9\r\n" % queue) == b"END\r\n"

    def test_that_got_one_queues_up_behind_the_others(self, standing, client, other, queue):
        client.send(b"monitor %s 60 9\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        other.send(b"monitor %s 60 9\r\n" % queue)
        until(lambda: standing.waiters(queue) == 2)
        third = standing.connect()
        # one after the other: in a turn that is over early, who has got one queues up only after it
        for n, monitor in enumerate([client, other, client, other]):
            third.set(queue, b"%d" % n)
            assert self.next(monitor, queue) == b"%d" % n
            until(lambda: standing.waiters(queue) == 2)
        third.close()

    def test_gives_all_back_in_order_when_the_client_goes(self, standing, client, other, queue):
        for n in range(5):
            client.set(queue, b"%d" % n)
        monitor = standing.connect()
        monitor.send(b"monitor %s 60 9\r\n" % queue)
        for n in range(5):
            assert self.next(monitor, queue) == b"%d" % n
        monitor.close()
        until(lambda: standing.stat(f"queue_{queue.decode()}_items") == 5)
        assert client.take_all(queue) == [b"0", b"1", b"2", b"3", b"4"]

    def test_of_a_client_that_does_not_read_takes_no_more_than_a_little(self, standing, client, queue):
        data = b"x" * CHUNK_BYTES
        for _ in range(300):
            client.set(queue, data)
        monitor = standing.connect()
        monitor.send(b"monitor %s 60 300\r\nversion\r\n" % queue)
        assert self.next(monitor, queue) == data
        assert standing.stat(f"queue_{queue.decode()}_open_transactions") < 300
        for _ in range(299):
            assert self.next(monitor, queue) == data
        assert self.next(monitor, queue) is None
        assert monitor.line().startswith(b"VERSION")
        monitor.close()

    @pytest.mark.parametrize(
        ("request_", "reply"),
        [
            (b"monitor", b"CLIENT_ERROR bad command line format"),
            (b"monitor q", b"CLIENT_ERROR bad command line format"),
            (b"monitor q x", b"CLIENT_ERROR bad command line format"),
            (b"monitor q 1 -1", b"CLIENT_ERROR bad command line format"),
            (b"monitor q 1 1 1", b"CLIENT_ERROR bad command line format"),
            (b"monitor a/b 1", b"CLIENT_ERROR bad queue name"),
            (b"confirm q", b"CLIENT_ERROR bad command line format"),
            (b"confirm q x", b"CLIENT_ERROR bad command line format"),
            (b"confirm q 0", b"ERROR"),
            (b"status sideways", b"CLIENT_ERROR unknown status: up, readonly or quiescent"),
            (b"status up now", b"CLIENT_ERROR bad command line format"),
            (b"shutdown", b"CLIENT_ERROR shutdown is not allowed"),
        ],
    )
    def test_and_its_like_refuse_what_they_do_not_understand(self, client, request_, reply):
        assert client.ask(request_ + b"\r\n").startswith(reply)
        assert client.ask(b"version\r\n").startswith(b"VERSION")


class TestStatus:
    def test_readonly_refuses_what_changes_queues(self, server, wire):
        wire.set(b"work", b"1")
        wire.set(b"work", b"2")
        assert wire.ask(b"status\r\n") == b"UP\r\n"
        assert wire.ask(b"status ReadOnly\r\n") == b"END\r\n"
        assert wire.ask(b"status\r\n") == b"READONLY\r\n"
        refused = b"SERVER_ERROR refused: the server is readonly\r\n"
        assert wire.set(b"work", b"3") == refused
        assert wire.set(b"work", LARGE) == refused
        assert wire.ask(b"delete work\r\n") == refused
        assert wire.ask(b"flush work\r\n") == refused
        assert wire.ask(b"flush_all\r\n") == refused
        assert wire.ask(b"flush_expired work\r\n") == refused
        assert wire.ask(b"flush_all_expired\r\n") == refused
        assert wire.get(b"work") == b"1"
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        assert wire.set(b"work", b"3") == b"STORED\r\n"
        assert wire.take_all(b"work") == [b"2", b"3"]

    @pytest.mark.leveldb("a status is of one darner and ends with it")
    def test_readonly_is_kept_over_a_restart(self, server, wire):
        assert wire.ask(b"status readonly\r\n") == b"END\r\n"
        server.restart()
        wire = server.connect()
        assert wire.ask(b"status\r\n") == b"READONLY\r\n"
        assert wire.set(b"work", b"1") == b"SERVER_ERROR refused: the server is readonly\r\n"
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        assert wire.set(b"work", b"1") == b"STORED\r\n"

    def test_quiescent_still_lets_what_is_reserved_be_closed_and_aborted(self, server, wire):
        for n in range(4):
            wire.set(b"work", b"%d" % n)
        others = [server.connect() for _ in range(3)]
        assert [other.get(b"work/open") for other in others] == [b"0", b"1", b"2"]
        assert wire.ask(b"status quiescent\r\n") == b"END\r\n"
        refused = b"SERVER_ERROR refused: the server is quiescent\r\n"
        for request in (
            b"get work",
            b"get work/open",
            b"get work/peek/t=10",
            b"gets work more",
            b"monitor work 1",
        ):
            assert wire.ask(request + b"\r\n") == refused
        assert wire.set(b"work", b"4") == refused
        assert others[0].get(b"work/close") is None
        assert others[1].ask(b"get work/close/open\r\n") == refused
        assert others[2].get(b"work/abort") is None
        assert wire.get(b"work/close") is None
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        assert wire.take_all(b"work") == [b"2", b"3"]

    @pytest.mark.parametrize(
        "request_",
        [
            b"get work/t=60000",
            b"get work/open/t=60000",
            pytest.param(b"get work/cursor=c/t=60000", marks=NO_CURSORS),
            b"monitor work 60",
        ],
    )
    def test_quiescent_ends_the_wait_of_those_who_wait(self, server, wire, request_):
        wire.set(b"work/delay=1", b"1", exptime=0)
        assert wire.get(b"work/t=60000") == b"1"
        waiting = server.connect()
        waiting.send(request_ + b"\r\nversion\r\n")
        until(lambda: server.waiters(b"work") == 1 or b"cursor" in request_)
        assert wire.ask(b"status readonly\r\n") == b"END\r\n"
        assert waiting.silent()
        assert wire.ask(b"status quiescent\r\n") == b"END\r\n"
        assert waiting.line() == b"SERVER_ERROR refused: the server is quiescent\r\n"
        assert waiting.line().startswith(b"VERSION ")
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        assert wire.set(b"work", b"2") == b"STORED\r\n"
        assert waiting.get(b"work") == b"2"

    @pytest.mark.leveldb("a large item on its way has no queue yet")
    def test_readonly_refuses_a_large_item_that_is_on_its_way(self, server, wire):
        other = server.connect()
        other.send(b"set work 0 0 %d\r\n" % len(LARGE) + LARGE[: 2 * CHUNK_BYTES])
        until(lambda: wire.stats().get("queue_work_items") == "0")
        assert wire.ask(b"status readonly\r\n") == b"END\r\n"
        other.send(LARGE[2 * CHUNK_BYTES :] + b"\r\nversion\r\n")
        assert other.line() == b"SERVER_ERROR refused: the server is readonly\r\n"
        assert other.line().startswith(b"VERSION ")
        assert wire.get(b"work") is None


class TestDump:
    def block(self, wire):
        """Read the next block of a dump; return its queue and its values."""
        line = wire.line()
        if line == b"END\r\n":
            return None
        assert line.startswith(b"queue '")
        assert line.endswith(b"' {\r\n")
        values = {}
        while (entry := wire.line()) != b"}\r\n":
            assert entry.startswith(b"  ")
            name, _, value = entry.strip().decode().partition("=")
            values[name] = value
        return line[7:-5].decode(), values

    def test_stats_says_of_each_queue_what_stats_does(self, server, wire):
        wire.set(b"work", b"hello")
        wire.get(b"work+copy")
        wire.send(b"dump_stats\r\n")
        name, values = self.block(wire)
        assert (name, values.pop("children")) == ("work", "work+copy")
        assert values["items"] == "1"
        assert self.block(wire)[0] == "work+copy"
        assert self.block(wire) is None
        stats = wire.stats()
        prefix = "queue_work_"
        assert list(values) == [k.removeprefix(prefix) for k in stats if k.startswith(prefix)]

    def test_of_some_queues_is_of_those_and_makes_none(self, client, queue):
        client.set(queue, b"x")
        for command in (b"dump_stats", b"dump_config"):
            client.send(b"%s %s nobody\r\n" % (command, queue))
            name, values = self.block(client)
            assert name == queue.decode()
            assert len(values) > 10
            assert self.block(client)[0] == "nobody"
            assert self.block(client) is None
        assert "queue_nobody_items" not in client.stats()

    def test_config_says_what_is_set_for_each_queue(self, client, queue):
        client.set(queue, b"x")
        client.send(b"dump_config %s\r\n" % queue)
        _, values = self.block(client)
        assert values["max_items"] == "none"
        assert values["sync"] == "never"
        assert values["durable"] == "true"
        assert values["max_open_reads"] == "1"
        assert self.block(client) is None


class TestCursor:
    @NO_CURSORS
    def test_does_all_that_a_queue_does(self, standing, client, other, queue):
        key = queue + b"/cursor=billing"
        for data in (b"1", b"2", LARGE):
            client.set(queue, data)
        assert client.values(b"gets %s %s/peek" % (key, key)) == [
            (key, 0, 1, b"1"), (key + b"/peek", 0, 2, b"2"),
        ]  # fmt: skip
        assert client.get(queue + b"/open") == b"1"
        assert client.get(key + b"/open") == b"2"
        assert client.ask(b"get %s\r\n" % key) == b"CLIENT_ERROR close current item first\r\n"
        assert client.get(key + b"/abort") is None
        assert client.get(key + b"/open") == b"2"
        assert client.get(key + b"/close/open") == LARGE
        assert client.get(key + b"/close") is None
        client.send(b"get %s/t=10000\r\n" % key)
        other.set(queue, b"4")
        assert client.line() == b"VALUE %s/t=10000 0 1\r\n" % key
        assert client.exactly(8) == b"4\r\nEND\r\n"
        assert client.ask(b"delete %s\r\n" % key) == b"DELETED\r\n"
        assert other.get(queue + b"/cursor=billing") == b"1"

    @pytest.mark.parametrize("key", [b"q/cursor=", b"q/cursor=a/cursor=b", b"q/cursor", b"/cursor=a"])
    def test_needs_a_name(self, client, key):
        assert client.ask(b"get %s\r\n" % key).startswith(b"CLIENT_ERROR ")

    @NO_CURSORS
    def test_survives_a_kill(self, server, wire):
        for data in (b"1", b"2", b"3"):
            wire.set(b"work", data)
        wire.get(b"work/cursor=a")
        wire.get(b"work/cursor=a/open")
        server.restart()
        wire = server.connect()
        assert wire.take_all(b"work/cursor=a") == [b"2", b"3"]
        assert wire.take_all(b"work") == [b"1", b"2", b"3"]
