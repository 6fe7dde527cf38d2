"""Sets that go to several queues: children of a queue, and aliases."""

import contextlib
import shutil

import pytest
from brokers import Data

from darner._records import CHUNK_BYTES
from darner.config.settings import QueueSettings
from darner.errors import JournalError, QueueFullError
from darner.journal.segment_file import GROUP_BYTES
from darner.queues import fanout
from darner.queues import moving as moving_module
from darner.queues import upload as upload_module
from darner.queues.cursor import Cursor
from darner.queues.group import all_or_none
from darner.queues.queue import Queue
from darner.queues.upload import Upload
from darner.queues.waiters import Waiter

LARGE = b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES + b"z"


class TestChild:
    def test_gets_what_is_set_on_its_parent_once_it_is_there(self, data):
        data.set(b"orders", b"before")
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"after")
        data.broker.queue(b"orders+late")
        data.set(b"orders", b"last")
        assert data.read_all(b"orders") == [b"before", b"after", b"last"]
        assert data.read_all(b"orders+audit") == [b"after", b"last"]
        assert data.read_all(b"orders+late") == [b"last"]

    def test_is_a_queue_like_any(self, data):
        data.broker.queue(b"orders+audit")
        data.set(b"orders+audit", b"its own")
        data.set(b"orders", b"flushed")
        data.broker.queue(b"orders+audit").flush()
        data.set(b"orders+audit", b"its own again")
        assert data.read_all(b"orders+audit") == [b"its own again"]
        assert data.read_all(b"orders") == [b"flushed"]

    def test_is_one_of_the_first_name_alone(self, data):
        for name in (b"a+b", b"a+b+c", b"+x", b"ab"):
            data.broker.queue(name)
        data.set(b"a", b"1")
        data.set(b"a+b", b"2")
        data.set(b"+x", b"3")
        assert data.read_all(b"a+b") == [b"1", b"2"]
        assert data.read_all(b"a+b+c") == [b"1"]
        assert data.read_all(b"+x") == [b"3"]
        assert data.read_all(b"ab") == []

    def test_is_found_again_after_a_restart(self, data):
        data.broker.queue(b"orders+audit")
        data.restart()
        data.set(b"orders", b"1")
        assert data.read_all(b"orders+audit") == [b"1"]

    def test_that_is_deleted_gets_nothing_more_and_lets_its_parent_be_alone(self, data):
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"1")
        data.broker.delete(b"orders+audit")
        data.set(b"orders", b"2")
        assert b"orders+audit" not in data.broker.queues
        assert data.broker.sinks[b"orders"] is data.broker.queues[b"orders"]

    def test_lives_on_without_its_parent_and_is_set_to_when_that_comes_back(self, data):
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"1")
        data.broker.delete(b"orders")
        assert b"orders" not in data.broker.queues
        data.set(b"orders", b"2")
        assert data.read_all(b"orders") == [b"2"]
        assert data.read_all(b"orders+audit") == [b"1", b"2"]

    def test_serves_who_waits_for_an_item(self, data):
        delivered = []
        waiter = Waiter(Queue.pop, lambda queue, item: delivered.append((queue.name, item.data)))
        data.broker.queue(b"orders+audit").wait(waiter)
        data.set(b"orders", b"1")
        assert delivered == [(b"orders+audit", b"1")]
        assert data.broker.queues[b"orders"].items == 1

    def test_that_takes_nothing_in_has_no_queue_take_the_item(self, data):
        audit = data.broker.queue(b"orders+audit")
        upload = data.broker.routes.upload(b"orders", len(LARGE))
        data.write(upload, LARGE)
        audit.journal.failing = JournalError("the disk is gone")
        with pytest.raises(JournalError, match="the disk is gone"):
            data.set(b"orders", b"1")
        assert data.finish(upload) == [audit.journal.failing]
        data.write_out()
        assert data.read_all(b"orders") == data.read_all(b"orders+audit") == []
        assert data.blobs() == []

    def test_that_cannot_be_opened_has_no_queue_take_the_item(self, data):
        data.set(b"orders+audit", b"0")
        data.write_out()
        data.close()
        (data.path / "orders+audit" / "CURRENT").unlink()
        data.open()
        with pytest.raises(JournalError, match="CURRENT"):
            data.set(b"orders", b"1")
        assert data.read_all(b"orders") == []

    @pytest.mark.parametrize("full", [b"orders", b"orders+audit"])
    def test_has_an_item_or_none_of_them_has(self, data, full):
        data.settings[b"orders"] = QueueSettings(max_items=9)
        data.settings[full] = QueueSettings(max_items=1)
        data.settings[b"orders+other"] = QueueSettings(max_items=1, discard_old_when_full=True)
        for child in (b"orders+audit", b"orders+other"):
            data.broker.queue(child)
        data.set(b"orders", b"1")
        upload = Upload(data.broker.queues[b"orders"], lambda: data.broker.routes.sink(b"orders").queues)
        data.write(upload, LARGE)
        with pytest.raises(QueueFullError):
            data.set(b"orders", b"2")
        with pytest.raises(QueueFullError):
            data.broker.routes.upload(b"orders", len(LARGE))
        (error,) = data.finish(upload)
        assert isinstance(error, QueueFullError)
        for name in (b"orders", b"orders+audit", b"orders+other"):
            assert data.read_all(name) == [b"1"]
        assert data.blobs() == []
        data.set(b"orders", b"3")
        assert data.read_all(b"orders+other") == [b"3"]

    def test_gets_a_delayed_item_when_its_parent_does(self, data):
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"1", delay_ms=10)
        upload = data.broker.routes.upload(b"orders", len(LARGE))
        data.write(upload, LARGE)
        told = []
        upload.finish(0, 0, told.append, sync=False, delay_ms=10)
        data.settle()
        assert told == [None]
        for name in (b"orders", b"orders+audit"):
            assert data.read(name) is None
        data.now += 10
        for name in (b"orders", b"orders+audit"):
            assert data.read_all(name) == [b"1", LARGE]
        assert data.blobs() == []

    def test_gets_what_is_moved_to_its_parent(self, data):
        data.settings[b"work"] = QueueSettings(max_age_ms=10, expire_to_queue="orders")
        data.settings[b"orders+memory"] = QueueSettings(durable=False)
        for child in (b"orders+audit", b"orders+memory"):
            data.broker.queue(child)
        data.set(b"work", b"1")
        assert data.upload(b"work", LARGE) == [None]
        data.now += 10
        data.tick()
        data.settle()
        for name in (b"orders", b"orders+audit", b"orders+memory"):
            assert data.read_all(name) == [b"1", LARGE]
        data.tick()
        assert data.broker.queues[b"work"].journal.state.items == 0
        assert data.blobs() == []

    def test_has_an_item_after_a_kill_if_its_parent_has(self, data):
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"1")
        assert data.upload(b"orders", LARGE) == [None]
        data.kill()
        data.write_out()
        for name in (b"orders", b"orders+audit"):
            assert data.read_all(name) == [b"1", LARGE]

    def test_has_an_item_of_its_own(self, data):
        """Not the memory of its parent's."""
        data.broker.queue(b"orders+audit")
        data.set(b"orders+audit", b"0")
        data.set(b"orders", b"1")
        data.restart()
        assert data.read_all(b"orders+audit") == [b"0", b"1"]
        assert data.read_all(b"orders") == [b"1"]


