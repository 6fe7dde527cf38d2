"""What is reserved takes no memory for its bytes, and what comes back is not written once more."""

import itertools
import re
from pathlib import Path

import pytest
from running import running, until

from darner._records import Change, item_key
from darner.config.settings import QueueSettings
from darner.errors import JournalError, NotReadyError
from darner.journal import lookup, reading
from darner.journal.database import Database
from darner.journal.layout import attempts_key
from darner.queues.cursor import Cursor
from darner.repair import repair

MIB = 1 << 20
ITEM_BYTES = 60_000
# how many items one client holds, and how much memory and disk that may take: they have 120 MB
HELD = 2000
MOST_BYTES = 32 * MIB


def reserve(source, count=1):
    """Reserve items as a `get` does it, once their bytes are in its reply; returns these."""
    datas = []
    for _ in range(count):
        item = source.reserve()
        datas.append(item.data)
        item.forget_data()
    return datas


def abort_all(source):
    for item in sorted(source.reserved.by_id.values(), key=lambda item: item.id, reverse=True):
        source.abort(item)


def come_to_rest(it):
    for _ in range(100):
        it.committer.tick()
        it.threads.run_all()


class TestBytes:
    @pytest.mark.parametrize("written", ["not", "half", "all"])
    def test_of_what_is_reserved_are_not_in_memory_and_come_back_with_it(self, it, written):
        it.push(b"a", b"b")
        if written != "not":
            it.commit()
        it.push(b"c")
        if written == "all":
            it.commit()
        assert reserve(it.queue, 3) == [b"a", b"b", b"c"]
        assert [item.data for item in it.queue.reserved.by_id.values()] == [None] * 3
        abort_all(it.queue)
        assert it.queue.peek().data == b"a"
        back = [it.queue.pop() for _ in range(3)]
        assert [(item.data, item.attempts) for item in back] == [(b"a", 1), (b"b", 1), (b"c", 1)]
        assert it.queue.pop() is None

    def test_are_kept_by_a_queue_in_memory(self, data):
        data.settings[b"m"] = QueueSettings(durable=False)
        data.push(b"m", b"a")
        queue = data.broker.queue(b"m")
        assert reserve(queue) == [b"a"]
        abort_all(queue)
        assert queue.pop().data == b"a"

    def test_of_what_a_cursor_has_reserved_are_not_in_memory(self, it):
        it.push(b"a", b"b")
        cursor = Cursor(it.queue, b"label")
        assert reserve(cursor, 2) == [b"a", b"b"]
        assert [item.data for item in cursor.reserved.by_id.values()] == [None] * 2
        assert it.queue.peek().data == b"a"
        abort_all(cursor)
        assert [cursor.pop().data, cursor.pop().data] == [b"a", b"b"]

    def test_go_along_to_the_queue_that_an_item_moves_to(self, it):
        it.set(max_attempts=1, dead_letter_queue="dead")
        it.push(b"a")
        reserve(it.queue)
        abort_all(it.queue)
        assert it.moved == [(b"a", b"dead")]

    def test_go_along_if_an_item_expires_after_it_came_back(self, it):
        it.set(expire_to_queue="old")
        it.push(b"a", exptime=5)
        reserve(it.queue)
        abort_all(it.queue)
        it.now += 6000
        assert it.queue.pop() is None
        assert it.moved == [(b"a", b"old")]

    @pytest.mark.parametrize("lost", ["damaged", "missing"])
    def test_that_are_lost_cost_that_item_alone(self, it, lost):
        it.push(b"a", b"b", b"c")
        it.commit()
        reserve(it.queue, 2)
        db = it.journal.database.open()
        if lost == "missing":
            db.delete(item_key(1))
        else:
            record = bytearray(db.get(item_key(1)))
            record[-1] ^= 1
            db.put(item_key(1), bytes(record))
        abort_all(it.queue)
        datas = []
        while len(datas) < 2:
            try:
                datas.append(it.queue.pop().data)
            except NotReadyError:  # its table is looked over first
                it.threads.run_all()
        assert datas == [b"b", b"c"]
        assert it.queue.pop() is None
        assert (it.journal.state.items, it.journal.damaged_items) == (0, 1)


class TestClosedOutOfTurn:
    """Of five items in LevelDB, all reserved."""

    @pytest.fixture
    def held(self, it):
        it.push(*[b"%d" % n for n in range(5)])
        it.commit()
        return [it.queue.reserve() for _ in range(5)]

    def deleted(self, it):
        """Return the keys that the staged changes delete from LevelDB, once they are sealed."""
        it.committer.checkpoint(it.journal)
        return [key for key, value in it.journal.records.sealed.ops if value is None]

    def test_items_are_not_deleted_if_those_before_them_are_closed_soon_after(self, it, held):
        for n in (3, 1, 0, 2, 4):
            it.queue.close(held[n])
        assert self.deleted(it) == []
        it.threads.run_all()
        assert it.restart().pop() is None

    def test_items_are_deleted_while_one_before_them_is_still_reserved(self, it, held):
        for n in (3, 0, 2):
            it.queue.close(held[n])
        assert self.deleted(it) == [item_key(4), item_key(3)]
        it.threads.run_all()
        it.queue.close(held[4])
        assert self.deleted(it) == [item_key(5)]
        it.threads.run_all()
        assert [item.data for item in iter(it.restart().pop, None)] == [b"1"]

    @pytest.mark.parametrize("is_written", [False, True])
    def test_items_stay_gone_after_a_kill(self, it, held, is_written):
        for n in (3, 0, 2):
            it.queue.close(held[n])
        if is_written:
            it.commit()
        it.queue.close(held[4])
        assert [item.data for item in iter(it.kill().pop, None)] == [b"1"]

    def test_items_stay_gone_if_the_write_fails_and_is_done_once_more(self, it, held, monkeypatch):
        def fail(*_, **_named):
            raise JournalError("no")

        it.queue.close(held[3])
        with monkeypatch.context() as patch:
            patch.setattr(Database, "commit", fail)
            it.commit()
        assert it.journal.failing is not None
        it.queue.close(held[0])
        it.tick()
        assert it.journal.failing is None
        assert [item.data for item in iter(it.restart().pop, None)] == [b"1", b"2", b"4"]


