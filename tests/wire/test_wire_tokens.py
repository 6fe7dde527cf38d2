"""Tokens: each names one delivery of an item, of several that a client holds."""

import contextlib

import pytest
from running import configured, until

from darner._records import CHUNK_BYTES

NOT_HELD = b"CLIENT_ERROR no such reserved item\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"
QUIESCENT = b"SERVER_ERROR refused: the server is quiescent\r\n"
AGAIN = 1 << 48
CONFIG = """
[queue_defaults]
max_open_reads = 10
[queues.short]
open_timeout = "300ms"
[queues.one]
max_open_reads = 1
"""


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    with configured(tmp_path_factory.mktemp("tokens"), CONFIG) as server:
        yield server


def reserve(wire, queue, *datas):
    """Set these items and reserve them; return their tokens."""
    for data in datas:
        assert wire.set(queue, data) == b"STORED\r\n"
    return [wire.gets(queue + b"/open")[0] for _ in datas]


def held(server, queue):
    return server.stat(f"queue_{queue.decode()}_open_transactions")


class TestToken:
    @pytest.mark.leveldb("an item that has come back is not shown before it is fetched again")
    def test_is_the_id_and_how_often_the_item_has_come_back(self, client, queue):
        (token,) = reserve(client, queue, b"a")
        assert token == 1
        for attempts in range(1, 4):
            assert client.get(b"%s/abort=%d" % (queue, token)) is None
            token, _ = client.gets(queue + b"/open")
            assert token == attempts * AGAIN + 1
        client.get(queue + b"/abort")
        assert client.gets(queue + b"/peek") == (4 * AGAIN + 1, b"a")
        assert client.gets(queue) == (4 * AGAIN + 1, b"a")

    @pytest.mark.leveldb("items of one that is killed come back after ack_wait")
    def test_shows_a_redelivery_after_a_connection_that_was_lost_and_after_a_kill(self, server, wire):
        with contextlib.closing(server.connect()) as lost:
            reserve(lost, b"q", bytes(CHUNK_BYTES + 1))
        until(lambda: held(server, b"q") == 0)
        assert wire.gets(b"q/peek")[0] == AGAIN + 1
        server.restart()
        with contextlib.closing(server.connect()) as again:
            assert again.gets(b"q/open")[0] == AGAIN + 1

    @pytest.mark.long_in_cluster
    def test_of_65535_attempts_has_20_digits_and_is_taken(self, standing, client, queue):
        (token,) = reserve(client, queue, b"a")
        for start in range(0, 65_600, 200):
            aborts = b"get %s/abort\r\nget %s/open\r\n" % (queue, queue)
            client.send(aborts * 200)
            reply = b"END\r\nVALUE %s/open 0 1\r\na\r\nEND\r\n" % queue
            assert client.exactly(200 * len(reply)) == reply * 200, start
        client.get(queue + b"/abort")
        token, _ = client.gets(queue + b"/open")
        assert token == 65_535 * AGAIN + 1 > 1 << 63
        assert len(str(token)) == 20
        assert client.ask(b"md %s C%d\r\n" % (queue, token)) == b"HD\r\n"
        assert held(standing, queue) == 0

    @pytest.mark.parametrize(
        "end",
        [
            b"close",
            pytest.param(
                b"abort",
                marks=pytest.mark.leveldb("items that go back come in the order of their returns"),
            ),
        ],
    )
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
    def test_ends_one_of_several_items_in_any_order(self, standing, client, queue, end, order):
        tokens = reserve(client, queue, b"a", b"b", b"c")
        for left, place in zip((2, 1, 0), order, strict=True):
            assert client.ask(b"get %s/%s=%d\r\n" % (queue, end, tokens[place])) == b"END\r\n"
            assert client.ask(b"get %s/%s=%d\r\n" % (queue, end, tokens[place])) == NOT_HELD
            assert held(standing, queue) == left
        back = [b"abc"[place : place + 1] for place in reversed(order)] if end == b"abort" else []
        assert client.take_all(queue) == back

    def test_leaves_a_close_without_one_to_the_item_reserved_first(self, client, queue):
        first, second, third = reserve(client, queue, b"a", b"b", b"c")
        client.get(b"%s/close=%d" % (queue, second))
        client.get(queue + b"/close")
        assert client.ask(b"get %s/close=%d\r\n" % (queue, first)) == NOT_HELD
        assert client.ask(b"get %s/close=%d\r\n" % (queue, third)) == b"END\r\n"

    def test_goes_with_the_next_fetch(self, client, queue):
        first, second = reserve(client, queue, b"a", b"b")
        for data in (b"c", b"d", b"e"):
            client.set(queue, data)
        key = b"%s/close=%d/open/t=500" % (queue, second)
        assert client.values(b"gets " + key) == [(key, 0, 3, b"c")]
        assert client.ask(b"get %s\r\n" % key) == NOT_HELD
        assert client.get(b"%s/close=%d/peek" % (queue, first)) == b"d"
        assert client.get(b"%s/close=3" % queue) is None
        assert client.take_all(queue) == [b"d", b"e"]

    def test_makes_room_for_the_next_item(self, client):
        (token,) = reserve(client, b"one", b"a")
        client.set(b"one", b"b")
        assert client.ask(b"get one/open\r\n") == CLOSE_FIRST
        assert client.ask(b"get one/close=%d/open\r\n" % (token + 1)) == NOT_HELD
        assert client.get(b"one/close=%d/open" % token) == b"b"
        client.get(b"one/close")

    def test_of_another_connection_is_not_held(self, standing, client, other, queue):
        (token,) = reserve(client, queue, b"a")
        for option in (b"close=%d", b"abort=%d", b"close=%d/open", b"close=%d/peek"):
            assert other.ask(b"get %s/%s\r\n" % (queue, option % token)) == NOT_HELD
        assert held(standing, queue) == 1

    @pytest.mark.parametrize("token", [1 << 48, (1 << 48) + 2, (1 << 64) - 1, 7])
    def test_of_nothing_is_not_held_and_the_connection_in_step(self, client, queue, token):
        client.set(queue, b"a")
        client.send(b"get %s/close=%d/open\r\nversion\r\n" % (queue, token))
        assert client.line() == NOT_HELD
        assert client.line().startswith(b"VERSION ")
        assert client.ask(b"gets %s/abort=%d\r\n" % (queue, token)) == NOT_HELD
        assert client.take_all(queue) == [b"a"]

    def test_of_an_item_that_was_taken_back_meanwhile_does_nothing(self, standing, client, other):
        first, second = reserve(client, b"short", b"a", b"b")
        until(lambda: held(standing, b"short") == 0)
        assert other.gets(b"short/open") == (AGAIN + first, b"a")
        for token in (first, second, AGAIN + first):
            assert client.ask(b"get short/close=%d\r\n" % token) == NOT_HELD
        assert other.get(b"short/close=%d" % (AGAIN + first)) is None
        assert client.take_all(b"short") == [b"b"]

    def test_of_an_earlier_delivery_to_the_same_client_does_nothing(self, client, queue):
        (token,) = reserve(client, queue, b"a")
        client.get(queue + b"/abort")
        again, _ = client.gets(queue + b"/open")
        assert client.ask(b"get %s/close=%d\r\n" % (queue, token)) == NOT_HELD
        assert client.ask(b"get %s/close=%d\r\n" % (queue, again)) == b"END\r\n"

    def test_of_the_item_of_a_deleted_queue_does_nothing(self, client, queue):
        (token,) = reserve(client, queue, b"a")
        assert client.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
        assert client.ask(b"get %s/close=%d\r\n" % (queue, token)) == NOT_HELD
        assert client.ask(b"get %s/abort=%d\r\n" % (queue, token)) == NOT_HELD
        assert client.take_all(queue) == []

    def test_may_be_of_a_large_item(self, client, queue):
        large = b"x" * (CHUNK_BYTES + 1)
        first, second = reserve(client, queue, large, b"b")
        assert client.get(b"%s/abort=%d" % (queue, first)) is None
        assert client.gets(queue + b"/open") == (AGAIN + first, large)
        for token in (AGAIN + first, second):
            assert client.ask(b"get %s/close=%d\r\n" % (queue, token)) == b"END\r\n"
        assert client.get(queue) is None

    def test_of_an_item_of_a_monitor_is_held(self, client, queue):
        client.set(queue, b"a")
        client.set(queue, b"b")
        client.send(b"monitor %s 1 2\r\n" % queue)
        for _ in range(2):
            client.line()
            client.exactly(8)
        assert client.line() == b"END\r\n"
        assert client.ask(b"get %s/close=2\r\n" % queue) == b"END\r\n"
        assert client.ask(b"confirm %s 9\r\n" % queue) == b"END\r\n"
        assert client.ask(b"confirm %s 9\r\n" % queue) == b"ERROR\r\n"

    def test_is_taken_whatever_the_status(self, server, wire):
        (token,) = reserve(wire, b"q", b"a")
        wire.set(b"q", b"b")
        with contextlib.closing(server.connect()) as other:
            (further,) = reserve(other, b"q2", b"a")
            assert wire.ask(b"status quiescent\r\n") == b"END\r\n"
            assert other.ask(b"get q2/close=%d/open\r\n" % (further + 1)) == NOT_HELD
            assert other.ask(b"get q2/close=%d/open\r\n" % further) == QUIESCENT
        assert wire.ask(b"get q/close=%d\r\n" % token) == b"END\r\n"
        assert wire.ask(b"status up\r\n") == b"END\r\n"
        assert wire.get(b"q2") is None
        assert wire.take_all(b"q") == [b"b"]