class TestFanoutOnly:
    def test_stores_nothing_in_the_parent(self, data):
        data.settings[b"orders"] = QueueSettings(fanout_only=True)
        data.set(b"orders", b"into the void")
        assert data.upload(b"orders", LARGE) == [None]
        data.broker.queue(b"orders+audit")
        data.set(b"orders", b"1")
        data.set(b"orders+audit", b"2")
        assert data.upload(b"orders", LARGE) == [None]
        assert data.read_all(b"orders") == []
        assert data.read_all(b"orders+audit") == [b"1", b"2", LARGE]
        assert data.blobs() == []


class TestLargeItem:
    """It is sent in chunks, and on disk once whatever the number of its queues."""

    def test_comes_to_each_queue_and_goes_from_each_by_itself(self, data):
        for name in (b"orders+audit", b"orders+billing"):
            data.broker.queue(name)
        assert data.upload(b"orders", LARGE) == [None]
        data.restart()
        assert data.blobs() == ["orders", "orders+audit", "orders+billing"]
        assert len({file.stat().st_ino for file in data.path.glob("*/blobs/*")}) == 1
        assert data.read_all(b"orders") == [LARGE]
        assert data.blobs() == ["orders+audit", "orders+billing"]
        data.broker.delete(b"orders+audit")
        data.restart()
        assert data.read_all(b"orders+billing") == [LARGE]
        assert data.blobs() == []

    @pytest.mark.parametrize("sync", [False, True])
    def test_is_for_the_queues_that_are_there_when_it_is_whole(self, data, sync):
        data.broker.queue(b"orders+early")
        upload = data.broker.routes.upload(b"orders", len(LARGE))
        data.write(upload, LARGE)
        data.broker.delete(b"orders+early")
        data.broker.queue(b"orders+late")
        assert data.finish(upload, sync=sync) == [None]
        assert data.read_all(b"orders+late") == [LARGE]
        assert data.read_all(b"orders") == [LARGE]
        assert b"orders+early" not in data.broker.queues
        assert data.blobs() == []

    def test_finds_the_queues_that_come_and_go_while_it_is_synced(self, data):
        data.broker.queue(b"orders+early")
        upload = data.broker.routes.upload(b"orders", len(LARGE))
        data.write(upload, LARGE)
        told = []
        upload.finish(0, 0, told.append, sync=True)
        while not data.broker.queues[b"orders+early"].journal.dirty:
            work, done = data.threads.tasks.pop(0)
            work()
            done(None)
        data.broker.delete(b"orders+early")
        data.broker.queue(b"orders+late")
        data.settle()
        assert told == [None]
        assert data.read_all(b"orders+late") == data.read_all(b"orders") == [LARGE]
        data.restart()
        assert data.blobs() == []

    def test_that_cannot_get_its_other_name_is_in_no_queue(self, data):
        data.broker.queue(b"orders+audit")
        data.settle()
        (data.path / "orders+audit" / "blobs").write_bytes(b"in the way")
        (error,) = data.upload(b"orders", LARGE)
        assert "blobs" in str(error)
        assert data.read_all(b"orders") == data.read_all(b"orders+audit") == []
        (data.path / "orders+audit" / "blobs").unlink()
        assert data.blobs() == []

    def test_given_up_leaves_nothing(self, data):
        data.broker.queue(b"orders+audit")
        upload = data.broker.routes.upload(b"orders", len(LARGE))
        data.write(upload, LARGE)
        upload.abandon()
        data.settle()
        assert data.blobs() == []


