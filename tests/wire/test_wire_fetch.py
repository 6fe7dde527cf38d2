"""`get` and its options, waiting, and reliable reads."""

import contextlib
import itertools
import re
import socket
import time

import pytest
from running import until

from darner._records import CHUNK_BYTES

NO_CURSORS = pytest.mark.leveldb("cursors are refused")
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"


def fill(wire, queue: bytes, *datas: bytes) -> None:
    for data in datas:
        assert wire.set(queue, data) == b"STORED\r\n"


def held(server, queue: bytes) -> int:
    return server.stat(f"queue_{queue.decode()}_open_transactions")


class TestGet:
    def test_takes_items_in_order(self, client, queue):
        fill(client, queue, b"a", b"b", b"c")
        assert client.take_all(queue) == [b"a", b"b", b"c"]

    def test_of_nothing_is_end(self, client, queue):
        assert client.ask(b"get %s\r\n" % queue) == b"END\r\n"

    @pytest.mark.parametrize("options", [b"", b"/open", b"/peek", b"/t=10", b"/close/open/t=1", b"/t=0/peek"])
    def test_replies_with_the_key_it_was_asked_for(self, client, queue, options):
        fill(client, queue, b"x")
        assert client.values(b"get " + queue + options) == [(queue + options, 0, None, b"x")]

    def test_is_gone_after_a_kill(self, server, wire):
        fill(wire, b"q", b"a", b"b")
        assert wire.get(b"q") == b"a"
        server.restart()
        assert server.connect().take_all(b"q") == [b"b"]


class TestNobody:
    """A queue that does not exist."""

    @pytest.mark.parametrize(
        "request_",
        [
            b"get %s", b"gets %s", b"get %s %s", b"get %s/open", b"get %s/close", b"get %s/abort",
            b"get %s/close/open", b"get %s/peek", b"get %s/peek %s/close", b"get %s/t=1", b"get %s/open/t=1",
            b"get %s/peek/t=1", pytest.param(b"get %s/cursor=c", marks=NO_CURSORS),
            pytest.param(b"get %s/cursor=c/open/t=1", marks=NO_CURSORS),
            pytest.param(b"get %s/cursor=c/peek", marks=NO_CURSORS),
            b"monitor %s 0", b"monitor %s 0 9", b"get %s+child/peek", b"get %s+child/close",
            b"get %s+child/peek/t=1", pytest.param(b"get %s+child/cursor=c", marks=NO_CURSORS),
            b"flush %s", b"flush_expired %s", b"delete %s",
            pytest.param(b"delete %s/cursor=c", marks=NO_CURSORS), b"confirm %s 1",
        ],
    )  # fmt: skip
    def test_is_not_made_by_who_only_asks_for_it(self, standing, client, queue, request_):
        reply = client.ask(request_.replace(b"%s", queue) + b"\r\n")
        assert reply in (b"END\r\n", b"DELETED\r\n", b"0\r\n", b"ERROR\r\n")
        assert [name for name in client.stats() if queue.decode() in name] == []
        assert list(standing.data.glob(f"{queue.decode()}*")) == []

    def test_is_shown_while_somebody_waits_for_it_and_once_it_comes(self, standing, client, other, queue):
        prefix = f"queue_{queue.decode()}_"
        client.send(b"get %s/peek/t=60000\r\n" % queue)
        other.send(b"monitor %s 60 1\r\n" % queue)
        until(lambda: standing.waiters(queue) == 2)
        assert standing.stat(prefix + "items") == 0
        assert list(standing.data.glob(f"{queue.decode()}*")) == []
        other.reset()
        until(lambda: standing.waiters(queue) == 1)
        with contextlib.closing(standing.connect()) as third:
            third.send(b"dump_stats %s\r\n" % queue)
            assert third.line() == b"queue '%s' {\r\n" % queue
            assert third.line() == b"  items=0\r\n"
        with contextlib.closing(standing.connect()) as third:
            fill(third, queue, b"x")
            assert client.line() == b"VALUE %s/peek/t=60000 0 1\r\n" % queue
            assert prefix + "items" in third.stats()

    @pytest.mark.parametrize("request_", [b"get %s", b"monitor %s 1", b"get %s/open"])
    def test_is_made_as_a_child_by_who_takes_from_it(self, client, queue, request_):
        child = queue + b"+child"
        client.ask(request_ % child + b"\r\n")
        fill(client, queue, b"x")
        assert client.get(child) == b"x"

    @NO_CURSORS
    def test_leaves_no_memory_behind_once_it_was_asked_for(self, server, wire):
        def ask(count):
            for start in range(0, count, 500):
                both = b"get nobody-%d\r\nget nobody-%d/cursor=c/peek\r\n"
                wire.send(b"".join(both % (n, n) for n in range(start, start + 500)))
                assert wire.exactly(1000 * 5) == b"END\r\n" * 1000

        ask(1000)
        before = server.resident_bytes
        ask(50_000)
        # a few bytes for each would add up to a megabyte
        assert server.resident_bytes - before < 1 << 20
        assert [name for name in wire.stats() if name.startswith("queue_n")] == []


