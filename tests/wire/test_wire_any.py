"""A `get` that waits on several queues, and is served by one of them."""

import contextlib
import itertools
import time

import pytest
from running import configured, running, until

from darner._records import CHUNK_BYTES

NOT_HELD = b"CLIENT_ERROR no such reserved item\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"
LARGE = b"x" * (CHUNK_BYTES + 1)
NO_CURSORS = pytest.mark.leveldb("cursors are refused")


def keys(options, *queues):
    return b" ".join(queue + options for queue in queues)


@pytest.fixture
def queues(queue):
    return [queue + suffix for suffix in (b"a", b"b", b"c")]


def fill(wire, queue, *datas):
    for data in datas:
        assert wire.set(queue, data) == b"STORED\r\n"


def held(server, queue):
    return server.stat(f"queue_{queue.decode()}_open_transactions")


def begin(server, wire, options, *queues):
    """Send a get, and wait until it waits."""
    before = [server.waiters(queue) for queue in queues]
    wire.send(b"get %s\r\n" % keys(options, *queues))
    until(lambda: [server.waiters(queue) for queue in queues] == [count + 1 for count in before])


class TestAnItem:
    @pytest.mark.parametrize("options", [b"/t=0", b"/t=5000", b"/open/t=1000", b"/peek/t=0"])
    def test_is_that_of_the_first_queue_that_has_one(self, client, queues, options):
        first, second, third = queues
        fill(client, second, b"b1", b"b2")
        fill(client, third, b"c")
        asked = keys(options, *queues)
        assert client.values(b"gets " + asked) == [(second + options, 0, 1, b"b1")]
        fill(client, first, b"a")
        client.get(second + b"/close")
        assert client.values(b"get " + asked) == [(first + options, 0, None, b"a")]

    def test_is_taken_by_priority(self, client, queues):
        for queue in reversed(queues):
            fill(client, queue, queue + b"1", queue + b"2")
        got = iter(lambda: client.values(b"get " + keys(b"/t=0", *queues)), [])
        assert [value[3] for (value,) in got] == [queue + n for queue in queues for n in (b"1", b"2")]

    def test_is_one_in_all_with_options_of_each_key(self, standing, client, queues):
        for queue in queues:
            fill(client, queue, queue)
        first, second, third = queues
        asked = b"%s/peek/t=9 %s/open/t=9 %s/t=9" % (first, second, third)
        assert client.values(b"get " + asked) == [(first + b"/peek/t=9", 0, None, first)]
        assert client.get(first) == first
        assert client.values(b"get " + asked) == [(second + b"/open/t=9", 0, None, second)]
        assert held(standing, second) == 1
        assert client.get(third) == third

    def test_is_what_the_first_key_of_a_queue_asks_for(self, standing, client, queue):
        fill(client, queue, b"x")
        asked = b"%s/open/t=5 %s/t=5" % (queue, queue)
        assert client.values(b"get " + asked) == [(queue + b"/open/t=5", 0, None, b"x")]
        assert held(standing, queue) == 1

    @pytest.mark.parametrize(
        "options",
        [
            b"/t=0",
            b"/open/t=0",
            b"/peek/t=0",
            b"/close/t=0",
            pytest.param(b"/cursor=c/t=0", marks=NO_CURSORS),
        ],
    )
    def test_may_be_none(self, client, queues, options):
        assert client.ask(b"get %s\r\n" % keys(options, *queues)) == b"END\r\n"
        assert [name for name in client.stats() if queues[0].decode() in name] == []

    def test_may_be_large(self, client, queues):
        fill(client, queues[1], LARGE, b"small")
        for data in (LARGE, b"small"):
            assert client.values(b"get " + keys(b"/t=100", *queues)) == [
                (queues[1] + b"/t=100", 0, None, data)
            ]

    @NO_CURSORS
    def test_may_come_through_a_cursor(self, client, queues):
        first, second, _ = queues
        fill(client, second, b"x")
        asked = b"%s/t=5 %s/cursor=c/t=5" % (first, second)
        assert client.values(b"get " + asked) == [(second + b"/cursor=c/t=5", 0, None, b"x")]
        assert client.ask(b"get %s\r\n" % asked) == b"END\r\n"
        assert client.get(second) == b"x"

    def test_counts_as_one_get(self, server, wire):
        fill(wire, b"b", b"1")
        wire.ask(b"stats reset\r\n")
        assert len(wire.values(b"get " + keys(b"/open/t=5", b"a", b"b", b"c"))) == 1
        assert wire.values(b"get " + keys(b"/open/t=5", b"a", b"c")) == []
        stats = wire.stats()
        assert [stats[name] for name in ("cmd_get", "get_hits", "get_misses")] == ["2", "1", "1"]
        assert stats["queue_b_transactions"] == "1"

    @pytest.mark.leveldb("only queues that are looked at are subscribed to")
    def test_of_a_child_is_subscribed_to_though_another_queue_has_one(self, client, queue):
        fill(client, queue + b"0", b"x")
        child = queue + b"+child"
        assert len(client.values(b"get " + keys(b"/t=0", queue + b"0", child))) == 1
        fill(client, queue, b"y")
        assert client.get(child) == b"y"

    def test_is_looked_for_in_256_queues_at_most(self, client, queue):
        names = [b"%s%d" % (queue, n) for n in range(257)]
        fill(client, names[255], b"x")
        refused = client.ask(b"get %s\r\n" % keys(b"/t=0", *names))
        assert refused == b"CLIENT_ERROR too many queues to wait on: at most 256\r\n"
        assert client.values(b"get " + keys(b"/t=0", *names[:256])) == [(names[255] + b"/t=0", 0, None, b"x")]