NAMES = (b"orders", b"orders+audit", b"orders+zoo")
SETS = [
    lambda data: data.set(b"orders", b"item"),
    lambda data: data.set(b"orders", b"item", delay_ms=500),
    lambda data: data.upload(b"orders", LARGE),
    lambda data: data.set_once(b"orders", b"item", b"id"),
    lambda data: data.set_once(b"orders", b"item", b"id", delay_ms=500),
    lambda data: data.upload(b"orders", LARGE, id=b"id"),
]


class TestKill:
    """What is on the disk when each of the queues is about to get its item."""

    @pytest.fixture
    def amid(self, data, monkeypatch):
        """Calls what is in the list when a queue is about to be put something within a group."""
        calls = []
        log = data.broker.storage.log
        enter = log.enter

        def entering(life):
            for call in calls:
                call()
            return enter(life)

        def beginning(queues, size):
            log.roll()  # so that each queue has to be named in the segment, just before its item
            return all_or_none(queues, size)

        monkeypatch.setattr(log, "enter", entering)
        for module in (upload_module, moving_module, fanout):
            monkeypatch.setattr(module, "all_or_none", beginning)
        return calls

    def held(self, path):
        killed = Data(path)
        held = {name: (queue.items, queue.delayed_items) for name, queue in killed.broker.queues.items()}
        killed.close()
        return held

    @pytest.mark.parametrize("set_it", SETS)
    def test_amid_a_set_leaves_the_item_in_no_queue(self, data, tmp_path, amid, set_it):
        for name in NAMES:
            data.broker.queue(name)
        data.set(b"orders", b"before")
        killed = [tmp_path / name.decode() for name in NAMES]
        left = iter(killed)
        amid.append(lambda: shutil.copytree(data.path, next(left)))
        set_it(data)
        amid.clear()
        assert [self.held(path) for path in killed] == [dict.fromkeys(NAMES, (1, 0))] * 3
        data.restart()
        assert all(queue.items + queue.delayed_items == 2 for queue in data.broker.queues.values())

    def test_when_who_waits_is_served_finds_the_item_in_each_queue(self, data, tmp_path):
        for name in NAMES:
            data.broker.queue(name)
        served = []

        def deliver(queue, item):
            shutil.copytree(data.path, tmp_path / f"served-{len(served)}")
            served.append((queue.name, item.data))

        for name in NAMES:
            data.broker.queue(name).wait(Waiter(Queue.peek, deliver))
        data.broker.routes.source(b"orders/cursor=label", takes=True, waits=True).wait(
            Waiter(Cursor.peek, deliver)
        )
        data.set(b"orders", b"item")
        names = [b"orders", b"orders/cursor=label", *NAMES[1:]]
        assert served == [(name, b"item") for name in names]
        for number in range(4):
            assert self.held(tmp_path / f"served-{number}") == dict.fromkeys(NAMES, (1, 0))


