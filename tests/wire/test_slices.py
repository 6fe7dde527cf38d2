"""Long work is done in slices: by a budget of time, or by a count where there is no clock."""

import functools
import itertools
from types import SimpleNamespace

import pytest
from brokers import Data
from doubles import Loop, Transport, reserve

from darner.config.settings import QueueSettings
from darner.environment.budget import LEAST_MS, TURN_MS, Budget
from darner.errors import NotReadyError
from darner.journal.commit import FREED_AT_ONCE
from darner.queues.cursor import Cursor
from darner.queues.expiry import EXPIRED_AT_ONCE
from darner.queues.limits import DISCARDED_AT_ONCE
from darner.queues.reservations import RETURNED_AT_ONCE
from darner.wire.clients import Clients
from darner.wire.commands.reporting import config_dump, stats_dump
from darner.wire.commands.table import COMMANDS
from darner.wire.connection import Connection
from darner.wire.figures import LEVELDB_FIGURES
from darner.wire.holds import Holds

pytestmark = pytest.mark.leveldb("of queues of LevelDB without a server")


@pytest.fixture
def slow(tmp_path):
    """A data directory whose slices end after two steps."""
    data = Data(
        tmp_path / "data",
        environment={"budget": Budget(functools.partial(next, itertools.count(step=2)))},
    )
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

    def test_gives_a_client_a_whole_turn_and_many_a_round_together(self):
        now = 0.0
        budget = Budget(lambda: now)

        def turn_ms(window):
            """Return the length of the next turn."""
            nonlocal now
            window = budget.begin_turn(window)
            begun = now
            while not budget.is_spent():
                now += 0.05
            return now - begun, window

        windows = [0] * 40
        rounds = []
        for _ in range(20):
            taken = 0.0
            for client, window in enumerate(windows):
                took, windows[client] = turn_ms(window)
                taken += took
            rounds.append(taken)
        # in the first round the number of clients is unknown
        assert rounds[0] < 60
        assert max(rounds[1:]) < 20
        # once the others have gone, one client has the whole turn again
        for _ in range(1000):
            took, windows[0] = turn_ms(windows[0])
        assert took >= TURN_MS

    def test_leaves_each_of_very_many_clients_something(self):
        now = 0.0
        budget = Budget(lambda: now)
        for _ in range(1000):
            budget.begin_turn(0)
        now += LEAST_MS / 2
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
            with pytest.raises(NotReadyError):
                source.peek()
        assert source.peek().data == b"new"

    def test_items_hold_a_reader_until_others_had_their_turn(self, it, source):
        class Client:
            released = 0

            def release(self):
                self.released += 1

        client = Client()
        with pytest.raises(NotReadyError) as raised:
            source.take()
        raised.value.journal.held_back.append(client)
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
        with pytest.raises(NotReadyError):
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
            most = max(most, it.journal.records.batch.staged_bytes)
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
        assert it.queue.has_more_upkeep
        assert len(it.queue.reserved) == self.COUNT - RETURNED_AT_ONCE
        with pytest.raises(NotReadyError):
            it.queue.take()
        it.queue.sweep()
        assert not it.queue.has_more_upkeep
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
        slow.broker.deletion.sync()
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
        monkeypatch.setattr("darner.journal.commit.WRITES_WHEN_LONG", 3)
        names = [b"queue%d" % n for n in range(10)]
        for name in names:
            data.push(name, b"a")
        journals = [data.broker.queues[name].journal for name in names]
        data.broker.storage.log.on_long(journals)
        assert sum(journal.writing for journal in journals) == 3
        data.broker.storage.log.on_long(journals)
        assert sum(journal.writing for journal in journals) == 6
        data.settle()


class TestWaitOnMany:
    """A client lines up at many queues in slices."""

    NAMES = tuple(b"q%d" % n for n in range(12))

    @pytest.fixture
    def loop(self, slow):
        return Loop(lambda: slow.now)

    @pytest.fixture
    def client(self, slow, loop):
        clients = Clients(
            loop, slow.broker, COMMANDS, figures=LEVELDB_FIGURES, dialect="memcached", keepalive=60
        )
        return Transport(loop, Connection(clients))

    def ask(self, slow, loop, client):
        """Send the get, and run until the client waits at some of the queues."""
        client._protocol.data_received(b"get %s\r\n" % b" ".join(name + b"/t=500" for name in self.NAMES))
        while not slow.broker.visible:
            loop.run()
        assert len(slow.broker.visible) < len(self.NAMES) - 4

    def rest(self, loop):
        while loop.run():
            pass

    def test_gets_into_every_line(self, slow, loop, client):
        self.ask(slow, loop, client)
        self.rest(loop)
        assert [queue.waiting_clients for queue in slow.broker.visible.values()] == [1] * len(self.NAMES)
        slow.set(self.NAMES[-1], b"x")
        self.rest(loop)
        assert client.sent == b"VALUE q11/t=500 0 1\r\nx\r\nEND\r\n"
        assert list(slow.broker.visible) == [self.NAMES[-1]]

    def test_ends_with_an_item_that_comes_meanwhile(self, slow, loop, client):
        self.ask(slow, loop, client)
        slow.set(self.NAMES[0], b"x")
        self.rest(loop)
        assert client.sent == b"VALUE q0/t=500 0 1\r\nx\r\nEND\r\n"
        assert [queue.waiting_clients for queue in slow.broker.visible.values()] == [0]

    def test_finds_an_item_that_came_meanwhile_where_it_does_not_stand_yet(self, slow, loop, client):
        self.ask(slow, loop, client)
        slow.set(self.NAMES[-1], b"x")
        self.rest(loop)
        assert client.sent == b"VALUE q11/t=500 0 1\r\nx\r\nEND\r\n"

    @pytest.mark.parametrize("how", ["lost", "time", "half closed"])
    def test_leaves_every_line_if_it_ends_meanwhile(self, slow, loop, client, how):
        self.ask(slow, loop, client)
        if how == "lost":
            client.close()
        elif how == "time":
            loop.next_timer(slow.now + 1000).work()
        else:
            client._protocol.eof_received()
        self.rest(loop)
        assert client.sent == (b"" if how == "lost" else b"END\r\n")
        assert slow.broker.visible == {}


