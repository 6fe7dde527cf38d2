"""A look at a queue from any id on: a page of it, which leaves everything where it is."""

import pytest

from darner._records import CHUNK_BYTES, item_key
from darner.config.settings import QueueSettings
from darner.errors import JournalError, NotReadyError
from darner.journal import reading
from darner.queues import browsing, item_window
from darner.queues.cursor import Cursor

LARGE = b"x" * CHUNK_BYTES + b"y"


@pytest.fixture
def data(data, is_durable):
    data.settings[b"work"] = QueueSettings(durable=is_durable)
    return data


def look(it, source, id):
    """Return the first item from `id` on, and in how many turns it was found."""
    turns = 1
    while True:
        try:
            return source.peek_from(id), turns
        except NotReadyError as error:
            id = error.next_id or id
            it.threads.run_all()
            turns += 1


def pages(it, source, id=1):
    """Return the data of all items from `id` on, as a client pages through them."""
    found = []
    while (item := look(it, source, id)[0]) is not None:
        assert item.id >= id
        found.append(item.data)
        id = item.id + 1
    return found


def fill(data, count):
    """Set so many items, of which some are in memory, some in LevelDB, and some staged; return the queue."""
    for n in range(count):
        if n == 2 * count // 3:
            data.write_out()
        data.set(b"work", b"%d" % n)
    return data.broker.queue(b"work")


@pytest.mark.usefixtures("small")
class TestPages:
    def test_go_through_the_queue_and_leave_it_as_it_is(self, data):
        queue = fill(data, 30)
        window, next_unread = list(queue.window), queue.journal.next_unread
        assert len(window) < 10
        assert pages(data, queue) == [b"%d" % n for n in range(30)]
        assert pages(data, queue, 17) == [b"%d" % n for n in range(16, 30)]
        for end in (31, 1 << 63):
            assert look(data, queue, end) == (None, 1)
        assert (list(queue.window), queue.journal.next_unread) == (window, next_unread)
        assert data.read_all(b"work") == [b"%d" % n for n in range(30)]
        assert pages(data, queue) == []

    def test_find_what_is_left_when_the_item_at_their_end_was_fetched(self, data):
        queue = fill(data, 30)
        assert look(data, queue, 5)[0].data == b"4"
        for _ in range(20):
            queue.pop()
        assert pages(data, queue, 6) == [b"%d" % n for n in range(20, 30)]

    def test_leave_out_what_is_reserved_delayed_or_has_expired(self, data):
        data.settings[b"work"] = QueueSettings(durable=data.settings[b"work"].durable, max_expire_sweep=0)
        queue = fill(data, 12)
        data.push(b"work", b"brief", exptime=1)
        data.set(b"work", b"late", delay_ms=5000)
        data.set(b"work", b"last")
        held = [queue.reserve() for _ in range(3)]
        data.now += 1500
        rest = [*(b"%d" % n for n in range(3, 12)), b"last"]
        assert pages(data, queue) == rest
        # it is left to those that take it away
        assert queue.counts.expired_items == 0
        assert queue.items == len(rest) + 1
        queue.abort(held[1])
        assert pages(data, queue) == [b"1", *rest]
        # which are due is told by whoever has them join
        data.now += 5000
        assert pages(data, queue) == [b"1", *rest]

    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)])
    def test_go_by_the_ids_in_whatever_order_items_came_back(self, data, order):
        queue = fill(data, 12)
        for _ in range(2):  # so that some come back before others that did
            held = [queue.reserve() for _ in range(4)]
            held.sort(key=lambda item: item.id)
            for n in order:
                queue.abort(held[n])
            assert pages(data, queue) == [b"%d" % n for n in range(12)]
            assert [look(data, queue, id)[0].id for id in range(1, 13)] == list(range(1, 13))
        back = [queue.pop().data for _ in range(3)]
        assert pages(data, queue) == [b"%d" % n for n in range(12) if b"%d" % n not in back]
        # and one that was given back lies where it was
        held = [queue.reserve() for _ in range(3)]
        for item in (held[1], held[0], held[2]):
            queue.give_back(item)
        assert pages(data, queue) == [b"%d" % n for n in range(12) if b"%d" % n not in back]

    def test_wait_for_items_that_are_on_their_way_back(self, data):
        queue = fill(data, 6)
        held = [queue.reserve() for _ in range(3)]
        queue.begin_return()
        for item in reversed(held):
            with pytest.raises(NotReadyError):
                queue.peek_from(1)
            queue.abort(item)
        queue.end_return()
        assert queue.peek_from(1).data == b"0"

    def test_are_of_all_that_is_there_after_a_restart(self, data):
        data.settings[b"work"] = QueueSettings()
        queue = fill(data, 12)
        for _ in range(4):
            queue.reserve()
        queue.close(queue.reserve())
        rest = [b"%d" % n for n in range(12) if n != 4]
        data.restart()
        assert pages(data, data.broker.queue(b"work")) == rest
        data.kill()
        assert pages(data, data.broker.queue(b"work")) == rest