class TestClose:
    def test_of_each_key_is_done_before_anything_is_fetched(self, standing, client, queues):
        first, second, _ = queues
        for queue in queues:
            fill(client, queue, b"1")
            assert client.get(queue + b"/open") == b"1"
        fill(client, first, b"2")
        assert client.values(b"get " + keys(b"/close/open/t=100", *queues))[0][3] == b"2"
        assert [held(standing, queue) for queue in queues] == [1, 0, 0]
        assert client.ask(b"get %s/t=0/close %s/t=0/close\r\n" % (first, second)) == b"END\r\n"
        assert held(standing, first) == 0

    def test_by_a_token_that_is_not_held_does_nothing(self, standing, client, queues):
        first, second, _ = queues
        for queue in (first, second):
            fill(client, queue, b"1", b"2")
            assert client.get(queue + b"/open") == b"1"
        refused = b"get %s/close=1/open/t=500 %s/close=2/open/t=500\r\nversion\r\n" % (first, second)
        client.send(refused)
        assert client.line() == NOT_HELD
        assert client.line().startswith(b"VERSION ")
        assert [held(standing, queue) for queue in (first, second)] == [1, 1]
        asked = b"get %s/close=1/open/t=500 %s/close=1/open/t=500" % (first, second)
        assert client.values(asked)[0][3] == b"2"
        assert [held(standing, queue) for queue in (first, second)] == [1, 0]

    def test_is_wanted_first_of_who_holds_as_many_as_it_may(self, standing, client, queues):
        first, second, _ = queues
        fill(client, second, b"1", b"2")
        assert client.get(second + b"/open") == b"1"
        for options in (b"/t=5000", b"/open/t=5000"):
            assert client.ask(b"get %s\r\n" % keys(options, first, second)) == CLOSE_FIRST
        assert client.values(b"get " + keys(b"/peek/t=5000", first, second))[0][3] == b"2"
        assert held(standing, second) == 1

    def test_is_done_though_the_status_refuses_the_fetch(self, server, wire):
        fill(wire, b"a", b"1", b"2")
        assert wire.get(b"a/open") == b"1"
        assert wire.ask(b"status quiescent\r\n") == b"END\r\n"
        refused = b"SERVER_ERROR refused: the server is quiescent\r\n"
        assert wire.ask(b"get a/close/open/t=100 b/open/t=100\r\n") == refused
        assert wire.ask(b"get a/close/t=100 b/close/t=100\r\n") == b"END\r\n"
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        assert wire.take_all(b"a") == [b"2"]


