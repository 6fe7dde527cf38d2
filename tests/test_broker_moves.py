"""Items that go from one queue to another when they expire or have come back too often."""

import pytest

from darner import broker as broker_module
from darner import commit, queue
from darner.broker import Broker
from darner.config import QueueSettings
from darner.errors import JournalError
from darner.journal import Journal
from darner.queue import Queue, Waiter


class Data:
    """A data directory and the broker that has it. `work` expires to `late`, and gives up into `dead`."""

    def __init__(self, path):
        self.path = path
        self.now = 1_000_000
        self.settings = {
            b"work": QueueSettings(expire_to_queue="late", max_attempts=1, dead_letter_queue="dead")
        }
        self.open()

    def open(self):
        self.tasks = []
        self.broker = Broker(
            self.path,
            lambda: self.now,
            lambda *task: self.tasks.append(task),
            lambda name: self.settings.get(name, QueueSettings()),
        )
        self.broker.open()

    def threads(self):
        while self.tasks:
            work, done = self.tasks.pop(0)
            work()
            done(None)

    def kill(self):
        """The end of the process, with nothing more written."""
        self.threads()
        for each in self.broker.queues.values():
            each.journal._db.close()
        self.broker._lock.close()
        self.open()

    def push(self, name, *datas, exptime=0):
        for data in datas:
            self.broker.queue(name).push(data, 7, exptime, sync=False)
        self.broker.committer.commit()
        self.threads()

    def tidy(self):
        while untidy := self.broker.tidy():
            while untidy:
                untidy = self.broker.trim(untidy)
        self.threads()

    def waiting(self, name):
        return [item.data for item in iter(self.broker.queue(name).pop, None)]


@pytest.fixture
def data(tmp_path):
    data = Data(tmp_path / "data")
    yield data
    data.broker.committer.commit()
    data.threads()
    data.broker.close()


def test_an_expired_item_goes_on_as_if_it_were_set_then(data):
    data.push(b"work", b"a", exptime=5)
    data.push(b"work", b"b")
    data.now += 5000
    data.tidy()
    item = data.broker.queue(b"late").pop()
    assert (item.data, item.flags, item.expires_ms, item.enqueued_ms) == (b"a", 7, 0, data.now)
    assert data.broker.queue(b"work").expired_items == 1
    assert data.waiting(b"work") == [b"b"]
    data.kill()
    assert data.waiting(b"work") == [b"b"]


def test_all_go_on_in_their_order_however_many(data, monkeypatch):
    monkeypatch.setattr(queue, "MAX_LEAVING", 4)
    numbers = [b"%d" % number for number in range(30)]
    data.push(b"work", *numbers, exptime=5)
    data.push(b"work", b"tail")
    data.now += 5000
    got = []
    data.broker.queue(b"work").wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
    data.broker.queue(b"work")._serve()
    data.tidy()
    assert got == [b"tail"]
    assert data.waiting(b"late") == numbers


def test_who_waits_there_gets_it(data):
    got = []
    data.broker.queue(b"late").wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
    data.push(b"work", b"a", exptime=-1)
    data.tidy()
    assert got == [b"a"]


def test_a_large_item_goes_on_with_its_bytes(data):
    upload = data.broker.queue(b"work").upload(3)
    upload.write(b"xyz")
    data.threads()
    upload.finish(7, 5, lambda _: None, sync=False)
    data.threads()
    data.now += 5000
    data.tidy()
    data.tidy()
    data.kill()
    assert data.waiting(b"work") == []
    assert not list((data.path / "work" / "blobs").iterdir())
    late = data.broker.queue(b"late")
    item = late.pop()
    reader = late.open_blob(item)
    assert reader.read(lambda: None) is None
    data.threads()
    assert reader.read(lambda: None) == b"xyz"
    reader.close()


def test_a_crash_in_between_leaves_an_item_in_both(data, monkeypatch):
    data.push(b"work", b"a", exptime=5)
    data.now += 5000
    monkeypatch.setattr(Broker, "_settle", lambda *_: None)
    data.broker.tidy()
    data.kill()
    assert data.broker.queue(b"work").items == 1
    assert data.waiting(b"late") == [b"a"]


