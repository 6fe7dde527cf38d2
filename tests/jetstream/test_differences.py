"""What differs from a data directory: the rows of the table in docs/scale-out.md."""

import time

import pytest
from running import until
from wall_clock import WHY_NONE, WallClock, compiled


def test_item_put_back_with_a_delay_counts_as_reserved_and_comes_at_the_head(pair, both, queue):
    one, other = both
    for data in (b"a", b"b"):
        one.set(queue, data)
    assert one.get(queue + b"/open") == b"a"
    assert one.ask(b"get %s/abort/delay=300\r\n" % queue) == b"END\r\n"
    assert pair[1].stat(f"queue_{queue.decode()}_open_transactions") == 1
    until(lambda: other.get(queue + b"/peek") == b"b")
    # nothing tells that it is due before it is fetched: five times its delay
    one.get(b"nothing/t=1500")
    assert other.take_all(queue) == [b"a", b"b"]


def test_item_that_came_back_is_not_shown_by_a_peek_before_it_is_fetched_again(both, queue):
    one, other = both
    for data in (b"a", b"b"):
        one.set(queue, data)
    assert one.get(queue + b"/open") == b"a"
    assert one.ask(b"get %s/abort\r\n" % queue) == b"END\r\n"
    assert other.get(queue + b"/peek") == b"b"
    assert one.take_all(queue) == [b"a", b"b"]


def test_item_that_came_back_is_counted_as_waiting_where_it_did_and_as_reserved_elsewhere(pair, both, queue):
    one, other = both
    one.set(queue, b"a")
    assert one.get(queue + b"/open") == b"a"
    assert one.ask(b"get %s/abort\r\n" % queue) == b"END\r\n"
    waiting, reserved = f"queue_{queue.decode()}_items", f"queue_{queue.decode()}_open_transactions"
    assert [(server.stat(waiting), server.stat(reserved)) for server in pair] == [(1, 0), (0, 1)]
    assert other.get(queue + b"/open") == b"a"
    assert other.ask(b"get %s/close\r\n" % queue) == b"END\r\n"
    assert [(server.stat(waiting), server.stat(reserved)) for server in pair] == [(0, 0), (0, 0)]


def test_flush_discards_what_is_reserved_and_forgets_no_ids(both, queue):
    one, other = both
    assert one.ask(b"set %s/id=i 0 0 1\r\na\r\n" % queue) == b"STORED\r\n"
    assert one.get(queue + b"/open") == b"a"
    assert other.ask(b"flush %s\r\n" % queue) == b"END\r\n"
    assert one.ask(b"get %s/abort\r\n" % queue) == b"END\r\n"
    assert one.ask(b"set %s/id=i 0 0 1\r\nb\r\n" % queue) == b"STORED\r\n"
    assert other.get(queue + b"/t=300") is None


def test_only_the_queues_looked_at_are_subscribed_to(both, queue):
    one, _ = both
    child, before = queue + b"+child", queue + b"0"
    one.set(before, b"x")
    assert len(one.values(b"get %s/t=0 %s/t=0" % (before, child))) == 1
    one.set(queue, b"y")
    assert one.get(child) is None


def test_counters_count_one_darner_alone(pair, both, queue):
    one, other = both
    one.set(queue, b"a")
    one.set(queue, b"b")
    name = f"queue_{queue.decode()}_total_items"
    assert one.stats()[name] == "2"
    assert other.stats()[name] == "0"
    assert other.stats()[f"queue_{queue.decode()}_items"] == "2"


def test_status_is_of_one_darner_and_ends_with_it(start):
    one, other = start(), start().connect()
    assert one.connect().ask(b"status readonly\r\n") == b"END\r\n"
    assert one.connect().set(b"q", b"x").startswith(b"SERVER_ERROR refused: the server is readonly")
    assert other.set(b"q", b"x") == b"STORED\r\n"
    one.restart()
    assert one.connect().set(b"q", b"x") == b"STORED\r\n"


