"""Two servers before one cluster serve the same queues."""

import asyncio
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nats
import pytest
from left_items import leave_items
from running import Server, Wire, until

from darner.jetstream.family import CLOSED_BYTES


def test_item_set_on_one_is_got_on_the_other(both, queue):
    one, other = both
    assert one.set(queue, b"x", flags=7) == b"STORED\r\n"
    assert other.values(b"get " + queue) == [(queue, 7, None, b"x")]
    assert one.get(queue) is None


def test_names_of_any_bytes_are_the_same_queue_to_both(both):
    one, other = both
    names = [
        b".", b"..", b"*", b">", b"a.b", b"a.*", b"a>", b"%2e", b"=2E", b"Q", b"q", b"\xff\xfe", b"\xff",
        "Schlösser".encode(), b"+", b"a++b", b"==", b"n" * 250, b"\x80" * 250, b"." * 249 + b"*", b"." * 250,
    ]  # fmt: skip
    for name in names:
        assert one.set(name, b"in " + name) == b"STORED\r\n"
    for name in names:
        assert other.get(name) == b"in " + name
        assert one.get(name) is None


def test_get_that_waits_on_one_is_served_by_a_set_on_the_other(both, queue):
    one, other = both
    one.send(b"get %s/t=20000\r\n" % queue)
    assert other.set(queue, b"x") == b"STORED\r\n"
    assert one.line() == b"VALUE %s/t=20000 0 1\r\n" % queue


def test_child_subscribed_on_one_is_fed_by_sets_on_the_other(both, queue):
    one, other = both
    assert other.set(queue, b"before") == b"STORED\r\n"
    child = queue + b"+child"
    assert one.get(child) is None
    until(lambda: other.set(queue, b"x") == b"STORED\r\n" and one.get(child) == b"x")
    assert other.get(queue) == b"before"


def test_queue_deleted_on_one_is_made_again_by_a_set_on_the_other(both, queue):
    one, other = both
    one.set(queue, b"old")
    other.set(queue, b"old")
    assert one.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
    assert other.set(queue, b"new") == b"STORED\r\n"
    assert one.take_all(queue) == [b"new"]


def test_queue_deleted_under_a_get_that_waits_is_waited_for_again(pair, both, queue):
    one, other = both
    other.set(queue, b"old")
    assert other.get(queue) == b"old"
    one.send(b"get %s/t=30000\r\n" % queue)
    until(lambda: pair[0].waiters(queue) == 1)
    assert other.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
    assert other.set(queue, b"new") == b"STORED\r\n"
    assert one.line() == b"VALUE %s/t=30000 0 3\r\n" % queue


def test_id_is_known_to_both(both, queue):
    one, other = both
    assert one.ask(b"set %s/id=a 0 0 1\r\nx\r\n" % queue) == b"STORED\r\n"
    assert other.ask(b"set %s/id=a 0 0 1\r\ny\r\n" % queue) == b"STORED\r\n"
    assert one.take_all(queue) == [b"x"]


def test_items_held_by_one_that_is_killed_come_back_to_the_other(start):
    # longer than the other takes to get those behind it
    one, other = (start('ack_wait = "4s"\n') for _ in range(2))
    first, second = one.connect(), other.connect()
    for n in range(3):
        first.set(b"q", b"%d" % n)
    assert first.get(b"q/open") == b"0"
    one.kill()
    assert second.get(b"q") == b"1"
    assert second.get(b"q") == b"2"
    assert second.get(b"q/t=20000") == b"0"


def test_item_held_for_longer_than_ack_wait_stays_with_its_holder(both, queue):
    first, second = both
    first.set(queue, b"x")
    assert first.get(queue + b"/open") == b"x"
    assert second.get(queue + b"/t=2500") is None
    assert first.ask(b"get %s/close\r\n" % queue) == b"END\r\n"
    assert second.get(queue) is None


