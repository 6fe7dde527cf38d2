"""The wall clock is set while queues go on, and between processes and starts of the machine. Both clocks are
numbers."""

import pytest
from brokers import Data, log_to
from doubles import Silence

from darner._records import CHUNK_BYTES
from darner.config.settings import QueueSettings
from darner.queues import clock_runs
from darner.queues.clock_runs import STEP_MS
from darner.queues.status import READONLY
from darner.queues.waiters import Waiter

NOW = 1_700_000_000_000
HOUR = 3_600_000
DAY, YEAR = 24 * HOUR, 8760 * HOUR
STEPS = [HOUR, -HOUR, DAY, -DAY, YEAR, -YEAR]
LARGE = b"x" * CHUNK_BYTES + b"y"


@pytest.fixture
def silence(monkeypatch):
    silence = Silence()
    log_to(monkeypatch, silence)
    monkeypatch.setattr(clock_runs, "log", silence)
    return silence


@pytest.fixture
def data(tmp_path, silence):
    data = Data(tmp_path / "data", now=NOW, boot=1)
    yield data
    data.close()


@pytest.fixture(params=STEPS)
def step(request):
    return request.param


@pytest.fixture(params=["no other process", "restart", "kill", "written, then kill"])
def goes_on(request):
    """What comes of the process, as the machine and its clock go on."""

    def go_on(data):
        if request.param.startswith("written"):
            data.write_out()
        if request.param == "restart":
            data.restart()
        elif request.param.endswith("kill"):
            data.kill()

    return go_on


def starts_anew(data, *, ahead=0, kill=False):
    """The machine does, and the server with it."""
    data.end() if kill else data.close()
    data.reboot(ahead=ahead)
    data.open()


def passes(data, ms):
    data.now += ms
    data.tick()


class TestRelativeTime:
    """What is stored by a relative time keeps that, whatever becomes of the clock and of the process."""

    def test_of_a_delay(self, data, step, goes_on):
        data.set(b"work", b"late", delay_ms=1000)
        data.set_clock(step)
        goes_on(data)
        passes(data, 999)
        assert data.read(b"work") is None
        passes(data, 1)
        assert data.read(b"work") == b"late"

    def test_of_a_delay_of_a_large_item(self, data, step, goes_on):
        upload = data.broker.routes.upload(b"work", len(LARGE))
        data.write(upload, LARGE)
        upload.finish(0, 0, lambda error: None, sync=False, delay_ms=1000)
        data.settle()
        data.set_clock(step)
        goes_on(data)
        passes(data, 999)
        assert data.read(b"work") is None
        passes(data, 1)
        assert data.read(b"work") == LARGE

    def test_of_the_pause_of_an_item_that_was_put_back(self, data, step, goes_on):
        data.push(b"work", b"1")
        work = data.broker.queue(b"work")
        work.defer(work.reserve(), 1000)
        data.set_clock(step)
        goes_on(data)
        passes(data, 999)
        assert data.read(b"work") is None
        passes(data, 1)
        assert data.read(b"work") == b"1"

    def test_of_an_expiry(self, data, step, goes_on):
        data.push(b"work", b"1", b"2", exptime=10)
        data.push(b"work", b"3", exptime=30 * 24 * 3600)
        data.set_clock(step)
        goes_on(data)
        passes(data, 9999)
        assert data.read(b"work") == b"1"
        passes(data, 1)
        assert data.broker.queue(b"work").items == 1
        assert data.read(b"work") == b"3"

    def test_of_an_expiry_with_a_cursor(self, data, step):
        data.push(b"work", b"1", b"2", exptime=10)
        data.set_clock(step)
        cursor = data.broker.routes.source(b"work/cursor=c", takes=True, waits=True)
        passes(data, 9999)
        assert cursor.pop().data == b"1"
        data.now += 1
        assert cursor.pop() is None

    def test_of_a_delay_and_an_expiry(self, data, step, goes_on):
        data.broker.queue(b"work").push_delayed(bytes(28) + b"x", 0, 2, 1000)
        data.set_clock(step)
        passes(data, 1000)
        goes_on(data)
        assert data.broker.queue(b"work").peek().data == b"x"
        passes(data, 1000)
        assert data.read(b"work") is None

    def test_of_max_age(self, data, step, goes_on):
        data.settings[b"work"] = QueueSettings(max_age_ms=10_000)
        data.push(b"work", b"1", b"2")
        data.set_clock(step)
        goes_on(data)
        passes(data, 9999)
        assert data.read(b"work") == b"1"
        passes(data, 1)
        assert data.broker.queue(b"work").items == 0

    def test_through_many_steps(self, data, goes_on):
        data.set(b"work", b"first", delay_ms=6000)
        for second, ahead in enumerate(STEPS[:5]):
            data.set_clock(ahead)
            data.set(b"work", b"%d" % second, delay_ms=6000)
            passes(data, 1000)
        goes_on(data)
        passes(data, 1000)
        assert data.read_all(b"work") == [b"first", b"0"]
        passes(data, 3999)
        assert data.read_all(b"work") == [b"1", b"2", b"3"]
        passes(data, 1)
        assert data.read_all(b"work") == [b"4"]

    def test_in_a_queue_whose_items_are_not_in_memory(self, data, step, monkeypatch):
        monkeypatch.setattr("darner.queues.item_window.WINDOW_BYTES", 0)
        for _ in range(10):
            data.push(b"work", b"x", exptime=10)
            data.set(b"late", b"x", delay_ms=10_000)
        data.write_out()
        data.set_clock(step)
        passes(data, 9999)
        assert (data.broker.queue(b"work").items, data.broker.queue(b"late").items) == (10, 0)
        passes(data, 1)
        data.tick(3)
        assert (data.broker.queue(b"work").items, data.broker.queue(b"late").items) == (0, 10)


