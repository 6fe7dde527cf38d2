"""Settings of queues that are made at run time, in queue logic. The clock is a number."""

import pytest
from brokers import Data

from darner.config.config_file import parse
from darner.errors import ConfigError, JournalError, StatusError
from darner.journal.database import Database
from darner.queues import opening
from darner.queues.status import READONLY


class Configured(Data):
    """A data directory and its broker, with a configuration file."""

    def __init__(self, path, toml=""):
        self.write(toml)
        super().__init__(path)

    def write(self, toml):
        self.config = parse(toml, {}, "darner.toml")
        self.options = {"aliases": self.config.aliases}

    def settings_for(self, name, configured):
        return self.config.queue(name, configured)

    def open(self):
        self.options = {"aliases": self.config.aliases}
        super().open()

    def reload(self, toml):
        self.write(toml)
        return self.reconfigure(self.config.aliases)

    def configure(self, name, words=b""):
        for _ in self.broker.configuring.configure(name, words.split()):
            pass

    def refusal(self, name, words):
        with pytest.raises(ConfigError) as refused:
            self.configure(name, words)
        return str(refused.value)

    def setting(self, name, field):
        return getattr(self.broker.settings(name), field)


def fail(*_, **__):
    raise OSError("of a test")


@pytest.fixture
def data(tmp_path):
    data = Configured(tmp_path / "data")
    yield data
    data.close()


class TestConfigure:
    def test_changes_settings_of_a_queue_at_once_and_leaves_the_others(self, data):
        data.set(b"work", b"1")
        data.configure(b"work", b"max_items=1 max_open_reads=7 sync=100ms dead_letter_queue=dead")
        settings = data.broker.queues[b"work"].settings
        assert (settings.max_items, settings.max_open_reads) == (1, 7)
        assert (settings.sync_ms, settings.dead_letter_queue) == (100, "dead")
        data.configure(b"work", b"max_open_reads=8")
        assert (data.setting(b"work", "max_items"), data.setting(b"work", "max_open_reads")) == (1, 8)
        assert data.setting(b"other", "max_open_reads") == 1

    def test_makes_the_queue_and_subscribes_a_child(self, data):
        data.configure(b"work")
        data.configure(b"orders+audit", b"max_items=5")
        data.set(b"orders", b"1")
        assert sorted(data.broker.queues) == [b"orders", b"orders+audit", b"work"]
        assert data.read_all(b"orders+audit") == [b"1"]

    def test_without_a_value_forgets_a_setting(self, data):
        data.configure(b"work", b"max_items=5 max_open_reads=7")
        data.configure(b"work", b"max_items= max_age=")
        assert data.setting(b"work", "max_items") is None
        assert data.setting(b"work", "max_open_reads") == 7

    def test_of_a_fanout_parent_has_the_next_set_store_nothing_there(self, data):
        data.set(b"orders+audit", b"0")
        data.set(b"orders", b"1")
        data.configure(b"orders", b"fanout_only=true")
        data.set(b"orders", b"2")
        assert data.read_all(b"orders") == [b"1"]
        assert data.read_all(b"orders+audit") == [b"0", b"1", b"2"]

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (b"max_items=0", "max_items is 0, and must be a whole number from 1"),
            (b"max_items=x", 'max_items is "x", and must be a whole number from 1'),
            (b"max_age=5y", 'max_age is "5y", and must be a time from 1 ms'),
            (b"fanout_only=1", "fanout_only is 1, and must be true or false"),
            (b"dead_letter_queue=a/b", 'dead_letter_queue is "a/b", and must be the name of a queue'),
            (b"dead_letter_queue=\xff", "dead_letter_queue is "),
            (b"dead_letter_queue=work", "dead_letter_queue names the queue itself"),
            (b"dead_letter_queue=both", 'dead_letter_queue is "both", which is an alias'),
            (b"max_itms=1", "max_itms is no setting; did you mean max_items"),
            (b"max_itms=", "max_itms is no setting"),
            (b"port=1", "port is set for the server"),
            (b"max_items", "max_items has no value"),
            (b"=1", "is no setting"),
            (b"max_items=1 max_items=2", "max_items is given twice"),
            (b"durable=false", "durable cannot be changed at run time"),
            (b"durable=", "durable cannot be changed at run time"),
        ],
    )
    def test_with_one_wrong_value_changes_nothing_and_makes_no_queue(self, data, words, why):
        data.reload("[aliases]\nboth = ['a', 'b']")
        assert why in data.refusal(b"work", b"max_open_reads=7 " + words)
        assert data.broker.queues == {}
        assert data.setting(b"work", "max_open_reads") == 1

    def test_refuses_an_alias_and_a_child_that_is_to_store_nothing(self, data):
        data.reload("[aliases]\nboth = ['a', 'b']")
        assert "both is an alias" in data.refusal(b"both", b"max_items=1")
        assert "a child stores what is set on it" in data.refusal(b"a+b", b"fanout_only=true")

    def test_takes_a_name_of_digits_or_of_bytes_that_are_no_utf_8(self, data):
        data.configure(b"\xff", b"dead_letter_queue=123 expire_to_queue=true")
        data.kill()
        assert data.setting(b"\xff", "dead_letter_queue") == "123"
        assert data.setting(b"\xff", "expire_to_queue") == "true"

    def test_is_refused_as_a_set_is(self, data):
        data.broker.routes.set_status(READONLY)
        with pytest.raises(StatusError):
            data.configure(b"work", b"max_items=1")
        assert data.broker.queues == {}

    def test_that_the_journal_refuses_changes_nothing(self, data):
        data.configure(b"work", b"max_items=1")
        data.broker.queues[b"work"].journal.failing = JournalError("no")
        with pytest.raises(JournalError):
            data.configure(b"work", b"max_items=2")
        assert data.setting(b"work", "max_items") == 1
        data.broker.queues[b"work"].journal.failing = None

    def test_that_changes_nothing_is_not_logged(self, data):
        data.configure(b"work", b"max_age=5m")
        change = data.broker.queues[b"work"].journal.state.change
        data.configure(b"work", b"max_age=300000")
        assert data.broker.queues[b"work"].journal.state.change == change