def test_reservation_of_one_that_stood_still_has_ended_before_the_other_has_the_item(start):
    one, other = start(), start()
    first, second = one.connect(), other.connect()
    first.set(b"q", b"x")
    token, _ = first.gets(b"q/open")
    one.process.send_signal(signal.SIGSTOP)
    assert second.get(b"q/open/t=20000") == b"x"
    one.process.send_signal(signal.SIGCONT)
    assert first.ask(b"get q/close=%d\r\n" % token) == b"CLIENT_ERROR no such reserved item\r\n"
    assert first.get(b"q") is None
    assert second.ask(b"get q/abort\r\n") == b"END\r\n"
    assert second.get(b"q/t=5000") == b"x"
    assert first.get(b"q") is None


def test_items_of_a_client_that_goes_come_back_in_their_order(pair, both):
    one, other = both
    with_ten = pair[0].connect()
    for n in range(12):
        with_ten.set(b"many", b"%02d" % n)
    assert [with_ten.get(b"many/open") for _ in range(10)] == [b"%02d" % n for n in range(10)]
    with_ten.close()
    until(lambda: one.stats()["curr_connections"] == "1")
    # a get of the same darner is served once the cluster has confirmed that it has them all back
    assert one.get(b"many") == b"00"
    assert other.take_all(b"many") == [b"%02d" % n for n in range(1, 12)]


def test_client_that_has_gone_swallows_nothing(pair, both, queue):
    one, other = both
    one.send(b"get %s/t=30000\r\n" % queue)
    until(lambda: pair[0].waiters(queue) == 1)
    one.reset()
    until(lambda: pair[0].waiters(queue) == 0)
    assert other.set(queue, b"x") == b"STORED\r\n"
    assert other.get(queue + b"/t=5000") == b"x"


@pytest.mark.parametrize("how", [b"abort", b"abort/delay=60000"])
def test_item_that_came_back_too_often_is_in_the_dead_letter_queue_once_that_is_answered(both, how):
    one, other = both
    for n in range(10):
        assert one.set(b"tried", b"%d" % n) == b"STORED\r\n"
        assert one.get(b"tried/open") == b"%d" % n
        assert one.ask(b"get tried/abort\r\n") == b"END\r\n"
        assert one.get(b"tried/open") == b"%d" % n
        assert one.ask(b"get tried/%s\r\n" % how) == b"END\r\n"
        assert other.get(b"dead") == b"%d" % n


def test_item_that_came_back_too_often_is_there_for_a_get_of_the_same_line(both):
    one, _ = both
    for n in range(10):
        one.set(b"tried", b"%d" % n)
        assert one.get(b"tried/open") == b"%d" % n
        assert one.get(b"tried/abort") is None
        assert one.get(b"tried/open") == b"%d" % n
        assert one.values(b"get tried/abort dead") == [(b"dead", 0, None, b"%d" % n)]


def test_item_that_came_back_too_often_goes_to_the_dead_letter_queue(both):
    one, other = both
    one.set(b"tried", b"x", flags=3)
    assert one.get(b"tried/open") == b"x"
    one.ask(b"get tried/abort\r\n")
    assert other.get(b"tried/open/t=5000") == b"x"
    other.ask(b"get tried/abort\r\n")
    assert one.values(b"get dead/t=10000") == [(b"dead/t=10000", 3, None, b"x")]
    assert other.get(b"tried") is None


def test_item_held_for_longer_than_open_timeout_goes_back(both):
    one, other = both
    one.set(b"short", b"x")
    token, _ = one.gets(b"short/open")
    assert other.get(b"short/t=10000") == b"x"
    assert one.ask(b"get short/close=%d\r\n" % token) == b"CLIENT_ERROR no such reserved item\r\n"


def limited(number: int) -> str:
    """Return a configuration in which the queue `q` has so many items at most."""
    return f'ack_wait = "1s"\n[queues.q]\nmax_items = {number}\n'


def reload(server: Server, text: str) -> None:
    """Have a server take another configuration."""
    Path(server.options[-1]).write_text(server.cluster.settings + text)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log("configuration reloaded")


