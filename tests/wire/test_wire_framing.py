"""The ends of requests, and connections of other protocols: long gets, half-closed clients, meta commands."""

import time

import pytest
from running import configured, running, until

from darner import __version__
from darner._records import CHUNK_BYTES
from darner.access import auth_file

VERSION = b"VERSION %s\r\n" % __version__.encode()
MANY_LOOKS = pytest.mark.leveldb("each look at a queue asks the cluster: many take minutes")
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"


class TestLongGet:
    @pytest.mark.parametrize("verb", [b"get", b"gets"])
    def test_of_hundreds_of_queues_has_an_item_of_each(self, server, wire, verb):
        names = [b"%034d" % n for n in range(300)]
        for name in names:
            assert wire.set(name, name) == b"STORED\r\n"
        found = wire.values(verb + b" " + b" ".join(names))
        assert [(key, data) for key, _, _, data in found] == [(name, name) for name in names]
        assert all((cas is not None) == (verb == b"gets") for _, _, cas, _ in found)
        assert wire.values(verb + b" " + b" ".join(names)) == []
        assert wire.ask(b"version\r\n") == VERSION

    def test_sends_large_items_among_small_ones(self, client, queue):
        datas = [bytes([65 + n % 26]) * (CHUNK_BYTES * 2 if n % 100 == 0 else 10) for n in range(1000)]
        for data in datas:
            client.set(queue, data)
        found = client.values(b"get" + b" %s" % queue * 1100)
        assert [data for *_, data in found] == datas
        assert client.ask(b"version\r\n") == VERSION

    @MANY_LOOKS
    def test_of_a_mebibyte_takes_bounded_memory(self, server, wire):
        line = b"get" + b" q" * ((1 << 19) - 2) + b"\r\n"
        wire.send(line)
        assert wire.line() == b"END\r\n"
        # there are ten such lines to be worked through on the way
        wire.socket.settimeout(60)
        before = server.resident_bytes
        clients = [server.connect() for _ in range(10)]
        for client in clients:
            client.socket.settimeout(60)
            client.send(line[:-2])
        wire.send(line)
        assert wire.line() == b"END\r\n"
        assert server.resident_bytes - before < 8 << 20
        for client in clients:
            client.send(b"\r\nversion\r\n")
        for client in clients:
            assert client.line() == b"END\r\n"
            assert client.line() == VERSION
            client.close()

    @MANY_LOOKS
    def test_that_is_too_long_closes(self, client):
        client.send(b"get" + b" q" * (1 << 19) + b"\r\nversion\r\n")
        assert client.line() == b"CLIENT_ERROR line too long\r\n"
        assert client.closed()

    @MANY_LOOKS
    def test_keeps_others_waiting_for_one_turn_alone(self, standing, client, other):
        client.send((b"get" + b" q" * 500_000 + b"\r\n") * 3)
        assert other.ask(b"version\r\n") == VERSION
        # the get has not ended meanwhile
        assert client.silent(0)
        for _ in range(3):
            assert client.line() == b"END\r\n"

    @pytest.mark.parametrize(
        "count", [1000, pytest.param(20_000, marks=MANY_LOOKS)], ids=["whole", "as it comes"]
    )
    def test_with_an_error_has_no_more_said_and_the_next_request_is_served(self, client, queue, count):
        fill = b" nothing" * count
        client.set(queue, b"a")
        client.set(queue, b"b")
        assert client.get(queue + b"/open") == b"a"
        client.send(b"get%s %s%s\r\nversion\r\n" % (fill, queue, fill))
        assert client.line() == CLOSE_FIRST
        assert client.line() == VERSION
        client.send(b"get%s %s/close%s %s/x%s\r\nversion\r\n" % (fill, queue, fill, queue, fill))
        assert client.line().startswith(b"CLIENT_ERROR unknown option")
        assert client.line() == VERSION
        client.get(queue + b"/close")
        assert client.values(b"get%s %s%s" % (fill, queue, fill)) == [(queue, 0, None, b"b")]