class TestPrecedence:
    FILE = "[queue_defaults]\nmax_items = 1\n[queues.'w*']\nmax_items = 2\n[queues.work]\nmax_items = 3"

    def test_of_the_file_s_own_table_is_the_highest_and_said(self, data):
        data.reload(self.FILE)
        assert (
            data.refusal(b"work", b"max_items=4") == "max_items is 3 by the configuration file, which decides"
        )
        data.configure(b"work", b"max_items=3")
        assert data.broker.queues[b"work"].settings.max_items == 3

    def test_of_what_is_configured_is_above_defaults_and_patterns(self, data):
        data.reload(self.FILE)
        data.configure(b"wood", b"max_items=4")
        data.configure(b"other", b"max_items=5")
        assert (data.setting(b"wood", "max_items"), data.setting(b"other", "max_items")) == (4, 5)

    def test_changes_with_a_reload_and_comes_back_with_another(self, data):
        data.configure(b"work", b"max_items=4")
        assert data.reload(self.FILE) == [b"work"]
        assert data.broker.queues[b"work"].settings.max_items == 3
        assert "by the configuration file" in data.refusal(b"work", b"max_items=4")
        data.configure(b"work", b"max_open_reads=2")
        data.reload("")
        assert data.broker.queues[b"work"].settings.max_items == 4

    def test_of_a_child_s_own_is_above_what_it_inherits(self, data):
        data.configure(b"orders+audit", b"max_items=1")
        data.configure(b"orders+other")
        data.configure(b"orders", b"max_items=2 max_open_reads=3 fanout_only=true")
        audit, other = (data.broker.queues[name].settings for name in (b"orders+audit", b"orders+other"))
        assert (audit.max_items, audit.max_open_reads, audit.fanout_only) == (1, 3, False)
        assert (other.max_items, other.max_open_reads, other.fanout_only) == (2, 3, False)
        data.configure(b"orders", b"max_items=")
        assert data.broker.queues[b"orders+other"].settings.max_items is None

    def test_of_the_file_s_table_of_a_child_is_above_its_parent_s_run_time_settings(self, data):
        data.reload("[queues.'orders+audit']\nmax_items = 1")
        data.configure(b"orders", b"max_items=2")
        assert data.setting(b"orders+audit", "max_items") == 1
        assert data.setting(b"orders+other", "max_items") == 2