class TestDuration:
    """What does not outlive the process goes by the monotonic clock."""

    def test_of_a_reservation(self, data, step):
        data.settings[b"work"] = QueueSettings(open_timeout_ms=2000)
        data.push(b"work", b"x")
        queue = data.broker.queue(b"work")
        queue.reserve()
        data.set_clock(step)
        passes(data, 1999)
        assert queue.items == 0
        passes(data, 1)
        assert queue.items == 1

    def test_of_a_reservation_that_is_given_a_timeout_later(self, data, step):
        data.push(b"work", b"x")
        queue = data.broker.queue(b"work")
        queue.reserve()
        data.set_clock(step)
        queue.configure(QueueSettings(open_timeout_ms=2000))
        data.set_clock(0)
        passes(data, 1999)
        assert queue.items == 0
        passes(data, 1)
        assert queue.items == 1

    def test_of_a_queue_that_is_idle(self, data, step):
        data.settings[b"work"] = QueueSettings(max_queue_age_ms=2000)
        data.broker.queue(b"work")
        data.tick()
        data.set_clock(step)
        passes(data, 1999)
        assert b"work" in data.broker.queues
        passes(data, 1)
        assert b"work" not in data.broker.queues

    def test_of_an_interval_of_sync(self, data, step, monkeypatch):
        data.settings[b"work"] = QueueSettings(sync_ms=1000)
        data.push(b"work", b"x")
        syncs = []
        monkeypatch.setattr(data.broker.storage.log, "sync", lambda *_: syncs.append(data.now))
        data.broker.syncing.sync(data.targets(b"work"), None, 0, asked=False)
        [(due, work)] = data.timers
        data.ahead = step
        data.now = due
        work()
        assert syncs == [NOW + 500]

    def test_of_a_grace_period(self, tmp_path, step, silence):
        data = Data(tmp_path / "data", now=NOW, boot=1, grace_ms=2000)
        data.broker.routes.set_status(READONLY)
        data.set_clock(step)
        passes(data, 1999)
        assert data.broker.status.in_force != READONLY
        passes(data, 1)
        assert data.broker.status.in_force == READONLY
        data.close()

    def test_of_a_slice_of_the_sweep(self, data, step, monkeypatch):
        swept = []
        for name in (b"a", b"b", b"c"):
            data.settings[name] = QueueSettings(max_queue_age_ms=HOUR)
            data.broker.queue(name)

        def look_after(queue):
            swept.append(queue.name)
            data.ahead += step

        monkeypatch.setattr(data.broker.sweeping, "_sweep", look_after)
        data.broker.tick()
        assert swept == [b"a", b"b", b"c"]

    def test_of_what_an_item_had_waited(self, data, step):
        data.push(b"work", b"1", b"2")
        passes(data, 500)
        data.set_clock(step)
        data.read(b"work")
        assert data.broker.queue(b"work").age_ms == 500
        data.set_clock(0)
        assert data.broker.queue(b"work").age_ms == 500