class TestGets:
    def test_adds_ids_that_start_at_1(self, client, queue):
        fill(client, queue, b"a", b"b", bytes(CHUNK_BYTES + 1))
        assert [client.values(b"gets " + queue)[0][2] for _ in range(3)] == [1, 2, 3]

    def test_ids_go_on_after_a_restart(self, server, wire):
        fill(wire, b"q", b"a", b"b")
        assert wire.values(b"gets q") == [(b"q", 0, 1, b"a")]
        server.restart()
        again = server.connect()
        fill(again, b"q", b"c")
        assert [again.values(b"gets q")[0][2] for _ in range(2)] == [2, 3]

    def test_takes_options_and_several_keys(self, client, queue):
        fill(client, queue, b"a")
        fill(client, queue + b"2", b"b")
        assert client.values(b"gets %s/open %s2/peek" % (queue, queue)) == [
            (queue + b"/open", 0, 1, b"a"),
            (queue + b"2/peek", 0, 1, b"b"),
        ]


class TestSeveralKeys:
    def test_yield_at_most_one_item_each(self, client, queue):
        fill(client, queue + b"a", b"1", b"2")
        fill(client, queue + b"c", b"3")
        request = b"get %sa %sb %sc" % (queue, queue, queue)
        assert client.values(request) == [(queue + b"a", 0, None, b"1"), (queue + b"c", 0, None, b"3")]
        assert client.values(request) == [(queue + b"a", 0, None, b"2")]
        assert client.values(request) == []

    def test_may_name_a_queue_twice(self, client, queue):
        fill(client, queue, b"1", b"2")
        assert [value[3] for value in client.values(b"get %s %s %s" % (queue, queue, queue))] == [b"1", b"2"]

    def test_yield_large_and_small_items_in_order(self, client, queue):
        datas = [b"1", bytes(CHUNK_BYTES * 2), b"", b"4", bytes(CHUNK_BYTES + 1)]
        for n, data in enumerate(datas):
            fill(client, b"%s%d" % (queue, n), data)
        names = b" ".join(b"%s%d" % (queue, n) for n in range(5))
        assert [value[3] for value in client.values(b"get " + names)] == datas

    @pytest.mark.parametrize("left", [3, 2, 1, 0])
    def test_of_a_size_that_fills_the_replies_to_be_sent_at_once_do_not_end_the_connection(
        self, client, queue, left
    ):
        data = bytes((256 << 10) - len(b"VALUE %s 0 262144\r\n" % queue) - left)
        fill(client, queue, data)
        assert client.get(queue) == data
        assert client.get(queue) is None

    @pytest.mark.parametrize("options", [b"/t=100", b"/t=0", b"/open/t=5"])
    def test_do_not_wait(self, client, queue, options):
        fill(client, queue, b"x")
        assert client.ask(b"get %s a%s\r\n" % (queue, options)).startswith(b"CLIENT_ERROR ")
        assert client.ask(b"get a%s %s\r\n" % (options, queue)).startswith(b"CLIENT_ERROR ")
        assert client.get(queue) == b"x"

    def test_with_one_bad_take_nothing(self, client, queue):
        fill(client, queue, b"x")
        assert client.ask(b"get %s a/nonsense\r\n" % queue).startswith(b"CLIENT_ERROR ")
        assert client.ask(b"get %s %s\r\n" % (queue, b"n" * 251)).startswith(b"CLIENT_ERROR ")
        assert client.get(queue) == b"x"

    @pytest.mark.parametrize("second", [b"%s/open", b"%s", b"x %s/open"])
    def test_do_not_reserve_two_items_of_a_queue(self, client, queue, second):
        fill(client, queue, b"a", b"b")
        assert client.ask(b"get %s/open %s\r\n" % (queue, second % queue)) == CLOSE_FIRST
        assert client.take_all(queue) == [b"a", b"b"]

    def test_reserve_close_and_reserve_again(self, standing, client, queue):
        fill(client, queue, b"a", b"b")
        values = client.values(b"get %s/open %s/close/open" % (queue, queue))
        assert [value[3] for value in values] == [b"a", b"b"]
        assert held(standing, queue) == 1
        assert client.values(b"get %s/close x" % queue) == []
        assert client.get(queue) is None

    def test_abort_close_and_peek_each_their_queue(self, client, queue):
        names = [queue + b"a", queue + b"b", queue + b"c"]
        for name in names:
            fill(client, name, b"1")
        assert len(client.values(b"get %sa/open %sb/open" % (queue, queue))) == 2
        values = client.values(b"get %sa/abort %sb/close %sc/peek" % (queue, queue, queue))
        assert values == [(queue + b"c/peek", 0, None, b"1")]
        assert [client.take_all(name) for name in names] == [[b"1"], [], [b"1"]]


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            b"abort/open",
            b"abort/close",
            b"abort/peek",
            b"abort/t=5",
            b"open/peek",
            b"peek/t=5/open",
            b"nonsense",
            b"OPEN",
            b"t",
            b"t=",
            b"t=x",
            b"t=-1",
            b"t=1.5",
            b"open/",
            b"",
            b"/open",
            b"sync",
            b"opens",
            b"t=5/x",
        ],
    )
    def test_that_do_not_go_together_or_are_unknown_are_refused(self, client, queue, options):
        fill(client, queue, b"x")
        assert client.ask(b"get %s/%s\r\n" % (queue, options)).startswith(b"CLIENT_ERROR ")
        assert client.take_all(queue) == [b"x"]

    @pytest.mark.parametrize(
        "options", [b"/".join(some) for some in itertools.permutations([b"close", b"open", b"t=100"])]
    )
    def test_go_together_in_any_order(self, standing, client, queue, options):
        fill(client, queue, b"a", b"b", b"c")
        assert client.get(queue + b"/open") == b"a"
        assert client.get(queue + b"/" + options) == b"b"
        assert held(standing, queue) == 1
        client.get(queue + b"/close")
        assert client.take_all(queue) == [b"c"]

    @pytest.mark.parametrize("options", [b"/close", b"/abort", b"/close/t=5"])
    def test_that_fetch_nothing_answer_end(self, client, queue, options):
        fill(client, queue, b"x")
        assert client.ask(b"get %s%s\r\n" % (queue, options)) == b"END\r\n"
        assert client.get(queue) == b"x"

    def test_peek_leaves_the_item(self, client, queue):
        fill(client, queue, b"x")
        assert client.get(queue + b"/peek") == b"x"
        assert client.get(queue + b"/peek") == b"x"
        assert client.take_all(queue) == [b"x"]

    def test_peek_of_a_large_item_leaves_it(self, client, queue):
        data = b"ab" * CHUNK_BYTES
        fill(client, queue, data)
        assert client.get(queue + b"/peek") == data
        assert client.take_all(queue) == [data]

    def test_peek_from_an_id_pages_through_the_queue_and_leaves_it(self, client, queue):
        large = b"ab" * CHUNK_BYTES
        datas = [b"a", b"b", large, b"c"]
        fill(client, queue, *datas)
        looks = client.stats()["cmd_peek"]
        found, id = [], 1
        while (page := client.gets(queue + b"/peek/from=%d" % id)) is not None:
            found.append(page[1])
            id = page[0] + 1
        assert found == datas
        assert int(client.stats()["cmd_peek"]) - int(looks) == len(datas) + 1
        assert client.take_all(queue) == datas

    @pytest.mark.leveldb("an item that has come back is not shown before it is fetched again")
    def test_peek_from_an_id_leaves_out_what_others_hold(self, client, other, queue):
        fill(client, queue, b"a", b"b", b"c")
        assert other.get(queue + b"/open") == b"a"
        assert client.get(queue + b"/peek/from=1") == b"b"
        other.ask(b"get %s/abort\r\n" % queue)
        assert client.get(queue + b"/peek/from=1") == b"a"

    @NO_CURSORS
    def test_peek_from_an_id_through_a_cursor_finds_what_it_has_still_to_read(self, client, queue):
        fill(client, queue, b"a", b"b", b"c")
        assert client.get(queue + b"/cursor=x") == b"a"
        assert client.get(queue + b"/cursor=x/peek/from=1") == b"b"
        assert client.get(queue + b"/cursor=x/peek/from=1") == b"b"

    def test_peek_from_an_id_goes_with_several_queues_and_meta_commands(self, client, queue):
        fill(client, queue, b"a", b"b")
        fill(client, queue + b"2", b"c")
        keys = (queue + b"/peek/from=2", queue + b"3/peek/from=1", queue + b"2/peek/from=1")
        found = client.values(b"gets %s" % b" ".join(keys))
        assert [(key, id, data) for key, _, id, data in found] == [(keys[0], 2, b"b"), (keys[2], 1, b"c")]
        client.send(b"mg %s c v\r\n" % keys[0])
        assert (client.line(), client.line()) == (b"VA 1 c2\r\n", b"b\r\n")
        client.send(b"mg %s v\r\n" % keys[1])
        assert client.line() == b"EN\r\n"

    def test_peek_from_an_id_gets_past_any_number_of_expired_items(self, client, queue):
        name = queue + b"-long"
        fill(client, name, b"first")
        client.send(b"".join(b"set %s 0 -1 1 noreply\r\nx\r\n" % name for _ in range(3000)))
        fill(client, name, b"last")
        assert client.get(name + b"/peek/from=2") == b"last"

    def test_peek_is_let_while_an_item_is_held(self, client, queue):
        fill(client, queue, b"a", b"b")
        client.get(queue + b"/open")
        assert client.get(queue + b"/peek") == b"b"

    def test_close_and_peek_closes_and_looks(self, client, queue):
        fill(client, queue, b"a", b"b")
        client.get(queue + b"/open")
        assert client.get(queue + b"/close/peek") == b"b"
        assert client.take_all(queue) == [b"b"]

    def test_close_of_the_last_item_waits_for_the_next(self, standing, client, other, queue):
        fill(client, queue, b"a")
        client.get(queue + b"/open")
        client.send(b"get %s/close/open/t=10000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        assert held(standing, queue) == 0
        fill(other, queue, b"b")
        assert client.line() == b"VALUE %s/close/open/t=10000 0 1\r\n" % queue
        assert client.exactly(8) == b"b\r\nEND\r\n"
        assert held(standing, queue) == 1


class TestWait:
    def test_ends_when_an_item_comes(self, standing, client, other, queue):
        client.send(b"get %s/t=10000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        fill(other, queue, b"x")
        assert client.line() == b"VALUE %s/t=10000 0 1\r\n" % queue
        assert client.exactly(8) == b"x\r\nEND\r\n"
        assert standing.waiters(queue) == 0

    def test_ends_when_a_large_item_has_come(self, standing, client, other, queue):
        client.send(b"get %s/t=10000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        data = b"abc" * CHUNK_BYTES
        fill(other, queue, data)
        assert client.line() == b"VALUE %s/t=10000 0 %d\r\n" % (queue, len(data))
        assert client.exactly(len(data) + 7) == data + b"\r\nEND\r\n"

    def test_ends_when_an_item_is_aborted(self, standing, client, other, queue):
        fill(other, queue, b"x")
        other.get(queue + b"/open")
        client.send(b"get %s/t=10000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        other.get(queue + b"/abort")
        assert client.line().startswith(b"VALUE ")

    def test_times_out_after_so_many_milliseconds(self, standing, client, queue):
        start = time.monotonic()
        assert client.ask(b"get %s/t=200\r\n" % queue) == b"END\r\n"
        assert 0.19 < time.monotonic() - start < 2
        assert standing.waiters(queue) == 0

    def test_of_no_time_does_not_wait(self, client, queue):
        assert client.ask(b"get %s/t=0\r\n" % queue) == b"END\r\n"

    def test_of_a_very_long_time_is_taken(self, standing, client, other, queue):
        client.send(b"get %s/t=999999999999999999\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        fill(other, queue, b"x")
        assert client.line().startswith(b"VALUE ")

    def test_is_served_first_come_first_served(self, standing, queue):
        clients = [standing.connect() for _ in range(20)]
        for n, client in enumerate(clients):
            client.send(b"get %s%s/t=20000\r\n" % (queue, b"/open" if n % 2 else b""))
            until(lambda n=n: standing.waiters(queue) == n + 1)
        sender = standing.connect()
        sender.send(b"".join(b"set %s 0 0 2\r\n%02d\r\n" % (queue, n) for n in range(20)))
        for n, client in enumerate(clients):
            assert client.line().startswith(b"VALUE ")
            assert client.exactly(9) == b"%02d\r\nEND\r\n" % n
        for client in clients:
            client.close()

    def test_of_peekers_and_takers_is_served_from_one_item(self, standing, client, other, queue):
        client.send(b"get %s/peek/t=10000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        other.send(b"get %s/t=10000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 2)
        fill(sender := standing.connect(), queue, b"x")
        for wire in (client, other):
            assert wire.line().startswith(b"VALUE ")
            assert wire.exactly(8) == b"x\r\nEND\r\n"
        assert sender.get(queue) is None

    @pytest.mark.parametrize("go", ["close", "reset", "half_close"])
    @pytest.mark.parametrize("options", [b"/t=20000", b"/open/t=20000", b"/close/open/t=20000"])
    def test_of_a_client_that_goes_swallows_nothing(self, standing, client, queue, go, options):
        gone = standing.connect()
        gone.send(b"get %s%s\r\n" % (queue, options))
        until(lambda: standing.waiters(queue) == 1)
        getattr(gone, go)()
        until(lambda: standing.waiters(queue) == 0)
        fill(client, queue, b"x")
        assert client.get(queue) == b"x"

    @pytest.mark.parametrize("go", ["close", "reset"])
    def test_of_a_client_that_goes_in_the_same_instant_swallows_nothing(self, standing, client, queue, go):
        for n in range(100):
            gone = standing.connect()
            gone.send(b"get %s/open/t=20000\r\n" % queue)
            if n % 2:
                until(lambda: standing.waiters(queue) == 1)
            getattr(gone, go)()
            fill(client, queue, b"%d" % n)
            until(lambda: standing.waiters(queue) == 0 and held(standing, queue) == 0)
            assert client.get(queue) == b"%d" % n

    @pytest.mark.parametrize("go", ["close", "reset"])
    def test_of_a_client_that_goes_with_much_behind_it_swallows_nothing(self, standing, client, queue, go):
        gone = standing.connect()
        gone.send(b"get %s/t=20000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        gone.send(b"nonsense\r\n" * 10_000)
        getattr(gone, go)()
        fill(client, queue, b"x")
        assert client.get(queue) == b"x"

    def test_passes_over_a_client_that_has_gone(self, standing, client, other, queue):
        gone = standing.connect()
        gone.send(b"get %s/t=20000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        client.send(b"get %s/t=20000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 2)
        gone.close()
        until(lambda: standing.waiters(queue) == 1)
        fill(other, queue, b"x")
        assert client.line().startswith(b"VALUE ")

    def test_holds_back_nobody_else(self, standing, client, other, queue):
        client.send(b"get %s/t=20000\r\n" % queue)
        until(lambda: standing.waiters(queue) == 1)
        assert other.ask(b"version\r\n").startswith(b"VERSION ")
        assert other.ask(b"get %s2\r\n" % queue) == b"END\r\n"

    def test_of_2_000_clients_is_served(self, server):
        clients = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(2000)]
        for client in clients:
            client.sendall(b"get q/t=60000\r\n")
        until(lambda: server.waiters(b"q") == 2000, 20)
        server.connect().send(b"set q 0 0 1 noreply\r\nx\r\n" * 2000)
        reply = b"VALUE q/t=60000 0 1\r\nx\r\nEND\r\n"
        for client in clients:
            assert client.recv(100) == reply
            client.close()


class TestReliableRead:
    def test_sets_the_item_aside(self, client, other, queue):
        fill(client, queue, b"a", b"b")
        assert client.get(queue + b"/open") == b"a"
        assert other.get(queue) == b"b"
        assert other.get(queue) is None

    def test_once_closed_is_done(self, standing, client, queue):
        fill(client, queue, b"a", b"b")
        client.get(queue + b"/open")
        assert client.ask(b"get %s/close\r\n" % queue) == b"END\r\n"
        assert held(standing, queue) == 0
        assert client.take_all(queue) == [b"b"]

    def test_once_aborted_is_fetched_next(self, client, other, queue):
        fill(client, queue, b"a", b"b")
        client.get(queue + b"/open")
        assert client.ask(b"get %s/abort\r\n" % queue) == b"END\r\n"
        assert other.take_all(queue) == [b"a", b"b"]

    def test_may_be_of_a_large_item_and_come_back_whole(self, standing, client, other, queue):
        data = b"abcdefg" * CHUNK_BYTES
        fill(client, queue, data)
        assert client.get(queue + b"/open") == data
        client.get(queue + b"/abort")
        assert other.get(queue + b"/open") == data
        other.close()
        until(lambda: held(standing, queue) == 0)
        assert client.take_all(queue) == [data]

    @pytest.mark.parametrize("second", [b"/open", b"", b"/open/t=100", b"/t=100"])
    def test_is_one_at_a_time_for_a_queue_and_connection(self, client, other, queue, second):
        fill(client, queue, b"a", b"b")
        client.get(queue + b"/open")
        assert client.ask(b"get %s%s\r\n" % (queue, second)) == CLOSE_FIRST
        assert client.ask(b"get %s x\r\n" % queue) == CLOSE_FIRST
        assert other.get(queue + b"/open") == b"b"
        client.get(queue + b"/close")
        assert client.ask(b"get %s/open\r\n" % queue) == b"END\r\n"

    def test_may_be_of_several_queues_at_once(self, client, queue):
        names = [b"%s%d" % (queue, n) for n in range(5)]
        for name in names:
            fill(client, name, name)
        for name in names:
            assert client.get(name + b"/open") == name
        for name in names:
            client.get(name + b"/close")
            assert client.get(name) is None

    @pytest.mark.parametrize("go", ["close", "reset", "half_close"])
    def test_comes_back_in_order_when_its_client_goes(self, standing, client, queue, go):
        fill(client, queue, b"a", b"b")
        gone = standing.connect()
        gone.get(queue + b"/open")
        getattr(gone, go)()
        until(lambda: held(standing, queue) == 0)
        assert client.take_all(queue) == [b"a", b"b"]

    def test_comes_back_when_its_client_quits(self, standing, client, queue):
        fill(client, queue, b"a")
        gone = standing.connect()
        gone.get(queue + b"/open")
        gone.send(b"quit\r\n")
        assert gone.closed()
        assert client.get(queue) == b"a"

    def test_comes_back_when_its_client_is_closed_for_an_error(self, standing, client, queue):
        fill(client, queue, b"a")
        gone = standing.connect()
        gone.get(queue + b"/open")
        assert gone.ask(b"x" * 3000) == b"CLIENT_ERROR line too long\r\n"
        gone.close()
        until(lambda: held(standing, queue) == 0)
        assert client.get(queue) == b"a"

    @pytest.mark.leveldb("items that go back come in the order of their returns")
    def test_of_several_clients_all_come_back(self, standing, client, queue):
        fill(client, queue, *[b"%d" % n for n in range(10)])
        others = [standing.connect() for _ in range(5)]
        assert [other.get(queue + b"/open") for other in others] == [b"%d" % n for n in range(5)]
        for other in reversed(others):
            other.close()
            until(lambda other=other: held(standing, queue) == len(others) - others[::-1].index(other) - 1)
        assert client.take_all(queue) == [b"%d" % n for n in range(10)]

    @pytest.mark.leveldb("items of one that is killed come back after ack_wait")
    def test_comes_back_after_a_kill(self, server, wire):
        fill(wire, b"q", b"a", b"b", b"c")
        assert wire.get(b"q/open") == b"a"
        assert server.connect().get(b"q/open") == b"b"
        server.restart()
        assert server.connect().take_all(b"q") == [b"a", b"b", b"c"]

    @pytest.mark.leveldb("items of one that is killed come back after ack_wait")
    def test_once_closed_is_gone_after_a_kill(self, server, wire):
        fill(wire, b"q", b"a", b"b", b"c")
        wire.get(b"q/open")
        wire.get(b"q/close/open")
        server.restart()
        assert server.connect().take_all(b"q") == [b"b", b"c"]

    def test_of_another_connection_is_not_touched_by_close_or_abort(self, standing, client, other, queue):
        fill(client, queue, b"a")
        client.get(queue + b"/open")
        assert other.ask(b"get %s/close\r\n" % queue) == b"END\r\n"
        assert other.ask(b"get %s/abort\r\n" % queue) == b"END\r\n"
        assert held(standing, queue) == 1
        client.close()
        until(lambda: held(standing, queue) == 0)
        assert other.get(queue) == b"a"

    @pytest.mark.leveldb("above max_payload")
    def test_of_a_client_that_went_while_it_was_sent_comes_back(self, standing, client, queue):
        data = bytes(32 << 20)
        fill(client, queue, data)
        gone = standing.connect()
        gone.send(b"get %s/open\r\n" % queue)
        assert gone.line().startswith(b"VALUE ")
        gone.reset()
        until(lambda: held(standing, queue) == 0)
        assert client.get(queue) == data


def test_keys_in_errors_are_not_taken_for_values(client):
    reply = client.ask(b"get VALUE/x\r\n")
    assert re.fullmatch(rb"CLIENT_ERROR [ -~]+\r\n", reply)
