"""What takes long is done in slices: by a budget, or by a count where there is no clock."""

import functools
import itertools

import pytest
from benches import Bench
from brokers import Data
from doubles import reserve

from darner.budget import Budget
from darner.commands import _dump_config, _dump_stats
from darner.config import QueueSettings
from darner.cursor import Cursor
from darner.errors import MendingError
from darner.holds import Holds
from darner.queue import EXPIRED_AT_ONCE, RETURNED_AT_ONCE


@pytest.fixture
def it(tmp_path):
    it = Bench(tmp_path / "data")
    yield it
    it.close()


@pytest.fixture
def data(tmp_path):
    data = Data(tmp_path / "data")
    yield data
    data.close()


@pytest.fixture
def slow(tmp_path):
    """Of which a slice is over after two steps."""
    data = Data(tmp_path / "data", budget=Budget(functools.partial(next, itertools.count(step=2))))
    yield data
    data.close()


class TestBudget:
    def test_is_spent_when_its_time_is_over_and_not_before(self):
        now = 0
        budget = Budget(lambda: now)
        assert not budget.is_spent()
        budget.begin(5)
        now = 4
        assert not budget.is_spent()
        now = 5
        assert budget.is_spent()
        budget.begin(5)
        assert not budget.is_spent()


class TestExpired:
    COUNT = 2 * EXPIRED_AT_ONCE + 1

    @pytest.fixture(params=["queue", "cursor"])
    def source(self, it, request):
        it.push(*[b"old"] * self.COUNT, exptime=-1)
        it.push(b"new")
        return it.queue if request.param == "queue" else Cursor(it.queue, b"label")

    def test_items_are_got_past_some_at_a_time(self, source):
        for _ in range(2):
            with pytest.raises(MendingError):
                source.peek()
        assert source.peek().data == b"new"

    def test_items_hold_a_reader_until_others_had_their_turn(self, it, source):
        class Client:
            released = 0

            def release(self):
                self.released += 1

        client = Client()
        with pytest.raises(MendingError) as raised:
            source.take()
        raised.value.journal.crowding.append(client)
        assert not client.released
        it.threads.run_all()
        assert client.released


class TestReturn:
    COUNT = 2 * RETURNED_AT_ONCE

    @pytest.fixture
    def names(self):
        return [b"%d" % n for n in range(self.COUNT + 1)]

    def test_of_many_items_lets_nobody_fetch_what_is_behind_them(self, it, names):
        it.push(*names)
        holds = Holds()
        reserve(holds, it.queue, self.COUNT)
        steps = holds.release()
        next(steps)
        with pytest.raises(MendingError):
            it.queue.take()
        for _ in steps:
            pass
        assert [item.data for item in iter(it.queue.pop, None)] == names

    def test_of_many_bytes_waits_for_them_to_be_written(self, it):
        it.push(*[bytes(16 << 10)] * self.COUNT)
        it.commit()
        holds = Holds()
        reserve(holds, it.queue, self.COUNT)
        most = 0
        for journal in holds.release():
            most = max(most, it.journal.batch.staged_bytes)
            if journal is not None:
                it.threads.run_all()
        assert not it.queue.reserved
        assert most < 5 << 20

    def test_that_is_given_up_half_way_lets_others_fetch(self, it, names):
        it.push(*names)
        holds = Holds()
        reserve(holds, it.queue, self.COUNT)
        steps = holds.release()
        next(steps)
        steps.close()
        assert it.queue.pop() is not None

    def test_of_many_items_held_too_long_is_done_in_slices_and_keeps_their_order(self, it, names):
        it.set(open_timeout_ms=1000)
        it.push(*names)
        reserve(Holds(), it.queue, self.COUNT)
        it.now += 1000
        it.queue.sweep()
        assert it.queue.restless
        assert len(it.queue.reserved) == self.COUNT - RETURNED_AT_ONCE
        with pytest.raises(MendingError):
            it.queue.take()
        it.queue.sweep()
        assert not it.queue.restless
        assert [item.data for item in iter(it.queue.pop, None)] == names

    def test_to_a_queue_that_is_deleted_meanwhile_holds_nobody(self, data, names):
        data.settings[b"work"] = QueueSettings(open_timeout_ms=1000)
        data.push(b"work", *names)
        queue = data.broker.queue(b"work")
        reserve(Holds(), queue, self.COUNT)
        data.now += 1000
        queue.sweep()
        data.broker.delete(b"work")
        data.push(b"work", b"later")
        data.tick()
        assert data.broker.queue(b"work").pop().data == b"later"


class TestUpkeep:
    def test_deletes_the_files_of_many_queues_in_slices(self, slow):
        names = [b"queue%d" % n for n in range(10)]
        for name in names:
            slow.push(name, b"a")
            slow.broker.delete(name)
        slow.broker.sync_deletions()
        slow.settle()
        left = len(slow.directories())
        assert 0 < left < len(names)
        slow.tick()
        assert slow.directories() == []

    def test_writes_many_queues_in_slices(self, slow):
        names = [b"queue%d" % n for n in range(10)]
        for name in names:
            slow.push(name, b"a")
        journals = [slow.broker.queues[name].journal for name in names]
        while not any(journal.writing for journal in journals):
            slow.broker.tick()
        assert sum(journal.writing for journal in journals) < len(names)
        slow.tick(20)
        assert not any(journal.dirty for journal in journals)

    def test_that_checkpoints_for_a_long_log_begins_some_at_a_time(self, data, monkeypatch):
        monkeypatch.setattr("darner.commit.WRITES_WHEN_LONG", 3)
        names = [b"queue%d" % n for n in range(10)]
        for name in names:
            data.push(name, b"a")
        journals = [data.broker.queues[name].journal for name in names]
        data.broker.log.on_long(journals)
        assert sum(journal.writing for journal in journals) == 3
        data.broker.log.on_long(journals)
        assert sum(journal.writing for journal in journals) == 6
        data.settle()


@pytest.mark.parametrize("dump", [_dump_stats, _dump_config])
def test_a_queue_that_is_deleted_before_it_is_its_turn_is_left_out(data, dump):
    for name in (b"a", b"b", b"c"):
        data.push(name, b"1")
    pieces = dump(data.broker, [])
    said = next(pieces)
    data.broker.delete(b"b")
    said += b"".join(pieces)
    assert [name for name in (b"a", b"b", b"c") if b"queue '%s'" % name in said] == [b"a", b"c"]
    assert said.endswith(b"}\r\nEND\r\n")