class TestStranger:
    FIRST = (
        b"\x16", b"\x80", b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET / HTTP/1.1\r\n", b"Host: x\r\n",
    )  # fmt: skip

    @pytest.mark.parametrize("start", FIRST)
    def test_is_cut_off_before_anything_behind_is_read(self, server, wire, start):
        wire.set(b"q", b"precious")
        for _ in range(3):
            stranger = server.connect()
            stranger.send(start + b"flush_all\r\ndelete q\r\nset q 0 0 1\r\nx\r\n")
            assert stranger.closed()
        assert wire.values(b"get q q") == [(b"q", 0, None, b"precious")]

    def test_is_logged_once_for_each_kind_with_what_to_do(self, server, wire):
        for start in self.FIRST * 2:
            stranger = server.connect()
            stranger.send(start)
            assert stranger.closed()
        assert server.stop() == 0
        lines = [line for line in server.log.splitlines() if "that is no client's" in line]
        assert len(lines) == 3
        for text, action in (("TLS", "tls_cert"), ("HTTP", "web page"), ("binary protocol", "text protocol")):
            (line,) = [line for line in lines if text in line.partition("speaks=")[2].partition("peer=")[0]]
            assert action in line.partition("action=")[2]
            assert "peer=127.0.0.1:" in line

    def test_has_what_it_asked_before_answered(self, client):
        client.send(b"version\r\nGET / HTTP/1.1\r\nversion\r\n")
        assert client.line() == VERSION
        assert client.closed()

    @pytest.mark.parametrize(
        "line", [b"put q 0 0 12", b"mset q 0 0 12 noreply", b"ms2 q 12 T0", b"PUB q 12", b"$12"]
    )
    def test_that_may_send_data_has_none_of_it_run(self, client, other, queue, line):
        other.set(queue, b"precious")
        client.send(line + b"\r\ndelete %s\r\n" % queue)
        assert client.line() == b"ERROR\r\n"
        assert client.closed()
        assert other.get(queue) == b"precious"

    def test_who_asks_for_an_unknown_thing_without_data_stays(self, client):
        for line in (b"nonsense", b"nonsense a", b"gat a b", b"config get cluster"):
            assert client.ask(line + b"\r\n") == b"ERROR\r\n"
        assert client.ask(b"version\r\n") == VERSION


class TestHalfClosed:
    """A client that has closed its sending side, and reads on."""

    @pytest.mark.parametrize(
        ("wait", "reply"),
        [
            (b"get %s/t=60000", b"END\r\n"),
            (b"get %s/open/t=60000", b"END\r\n"),
            (b"gets %s/peek/t=60000", b"END\r\n"),
            (b"mg %s/t=60000 v", b"EN\r\n"),
            (b"monitor %s 60 5", b"END\r\n"),
        ],
    )
    def test_is_served_all_it_has_sent_and_waits_for_nothing(
        self, standing, client, other, queue, wait, reply
    ):
        start = time.monotonic()
        client.send(wait % queue + b"\r\nset %s 0 0 1 noreply\r\nx\r\n" % queue)
        client.send(b"get %s\r\n" % queue + wait % queue + b"\r\nversion\r\n")
        client.half_close()
        assert client.line() == reply
        assert client.line() == b"VALUE %s 0 1\r\n" % queue
        assert client.exactly(8) == b"x\r\nEND\r\n"
        assert client.line() == reply
        assert client.line() == VERSION
        assert client.closed()
        assert time.monotonic() - start < 30
        assert standing.stat(f"queue_{queue.decode()}_waiters") == 0

    def test_behind_more_than_is_read_waits_for_nothing_either(self, client, other, queue):
        client.send(b"get %s/t=60000\r\n" % queue + b"nonsense\r\n" * 20_000 + b"get %s/t=60000\r\n" % queue)
        client.half_close()
        assert client.line() == b"END\r\n"
        assert client.exactly(7 * 20_000) == b"ERROR\r\n" * 20_000
        assert client.line() == b"END\r\n"
        assert client.closed()

    def test_gives_back_what_it_reserved(self, client, other, queue):
        other.set(queue, b"x")
        client.send(b"get %s/open\r\nmonitor %s 60 5\r\n" % (queue, queue))
        client.half_close()
        assert client.line() == b"VALUE %s/open 0 1\r\n" % queue
        assert client.exactly(13) == b"x\r\nEND\r\nEND\r\n"
        assert client.closed()
        assert other.get(queue + b"/t=5000") == b"x"

    def test_is_told_from_one_that_has_gone_by_its_answer(self, standing, other, queue):
        other.set(queue, b"x")
        gone = standing.connect()
        gone.send(b"get %s-/t=60000\r\nset %s- 0 0 1\r\ny\r\n" % (queue, queue) + b"get %s\r\n" % queue)
        until(lambda: standing.stat(f"queue_{queue.decode()}-_waiters") == 1)
        gone.close()
        # requests that take no item are served
        assert other.get(queue + b"-/t=5000") == b"y"
        assert other.get(queue) == b"x"


