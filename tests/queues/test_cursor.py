"""Cursors: durable places in a queue that read and remove nothing."""

import pytest
from doubles import reserve

from darner._records import CHUNK_BYTES
from darner.config.settings import QueueSettings
from darner.errors import JournalError
from darner.queues.cursor import Cursor
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter
from darner.wire.holds import Holds

LARGE = b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES + b"z"
BILLING = b"orders/cursor=billing"


@pytest.fixture
def data(data, is_durable):
    data.settings[b"orders"] = QueueSettings(durable=is_durable)
    return data


@pytest.fixture
def durable(data):
    data.settings[b"orders"] = QueueSettings()
    return data


def cursor(data, name=BILLING):
    return data.broker.routes.source(name, takes=True, waits=True)


def read_all(data, name=BILLING):
    found = []
    while (item := cursor(data, name).pop()) is not None:
        found.append(item.data)
        data.settle()
    return found


class TestCursor:
    def test_reads_from_the_oldest_item_on_and_removes_none(self, data):
        for n in range(3):
            data.set(b"orders", b"%d" % n)
        assert read_all(data) == [b"0", b"1", b"2"]
        data.set(b"orders", b"3")
        assert read_all(data) == [b"3"]
        assert read_all(data, b"orders/cursor=other") == [b"0", b"1", b"2", b"3"]
        assert data.read_all(b"orders") == [b"0", b"1", b"2", b"3"]

    def test_skips_what_the_readers_of_the_queue_removed(self, data):
        for n in range(8):
            data.set(b"orders", b"%d" % n)
        orders = data.broker.queues[b"orders"]
        assert cursor(data).pop().data == b"0"
        held = [orders.reserve() for _ in range(5)]
        for item in (held[1], held[3]):
            orders.close(item)
        data.settle()
        assert cursor(data).pop().data == b"2"
        orders.abort(held[4])
        assert read_all(data) == [b"4", b"5", b"6", b"7"]
        orders.flush()
        data.set(b"orders", b"8")
        assert read_all(data) == [b"8"]

    def test_finds_what_stays_reserved_while_all_around_it_goes(self, durable, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 3)
        for n in range(20):
            durable.set(b"orders", b"%d" % n)
        orders = durable.broker.queues[b"orders"]
        orders.reserve()
        for _ in range(9):
            orders.pop()
        assert orders.journal.live.kept
        assert read_all(durable) == [b"0"] + [b"%d" % n for n in range(10, 20)]

    def test_skips_what_has_expired(self, data):
        data.push(b"orders", b"old", exptime=1)
        data.set(b"orders", b"new")
        data.now += 1000
        assert read_all(data) == [b"new"]

    def test_reads_large_items(self, data):
        assert data.upload(b"orders", LARGE) == [None]
        item = cursor(data).reserve()
        data.read_all(b"orders")
        if item.data is None:
            reader = cursor(data).open_blob(item)
            while reader.read(lambda: None) != b"":
                data.settle()
            reader.close()
        assert item.size == len(LARGE)

    def test_keeps_its_place_over_a_restart(self, durable):
        data = durable
        for n in range(4):
            data.set(b"orders", b"%d" % n)
        assert cursor(data).pop().data == b"0"
        assert cursor(data).reserve().data == b"1"
        assert cursor(data).pop().data == b"2"
        data.restart()
        assert read_all(data) == [b"1", b"3"]
        data.restart()
        assert read_all(data) == []

    def test_starts_over_when_it_is_deleted(self, data):
        data.set(b"orders", b"1")
        read_all(data)
        held = cursor(data)
        data.broker.delete(BILLING)
        data.settle()
        assert read_all(data) == [b"1"]
        assert held is cursor(data)
        assert not data.broker.delete(b"nobody/cursor=x")

    def test_ends_with_its_queue(self, data):
        data.set(b"orders", b"1")
        read_all(data)
        read_all(data, b"orders/cursor=unused")
        data.restart()
        data.set(b"orders", b"2")
        read_all(data)
        data.broker.delete(b"orders")
        data.set(b"orders", b"3")
        data.set(b"orders", b"4")
        assert read_all(data) == read_all(data, b"orders/cursor=unused") == [b"3", b"4"]

    def test_stays_where_it_is_if_that_cannot_be_logged(self, durable, monkeypatch):
        data = durable
        data.set(b"orders", b"1")
        data.set(b"orders", b"2")
        held = cursor(data).reserve()

        def refuse(*_):
            raise JournalError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(Cursor, "_keep", refuse)
            for use in (cursor(data).pop, cursor(data).reserve, lambda: cursor(data).close(held)):
                with pytest.raises(JournalError):
                    use()
        cursor(data).abort(held)
        assert read_all(data) == [b"1", b"2"]

    def test_keeps_its_place_over_a_kill(self, durable):
        data = durable
        for n in range(6):
            data.set(b"orders", b"%d" % n)
        assert cursor(data).pop().data == b"0"
        data.write_out()
        assert cursor(data).reserve().data == b"1"
        assert cursor(data).pop().data == b"2"
        data.kill()
        assert cursor(data).pop().data == b"1"
        data.kill()
        assert read_all(data) == [b"3", b"4", b"5"]
        data.broker.delete(BILLING)
        data.kill()
        assert cursor(data).peek().data == b"0"