def room(wire: Wire) -> int:
    """Return how many items the queue `q` takes when it is empty."""
    wire.take_all(b"q")
    count = 0
    while wire.set(b"q", b"x") == b"STORED\r\n":
        count += 1
    return count


def test_limits_that_are_reloaded_hold_from_then_on_and_lose_nothing(start):
    one, other = servers = start(limited(4)), start(limited(4))
    wires = one.connect(), other.connect()
    stored = [b"%d" % n for n in range(6)]
    assert [wires[0].set(b"q", data) for data in stored] == [b"STORED\r\n"] * 4 + [b"NOT_STORED\r\n"] * 2
    for server in servers:
        reload(server, limited(6))
    assert [wires[1].set(b"q", data) for data in stored[4:]] == [b"STORED\r\n"] * 2
    for server in servers:
        reload(server, limited(2))
    assert [wire.set(b"q", b"x") for wire in wires] == [b"NOT_STORED\r\n"] * 2
    assert wires[1].take_all(b"q") == stored
    until(lambda: room(wires[0]) == 2)
    assert room(wires[1]) == 2


def test_client_that_is_reset_as_an_item_comes_loses_it_to_nobody(pair, both, queue):
    _, other = both
    for n in range(20):
        waiting = pair[0].connect()
        waiting.send(b"get %s/t=30000\r\n" % queue)
        until(lambda: pair[0].waiters(queue) == 1)
        waiting.reset()
        assert other.set(queue, b"%d" % n) == b"STORED\r\n"
        assert other.get(queue + b"/t=10000") == b"%d" % n


def test_limit_that_is_lowered_while_sets_come_loses_nothing(start):
    one, other = start(limited(10_000)), start(limited(10_000))
    setter, lowering = other.connect(), one.connect()
    stored: list[bytes] = []

    def fill() -> None:
        while setter.set(b"q", data := b"%d" % len(stored)) == b"STORED\r\n":
            stored.append(data)

    with ThreadPoolExecutor(1) as threads:
        filling = threads.submit(fill)
        until(lambda: len(stored) > 50)
        reload(one, limited(20))
        assert lowering.set(b"q", b"x") == b"NOT_STORED\r\n"
        filling.result(30)
    assert len(stored) < 10_000
    assert lowering.take_all(b"q") == stored


def test_totals_of_a_darner_keep_what_was_counted_of_a_queue_that_is_deleted(start):
    servers = start(), start()
    one, other = (server.connect() for server in servers)
    for _ in range(3):
        one.set(b"gone", b"x")
    assert servers[0].stat("total_items") == 3
    assert one.ask(b"delete gone\r\n") == b"DELETED\r\n"
    assert servers[0].stat("total_items") == 3
    one.set(b"gone", b"x")
    assert other.ask(b"delete gone\r\n") == b"DELETED\r\n"
    assert servers[0].stat("total_items") == 4
    one.set(b"gone", b"x")
    assert servers[0].stat("total_items") == 5
    assert servers[0].stat("queue_gone_total_items") == 1