class TestCursor:
    @pytest.mark.leveldb("cursors are refused")
    def test_gives_tokens_of_its_own(self, client, queue):
        key = queue + b"/cursor=x"
        for data in (b"a", b"b"):
            client.set(queue, data)
        first, second = (client.gets(key + b"/open")[0] for _ in range(2))
        assert (first, second) == (1, 2)
        assert client.ask(b"get %s/close=%d\r\n" % (queue, second)) == NOT_HELD
        assert client.ask(b"get %s/close=%d\r\n" % (key, second)) == b"END\r\n"
        assert client.get(b"%s/abort=%d" % (key, first)) is None
        assert client.gets(key + b"/open") == (AGAIN + first, b"a")
        assert client.ask(b"get %s/close=%d\r\n" % (key, first)) == NOT_HELD
        assert client.ask(b"get %s/close=%d/open\r\n" % (key, AGAIN + first)) == b"END\r\n"
        assert client.gets(queue) == (first, b"a")


class TestSeveralKeys:
    @pytest.mark.parametrize("verb", [b"get", b"gets"])
    def test_are_ended_each_by_its_token(self, client, queue, verb):
        tokens = reserve(client, queue, b"a", b"b", b"c")
        keys = b" ".join(b"%s/close=%d" % (queue, token) for token in reversed(tokens))
        assert client.ask(b"%s %s\r\n" % (verb, keys)) == b"END\r\n"
        assert client.ask(b"%s %s\r\n" % (verb, keys)) == NOT_HELD
        assert client.get(queue) is None

    def test_of_which_one_is_not_held_do_nothing_and_give_the_error_alone(self, standing, client, queue):
        assert reserve(client, queue, b"a", b"b") == [1, 2]
        client.set(queue, b"c")
        for keys in (
            b"%(q)s/close=1 %(q)s/close=9",
            b"%(q)s/close=1 %(q)s/close=1",
            b"%(q)s/close %(q)s/close=1",
            b"%(q)s/abort %(q)s/abort=1",
            b"%(q)s/close=2 %(q)s/close %(q)s/close=1",
            b"%(q)s/open %(q)s/close=3",
            b"%(q)s/open more/close=1",
            b"%(q)s/close=1/open/t=5 %(q)s/close=9/open/t=5",
        ):
            client.send(b"get %s\r\nversion\r\n" % (keys % {b"q": queue}))
            assert client.line() == NOT_HELD
            assert client.line().startswith(b"VERSION ")
        assert held(standing, queue) == 2
        keys = b"%(q)s/close=2 %(q)s/close %(q)s/open" % {b"q": queue}
        assert client.values(b"gets " + keys) == [(queue + b"/open", 0, 3, b"c")]
        assert held(standing, queue) == 1

    def test_count_what_is_closed_and_opened_before(self, client):
        (token,) = reserve(client, b"one", b"a")
        client.set(b"one", b"b")
        assert client.ask(b"get one/open one/close=%d\r\n" % token) == CLOSE_FIRST
        assert client.values(b"get one/close=%d one/open" % token) == [(b"one/open", 0, None, b"b")]
        client.get(b"one/close")

    def test_of_a_long_line_end_where_one_is_not_held(self, store, client, queue):
        tokens = reserve(client, queue, b"a", b"b")
        # each name asks the cluster
        keys = b" ".join(b"nobody-%d" % n for n in range(500 if store == "cluster" else 5000))
        assert client.ask(b"get %s %s/close=9 %s\r\n" % (keys, queue, keys)) == NOT_HELD
        keys = b"%s %s/close=%d %s" % (keys, queue, tokens[1], keys)
        assert client.ask(b"get %s\r\n" % keys) == b"END\r\n"
        assert client.ask(b"get %s/close=%d\r\n" % (queue, tokens[1])) == NOT_HELD