class TestNotMade:
    """A cursor that nothing was read through."""

    @pytest.fixture(autouse=True)
    def items(self, data):
        data.set(b"orders", b"1")

    @pytest.mark.parametrize("use", ["peek", "delete"])
    def test_is_none_after_it_was_looked_at_or_deleted(self, data, use):
        orders = data.broker.queues[b"orders"]
        before = data.broker.storage.log.position if orders.is_durable else None
        for n in range(100):
            name = b"orders/cursor=%d" % n
            assert cursor(data, name).peek().data == b"1" if use == "peek" else data.broker.delete(name)
        assert orders.cursors == orders.waiting_cursors == orders.journal.cursors == {}
        assert len(data.broker.cursors.in_use) == 0
        assert before is None or data.broker.storage.log.position == before  # nothing was logged

    def test_is_none_after_it_was_waited_at_and_given_up(self, data):
        orders = data.broker.queues[b"orders"]
        data.read_all(b"orders")
        waiter = Waiter(Cursor.pop, lambda *_: None)
        cursor(data).wait(waiter)
        assert list(orders.waiting_cursors) == list(waiter.sources)
        waiter.cancel()
        assert orders.cursors == orders.waiting_cursors == {}

    def test_is_the_same_for_two_who_read_through_it(self, data):
        one, other = cursor(data), cursor(data)
        assert [one.pop().data, other.pop()] == [b"1", None]

    def test_again_takes_no_memory_once_it_was_deleted(self, data):
        orders = data.broker.queues[b"orders"]
        read_all(data)
        assert list(orders.cursors) == list(orders.journal.cursors) == [b"billing"]
        data.broker.delete(BILLING)
        assert orders.cursors == orders.journal.cursors == {}
        assert len(data.broker.cursors.in_use) == 0

    def test_takes_no_memory_once_its_queue_was_deleted(self, data):
        read_all(data)
        assert BILLING in data.broker.sources
        data.broker.delete(b"orders")
        data.settle()
        assert len(data.broker.sources) == len(data.broker.cursors.in_use) == 0

    def test_is_served_with_those_alone_that_somebody_waits_at(self, data, monkeypatch):
        served = []
        monkeypatch.setattr(Cursor, "serve", lambda self: served.append(self.name))
        for n in range(100):
            read_all(data, b"orders/cursor=%d" % n)
        cursor(data).wait(Waiter(Cursor.pop, lambda *_: None))
        data.set(b"orders", b"2")
        assert served == [BILLING]