def test_full_dead_letter_queue_takes_none_before_it_has_room(start):
    text = (
        'ack_wait = "1s"\n[queues.tried]\nmax_attempts = 1\ndead_letter_queue = "dead"\n'
        "[queues.dead]\nmax_items = 1\n"
    )
    server = start(text)
    wire = server.connect()
    wire.set(b"dead", b"full")
    wire.set(b"tried", b"x")
    assert wire.get(b"tried/open") == b"x"
    assert wire.ask(b"get tried/abort\r\n") == b"END\r\n"
    assert "item stays in its queue" in server.wait_for_log("queue=tried")
    assert wire.get(b"dead") == b"full"
    # it is given up as it is fetched again
    until(lambda: wire.get(b"tried/t=1000") is None and wire.get(b"dead") == b"x")


def test_max_age_holds_for_items_that_were_there_before_it(start):
    before = start("").connect()
    before.set(b"q", b"old")
    after = start('[queues.q]\nmax_age = "1s"\n').connect()
    assert after.set(b"q", b"new") == b"STORED\r\n"
    until(lambda: before.ask(b"get q/peek\r\n") == b"END\r\n")


def test_what_the_cluster_drops_is_not_counted(start):
    server = start("[queues.newest]\nmax_items = 1\ndiscard_old_when_full = true\n")
    wire = server.connect()
    for data in (b"a", b"b"):
        wire.set(b"newest", data)
    wire.set(b"q", b"old", exptime=-1)
    until(lambda: server.stat("queue_q_items") == 0)
    stats = wire.stats()
    assert [stats[name] for name in ("queue_newest_discarded", "queue_q_expired_items", "evictions")] == [
        "0"
    ] * 3
    assert wire.take_all(b"newest") == [b"b"]


def test_an_item_that_has_expired_counts_as_waiting_until_the_cluster_drops_it(pair, both, queue):
    one, other = both
    one.set(queue, b"old", exptime=-1)
    assert pair[1].stat(f"queue_{queue.decode()}_items") == 1
    assert one.ask(b"flush_expired %s\r\n" % queue) == b"0\r\n"
    assert other.get(queue + b"/peek") is None
    until(lambda: pair[1].stat(f"queue_{queue.decode()}_items") == 0)


def test_nothing_is_told_of_memory_and_disk(both, queue):
    one, _ = both
    one.set(queue, b"x")
    stats = one.stats()
    names = [f"queue_{queue.decode()}_{name}" for name in ("mem_items", "mem_bytes", "logsize")]
    assert [stats[name] for name in names] == ["0"] * 3
    # no more than there is
    assert stats["limit_maxbytes"] == stats["bytes"]


def test_a_large_item_on_its_way_has_no_queue_yet(pair, both, queue):
    one, other = both
    before = pair[0].stat("bytes_read")
    one.send(b"set %s 0 0 400000\r\n" % queue + bytes(300_000))
    until(lambda: pair[0].stat("bytes_read") > before + 300_000)
    assert f"queue_{queue.decode()}_items" not in other.stats()
    assert one.ask(bytes(100_000) + b"\r\n") == b"STORED\r\n"
    assert f"queue_{queue.decode()}_items" in other.stats()


def test_items_in_memory_are_in_that_of_the_nodes(start):
    server = start("[queues.volatile]\ndurable = false\n")
    server.connect().set(b"volatile", b"x")
    server.restart()
    assert server.connect().get(b"volatile") == b"x"


def test_each_look_at_an_empty_queue_asks_the_cluster(accounts, both, queue):
    before = accounts.node.ask("/varz")["in_msgs"]
    assert both[0].values(b"get" + b" %s" % queue * 200) == []
    assert accounts.node.ask("/varz")["in_msgs"] - before >= 200


@pytest.mark.skipif(bool(WHY_NONE), reason=WHY_NONE)
def test_times_are_those_of_the_clocks_of_darners_and_nodes(start, tmp_path):
    clock = WallClock(tmp_path, compiled(tmp_path))
    clock.set(3600)
    ahead, right = start("", clock.command).connect(), start("").connect()
    begun = time.monotonic()
    assert ahead.ask(b"set late/delay=1000 0 0 1\r\nx\r\n") == b"STORED\r\n"
    right.set(b"q", b"x", exptime=1800)
    assert right.get(b"q/peek") == b"x"
    # it takes it for an item that has expired
    assert ahead.get(b"q") is None
    assert right.get(b"q") is None
    assert right.get(b"late/t=2000") is None
    assert time.monotonic() - begun > 2