class TestRoom:
    """Whether there is room in each queue is asked before anything is done for it."""

    def settle(self, data, settings):
        for name, setting in settings.items():
            data.settings[name] = QueueSettings(**setting)
        for name in settings:
            data.broker.queue(name)

    @pytest.mark.parametrize("set_it", SETS)
    @pytest.mark.parametrize("full", [b"orders+a", b"orders+z"])
    def test_that_what_expires_takes_up_elsewhere_is_missed_before_anything_is_stored(
        self, data, full, set_it
    ):
        expires = {"max_items": 1, "expire_to_queue": full.decode()}
        self.settle(data, {b"orders": {}, full: {"max_items": 1}, b"orders+m": expires})
        data.push(b"orders+m", b"expires", exptime=1)
        data.now += 1000
        try:
            refused = set_it(data) != [None]
        except QueueFullError:
            refused = True
        assert refused
        held = {name: queue.items + queue.delayed_items for name, queue in data.broker.queues.items()}
        assert held == {b"orders": 0, full: 1, b"orders+m": 0}

    def test_is_asked_for_without_side_effects(self, data):
        self.settle(data, {b"late": {}, b"orders": {"max_items": 1, "expire_to_queue": "late"}})
        data.push(b"orders", b"expires", exptime=1)
        data.now += 1000
        orders = data.broker.queue(b"orders")
        orders.check(1)
        with pytest.raises(QueueFullError):
            orders.check(1, may_expire=False)
        assert (orders.items, data.broker.queue(b"late").items) == (1, 0)

    def test_is_made_in_none_if_one_of_them_has_none(self, data):
        self.settle(
            data,
            {
                b"orders": {},
                b"orders+full": {"max_items": 1},
                b"orders+discards": {"max_items": 1, "discard_old_when_full": True},
            },
        )
        data.set(b"orders+full", b"1")
        data.set(b"orders+discards", b"kept")
        with pytest.raises(QueueFullError):
            data.set(b"orders", b"2")
        assert data.read_all(b"orders+discards") == [b"kept"]

    @pytest.mark.parametrize("set_it", SETS)
    def test_is_made_outside_of_what_is_found_as_a_whole(self, data, monkeypatch, set_it):
        """However many items are discarded: what is logged as a group is what was put, of a known size."""
        self.settle(data, {b"orders": {}, b"orders+c": {"max_items": 1000, "discard_old_when_full": True}})
        data.push(b"orders+c", *[b"x"] * 1000)
        used = []

        @contextlib.contextmanager
        def measured(queues, size):
            segment = data.broker.storage.log.segment
            with all_or_none(queues, size):
                begun = segment.used_bytes
                yield
                used.append(segment.used_bytes - begun)
            assert used[-1] <= len(queues) * (size + GROUP_BYTES)

        for module in (upload_module, moving_module, fanout):
            monkeypatch.setattr(module, "all_or_none", measured)
        data.settings[b"orders+c"] = QueueSettings(max_items=2, discard_old_when_full=True)
        data.reconfigure()
        set_it(data)
        assert data.broker.queue(b"orders+c").counts.discarded == 999
        assert len(used) == 1