@pytest.mark.parametrize("failing", ["work", "late"])
def test_a_write_that_fails_loses_nothing(data, monkeypatch, failing):
    monkeypatch.setattr(broker_module.log, "error", lambda *_, **__: None, raising=False)
    data.push(b"late", b"first")
    data.push(b"work", b"a", exptime=5)
    data.now += 5000
    really_write = Journal.write

    def write(journal, batch):
        if journal.path.name == failing:
            raise JournalError("disk full")
        really_write(journal, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", write)
        data.broker.tidy()
        data.broker.tidy()
    data.tidy()
    assert data.broker.queue(b"work").items == 0
    assert set(data.waiting(b"late")) == {b"first", b"a"}


def test_it_leaves_only_when_a_slow_write_of_its_new_place_is_done(data, monkeypatch):
    monkeypatch.setattr(commit, "INLINE_BYTES", 1)
    data.push(b"work", b"large", exptime=5)
    data.now += 5000
    data.broker.tidy()
    data.broker.tidy()
    assert data.broker.queue(b"work").journal.state.items == 1
    data.threads()
    data.broker.tidy()
    assert data.broker.queue(b"work").journal.state.items == 0
    assert data.waiting(b"late") == [b"large"]


def test_a_queue_that_cannot_be_made_is_tried_again(data, monkeypatch):
    logged = []
    monkeypatch.setattr(broker_module.log, "error", lambda *_, **values: logged.append(values), raising=False)
    data.push(b"work", b"a", exptime=-1)
    data.broker.broken[b"late"] = JournalError("damaged")
    monkeypatch.setattr(Broker, "_retry_broken", lambda _: None)
    data.tidy()
    data.tidy()
    assert [entry["to"] for entry in logged] == ["late"]
    del data.broker.broken[b"late"]
    data.tidy()
    assert data.waiting(b"late") == [b"a"]


def test_a_full_queue_takes_it_all_the_same(data):
    data.settings[b"late"] = QueueSettings(max_items=1)
    data.push(b"late", b"first")
    data.push(b"work", b"a", exptime=-1)
    data.tidy()
    assert data.waiting(b"late") == [b"first", b"a"]


def test_a_full_queue_that_discards_discards(data):
    data.settings[b"late"] = QueueSettings(max_items=1, discard_old_when_full=True)
    data.push(b"late", b"first")
    data.push(b"work", b"a", exptime=-1)
    data.tidy()
    assert data.waiting(b"late") == [b"a"]


def test_many_queues_are_swept_in_slices_and_each_has_its_turn(data, monkeypatch):
    names = [b"q%d" % number for number in range(30)]
    for name in names:
        data.push(name, b"x", exptime=1)
    data.now += 1000

    def clock():
        data.now += 1  # each look at the clock takes so long
        return data.now

    data.broker._clock = clock
    untidy = data.broker.tidy()
    assert 20 < len(untidy) < 30
    for _ in range(10):
        untidy = data.broker.trim(untidy)
    assert all(data.broker.queue(name).expired_items == 1 for name in names)


def test_a_queue_deleted_between_two_slices_is_passed_by(data):
    data.settings[b"work"] = QueueSettings(max_expire_sweep=1)
    data.push(b"work", *[b"x"] * 5, exptime=1)
    data.now += 1000
    untidy = data.broker.tidy()
    assert [queue.name for queue in untidy] == [b"work"]
    data.broker.delete(b"work")
    data.broker.committer.commit()
    data.broker.reap()
    assert data.broker.trim(untidy) == []
    data.threads()


def test_a_poisonous_item_goes_to_the_dead_letter_queue(data):
    data.push(b"work", b"poison", exptime=60)
    queue = data.broker.queue(b"work")
    queue.abort(queue.reserve())
    data.tidy()
    data.now += 60_000
    assert (queue.items, queue.open_transactions, queue.expired_items) == (0, 0, 0)
    assert data.waiting(b"dead") == [b"poison"]
    data.kill()
    assert data.waiting(b"work") == []


def test_deleting_either_queue_on_the_way_harms_nobody(data):
    data.push(b"work", b"a", exptime=-1)
    data.broker.queue(b"work").sweep()
    data.broker.delete(b"work")
    data.tidy()
    assert data.waiting(b"late") == []