class TestMeta:
    def test_names_and_takes_tokens(self, client, queue):
        for data in (b"a", b"b"):
            client.set(queue, data)
        assert client.ask(b"mg %s/open c h\r\n" % queue) == b"HD c1 h0\r\n"
        assert client.ask(b"mg %s/open c\r\n" % queue) == b"HD c2\r\n"
        assert client.ask(b"mg %s/abort=1\r\n" % queue) == b"EN\r\n"
        assert client.ask(b"mg %s/open c h\r\n" % queue) == b"HD c%d h1\r\n" % (AGAIN + 1)
        assert client.ask(b"mg %s/close=1/open c q\r\n" % queue) == NOT_HELD
        assert client.ask(b"mg %s/close=2\r\n" % queue) == b"EN\r\n"
        assert client.ask(b"md %s C1\r\n" % queue) == b"NF\r\n"
        assert client.ask(b"md %s C%d\r\n" % (queue, AGAIN + 1)) == b"HD\r\n"
        assert client.ask(b"mg %s v\r\n" % queue) == b"EN\r\n"

    @pytest.mark.parametrize("token", [b"", b"x", b"-1", b"18446744073709551616", b"123456789012345678901"])
    def test_refuses_what_is_no_token(self, client, queue, token):
        assert client.ask(b"md %s C%s\r\n" % (queue, token)) == b"CLIENT_ERROR bad command line format\r\n"
        assert client.ask(b"md %s C%d\r\n" % (queue, (1 << 64) - 1)) == b"NF\r\n"


def test_thousands_of_items_are_closed_in_any_order(store, tmp_path):
    # each of these commands asks the cluster
    count = 1_000 if store == "cluster" else 10_000
    with configured(tmp_path, "[queues.q]\nmax_open_reads = 10000\n") as server:
        wire = server.connect()
        wire.send(b"set q 0 0 1 noreply\r\nx\r\n" * count)
        wire.send(b"get q/open\r\n" * count)
        reply = b"VALUE q/open 0 1\r\nx\r\nEND\r\n"
        assert wire.exactly(count * len(reply)) == reply * count
        ids = [*range(2, count + 1, 2), *range(count - 1, 0, -2)]
        wire.send(b"".join(b"get q/close=%d\r\n" % id for id in ids))
        assert wire.exactly(5 * count) == b"END\r\n" * count
        assert (server.stat("queue_q_open_transactions"), server.stat("curr_items")) == (0, 0)