class TestAttempts:
    def test_are_logged_without_the_item(self, it):
        it.push(bytes(ITEM_BYTES))
        reserve(it.queue)
        before = it.log.segment.used_bytes
        abort_all(it.queue)
        assert it.log.segment.used_bytes - before < 100

    @pytest.mark.parametrize(("before", "after"), list(itertools.product([False, True], repeat=2)))
    def test_are_known_after_a_kill_whatever_was_written(self, it, before, after):
        it.push(b"a", b"b")
        if before:
            it.commit()
        for _ in range(2):
            reserve(it.queue)
            abort_all(it.queue)
        if after:
            it.commit()
        for _ in range(2):
            it.kill()
            assert [(item.data, item.attempts) for item in reading.read(it.journal, 1, 9, 999)[0]] == [
                (b"a", 2),
                (b"b", 0),
            ]
            assert lookup.find(it.journal, 1).attempts == 2

    def test_are_a_record_that_goes_with_its_item(self, it):
        it.push(b"a", b"b", b"c", b"d")
        it.commit()
        reserve(it.queue, 4)
        abort_all(it.queue)
        it.commit()
        assert [key for key in range(1, 5) if it.journal.database.open().get(attempts_key(key))] == [
            1,
            2,
            3,
            4,
        ]
        assert it.journal.database.open().get(item_key(1)) is not None
        reserve(it.queue, 3)
        it.queue.close(it.queue.reserved.by_id[2])  # out of its turn
        it.commit()
        assert it.journal.database.open().get(attempts_key(2)) is None
        it.queue.close(it.queue.reserved.by_id[1])
        come_to_rest(it)
        assert list(it.journal.database.open().iterator(start=b"a", stop=b"b", include_value=False)) == [
            attempts_key(3),
            attempts_key(4),
        ]
        it.queue.flush()
        come_to_rest(it)
        assert list(it.journal.database.open().iterator(start=b"a", stop=b"b", include_value=False)) == [
            attempts_key(3)
        ]

    def test_that_an_earlier_version_logged_with_the_item_count(self, it):
        it.push(b"a")
        item = lookup.find(it.journal, 1).another()
        item.attempts = 3
        # the one journal is the first of the segment
        assert it.log.segment.put(int(Change.REWRITE), 1, it.journal.state.change + 1, item)
        it.kill()
        assert lookup.find(it.journal, 1).attempts == 3

    def test_that_are_damaged_are_forgotten_and_the_item_is_served(self, it):
        it.push(b"a")
        it.commit()
        reserve(it.queue)
        abort_all(it.queue)
        it.commit()
        it.journal.database.open().put(attempts_key(1), b"damaged")
        it.kill()
        assert [(item.data, item.attempts) for item in reading.read(it.journal, 1, 9, 999)[0]] == [(b"a", 0)]
        assert lookup.find(it.journal, 1).attempts == 0

    def test_outlive_a_repair(self, data):
        data.push(b"work", b"a", b"b")
        queue = data.broker.queue(b"work")
        reserve(queue)
        abort_all(queue)
        data.write_out()
        data.close()
        repair.repair(data.path, b"work")
        data.open()
        item = data.broker.queue(b"work").take()
        assert (item.data, item.attempts) == (b"a", 1)


def of_process(server, file, name):
    """A number that the system gives of a process."""
    text = Path(f"/proc/{server.process.pid}/{file}").read_text()
    return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])


def test_a_hundred_megabytes_that_one_client_holds_cost_neither_memory_nor_a_second_write(tmp_path):
    with running(tmp_path / "data") as server:
        wire, holder = server.connect(), server.connect()
        for n in range(HELD):
            assert wire.set(b"q", b"%d" % n + bytes(ITEM_BYTES)) == b"STORED\r\n"
        # those that LevelDB has mapped are the system's, and as many whatever is reserved
        before = of_process(server, "status", "RssAnon") * 1024
        holder.send(b"monitor q 60 %d\r\n" % HELD)
        for n in range(HELD):
            size = int(holder.line().split()[3])
            assert holder.exactly(size + 2) == b"%d" % n + bytes(ITEM_BYTES) + b"\r\n"
            assert holder.line() == b"END\r\n"
        assert holder.line() == b"END\r\n"
        assert of_process(server, "status", "RssAnon") * 1024 - before < MOST_BYTES
        written = of_process(server, "io", "write_bytes")
        holder.close()
        until(lambda: server.stat("curr_items") == HELD, 60)
        assert wire.get(b"q") == b"0" + bytes(ITEM_BYTES)
        assert of_process(server, "status", "RssAnon") * 1024 - before < MOST_BYTES
        assert of_process(server, "io", "write_bytes") - written < MOST_BYTES
        server.stop()
        server.start()
        assert server.connect().get(b"q/peek") == b"1" + bytes(ITEM_BYTES)