class TestWait:
    @pytest.mark.parametrize("which", [0, 1, 2])
    @pytest.mark.parametrize("data", [b"x", LARGE], ids=["small", "large"])
    def test_ends_with_the_queue_that_gets_an_item_first(self, standing, client, other, queues, which, data):
        begin(standing, client, b"/t=20000", *queues)
        fill(other, queues[which], data)
        assert client.line() == b"VALUE %s/t=20000 0 %d\r\n" % (queues[which], len(data))
        assert client.exactly(len(data) + 7) == data + b"\r\nEND\r\n"
        until(lambda: [standing.waiters(queue) for queue in queues] == [0, 0, 0])
        for queue in queues:
            fill(other, queue, b"y")
            assert other.take_all(queue) == [b"y"]
        assert client.silent()

    def test_times_out(self, standing, client, queues):
        begun = time.monotonic()
        begin(standing, client, b"/t=700", *queues)
        assert client.line() == b"END\r\n"
        assert time.monotonic() - begun >= 0.7
        assert [name for name in client.stats() if queues[0].decode() in name] == []

    def test_has_a_place_in_the_line_of_each_queue(self, standing, queues):
        first, second, _ = queues
        asked = [(first,), (second, first), (first, second), (second,)]
        wires = []
        for names in asked:
            wires.append(standing.connect())
            begin(standing, wires[-1], b"/t=20000", *names)
        with contextlib.closing(standing.connect()) as sender:
            for data in (b"1", b"2", b"3"):
                fill(sender, first, data)
            fill(sender, second, b"4")
        for wire, names, data in zip(wires, (first, first, first, second), b"1234", strict=True):
            assert wire.line() == b"VALUE %s/t=20000 0 1\r\n" % names
            assert wire.exactly(8) == b"%c\r\nEND\r\n" % data
            wire.close()

    @pytest.mark.parametrize("go", ["close", "reset", "half_close"])
    @pytest.mark.parametrize("options", [b"/t=20000", b"/open/t=20000"])
    def test_of_a_client_that_goes_swallows_nothing(self, standing, client, queues, go, options):
        gone = standing.connect()
        begin(standing, gone, options, *queues)
        getattr(gone, go)()
        until(lambda: [standing.waiters(queue) for queue in queues] == [0, 0, 0])
        for queue in queues:
            fill(client, queue, b"x")
            assert client.get(queue) == b"x"
        if go == "half_close":
            assert gone.line() == b"END\r\n"

    @pytest.mark.parametrize("go", ["close", "reset"])
    def test_of_a_client_that_goes_in_the_same_instant_swallows_nothing(self, standing, client, queues, go):
        for n, queue in zip(range(60), itertools.cycle(queues), strict=False):
            gone = standing.connect()
            gone.send(b"get %s\r\n" % keys(b"/open/t=20000", *queues))
            if n % 2:
                until(lambda queue=queue: standing.waiters(queue) == 1)
            getattr(gone, go)()
            fill(client, queue, b"%d" % n)
            until(lambda queue=queue: standing.waiters(queue) == 0 and held(standing, queue) == 0)
            assert client.get(queue) == b"%d" % n

    def test_goes_on_at_a_queue_that_is_deleted_and_comes_again(self, standing, client, other, queues):
        fill(other, queues[0], b"x")
        assert other.get(queues[0]) == b"x"
        begin(standing, client, b"/t=20000", *queues)
        assert other.ask(b"delete %s\r\n" % queues[0]) == b"DELETED\r\n"
        fill(other, queues[0], b"y")
        assert client.line() == b"VALUE %s/t=20000 0 1\r\n" % queues[0]
        assert client.exactly(8) == b"y\r\nEND\r\n"

    @NO_CURSORS
    def test_at_a_queue_and_cursors_over_it_ends_with_one_item(self, standing, client, other, queue):
        client.send(b"get %s/t=20000 %s/cursor=c/t=20000 %s/cursor=d/t=20000\r\n" % (queue, queue, queue))
        until(lambda: standing.waiters(queue) == 3)
        fill(other, queue, b"1")
        assert client.line() == b"VALUE %s/t=20000 0 1\r\n" % queue
        assert client.exactly(8) == b"1\r\nEND\r\n"
        assert standing.waiters(queue) == 0
        fill(other, queue, b"2")
        assert client.silent()

    def test_ends_with_an_item_that_comes_back(self, standing, client, other, queues):
        fill(other, queues[1], b"x")
        assert other.get(queues[1] + b"/open") == b"x"
        begin(standing, client, b"/open/t=20000", *queues)
        other.reset()
        assert client.line() == b"VALUE %s/open/t=20000 0 1\r\n" % queues[1]
        client.exactly(8)

    def test_holds_back_what_is_behind_it_and_no_other_client(self, standing, client, other, queues):
        begin(standing, client, b"/t=20000", *queues)
        client.send(b"version\r\nget %s\r\n" % keys(b"/t=20000", *queues))
        assert client.silent()
        fill(other, queues[2], b"1", b"2")
        for data in (b"1", b"2"):
            assert client.line() == b"VALUE %s/t=20000 0 1\r\n" % queues[2]
            assert client.exactly(8) == data + b"\r\nEND\r\n"
            if data == b"1":
                assert client.line().startswith(b"VERSION ")

    def test_is_refused_by_a_status_that_comes(self, server, wire):
        waiting = server.connect()
        begin(server, waiting, b"/t=60000", b"a", b"b")
        waiting.send(b"version\r\n")
        assert wire.ask(b"status quiescent\r\n") == b"END\r\n"
        assert waiting.line() == b"SERVER_ERROR refused: the server is quiescent\r\n"
        assert waiting.line().startswith(b"VERSION ")
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        fill(wire, b"a", b"1")
        assert wire.get(b"a") == b"1"

    def test_is_answered_when_the_server_closes(self, tmp_path):
        with running(tmp_path / "data") as server:
            waiting = server.connect()
            begin(server, waiting, b"/open/t=60000", b"a", b"b")
            assert server.stop() == 0
            assert waiting.line() == b"END\r\n"
            assert waiting.closed()
        assert "Traceback" not in server.log

    def test_of_many_clients_on_many_names_takes_10_kb_each(self, server):
        names = [b"nobody-%d" % n for n in range(256)]
        wires = [server.connect() for _ in range(20)]
        with contextlib.closing(server.connect()) as wire:
            wire.get(b"nobody")
        before = server.resident_bytes
        for n, wire in enumerate(wires):
            wire.send(b"get %s\r\n" % keys(b"/t=60000", *[b"%s-%d" % (name, n) for name in names]))
        until(lambda: server.waiters(b"nobody-255-19") == 1)
        assert server.resident_bytes - before < 20 * 256 * 10_000
        for wire in wires:
            wire.reset()
        with contextlib.closing(server.connect()) as wire:
            until(lambda: not [name for name in wire.stats() if "nobody" in name])


