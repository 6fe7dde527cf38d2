"""Clients that wait for one item, at several queues at once."""

import gc

import pytest
from brokers import Data
from doubles import Silence

from darner.config.settings import QueueSettings
from darner.errors import JournalError
from darner.queues.cursor import Cursor
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter


@pytest.fixture
def data(tmp_path):
    data = Data(tmp_path / "data", aliases={b"all": (b"a", b"b")})
    data.waiters = []
    yield data
    data.close()


@pytest.fixture
def served():
    return []


def wait(data, served, who, *names, fetch=Queue.reserve):
    """Wait at each of these queues; returns the waiter."""
    waiter = Waiter(
        lambda source: source.pop() if isinstance(source, Cursor) else fetch(source),
        lambda source, item: served.append((who, source.name, item.data)),
        fail=lambda error: served.append((who, str(error))),
    )
    for name in names:
        data.broker.routes.source(name, takes=True, waits=True).wait(waiter)
    # a placeholder lives as long as a client knows its waiter
    data.waiters.append(waiter)
    return waiter


def lines(data):
    """Return how many clients wait, by queue."""
    return {
        name: queue.waiting_clients for name, queue in data.broker.visible.items() if queue.waiting_clients
    }


@pytest.mark.parametrize("name", [b"a", b"b", b"c"])
@pytest.mark.parametrize("exists", [True, False])
def test_is_served_by_the_queue_that_gets_an_item_first_and_leaves_them_all(data, served, name, exists):
    if exists:
        for each in (b"a", b"b", b"c"):
            data.broker.queue(each)
    wait(data, served, "one", b"a", b"b", b"c")
    assert lines(data) == {b"a": 1, b"b": 1, b"c": 1}
    data.push(name, b"1", b"2")
    data.push(b"a", b"3")
    assert served == [("one", name, b"1")]
    assert lines(data) == {}
    assert data.broker.queues[name].items == 1 + (name == b"a")


def test_has_a_place_in_each_line(data, served):
    wait(data, served, "first", b"a")
    wait(data, served, "both", b"b", b"a")
    wait(data, served, "last", b"a")
    data.push(b"a", b"1", b"2", b"3")
    assert [who for who, *_ in served] == ["first", "both", "last"]


def test_is_served_by_a_cursor(data, served):
    data.push(b"a", b"old")
    assert data.broker.routes.source(b"a/cursor=c", takes=True, waits=True).pop().data == b"old"
    wait(data, served, "one", b"b", b"a/cursor=c", b"late/cursor=c")
    data.push(b"a", b"new")
    assert served == [("one", b"a/cursor=c", b"new")]
    assert lines(data) == {}
    data.push(b"b", b"1")
    data.push(b"late", b"1")
    assert len(served) == 1


def test_is_served_once_by_a_set_that_goes_to_several_of_its_queues(data, served):
    wait(data, served, "one", b"a", b"b")
    data.set(b"all", b"1")
    assert len(served) == 1
    assert data.broker.queues[b"a"].items + data.broker.queues[b"b"].items == 1


@pytest.mark.parametrize("how", ["cancelled", "disconnected"])
def test_takes_nothing_once_its_client_has_gone(data, served, how):
    gone = wait(data, served, "gone", b"a", b"b")
    wait(data, served, "other", b"b", b"a")
    if how == "cancelled":
        gone.cancel()
        assert lines(data) == {b"a": 1, b"b": 1}
    else:
        gone.has_disconnected = lambda: True
    data.push(b"b", b"1")
    assert served == [("other", b"b", b"1")]
    data.push(b"a", b"2")
    assert lines(data) == {}
    assert data.broker.queues[b"a"].items == 1


def test_goes_on_at_a_queue_that_is_deleted_and_comes_again(data, served):
    data.push(b"a", b"0")
    data.read_all(b"a")
    wait(data, served, "one", b"a", b"b")
    assert data.broker.delete(b"a")
    assert lines(data) == {b"a": 1, b"b": 1}
    data.push(b"a", b"1")
    assert served == [("one", b"a", b"1")]
    assert lines(data) == {}


def test_leaves_a_queue_that_goes_out_of_service_and_fails_with_the_last_one(data, served, monkeypatch):
    monkeypatch.setattr("darner.queues.events.log", Silence())
    wait(data, served, "one", b"a", b"b")
    wait(data, served, "other", b"a")
    for name in (b"a", b"b"):
        data.broker.set_aside(data.broker.queue(name), ValueError("?"))
        if name == b"a":
            assert served == [("other", "internal error: ValueError: ?")]
            assert lines(data) == {b"b": 1}
    assert served[1:] == [("one", "internal error: ValueError: ?")]


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("others", [(), (b"b",), (b"a", b"b")])
def test_gets_one_item_if_what_expires_in_one_of_its_queues_moves_to_another(data, served, left, others):
    """It is fetching from the first when the second has something for it."""
    data.settings[b"a"] = QueueSettings(expire_to_queue="b")
    held = data.broker.queue(b"a")
    data.push(b"a", b"expires", exptime=1)
    item = held.reserve()
    data.push(b"a", *[b"stays"] * left)
    stays = [held.reserve() for _ in range(left)]
    data.now += 1000
    wait(data, served, "one", b"a", b"b")
    for name in others:
        wait(data, served, "other", name)
    held.begin_return()
    for each in (*stays, item):
        held.abort(each)
    held.end_return()
    assert served[0] == (("one", b"a", b"stays") if left else ("one", b"b", b"expires"))
    assert [who for who, *_ in served].count("one") == 1
    if left and b"b" in others:
        assert served[1:] == [("other", b"b", b"expires")]
    else:
        assert len(served) == 1
        assert data.broker.queue(b"b").items == left
    assert lines(data) == {name: 1 for name in others if not (left and name == b"b")}


def test_that_cannot_be_served_now_waits_on(data, served):
    refused = []

    def fetch(queue):
        if not refused:
            refused.append(queue.name)
            raise JournalError("not now")
        return queue.reserve()

    wait(data, served, "one", b"a", b"b", fetch=fetch)
    data.push(b"a", b"1")
    assert (refused, served) == ([b"a"], [])
    assert lines(data) == {b"a": 1, b"b": 1}
    data.broker.queues[b"a"].serve()
    assert served == [("one", b"a", b"1")]


def test_leaves_nothing_to_the_collector(data, served):
    waiter = wait(data, served, "one", b"a", b"late", b"late/cursor=c")
    gc.collect()
    gc.disable()
    try:
        waiter.cancel()
        data.waiters.clear()
        del waiter
        assert len(data.broker._placeholders._queues) == len(data.broker.cursors.in_use) == 0
    finally:
        gc.enable()