class TestReserved:
    def test_is_read_again_in_order_when_it_comes_back(self, data):
        for n in range(5):
            data.set(b"orders", b"%d" % n)
        holds = Holds()
        reserve(holds, cursor(data), 4)
        assert holds.close(BILLING) == 1
        assert holds.count(b"orders") == 0
        assert cursor(data).pop().data == b"4"
        list(holds.release())
        assert read_all(data) == [b"1", b"2", b"3"]

    def test_bears_how_often_it_has_come_back_here(self, data):
        data.set(b"orders", b"0")
        data.set(b"orders", b"1")
        first = cursor(data).reserve()
        assert first.token == first.id
        data.broker.queues[b"orders"].abort(data.broker.queues[b"orders"].reserve())
        cursor(data).abort(first)
        again = cursor(data).reserve()
        assert (again.id, again.attempts) == (first.id, 2)
        assert data.broker.queues[b"orders"].peek().attempts == 1
        cursor(data).give_back(again)
        assert cursor(data).peek().attempts == 2
        assert cursor(data).pop().attempts == 2
        assert cursor(data)._attempts == {}
        assert cursor(data).pop().attempts == 0

    def test_is_counted_no_longer_once_it_is_read_or_gone(self, data):
        for n in range(3):
            data.set(b"orders", b"%d" % n)
        items = [cursor(data).reserve() for _ in range(3)]
        for item in items:
            cursor(data).abort(item)
        cursor(data).close(cursor(data).reserve())
        assert [data.read(b"orders"), data.read(b"orders")] == [b"0", b"1"]
        assert cursor(data).peek().attempts == 1
        assert list(cursor(data)._attempts) == [items[2].id]
        data.broker.delete(BILLING)
        assert cursor(data).peek().attempts == 0

    def test_is_skipped_when_it_comes_back_and_was_removed(self, data):
        data.set(b"orders", b"0")
        data.set(b"orders", b"1")
        item = cursor(data).reserve()
        data.read(b"orders")
        data.settle()
        cursor(data).abort(item)
        assert read_all(data) == [b"1"]
        cursor(data).close(item)
        assert cursor(data).peek() is None

    def test_may_be_peeked_at(self, data):
        data.set(b"orders", b"0")
        assert cursor(data).peek().data == cursor(data).peek().data == b"0"
        cursor(data).abort(cursor(data).reserve())
        assert cursor(data).peek().data == b"0"


class TestWaiting:
    @pytest.fixture
    def delivered(self):
        return []

    def wait(self, data, delivered, fetch=Cursor.pop, name=BILLING):
        waiter = Waiter(fetch, lambda source, item: delivered.append((source.name, item.data)))
        cursor(data, name).wait(waiter)
        return waiter

    def test_ends_with_the_next_item_first_come_first_served(self, data, delivered):
        gone = self.wait(data, delivered)
        gone.has_disconnected = lambda: True
        self.wait(data, delivered, Cursor.reserve)
        self.wait(data, delivered)
        data.set(b"orders", b"1")
        assert delivered == [(BILLING, b"1")]
        data.set(b"orders", b"2")
        assert delivered[1:] == [(BILLING, b"2")]
        assert data.read_all(b"orders") == [b"1", b"2"]

    def test_ends_with_an_item_that_comes_back(self, data, delivered):
        data.set(b"orders", b"1")
        item = cursor(data).reserve()
        self.wait(data, delivered)
        cursor(data).abort(item)
        assert delivered == [(BILLING, b"1")]

    def test_ends_with_the_oldest_item_when_the_cursor_is_dropped(self, data, delivered):
        data.set(b"orders", b"1")
        read_all(data)
        self.wait(data, delivered)
        data.broker.delete(BILLING)
        assert delivered == [(BILLING, b"1")]

    def test_goes_on_when_the_queue_is_deleted(self, data, delivered):
        data.set(b"orders", b"0")
        data.read_all(b"orders")
        self.wait(data, delivered)
        data.broker.delete(b"orders")
        data.set(b"orders", b"1")
        assert delivered == [(BILLING, b"1")]

    def test_comes_after_the_readers_of_the_queue(self, data, delivered):
        data.broker.queue(b"orders")
        self.wait(data, delivered)
        data.broker.queues[b"orders"].wait(Waiter(Queue.pop, lambda *_: delivered.append("queue")))
        data.set(b"orders", b"1")
        assert delivered == ["queue"]