@pytest.mark.leveldb("expire_to_queue is refused")
@pytest.mark.parametrize("options", [b"/t=60000", b"/open/t=60000"])
def test_an_item_that_moves_to_a_queue_already_asked_is_found(tmp_path, options):
    with configured(tmp_path, '[queues.b]\nexpire_to_queue = "a"\n') as server:
        wire = server.connect()
        # in one write, so that it has not moved before
        wire.send(b"set b 0 -1 1\r\nx\r\nget %s\r\n" % keys(options, b"a", b"b"))
        assert wire.line() == b"STORED\r\n"
        assert wire.line() == b"VALUE a%s 0 1\r\n" % options
        assert wire.exactly(8) == b"x\r\nEND\r\n"
        assert (server.waiters(b"a"), server.waiters(b"b")) == (0, 0)


@pytest.mark.leveldb("aliases are refused")
class TestNoQueue:
    """Names of which nothing can be fetched."""

    @pytest.fixture
    def server(self, tmp_path):
        with configured(tmp_path, '[aliases]\nall = ["a", "b"]\nboth = ["a", "b"]\n') as server:
            yield server

    def test_of_aliases_alone_is_end_at_once(self, wire):
        assert wire.ask(b"get all/t=60000 both/t=60000\r\n") == b"END\r\n"

    def test_among_others_is_passed_over(self, server, wire):
        fill(wire, b"a", b"1")
        assert wire.values(b"get all/t=60000 a/t=60000") == [(b"a/t=60000", 0, None, b"1")]
        waiting = server.connect()
        waiting.send(b"get all/t=60000 b/t=60000\r\n")
        until(lambda: server.waiters(b"b") == 1)
        fill(wire, b"b", b"2")
        assert waiting.line() == b"VALUE b/t=60000 0 1\r\n"


@pytest.mark.leveldb("damages files of LevelDB")
class TestOutOfService:
    @pytest.fixture
    def server(self, tmp_path):
        """A server with the queues `bad` and `worse`, which it cannot open."""
        with running(tmp_path / "data") as server:
            with contextlib.closing(server.connect()) as wire:
                for name in (b"bad", b"worse"):
                    fill(wire, name, b"x")
            assert server.stop() == 0
        for name in ("bad", "worse"):
            (tmp_path / "data" / name / "CURRENT").write_text("nothing\n")
            for file in (tmp_path / "data" / name).glob("state*"):
                file.unlink()
        with running(tmp_path / "data") as server:
            yield server

    def test_queues_are_passed_over_if_there_are_others(self, server, wire):
        fill(wire, b"good", b"1")
        assert wire.values(b"get " + keys(b"/t=60000", b"bad", b"good")) == [(b"good/t=60000", 0, None, b"1")]
        assert wire.ask(b"get %s\r\n" % keys(b"/t=0", b"bad", b"good")) == b"END\r\n"
        wire.send(b"get %s\r\n" % keys(b"/t=60000", b"bad", b"good", b"worse"))
        until(lambda: server.waiters(b"good") == 1)
        with contextlib.closing(server.connect()) as other:
            fill(other, b"good", b"2")
        assert wire.line() == b"VALUE good/t=60000 0 1\r\n"

    @pytest.mark.parametrize("options", [b"/t=0", b"/open/t=60000"])
    def test_queues_alone_are_an_error(self, wire, options):
        assert wire.ask(b"get %s\r\n" % keys(options, b"bad", b"worse")).startswith(b"SERVER_ERROR ")
        assert wire.ask(b"version\r\n").startswith(b"VERSION ")