def test_a_close_of_what_another_one_has_deleted_finds_out_that_it_is_gone(both, queue):
    one, other = both
    assert one.set(queue, b"a") == b"STORED\r\n"
    assert one.get(queue + b"/open") == b"a"
    assert other.ask(b"delete %s\r\n" % queue) == b"DELETED\r\n"
    assert one.ask(b"get %s/close=1\r\n" % queue) == b"CLIENT_ERROR no such reserved item\r\n"


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_everything_is_there_and_just_once_however_often_the_only_darner_ends(start, how):
    server = start()

    def restarted() -> Wire:
        server.end(how)
        server.start()
        return server.connect()

    wire = server.connect()
    wire.get(b"orders+audit")
    datas = [b"0", b"1", bytes(500_000), b"3"]
    for data in datas:
        assert wire.set(b"orders", data, flags=7) == b"STORED\r\n"
    assert wire.ask(b"set later/delay=1500 0 0 1\r\nx\r\n") == b"STORED\r\n"
    leave_items(wire)

    for _ in range(2):
        wire = restarted()
    assert wire.values(b"get orders/peek") == [(b"orders/peek", 7, None, b"0")]
    for name in (b"orders", b"orders+audit"):
        assert wire.take_all(name) == datas
    # what was reserved comes back once its ack_wait is over
    assert sorted(wire.get(b"many/t=5000") for _ in range(3)) == [b"b", b"c", b"d"]
    assert wire.get(b"later/t=5000") == b"x"
    until(lambda: server.stat("queue_gone_items") == 1)
    assert wire.take_all(b"gone") == [b"stays"]
    assert [wire.get(b"tried"), wire.take_all(b"dead")] == [None, [b"p"]]

    wire = restarted()
    assert wire.stats()["curr_items"] == "0"
    for name in (b"orders", b"orders+audit", b"later", b"many", b"gone", b"tried", b"dead"):
        assert wire.get(name) is None


def test_age_of_the_head_is_that_of_an_item_that_came_back(pair, both, queue):
    one, _ = both
    one.set(queue, b"a")
    assert one.get(queue + b"/open") == b"a"
    assert one.ask(b"get %s/abort\r\n" % queue) == b"END\r\n"
    until(lambda: pair[0].stat(f"queue_{queue.decode()}_head_age") > 0, 10)


def test_stream_that_a_darner_had_closed_as_it_died_takes_sets_again(start, accounts, tmp_path):
    server = start("[queues.q]\nmax_items = 2\n")
    wire = server.connect()
    assert wire.set(b"q", b"a") == b"STORED\r\n"

    async def close() -> None:
        client = await nats.connect(accounts.options(tmp_path / "queues")[1])
        async with client:
            info = json.loads((await client.request("$JS.API.STREAM.INFO.darner_q")).data)
            closed = {**info["config"], "max_msg_size": CLOSED_BYTES}
            answer = await client.request("$JS.API.STREAM.UPDATE.darner_q", json.dumps(closed).encode())
            assert "error" not in json.loads(answer.data)

    asyncio.run(close())
    # after half of the time in which a set is given up
    assert wire.set(b"q", b"b") == b"STORED\r\n"
    assert wire.set(b"q", b"c") == b"NOT_STORED\r\n"
    assert wire.take_all(b"q") == [b"a", b"b"]


def assert_served_in_order(waiting, sender, queue):
    """Set an item for each of these clients, which wait with t=20000: they get them in their order."""
    for n in range(len(waiting)):
        assert sender.set(queue, b"%d" % n) == b"STORED\r\n"
    for n, wire in enumerate(waiting):
        assert wire.line() == b"VALUE %s/t=20000 0 1\r\n" % queue
        assert wire.exactly(8) == b"%d\r\nEND\r\n" % n
        wire.close()


def test_those_who_wait_keep_their_places_though_their_pulls_are_renewed(pair, both, queue):
    sender, _ = both
    sender.set(queue, b"first")
    assert sender.get(queue) == b"first"
    waiting = []
    for n in range(8):
        waiting.append(pair[0].connect())
        waiting[-1].send(b"get %s/t=20000\r\n" % queue)
        until(lambda n=n: pair[0].waiters(queue) == n + 1)
        # a pull lasts for a third of ack_wait, which is 1 s: each is renewed several times, none with another
        assert waiting[-1].silent(0.15)
    assert_served_in_order(waiting, sender, queue)


def test_those_who_wait_for_a_queue_that_another_one_makes_are_served_in_order(pair, both, queue):
    waiting = [pair[0].connect() for _ in range(8)]
    for n, wire in enumerate(waiting):
        wire.send(b"get %s/t=20000\r\n" % queue)
        until(lambda n=n: pair[0].waiters(queue) == n + 1)
    _, sender = both
    assert_served_in_order(waiting, sender, queue)