class TestAlias:
    @pytest.fixture
    def data(self, tmp_path):
        data = Data(tmp_path / "data", aliases={b"all": (b"one", b"two"), b"one-only": (b"one",)})
        yield data
        data.close()

    def test_sets_to_each_of_its_queues_and_is_none_itself(self, data):
        data.set(b"all", b"1")
        assert data.upload(b"all", LARGE) == [None]
        data.set(b"one-only", b"2")
        assert data.read_all(b"one") == [b"1", LARGE, b"2"]
        assert data.read_all(b"two") == [b"1", LARGE]
        assert data.broker.routes.source(b"all", takes=True, waits=True) is None
        assert data.directories() == ["one", "two"]

    def test_sets_to_the_children_of_its_queues_too(self, data):
        data.set(b"all", b"1")
        data.broker.queue(b"two+audit")
        data.set(b"all", b"2")
        assert data.read_all(b"two+audit") == [b"2"]

    def test_is_not_hurt_by_delete_or_flush(self, data):
        data.set(b"all", b"1")
        assert not data.broker.delete(b"all")
        assert data.broker.find(b"all") is None
        data.set(b"all", b"2")
        assert data.read_all(b"one") == [b"1", b"2"]

    def test_finds_its_queues_anew_when_they_were_deleted(self, data):
        data.set(b"all", b"1")
        data.broker.delete(b"two")
        data.set(b"all", b"2")
        assert data.read_all(b"two") == [b"2"]

    def test_hides_a_queue_of_its_name_until_it_is_taken_away(self, data):
        data.set(b"three", b"hidden")
        data.broker.routes.set_aliases({b"three": (b"four",)})
        assert b"three" not in data.broker.sources
        assert data.broker.routes.source(b"three", takes=True, waits=True) is None
        assert not data.broker.delete(b"three")
        data.set(b"three", b"1")
        assert data.read_all(b"four") == [b"1"]
        data.broker.routes.set_aliases({})
        assert data.broker.sources[b"three"].pop().data == b"hidden"
        data.set(b"all", b"a queue now")
        assert data.read_all(b"all") == [b"a queue now"]

    def test_may_be_changed_with_the_settings_of_queues(self, data):
        data.set(b"all", b"1")
        data.settings[b"one"] = QueueSettings(fanout_only=True)
        aliases = {b"one-only": (b"one",), b"new": (b"two",)}
        changed = data.reconfigure(aliases)
        assert sorted(changed) == [b"all", b"new", b"one"]
        data.set(b"new", b"2")
        data.set(b"one-only", b"into the void")
        assert data.upload(b"one-only", bytes(CHUNK_BYTES + 1)) == [None]
        assert b"one-only" not in data.broker.queues
        assert data.read_all(b"one") == [b"1"]
        assert data.read_all(b"two") == [b"1", b"2"]
        assert data.reconfigure(aliases) == []


def test_a_queue_by_itself_is_its_own_sink(data):
    """Fanout costs nothing where there is none."""
    data.set(b"work", b"1")
    assert data.broker.sinks[b"work"] is data.broker.queues[b"work"]
    assert data.broker.sources == data.broker.queues