class TestDate:
    """An expiry of more than 30 days is a date of the wall clock."""

    def test_means_the_new_clock_after_a_step_forward(self, data, goes_on):
        data.push(b"work", b"x", exptime=(NOW + HOUR) // 1000)
        data.push(b"work", b"y", exptime=(NOW + 2 * HOUR) // 1000)
        data.set_clock(HOUR - 1)
        goes_on(data)
        data.tick()
        assert data.broker.queue(b"work").items == 2
        passes(data, 1)
        assert data.broker.queue(b"work").items == 1
        assert data.read(b"work") == b"y"

    def test_means_the_new_clock_after_a_step_back(self, data, goes_on):
        data.push(b"work", b"x", exptime=(NOW + 1000) // 1000)
        data.set_clock(-HOUR)
        goes_on(data)
        passes(data, HOUR)
        assert data.broker.queue(b"work").items == 1
        passes(data, 1000)
        assert data.broker.queue(b"work").items == 0

    def test_too_late_to_be_told_is_never(self, data, step):
        data.push(b"work", b"x", exptime=(1 << 50))
        data.set_clock(step)
        assert data.read(b"work") == b"x"

    def test_too_late_for_a_delay_is_never(self, data, step):
        data.set(b"work", b"x", delay_ms=1 << 63)
        data.set_clock(step)
        data.restart()
        passes(data, YEAR)
        assert data.broker.queue(b"work").delayed_items == 1


class TestStartOfTheMachine:
    """The machine starts with a wrong clock, which is then put right by a year."""

    @pytest.fixture(params=[-YEAR, YEAR])
    def wrong(self, request):
        return request.param

    def test_what_is_from_before_goes_by_the_right_clock_once_it_is_right(self, data):
        data.settings[b"aged"] = QueueSettings(max_age_ms=HOUR)
        data.set(b"late", b"x", delay_ms=HOUR)
        data.push(b"brief", b"x", exptime=3600)
        data.push(b"aged", b"x")
        data.now += HOUR - 1000
        starts_anew(data, ahead=-YEAR)
        passes(data, 10)
        data.set_clock(0)
        queues = data.broker.queues
        assert (queues[b"late"].items, queues[b"brief"].items, queues[b"aged"].items) == (0, 1, 1)
        passes(data, 989)
        assert (queues[b"late"].items, queues[b"brief"].items, queues[b"aged"].items) == (0, 1, 1)
        passes(data, 1)
        assert (queues[b"late"].items, queues[b"brief"].items, queues[b"aged"].items) == (1, 0, 0)

    def test_what_is_from_before_has_no_age_less_than_0(self, data):
        data.push(b"work", b"1", b"2")
        starts_anew(data, ahead=-YEAR)
        data.read(b"work")
        assert data.broker.queue(b"work").age_ms == 0

    def test_what_is_set_meanwhile_keeps_its_time(self, data, wrong, goes_on):
        starts_anew(data, ahead=wrong)
        data.set(b"late", b"x", delay_ms=3000)
        data.push(b"brief", b"x", exptime=3)
        goes_on(data)
        passes(data, 1000)
        data.set_clock(0)
        goes_on(data)
        passes(data, 1999)
        queues = data.broker.queues
        assert (queues[b"late"].items, queues[b"brief"].items) == (0, 1)
        passes(data, 1)
        assert (queues[b"late"].items, queues[b"brief"].items) == (1, 0)

    def test_what_was_set_meanwhile_keeps_its_time_over_the_next_start(self, data, wrong):
        starts_anew(data, ahead=wrong)
        data.set(b"late", b"x", delay_ms=3000)
        data.push(b"brief", b"x", exptime=3)
        data.set_clock(0)
        starts_anew(data)
        passes(data, 2999)
        queues = data.broker.queues
        assert (queues[b"late"].items, queues[b"brief"].items) == (0, 1)
        passes(data, 1)
        assert (queues[b"late"].items, queues[b"brief"].items) == (1, 0)

    def test_what_is_due_comes_in_the_order_of_its_dates_from_whichever_start_it_is(self, data):
        delays = [5000, 3000, 3000, 4000, 2500]
        for number, ahead in enumerate([0, HOUR, -DAY, YEAR, 0]):
            data.set(b"work", b"%d" % number, delay_ms=delays[number])
            data.set(b"work", b"%d again" % number, delay_ms=delays[number])
            data.set_clock(0)
            starts_anew(data, ahead=ahead, kill=number % 2 > 0)
            data.set_clock(0)
        passes(data, 5000)
        order = [b"4", b"1", b"2", b"3", b"0"]
        assert data.read_all(b"work") == [one + end for one in order for end in (b"", b" again")]

    def test_what_was_flushed_does_not_come_back(self, data):
        data.set(b"work", b"x", delay_ms=3000)
        data.write_out()
        starts_anew(data)
        data.set(b"work", b"y", delay_ms=1000)
        data.write_out()
        data.broker.queue(b"work").flush()
        data.set(b"work", b"z", delay_ms=4000)
        data.restart()
        passes(data, 4000)
        assert data.read_all(b"work") == [b"z"]
        data.restart()
        assert data.broker.queue(b"work").delayed_items == 0


class TestClockSetWhileDown:
    """Nobody has seen that: what is from before goes by the clock as it is."""

    def test_what_is_from_before_goes_by_the_clock_as_it_is(self, data):
        data.set(b"late", b"x", delay_ms=HOUR)
        data.push(b"brief", b"x", exptime=3600)
        data.close()
        data.ahead = HOUR
        data.open()
        data.tick()
        queues = data.broker.queues
        assert (queues[b"late"].items, queues[b"brief"].items) == (1, 0)


class TestStep:
    def test_that_is_a_drift_is_not_said_but_taken_over(self, data, silence):
        silence.lines.clear()
        data.push(b"work", b"x", exptime=NOW // 1000 + 8)
        for _ in range(10):
            data.ahead += STEP_MS - 1
            data.tick()
        assert data.broker.queue(b"work").items == 0
        assert [event for event, _ in silence.lines if "clock" in event] == []

    def test_does_not_touch_what_is_stored(self, data, step, monkeypatch):
        for number in range(100):
            data.push(b"work", b"%d" % number, exptime=3600)
            data.set(b"work", b"%d" % number, delay_ms=HOUR)
        data.write_out()
        queue = data.broker.queue(b"work")
        change = queue.journal.state.change
        reads = []
        monkeypatch.setattr("darner._records.decode_item", lambda *_: reads.append(1))
        data.set_clock(step)
        data.tick(3)
        assert queue.journal.state.change == change
        assert not queue.journal.dirty
        assert reads == []

    def test_gives_who_waits_what_is_due_by_a_right_clock(self, data):
        data.set(b"work", b"x", delay_ms=HOUR)
        starts_anew(data)
        delivered = []
        data.broker.queue(b"work").wait(
            Waiter(lambda queue: queue.pop(), lambda _, item: delivered.append(item))
        )
        data.set_clock(HOUR)
        assert [item.data for item in delivered] == [b"x"]