class TestTurns:
    def test_end_after_so_many_expired_items(self, data, monkeypatch):
        monkeypatch.setattr(item_window, "WINDOW_BYTES", 1)
        queue = data.broker.queue(b"work")
        for _ in range(2000):
            data.push(b"work", b"brief", exptime=1)
        data.write_out()
        data.set(b"work", b"last")
        data.now += 1500
        reads = []
        scan = reading.scan
        monkeypatch.setattr(reading, "scan", lambda *args: reads.append(args) or scan(*args))
        item, turns = look(data, queue, 2)
        assert item.data == b"last"
        assert turns == 1 + 2000 // browsing.PASSED_AT_ONCE
        # the first of each turn is read by itself, for it may be all that is wanted
        assert len(reads) == pytest.approx(3 * turns, abs=3)
        assert queue.items == 2001

    def test_end_in_memory_after_so_many_ids_without_an_item(self, data, monkeypatch):
        monkeypatch.setattr(item_window, "WINDOW_BYTES", 1)
        monkeypatch.setattr(browsing, "IDS_AT_ONCE", 100)
        data.settings[b"work"] = QueueSettings(durable=False)
        data.set(b"work", b"first")
        data.set(b"work", b"second")
        for _ in range(500):
            data.push(b"work", b"brief", exptime=1)
        data.set(b"work", b"last")
        data.now += 1500
        data.tick(8)
        queue = data.broker.queue(b"work")
        assert queue.items == 3
        assert look(data, queue, 2)[0].data == b"second"
        item, turns = look(data, queue, 3)
        assert (item.data, turns) == (b"last", 6)

    def test_end_after_so_many_items_that_were_just_removed(self, it, monkeypatch):
        monkeypatch.setattr(item_window, "READ_ITEMS", 1)
        monkeypatch.setattr(browsing, "IDS_AT_ONCE", 100)
        it.push(b"first")
        it.push(*[b"brief"] * 500, exptime=1)
        it.push(b"last")
        it.commit()
        it.restart()
        it.now += 1500
        it.queue.sweep()
        assert it.queue.items == 2
        item, turns = look(it, it.queue, 2)
        assert (item.data, turns) == (b"last", 6)
        # written to LevelDB they cost nothing
        it.commit()
        assert look(it, it.queue, 2)[1] == 1

    def test_with_a_damaged_item_have_it_put_aside_and_find_the_next(self, it):
        it.push(b"a", b"b", b"c", b"d")
        it.commit()
        it.restart()
        db = it.journal.database.open()
        for id in (2, 3):
            db.put(item_key(id), b"damaged")
        assert pages(it, it.queue) == [b"a", b"d"]
        assert (it.queue.items, it.journal.damaged_items) == (2, 2)
        assert {file.name for file in (it.path / "work" / "damaged").iterdir()} == {"2.record", "3.record"}
        assert it.waiting() == [b"a", b"d"]

    def test_have_the_bytes_of_what_came_back_without_them(self, it):
        it.push(b"a", b"b")
        it.commit()
        held = [it.queue.reserve(), it.queue.reserve()]
        for item in held:
            item.forget_data()
            it.queue.abort(item)
        assert pages(it, it.queue) == [b"a", b"b"]
        it.journal.database.open().delete(item_key(1))
        assert pages(it, it.queue) == [b"b"]
        assert it.waiting() == [b"b"]

    @pytest.mark.parametrize("is_read", [True, False])
    def test_with_a_large_item_have_its_file_or_the_next_item(self, data, is_read):
        data.settings[b"work"] = QueueSettings()
        for _ in range(2):
            data.upload(b"work", LARGE)
        data.set(b"work", b"small")
        if not is_read:
            data.restart()
        queue = data.broker.queue(b"work")
        item = queue.peek_from(1)
        assert (item.id, item.data, item.size) == (1, None, len(LARGE))
        queue.open_blob(item).close()
        queue.journal.blobs.path_of(item.blob).unlink()
        assert look(data, queue, 1)[0].id == 2
        assert (queue.items, queue.journal.damaged_items) == (2, 1)
        assert queue.peek().id == 2

    def test_end_with_the_error_if_the_journal_cannot_be_read(self, it, monkeypatch):
        def fail(*_, **__):
            raise JournalError("no")

        it.push(b"a")
        it.restart()
        monkeypatch.setattr("darner.journal.database.Database.open", fail)
        with pytest.raises(JournalError, match="no"):
            it.queue.peek_from(1)


class TestThroughACursor:
    @pytest.fixture
    def cursor(self, data):
        queue = fill(data, 12)
        cursor = Cursor(queue, b"billing")
        for _ in range(3):
            cursor.pop()
        return cursor

    def test_are_of_what_it_has_still_to_read(self, data, cursor):
        rest = [b"%d" % n for n in range(3, 12)]
        assert pages(data, cursor) == rest
        assert pages(data, cursor, 9) == rest[5:]
        held = [cursor.reserve() for _ in range(3)]
        cursor.abort(held[1])
        assert pages(data, cursor) == [b"4", *rest[3:]]
        # what the queue's readers hold it reads, and what they removed it does not
        cursor.queue.reserve()
        for _ in range(7):
            cursor.queue.pop()
        assert pages(data, cursor) == [b"8", b"9", b"10", b"11"]
        assert cursor.pop().data == b"8"

    def test_leave_out_what_has_expired(self, data, cursor, monkeypatch):
        monkeypatch.setattr("darner.queues.cursor.EXPIRED_AT_ONCE", 3)
        for _ in range(7):
            data.push(b"work", b"brief", exptime=1)
        data.set(b"work", b"last")
        data.now += 1500
        item, turns = look(data, cursor, 13)
        assert (item.data, turns) == (b"last", 3)
        assert pages(data, cursor, 12) == [b"11", b"last"]