class TestLimits:
    def test_that_were_lowered_have_the_oldest_dropped_in_slices(self, it):
        count = 3 * DISCARDED_AT_ONCE
        it.push(*[b"%d" % n for n in range(count)])
        it.set(max_items=2, discard_old_when_full=True)
        it.push(b"last")
        assert it.queue.counts.discarded == DISCARDED_AT_ONCE
        assert it.queue.needs_upkeep
        it.queue.sweep()
        assert it.queue.has_more_upkeep
        assert it.queue.counts.discarded == 2 * DISCARDED_AT_ONCE
        it.queue.sweep()
        assert not it.queue.has_more_upkeep
        assert it.queue.counts.discarded == count - 1
        assert [item.data for item in iter(it.queue.pop, None)] == [b"%d" % (count - 1), b"last"]

    def test_that_were_raised_again_stop_that(self, it):
        it.push(*[b"x"] * 2 * DISCARDED_AT_ONCE)
        it.set(max_items=2, discard_old_when_full=True)
        it.push(b"last")
        it.set()
        it.queue.sweep()
        assert it.queue.counts.discarded == DISCARDED_AT_ONCE
        assert not it.queue.needs_upkeep


class TestMemory:
    def test_of_a_queue_that_is_flushed_or_deleted_is_freed_in_slices(self, slow):
        slow.settings[b"work"] = QueueSettings(durable=False)
        slow.push(b"work", *[b"x"] * 5 * FREED_AT_ONCE)
        slow.broker.queue(b"work").flush()
        slow.push(b"work", b"later")
        dead = slow.broker.storage.committer._unneeded
        slow.broker.tick()
        assert sum(map(len, dead)) > 2 * FREED_AT_ONCE
        slow.tick(20)
        assert not dead
        assert slow.broker.queue(b"work").pop().data == b"later"

    def test_of_what_is_reserved_is_kept(self, data):
        data.settings[b"work"] = QueueSettings(durable=False)
        data.push(b"work", b"reserved", b"flushed")
        queue = data.broker.queue(b"work")
        item = queue.reserve()
        queue.flush()
        data.tick(4)
        queue.abort(item)
        assert queue.pop().data == b"reserved"
        assert queue.pop() is None


def test_flush_all_flushes_one_queue_a_step(data):
    names = [b"queue%d" % n for n in range(5)]
    for name in names:
        data.push(name, b"1")
    steps = data.broker.flush_all([])
    next(steps)
    assert [data.broker.queue(name).items for name in names] == [0, 1, 1, 1, 1]
    for _ in steps:
        pass
    assert not any(data.broker.queue(name).items for name in names)


class TestReload:
    NAMES = tuple(b"queue%d" % n for n in range(5))

    def reload(self, data, max_items):
        return data.broker.reconfigure(lambda *_: QueueSettings(max_items=max_items), {}, [])

    def limits(self, data):
        return [data.broker.queue(name).settings.max_items for name in self.NAMES]

    def test_changes_one_queue_a_step(self, data):
        for name in self.NAMES:
            data.push(name, b"1")
        steps = self.reload(data, 3)
        next(steps)
        assert self.limits(data) == [3, None, None, None, None]
        assert len(list(steps)) == len(self.NAMES) - 1
        assert self.limits(data) == [3] * len(self.NAMES)

    def test_that_is_overtaken_by_another_does_not_bring_the_older_settings_back(self, data):
        for name in self.NAMES:
            data.push(name, b"1")
        older = self.reload(data, 3)
        next(older)
        for _ in self.reload(data, 4):
            pass
        for _ in older:
            pass
        assert self.limits(data) == [4] * len(self.NAMES)


@pytest.mark.parametrize("dump", [stats_dump, config_dump])
def test_a_queue_that_is_deleted_before_it_is_its_turn_is_left_out(data, dump):
    for name in (b"a", b"b", b"c"):
        data.push(name, b"1")
    pieces = dump(SimpleNamespace(broker=data.broker, figures=LEVELDB_FIGURES), [])
    said = next(pieces)
    data.broker.delete(b"b")
    said += b"".join(pieces)
    assert [name for name in (b"a", b"b", b"c") if b"queue '%s'" % name in said] == [b"a", b"c"]
    assert said.endswith(b"}\r\nEND\r\n")