class TestMeta:
    def test_set_get_and_delete_are_answered_as_asked(self, client, queue):
        assert client.ask(b"ms %s 3 F5 T0 c k O7\r\nabc\r\n" % queue) == b"HD c1 k%s O7\r\n" % queue
        client.send(b"mg %s/peek v f s c t h k\r\n" % queue)
        assert client.line() == b"VA 3 f5 s3 c1 t-1 h0 k%s/peek\r\n" % queue
        assert client.line() == b"abc\r\n"
        assert client.ask(b"mg %s s\r\n" % queue) == b"HD s3\r\n"
        assert client.ask(b"mg %s v k\r\n" % queue) == b"EN k%s\r\n" % queue
        assert client.ask(b"md %s\r\n" % queue) == b"HD\r\n"
        assert client.ask(b"mn\r\n") == b"MN\r\n"
        assert client.ask(b"me %s\r\n" % queue) == b"EN\r\n"
        assert client.ask(b"me d29yaw== b\r\n") == b"EN\r\n"
        assert client.ask(b"ma %s\r\n" % queue) == b"CLIENT_ERROR ma is not supported\r\n"

    def test_get_waits_opens_aborts_and_closes(self, client, other, queue):
        client.send(b"mg %s/open/t=10000 v c h\r\n" % queue)
        other.set(queue, b"a")
        assert client.line() == b"VA 1 c1 h0\r\n"
        assert client.line() == b"a\r\n"
        assert client.ask(b"mg %s v\r\n" % queue) == CLOSE_FIRST
        assert client.ask(b"mg %s/abort\r\n" % queue) == b"EN\r\n"
        assert client.ask(b"mg %s/open h\r\n" % queue) == b"HD h1\r\n"
        token = (1 << 48) + 1
        assert client.ask(b"md %s C1\r\n" % queue) == b"NF\r\n"
        assert client.ask(b"md %s C%d\r\n" % (queue, token)) == b"HD\r\n"
        assert client.ask(b"md %s C%d\r\n" % (queue, token)) == b"NF\r\n"
        client.close()
        assert other.get(queue) is None

    def test_delete_of_one_item_closes_that_of_several(self, tmp_path):
        with configured(tmp_path, "[queue_defaults]\nmax_open_reads = 3\n") as server:
            wire, other = server.connect(), server.connect()
            for data in (b"a", b"b", b"c"):
                wire.set(b"q", data)
            for n in (1, 2, 3):
                assert wire.ask(b"mg q/open c\r\n") == b"HD c%d\r\n" % n
            assert wire.ask(b"md q C2\r\n") == b"HD\r\n"
            assert other.ask(b"md q C1\r\n") == b"NF\r\n"
            wire.close()
            until(lambda: server.stat("queue_q_open_transactions") == 0)
            assert [other.get(b"q"), other.get(b"q"), other.get(b"q")] == [b"a", b"c", None]

    @pytest.mark.parametrize("size", [0, 10, CHUNK_BYTES + 1])
    def test_quiet_ones_say_what_goes_wrong_alone(self, client, other, queue, size):
        data = b"x" * size
        client.send(
            b"ms %s %d q\r\n%s\r\nmg %s- v q\r\nmd %s- q\r\nmn\r\n" % (queue, size, data, queue, queue)
        )
        assert client.line() == b"MN\r\n"
        client.send(b"ms %s/x %d q\r\n%s\r\nmg %s v q s\r\nmn\r\n" % (queue, size, data, queue))
        assert client.line().startswith(b"CLIENT_ERROR unknown option")
        assert client.line() == b"VA %d s%d\r\n" % (size, size)
        assert client.exactly(size + 6) == data + b"\r\nMN\r\n"

    @pytest.mark.parametrize("line", [b"mg %s s", b"mg %s/open s"])
    def test_get_without_the_data_of_a_large_item_is_a_line(self, standing, client, queue, line):
        size = CHUNK_BYTES * 3
        client.set(queue, bytes(size))
        assert client.ask(line % queue + b"\r\n") == b"HD s%d\r\n" % size
        client.get(queue + b"/close")
        assert client.get(queue) is None
        assert standing.stat(f"queue_{queue.decode()}_items") == 0
        assert client.ask(b"version\r\n") == VERSION

    def test_set_to_a_full_queue_is_not_stored(self, tmp_path):
        with configured(tmp_path, "[queue_defaults]\nmax_items = 1\nmax_item_size = 9\n") as server:
            wire = server.connect()
            assert wire.ask(b"ms q 1 q\r\na\r\nms q 1 q k\r\nb\r\n") == b"NS kq\r\n"
            assert wire.ask(b"ms q 10\r\n0123456789\r\n") == b"SERVER_ERROR object too large for cache\r\n"

    def test_set_to_several_queues_and_for_later_is_stored(self, client, queue):
        assert client.ask(b"mg %s+child v\r\n" % queue) == b"EN\r\n"
        assert client.ask(b"ms %s 1 c\r\na\r\n" % queue) == b"HD c1\r\n"
        assert client.get(queue + b"+child") == b"a"
        assert client.ask(b"ms %s/delay=1 1 c\r\nb\r\n" % queue) == b"HD c0\r\n"
        assert client.get(queue) == b"a"
        assert client.get(queue + b"/t=5000") == b"b"

    def test_counts_as_what_it_is_and_as_what_it_does(self, tmp_path):
        with running(tmp_path / "data") as server:
            wire = server.connect()
            large = bytes(CHUNK_BYTES + 1)
            asked = [
                (b"ms work 1\r\na\r\n", b"HD\r\n"),
                (b"ms large %d\r\n%s\r\n" % (len(large), large), b"HD\r\n"),
                (b"mg work/open s\r\n", b"HD s1\r\n"),
                (b"md work C9\r\n", b"NF\r\n"),
                (b"md work C1\r\n", b"HD\r\n"),
                (b"mg work s\r\n", b"EN\r\n"),
                (b"md work\r\n", b"HD\r\n"),
                (b"md work\r\n", b"HD\r\n"),
                (b"me work\r\n", b"EN\r\n"),
                (b"mn\r\n", b"MN\r\n"),
            ]
            for request, reply in asked:
                assert wire.ask(request) == reply
            stats = wire.stats()
            names = "cmd_meta cmd_set cmd_get get_hits get_misses delete_hits delete_misses"
            assert [int(stats[name]) for name in names.split()] == [len(asked), 2, 2, 1, 1, 2, 2]
            wire.ask(b"stats reset\r\n")
            assert wire.stats()["cmd_meta"] == "0"

    @pytest.mark.leveldb("cursors are refused")
    def test_of_a_cursor_knows_the_expiry(self, client, queue):
        assert client.ask(b"ms %s 1 T100\r\na\r\n" % queue) == b"HD\r\n"
        line = client.ask(b"mg %s/cursor=c/open t l c\r\n" % queue)
        assert line in (b"HD t100 l0 c1\r\n", b"HD t99 l0 c1\r\n", b"HD t99 l1 c1\r\n")
        assert client.ask(b"md %s/cursor=c C1\r\n" % queue) == b"HD\r\n"
        assert client.get(queue) == b"a"

    def test_is_refused_to_whom_the_classic_one_is(self, tmp_path):
        users = tmp_path / "users.toml"
        auth_file.set_password(users, "eve", b"secret")
        users.write_text(users.read_text().replace('"*"', '"hers"'))
        with configured(tmp_path, f'auth_file = "{users}"\n') as server:
            wire = server.connect()
            assert wire.ask(b"set a 0 0 10\r\neve secret\r\n") == b"STORED\r\n"
            assert wire.ask(b"ms hers 1 c\r\nx\r\n") == b"HD c1\r\n"
            assert (
                wire.ask(b"ms other 1 q\r\nx\r\n") == b"CLIENT_ERROR not permitted to write to this queue\r\n"
            )
            assert wire.ask(b"mg other v q\r\n") == b"CLIENT_ERROR not permitted to read this queue\r\n"
            assert wire.ask(b"md other q\r\n") == b"CLIENT_ERROR not permitted to manage this queue\r\n"
            assert wire.ask(b"mn\r\n") == b"MN\r\n"
            line = b" hers" * 1000
            wire.send(b"get%s other%s\r\nversion\r\n" % (line, line))
            assert wire.line() == b"VALUE hers 0 1\r\n"
            assert wire.line() == b"x\r\n"
            assert wire.line() == b"CLIENT_ERROR not permitted to read this queue\r\n"
            assert wire.line() == VERSION


def test_word_too_many_is_said_and_the_connection_goes_on(client):
    for line in (
        b"version foo bar",
        b"quit now",
        b"reload all",
        b"shutdown now",
        b"mn a",
        b"me a c",
        b"me a b c",
    ):
        assert client.ask(line + b"\r\n") == b"CLIENT_ERROR bad command line format\r\n"
    assert client.ask(b"version\r\n") == VERSION