class TestKept:
    @pytest.mark.parametrize("written", [False, True])
    @pytest.mark.parametrize("end", ["kill", "restart"])
    def test_over_a_restart_whatever_of_it_is_in_leveldb(self, data, end, written):
        data.configure(b"orders+audit", b"max_age=5m")
        data.configure(b"orders", b"fanout_only=true max_open_reads=9")
        data.configure(b"gone", b"max_items=1")
        data.configure(b"gone", b"max_items=")
        for _ in range(2):
            if written:
                data.write_out()
            getattr(data, end)()
            queues = data.broker.queues
            assert queues[b"orders"].settings.fanout_only
            audit = queues[b"orders+audit"].settings
            assert (audit.max_age_ms, audit.max_open_reads, audit.fanout_only) == (300_000, 9, False)
            assert queues[b"gone"].settings.max_items is None

    def test_for_a_child_that_is_opened_before_its_parent(self, data, monkeypatch):
        data.configure(b"orders", b"max_open_reads=9")
        data.configure(b"orders+audit")
        data.write_out()
        found = opening.queue_directories
        monkeypatch.setattr(opening, "queue_directories", lambda *args: sorted(found(*args), reverse=True))
        data.restart()
        assert next(iter(data.broker.queues)) == b"orders+audit"
        assert data.broker.queues[b"orders+audit"].settings.max_open_reads == 9

    def test_takes_a_bounded_size_however_often_it_is_changed(self, data):
        name = b"n" * 250
        words = b"max_items=%d max_bytes=%d max_item_size=%d discard_old_when_full=false max_age=100d"
        words %= (2**62, 2**62, 2**62)
        words += b" expire_to_queue=%s dead_letter_queue=%s max_expire_sweep=%d" % (name, name, 2**62)
        words += b" fanout_only=false max_queue_age=36525d sync=36525d open_timeout=36525d max_open_reads=%d"
        words += b" max_attempts=65535 dedup_window="
        for number in range(1000):
            data.configure(b"work", words % (number + 1) + b"%d" % number)
        queue = data.broker.queues[b"work"]
        assert len(queue.journal.settings) < 2048
        assert len(queue.journal.records.batch.ops) == 0
        data.restart()
        assert data.setting(b"work", "dedup_window_ms") == 999

    def test_over_a_flush(self, data):
        data.configure(b"work", b"max_items=5")
        data.set(b"work", b"1")
        data.broker.queues[b"work"].flush()
        data.kill()
        assert data.setting(b"work", "max_items") == 5

    def test_while_the_journal_is_written_again_after_a_failed_write(self, data, monkeypatch):
        data.configure(b"work", b"max_items=5")
        with monkeypatch.context() as patch:
            patch.setattr(Database, "commit", fail)
            data.write_out_once()
        assert data.broker.queues[b"work"].journal.failing
        data.write_out()
        data.configure(b"work", b"max_open_reads=7")
        data.write_out()
        data.kill()
        assert data.setting(b"work", "max_items") == 5
        assert data.setting(b"work", "max_open_reads") == 7

    @pytest.mark.parametrize("written", [False, True])
    def test_not_over_the_deletion_of_the_queue(self, data, written):
        data.configure(b"orders", b"max_items=5")
        data.configure(b"orders+audit")
        if written:
            data.write_out()
        data.broker.delete(b"orders")
        data.configure(b"orders")
        assert data.broker.queues[b"orders"].settings.max_items is None
        data.tick()
        assert data.broker.queues[b"orders+audit"].settings.max_items is None
        data.kill()
        assert data.setting(b"orders", "max_items") is None
        assert data.setting(b"orders+audit", "max_items") is None

    def test_not_once_the_queue_has_expired(self, data):
        data.configure(b"reply", b"max_queue_age=1s max_open_reads=9")
        data.tick()
        data.now += 1000
        data.tick()
        assert b"reply" not in data.broker.queues
        assert data.setting(b"reply", "max_open_reads") == 1

    def test_of_a_queue_in_memory_as_long_as_it_lives(self, data):
        data.reload("[queues.memory]\ndurable = false")
        data.configure(b"memory", b"max_items=5")
        data.reload("[queues.memory]\ndurable = false\nmax_open_reads = 3")
        assert data.broker.queues[b"memory"].settings.max_items == 5
        data.restart()
        assert data.setting(b"memory", "max_items") is None

    def test_but_for_one_that_this_darner_does_not_know(self, data, monkeypatch):
        data.configure(b"work", b"max_items=5")
        data.broker.queues[b"work"].journal.keep_settings(b"colour=red max_items=5 durable=false")
        data.kill()
        assert data.broker.queues[b"work"].is_durable
        assert data.setting(b"work", "max_items") == 5

    def test_for_the_children_of_a_queue_that_is_set_aside(self, data):
        data.configure(b"orders", b"max_items=5")
        data.configure(b"orders+audit")
        data.broker.set_aside(data.broker.queues[b"orders"], RuntimeError("of a test"))
        data.tick()
        assert data.broker.queues[b"orders+audit"].settings.max_items == 5


def test_many_children_take_over_in_slices(data, monkeypatch):
    for number in range(9):
        data.configure(b"orders+%d" % number)
    steps = data.broker.configuring.configure(b"orders", [b"max_items=5"])
    next(steps)  # the client has gone
    steps.close()
    spent = iter([True] * 3 + [False] * 99)
    monkeypatch.setattr(type(data.broker.environment.budget), "is_spent", lambda _: next(spent))
    data.broker.configuring.tick()
    assert len(data.broker.configuring._stale) == 8
    data.run_timers()
    assert {queue.settings.max_items for queue in data.broker.queues.values()} == {5}
