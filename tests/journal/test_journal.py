"""One queue's journal: what is live after each change and after a kill, and what is in its directory."""

import errno
import functools
import itertools
import os
import shutil

import pytest
from doubles import Client, Disk, Offload

from darner import _records
from darner._records import Item, item_key, read_segment
from darner.environment.environment import Environment
from darner.errors import JournalError, NewerFormatError, NotReadyError
from darner.journal import blob_directory, layout, leveldb, lookup, reading, segment_file, tidying
from darner.journal.blob import BlobWriter
from darner.journal.commit import Committer
from darner.journal.dedup_ids import Once
from darner.journal.disk_reserve import Reserve
from darner.journal.layout import KEPT_KEY, is_state_key, state_key, stored_state
from darner.journal.recovery import open_journal
from darner.journal.resting import resting_state, snapshot
from darner.journal.wal import Log

NAME = b"work"


class Process:
    """One journal and what it needs, from the start of a process on."""

    # the number of the machine's start
    boot = 0

    def __init__(self, data):
        self.data = data
        self.path = data / "work"
        data.mkdir(exist_ok=True)
        self.start()

    def start(self, *, begin=True):
        self.threads = Offload()
        self.log = Log(self.data / ".log", self.threads)
        lives, damage = self.log.recover()
        assert damage == []
        reserve = Reserve(self.data / ".reserve", 0)
        environment = Environment(lambda: 0, self.threads, boot=self.boot)
        self.committer = Committer(self.log, environment, reserve=reserve)
        self.journal = open_journal(NAME, self.path, self.committer, self.log, 77, lives.get(NAME, ()))
        if begin:
            self.log.begin()
            self.threads.run_all()
        return self.journal

    def kill(self):
        """End the process and start another."""
        self.journal.close()
        return self.start()

    def restart(self):
        """As a server does it."""
        self.threads.run_all()
        self.committer.close()
        self.journal.close()
        self.log.close()
        return self.start()

    def write(self):
        """Have LevelDB written, or try to."""
        self.committer.checkpoint(self.journal)
        self.threads.run_all()

    def come_to_rest(self):
        for _ in range(100):
            self.committer.tick()
            self.threads.run_all()
            if not self.committer._active:
                return
        raise AssertionError("it does not come to rest")

    def settle(self):
        """Write all, and have ticks find nothing to do."""
        self.write()
        for _ in range(3):  # the first one may trim
            self.committer.tick()
            self.threads.run_all()

    def put(self, *datas):
        items = [Item(0, 5, 0, 0, data) for data in datas]
        for item in items:
            self.journal.put(item)
        return items

    def put_large(self, data=b"large", *, written=True):
        """An item with its bytes in a file."""
        blob = self.journal.begin_blob()
        writer = BlobWriter(self.journal.blobs.path_of(blob), self.threads)
        if written:
            writer.write(data)
        writer.finish(lambda _: None, sync=False)
        self.threads.run_all()
        item = Item(0, 6, 0, 0, None, blob, len(data), 1 << 16)
        self.journal.put(item)
        return item

    @property
    def files(self):
        return {int(path.name) for path in self.path.glob("blobs/*")}

    def items(self):
        """The live items, as a queue reads them."""
        kept = lookup.kept_items(self.journal)
        items, _ = reading.read(self.journal, self.journal.state.floor, 1 << 30, 1 << 40)
        return kept + items

    def datas(self):
        return [item.data for item in self.items()]

    def remove(self, *ids):
        """Remove items that were read."""
        self.journal.next_unread = self.journal.state.next_id
        for id in ids:
            self.journal.remove(lookup.find(self.journal, id))

    def records(self, kind=b"i"):
        """The ids in the directory's keys of one kind."""
        keys = self.journal.database.open().iterator(include_value=False)
        return [int.from_bytes(key[1:], "big") for key in keys if key[:1] == kind and len(key) == 9]

    def states(self):
        """The keys of states in the directory."""
        keys = self.journal.database.open().iterator(start=b"i", stop=b"j", include_value=False)
        return [key for key in keys if is_state_key(key)]


@pytest.fixture
def it(tmp_path):
    process = Process(tmp_path / "data")
    yield process
    process.journal.close()


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def counts(journal):
    return journal.state.items, journal.state.bytes


class TestSettled:
    """A journal with nothing to be written, whose process is killed."""

    @pytest.fixture(autouse=True)
    def settled(self, it):
        it.boot = 7
        it.kill()
        it.put(b"a", b"bb")
        it.remove(1)
        it.journal.keep_cursor(b"audit", [2])
        it.settle()
        assert self.file(it).exists()

    @staticmethod
    def file(it):
        return it.path / layout.SETTLED_NAME

    def test_starts_without_its_leveldb(self, it):
        it.kill()
        assert not it.journal.database.is_open
        assert (counts(it.journal), it.journal.cursors) == ((1, 2), {b"audit": [2]})
        it.put(b"c")
        it.kill()
        assert it.datas() == [b"bb", b"c"]
        it.settle()
        it.kill()
        assert not it.journal.database.is_open
        assert it.datas() == [b"bb", b"c"]

    @pytest.mark.parametrize("failures", [[], ["before"], ["after"]])
    def test_is_so_no_more_before_leveldb_is_written(self, it, disk, failures):
        it.kill()
        it.put(b"c")
        disk.failures = failures
        it.write()
        assert not self.file(it).exists()
        it.kill()
        assert it.datas() == [b"bb", b"c"]

    def test_is_not_written_as_long_as_it_is_said_to_be_settled(self, it, monkeypatch):
        it.put(b"c")
        with monkeypatch.context() as patch:

            def refuse(*_, **__):
                raise OSError(errno.EIO, "the disk is broken")

            patch.setattr(type(it.path), "unlink", refuse)
            it.write()
        assert "the disk is broken" in str(it.journal.failing)
        it.kill()
        assert it.datas() == [b"bb", b"c"]

    @pytest.mark.parametrize("boot", [8, 0])
    def test_has_its_leveldb_opened_once_the_machine_was_started_anew(self, it, boot):
        it.boot = boot
        it.kill()
        assert it.journal.database.is_open
        assert it.datas() == [b"bb"]

    @pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-1] + b"\xff"])
    def test_has_its_leveldb_opened_if_the_file_is_damaged(self, it, damage):
        file = self.file(it)
        file.write_bytes(damage(file.read_bytes()))
        it.kill()
        assert it.journal.database.is_open
        assert it.datas() == [b"bb"]

    def test_has_its_leveldb_opened_if_an_earlier_darner_has_written_there(self, it):
        content = self.file(it).read_bytes()
        it.put(b"c")
        it.write()
        self.file(it).write_bytes(content)
        it.kill()
        assert it.journal.database.is_open
        assert it.datas() == [b"bb", b"c"]

    def test_leaves_the_file_of_a_journal_at_rest_in_its_place(self, it):
        it.come_to_rest()
        assert (it.path / layout.STATE_NAME).exists()
        assert not self.file(it).exists()

    def test_knows_of_a_large_item_whose_file_is_being_deleted(self, it):
        item = it.put_large()
        it.write()
        it.remove(item.id)
        it.write()
        assert it.journal.blobs.take_obsolete(it.journal.database.stored_change) == [item.blob]
        assert snapshot(it.journal).blobs == [item.blob]
        it.journal.forget_blobs([item.blob])
        assert snapshot(it.journal).blobs == []

    def test_is_so_no_more_while_tables_are_mended(self, it):
        seen = []
        it.journal.database.replace_tables(lambda: seen.append(self.file(it).exists()))
        assert seen == [False]


class TestItems:
    def test_get_ids_from_one_on(self, it):
        assert [item.id for item in it.put(b"a", b"b", b"c")] == [1, 2, 3]
        it.kill()
        assert [item.id for item in it.put(b"d")] == [4]

    def test_are_read_while_staged_while_written_once_written_and_after_a_kill(self, it):
        it.put(b"a", b"bb")
        assert it.datas() == [b"a", b"bb"]
        it.committer.checkpoint(it.journal)
        it.put(b"ccc")
        assert it.journal.writing
        assert it.datas() == [b"a", b"bb", b"ccc"]
        it.threads.run_all()
        assert it.datas() == [b"a", b"bb", b"ccc"]
        assert it.records() == [1, 2]
        it.kill()
        assert it.datas() == [b"a", b"bb", b"ccc"]
        assert counts(it.journal) == (3, 6)

    def test_put_and_removed_before_they_are_written_never_are(self, it):
        it.put(b"a", b"b", b"c")
        it.remove(2, 3)
        it.write()
        assert it.records() == [1]

    def test_taken_from_the_head_leave_their_records_until_nothing_else_is_to_be_done(self, it):
        it.put(b"a", b"b")
        it.write()
        it.remove(1)
        it.write()
        assert (it.journal.state.floor, it.records()) == (2, [1, 2])
        it.come_to_rest()
        assert (it.datas(), it.records()) == ([b"b"], [2])

    def test_taken_out_of_turn_are_gone_with_the_next_write(self, it):
        it.put(b"a", b"b", b"c")
        it.write()
        it.remove(2)
        assert it.datas() == [b"a", b"c"]
        it.write()
        assert it.records() == [1, 3]
        assert it.journal.state.floor == 1

    @pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3))))
    @pytest.mark.parametrize("written", [1, 2])
    def test_taken_in_any_order_stay_so_after_a_kill(self, it, order, written):
        it.put(b"a", b"b", b"c", b"d")
        it.write()
        it.remove(*order[:written])
        it.write()
        it.remove(*order[written:])
        for _ in range(2):
            it.kill()
            assert it.datas() == [b"d"]
            assert counts(it.journal) == (1, 1)

    def test_found_missing_by_a_read_move_the_floor_once_the_head_goes(self, it):
        it.put(b"a", b"b", b"c", b"d")
        it.remove(2, 3)
        it.restart()
        it.items()
        it.remove(1)
        assert it.journal.state.floor == 4

    def test_are_read_in_slices(self, it):
        it.put(b"a" * 10, b"b" * 10, b"c" * 10, b"d" * 10)
        it.write()
        it.put(b"e")
        read, two = functools.partial(reading.read, it.journal), 2 * _records.ITEM_BYTES
        items, start = read(1, 2, 1 << 30)
        assert [item.data[:1] for item in items] == [b"a", b"b"]
        items, start = read(start, 100, two)
        assert [item.data[:1] for item in items] == [b"c", b"d"]
        items, start = read(start, 100, two)
        assert [item.data for item in items] == [b"e"]
        assert start == it.journal.state.next_id
        assert read(start, 100, two) == ([], start)

    @pytest.mark.parametrize("write", [lambda it: None, lambda it: it.write()])
    def test_keep_how_often_they_have_come_back(self, it, write):
        (item,) = it.put(b"a")
        write(it)
        item.attempts = 7
        it.journal.note_attempts(item)
        assert [item.attempts for item in it.items()] == [7]
        write(it)
        it.kill()
        assert lookup.find(it.journal, 1).attempts == 7

    @pytest.mark.parametrize(
        "find", [lambda journal: lookup.find(journal, 1), lambda journal: reading.read(journal, 1, 9, 99)]
    )
    def test_with_a_damaged_record_are_counted_out_and_put_aside(self, it, find):
        it.put(b"a", b"b")
        it.restart()
        db = it.journal.database.open()
        record = bytearray(db.get(item_key(1)))
        record[-1] ^= 1
        db.put(item_key(1), bytes(record))
        with pytest.raises(NotReadyError, match="work"):  # its table might be damaged
            find(it.journal)
        it.threads.run_all()
        assert find(it.journal) in (None, ([], 2))
        assert lookup.find(it.journal, 2).data == b"b"
        assert lookup.find(it.journal, 3) is None
        assert counts(it.journal) == (1, 1)
        assert (it.path / "damaged" / "1.record").read_bytes() == record
        it.kill()
        assert it.datas() == [b"b"]
        assert counts(it.journal) == (1, 1)


class TestFloor:
    def test_moves_past_a_reserved_item_when_many_behind_it_are_gone(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 3)
        it.put(*[bytes([65 + i]) for i in range(8)])
        it.write()
        it.remove(2, 3, 4)
        assert it.journal.state.floor == 1
        it.remove(5)
        assert (it.journal.state.floor, it.journal.live.kept, it.journal.live.removed) == (6, {1}, set())
        for again in (it.kill, it.restart, it.kill):
            assert it.datas() == [b"A", b"F", b"G", b"H"]
            assert counts(it.journal) == (4, 4)
            again()
        it.remove(1)
        assert it.datas() == [b"F", b"G", b"H"]
        it.restart()
        assert it.datas() == [b"F", b"G", b"H"]

    def test_keeps_several_items_over_several_moves(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 1)
        it.put(*[bytes([65 + i]) for i in range(9)])
        it.write()
        it.remove(2, 3, 5, 6, 8)
        it.write()
        it.kill()
        assert it.datas() == [b"A", b"D", b"G", b"I"]
        it.come_to_rest()
        assert it.records() == [1, 4, 7, 9]

    def test_spares_a_start_all_that_was_consumed(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 10)
        it.put(*[b"x"] * 5_003)
        it.write()
        it.remove(*range(1, 5_001))
        it.restart()
        seen = []
        decode = _records.decode_item
        monkeypatch.setattr(_records, "decode_item", lambda *args: seen.append(args) or decode(*args))
        it.restart()
        assert it.datas() == [b"x"] * 3
        assert len(seen) == 3


class TestFlush:
    def test_discards_all_but_what_it_is_to_keep(self, it):
        items = it.put(b"a", b"bb", b"c")
        it.write()
        late = it.put(b"dd", b"e")
        it.journal.flush([items[1], late[0]])
        assert counts(it.journal) == (2, 4)
        it.put(b"f")
        for again in (it.kill, it.restart):
            again()
            assert it.datas() == [b"bb", b"dd", b"f"]
            assert counts(it.journal) == (3, 5)

    def test_logs_no_more_for_a_long_queue_than_for_a_short_one(self, it):
        it.put(*[b"x"] * 1000)
        it.write()
        before = it.log.position[1]
        it.journal.flush(())
        assert it.log.position[1] - before < 50
        assert it.journal.records.batch.ops == []

    def test_discards_what_an_earlier_one_kept(self, it):
        first, second, _ = it.put(b"a", b"b", b"c")
        it.journal.flush([first, second])
        it.come_to_rest()
        it.restart()
        it.journal.flush([second])
        it.come_to_rest()
        assert (it.datas(), it.records()) == ([b"b"], [2])
        it.journal.flush(())
        it.come_to_rest()
        assert (it.datas(), it.records(), counts(it.journal)) == ([], [], (0, 0))

    def test_leaves_a_record_of_what_is_kept_only_if_something_is(self, it):
        first, *_ = it.put(b"a", b"b")
        for again in (lambda: None, it.restart):
            it.journal.flush([first])
            it.write()
            assert it.journal.database.open().get(KEPT_KEY)
            again()
            it.journal.flush(())
            it.write()
            assert it.journal.database.open().get(KEPT_KEY) is None
            (first,) = it.put(b"c")

    def test_that_keeps_more_than_the_log_has_room_for_changes_nothing(self, it, monkeypatch):
        monkeypatch.setattr(segment_file, "SEGMENT_BYTES", 2_000)
        it.restart()
        items = it.put(*[b""] * 200)
        with pytest.raises(JournalError, match="too many reserved items"):
            it.journal.flush(items)
        it.put(b"a")
        it.kill()
        assert len(it.items()) == 201


class TestTrim:
    def test_deletes_all_that_is_dead_and_nothing_else(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 4)
        items = it.put(*[b"x"] * 20)
        it.write()
        it.journal.flush([items[2], items[19]])
        it.put(b"y")
        it.come_to_rest()
        assert it.records() == [3, 20, 21]
        assert it.datas() == [b"x", b"x", b"y"]

    def test_deletes_so_many_records_at_once_and_no_more(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.DEAD_RECORDS", 0)
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 4)
        it.put(*[b"x"] * 10)
        it.write()
        it.journal.flush(())
        it.write()
        assert len(it.records()) == 6
        assert it.journal.trimming.has_dead

    def test_deletes_no_more_for_what_is_put_than_its_share(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.DEAD_RECORDS", 0)
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 8)
        it.put(*[b"x"] * 40)
        it.write()
        it.journal.flush(())
        left = []
        for _ in range(6):
            it.put(b"y", b"y")
            it.write()
            left.append(len(it.records()) - 2 * len(left) - 2)
        assert left == [32, 32, 24, 24, 16, 16]
        it.remove(41)
        it.write()  # puts nothing
        assert len(it.records()) == 8 + 12

    def test_of_a_part_leaves_no_more_to_be_done_than_there_was(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 4)
        it.put(*[b"x"] * 10)
        it.write()
        it.journal.flush(())
        it.write()
        it.write()
        assert it.journal.trimming.has_dead
        assert not it.journal.trimming.is_due(it.journal.records.dead_bytes)
        it.come_to_rest()
        assert it.records() == []

    @pytest.mark.parametrize(
        ("limit", "least", "most"),
        [("DEAD_RECORDS", 10, 10), ("DEAD_BYTES", 10, 10), ("LEAST_RECORDS", 5, 20), ("LEAST_BYTES", 5, 20)],
    )
    def test_does_not_wait_for_rest_if_many_are_dead_or_most(self, it, monkeypatch, limit, least, most):
        monkeypatch.setattr(tidying, limit, least)
        it.put(*[b"x"] * 40)
        it.write()
        it.remove(*range(1, most + 1))
        it.write()
        assert len(it.records()) == 40
        it.remove(most + 1)
        it.write()
        assert it.records() == list(range(most + 2, 41))
        it.remove(most + 2)
        it.write()
        assert it.records() == list(range(most + 2, 41))

    def test_of_a_few_in_a_small_queue_waits_for_rest(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.LEAST_RECORDS", 5)
        it.put(*[b"x"] * 6)
        it.write()
        it.remove(*range(1, 6))
        assert not it.journal.trimming.is_due(it.journal.records.dead_bytes)
        it.remove(6)
        assert it.journal.trimming.is_due(it.journal.records.dead_bytes)

    def test_leaves_of_the_states_the_last(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.DEAD_RECORDS", 0)
        for data in (b"a", b"b", b"c"):
            it.put(data)
            it.write()
        assert it.states() == [state_key(2), state_key(3), state_key(4)]
        it.remove(1, 2, 3)
        it.write()
        assert it.states() == [state_key(4)]
        it.put(b"d")
        it.write()
        assert it.states() == [state_key(5)]
        it.kill()
        it.remove(4)
        it.write()
        it.put(b"e")
        it.write()
        assert it.states() == [state_key(6)]

    def test_leaves_what_is_being_written_to_the_next_write(self, it):
        it.put(b"a")
        it.committer.checkpoint(it.journal)
        it.remove(1)
        it.threads.run_all()
        assert it.records() == [1]
        it.come_to_rest()
        assert it.records() == []

    def test_leaves_nothing_of_what_went_while_it_could_not_be_written(self, it, disk):
        it.put(b"a", b"b", b"c")
        disk.failures = ["before", "after", None]
        it.write()
        it.remove(1, 3)
        it.write()
        it.write()
        it.come_to_rest()
        assert it.journal.failing is None
        assert it.records() == [2]


class TestDeletion:
    def test_is_known_after_a_kill_and_after_a_restart(self, it):
        it.put(b"a")
        it.write()
        it.journal.retire()
        assert it.kill().state.deleted
        assert counts(it.journal) == (0, 0)
        assert it.restart().state.deleted

    def test_can_be_followed_by_more_in_the_same_directory(self, it):
        it.put(b"a")
        it.write()
        it.journal.retire()
        it.journal.revive(99)
        it.put(b"b")
        for again in (it.kill, it.restart):
            state = again().state
            assert (state.deleted, state.created_ms, state.next_id) == (False, 99, 3)
            assert it.datas() == [b"b"]

    def test_of_a_journal_that_never_was_in_leveldb_is_known_after_a_kill(self, it):
        it.put(b"a")
        it.journal.retire()
        assert it.kill().state.deleted


class TestLives:
    """The journal whose directory it is, and those of which the log tells."""

    def another(self, it):
        """Have the queue deleted with all its files, and made anew."""
        it.journal.retire()
        it.journal.close()
        it.path.rename(it.data / f"old{it.journal.state.life}")
        it.committer.discard(it.journal)
        it.log.unpin(it.journal)
        it.journal = open_journal(NAME, it.path, it.committer, it.log, 88)

    def restore(self, it, life):
        """Have the directory back as if its renaming was lost with the machine."""
        it.journal.close()
        if it.path.exists():
            it.path.rename(it.data / "newer")
        (it.data / f"old{life}").rename(it.path)

    def test_that_was_made_anew_has_nothing_of_the_one_before(self, it):
        it.put(b"a")
        it.write()
        it.log.pin_found("for a test")
        self.another(it)
        it.put(b"b")
        it.kill()
        assert it.datas() == [b"b"]

    def test_that_comes_back_though_another_has_begun_counts_as_deleted(self, it):
        it.put(b"a")
        it.write()
        first = it.journal.state.life
        it.log.pin("somebody")
        self.another(it)
        it.put(b"b")
        self.restore(it, first)
        it.start(begin=False)
        assert (it.journal.state.life, it.journal.state.deleted) == (first, True)

    def test_that_began_after_what_the_log_tells_of_is_not_touched_by_that(self, it):
        it.put(b"a")
        it.log.pin("somebody")
        self.another(it)
        it.put(b"b")
        it.write()
        it.put(b"c")
        it.write()
        it.log.unpin(it.journal)
        it.log.roll()
        for path in (it.data / ".log").glob("[0-9]*"):
            found = read_segment(path.read_bytes()).frames
            if found and not any(kind == _records.Change.RETIRE for kind, *_ in found):
                path.unlink()
        it.kill()
        assert it.datas() == [b"b", b"c"]

    def test_that_the_log_goes_on_from_must_be_the_one_that_is_there(self, it):
        it.put(b"a", b"b")
        it.write()
        it.log.roll()
        it.threads.run_all()
        it.put(b"c")
        it.journal.close()
        it.path.rename(it.data / "away")
        with pytest.raises(JournalError, match="goes on at change 3"):
            it.start(begin=False)
        (it.path).rmdir()
        (it.data / "away").rename(it.path)
        it.start()
        assert it.datas() == [b"a", b"b", b"c"]


class TestReplay:
    def test_is_kept_in_the_log_until_leveldb_has_all_of_it(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.batch.STAGED_BYTES", 3 * _records.ITEM_BYTES)
        for _ in range(3):
            it.put(*[b"x"] * 10)
            it.kill()
        assert it.threads.tasks == []  # nothing is written before all is read
        assert len(it.items()) == 30
        it.put(b"y")
        it.kill()
        assert len(it.items()) == 31

    def test_that_fails_leaves_nobody_with_anything_to_write(self, it):
        it.put(b"a", b"b")
        it.write()
        it.log.roll()
        it.threads.run_all()
        it.put(b"c")
        it.journal.close()
        it.path.rename(it.data / "away")
        with pytest.raises(JournalError):
            it.start(begin=False)
        assert it.committer._active == {}

    def test_of_a_change_that_a_later_darner_has_logged_is_left_to_that(self, it):
        it.put(b"a")
        it.journal._log(99, b"")
        it.journal.close()
        with pytest.raises(NewerFormatError, match="a change of kind 99, which this darner does not know"):
            it.start(begin=False)

    @pytest.mark.parametrize("is_stored", [False, True])
    def test_of_a_deferred_item_needs_nothing_but_the_log(self, it, is_stored):
        it.put(b"a", b"b")
        if is_stored:
            it.write()
        item = lookup.find(it.journal, 1)
        item.attempts = 3
        it.journal.next_unread = 3
        it.journal.defer(item, 5)
        if is_stored:  # the record that the item had is damaged
            it.journal.database.open().put(item_key(1), b"x" * 40)
        for _ in range(2):
            it.kill()
            assert (counts(it.journal), it.journal.delayed.items, it.journal.delayed.bytes) == ((1, 1), 1, 1)
            assert it.datas() == [b"b"]
        ((key, item),) = lookup.due(it.journal, 5, 10, 1 << 20)
        assert (item.data, item.attempts) == (b"a", 3)
        it.journal.join(key, item, 9)
        it.kill()
        assert [(item.id, item.data, item.attempts) for item in it.items()] == [(2, b"b", 0), (3, b"a", 3)]
        it.come_to_rest()
        assert it.records() == [2, 3]

    def test_of_what_leveldb_has_already_changes_nothing(self, it):
        it.put(b"a", b"b", b"c")
        it.remove(2)
        it.log.pin("somebody")
        it.write()
        for _ in range(2):
            it.kill()
            assert it.datas() == [b"a", b"c"]
            assert counts(it.journal) == (2, 2)


class TestBlobs:
    def test_outlive_a_kill_before_anything_is_written(self, it):
        item = it.put_large()
        for _ in range(2):
            it.kill()
            it.committer.tick()
            it.threads.run_all()
            assert it.files == {item.blob}
        it.come_to_rest()
        assert it.files == {item.blob}
        assert it.records(b"u") == []

    def test_outlive_a_kill_though_leveldb_knows_them_as_half_sent(self, it):
        blob = it.journal.begin_blob()
        it.write()
        assert it.records(b"u") == [blob]
        it.journal.blobs.path_of(blob).parent.mkdir()
        it.journal.blobs.path_of(blob).write_bytes(_records.encode_chunk(b"x"))
        it.journal.put(Item(0, 0, 0, 0, None, blob, 1, 1 << 16))
        it.kill()
        it.come_to_rest()
        assert it.files == {blob}

    @pytest.mark.parametrize("write", [lambda it: None, lambda it: it.write()])
    def test_that_were_half_sent_are_deleted_after_a_kill(self, it, write):
        blob = it.journal.begin_blob()
        writer = BlobWriter(it.journal.blobs.path_of(blob), it.threads)
        writer.write(b"half")
        it.threads.run_all()
        write(it)
        assert it.files == {blob}
        it.kill()
        it.come_to_rest()
        assert (it.files, it.records(b"u")) == (set(), [])

    @pytest.mark.parametrize(
        "end",
        [
            lambda it, item: it.journal.remove(item),
            lambda it, item: it.journal.flush(()),
            lambda it, item: (it.journal.flush([item]), it.journal.flush(())),
        ],
    )
    @pytest.mark.parametrize("write", [lambda it: None, lambda it: it.write()])
    @pytest.mark.parametrize("kill", [lambda it: None, lambda it: it.kill()])
    def test_go_with_their_items(self, it, end, write, kill):
        item = it.put_large()
        write(it)
        end(it, item)
        assert it.files == {item.blob}  # somebody may have it back, as long as that is not written
        kill(it)
        it.come_to_rest()
        assert (it.files, it.records(b"u"), it.records()) == (set(), [], [])

    def test_of_items_flushed_while_they_could_not_be_written_go_too(self, it, disk):
        it.put_large()
        disk.failures = ["before"]
        it.write()
        it.journal.flush(())
        it.come_to_rest()
        assert (it.files, it.records(b"u")) == (set(), [])

    @pytest.mark.parametrize("failure", ["before", "after"])
    def test_of_items_trimmed_by_a_write_that_failed_go_too(self, it, disk, failure):
        it.put_large()
        it.write()
        it.journal.flush(())
        disk.failures = [failure]
        it.write()
        it.come_to_rest()
        assert (it.files, it.records(b"u"), it.records()) == (set(), [], [])

    def test_begun_in_what_was_lost_with_the_machine_are_deleted(self, it):
        it.put(b"a")
        it.restart()
        stray = it.path / "blobs" / str(it.journal.state.next_blob + 5)
        stray.parent.mkdir()
        stray.touch()
        it.kill()
        assert it.files == set()

    def test_are_deleted_for_good_though_the_start_that_deleted_them_died_at_once(self, it, monkeypatch):
        """The next start finds none to delete, while the disk may still have them."""
        it.put_large()
        synced = []
        monkeypatch.setattr("darner.journal.blob_directory.sync_directory", synced.append)
        it.kill()
        assert synced == [it.path / "blobs"]

    @pytest.mark.parametrize("cut", [0, 5])
    def test_that_are_not_whole_though_the_log_has_their_items_are_lost_alone(self, it, cut):
        """The machine was lost, and somebody had synced the log, but nobody this item."""
        it.put(b"a")
        item = it.put_large()
        it.put(b"b")
        with it.journal.blobs.path_of(item.blob).open("r+b") as file:
            file.truncate(cut)
        for _ in range(2):
            it.kill()
            assert it.journal.lost_items == 1
            assert it.datas() == [b"a", b"b"]
            assert counts(it.journal) == (2, 2)
        it.come_to_rest()
        assert (it.files, it.kill().lost_items, it.datas()) == (set(), 0, [b"a", b"b"])

    def test_are_on_the_disk_before_leveldb_has_their_items(self, it, monkeypatch):
        item = it.put_large()
        synced = []
        sync = blob_directory.sync_file
        monkeypatch.setattr(
            "darner.journal.blob_directory.sync_file", lambda path: synced.append(path) or sync(path)
        )
        it.write()
        assert synced == [it.journal.blobs.path_of(item.blob)]


class TestFailure:
    @pytest.mark.parametrize("failure", ["before", "after"])
    def test_to_write_loses_nothing(self, it, disk, failure):
        it.put(b"a", b"b", b"c")
        it.remove(2)
        disk.failures = [failure]
        it.write()
        assert "no space left" in str(it.journal.failing)
        with pytest.raises(JournalError, match="no space left"):
            it.put(b"refused")
        it.remove(1)
        assert it.datas() == [b"c"]
        it.kill()
        assert it.datas() == [b"c"]
        it.write()
        assert it.journal.failing is None
        it.restart()
        assert it.datas() == [b"c"]
        assert counts(it.journal) == (1, 1)

    @pytest.mark.parametrize("failures", list(itertools.product(("before", "after"), repeat=3)))
    def test_to_write_several_times_loses_nothing(self, it, disk, failures):
        it.put(b"a", b"b", b"c", b"d", b"e")
        disk.failures = list(failures)
        it.write()
        it.remove(2)
        it.write()
        item = lookup.find(it.journal, 3)
        item.attempts = 4
        it.journal.note_attempts(item)
        it.remove(1)
        it.write()
        it.remove(4)
        it.come_to_rest()
        for again in (it.kill, it.restart):
            assert [(item.data, item.attempts) for item in it.items()] == [(b"c", 4), (b"e", 0)]
            again()
        assert it.records() == [3, 5]

    @pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
    def test_to_write_leaves_what_is_in_leveldb_to_be_read(self, it, disk, monkeypatch, call):
        it.put(b"a", b"b")
        it.restart()
        it.items()  # which opens it
        it.put(b"c")
        disk.refuses = True
        disk.failures = ["before"]
        it.write()

        def fail(*_):
            raise OSError(f"{call} fails")

        monkeypatch.setattr(os, call, fail)
        it.write()
        assert f"{call} fails" in str(it.journal.failing)
        assert it.datas() == [b"a", b"b", b"c"]
        monkeypatch.undo()
        it.journal.close()

    def test_to_write_keeps_few_batches_however_often_it_is_tried(self, it, disk):
        it.put(b"a", b"b", b"c")
        disk.failures = ["before"] * 50
        for id in (1, 2, 3):
            for _ in range(10):
                it.write()
            it.remove(id)
        it.write()
        assert it.journal.records.sealed.puts == {}
        assert len(it.journal.records.sealed.ops) <= 3

    def test_to_open_leaves_the_journal_as_it_was_and_nothing_is_put_until_it_can_be_opened(self, it, disk):
        it.put(b"a")
        it.write()
        it.journal.close()
        it.committer.on_failure = lambda _, error: told.append(str(error))
        told = []
        disk.refuses = True
        for _ in range(3):
            with pytest.raises(JournalError, match="no space left to open"):
                it.items()
        assert len(told) == 1
        with pytest.raises(JournalError, match="no space left to open"):
            it.put(b"b")
        disk.refuses = False
        it.committer.tick()
        it.threads.run_all()
        it.put(b"b")
        assert it.datas() == [b"a", b"b"]

    def test_of_a_directory_that_vanishes_under_leveldb_is_one_of_the_journal(self, it):
        it.put(b"a")
        it.write()
        it.put(b"b")
        it.path.rename(it.data / "away")
        it.write()
        assert "has vanished" in str(it.journal.failing)
        with pytest.raises(JournalError, match="has vanished"):
            it.put(b"c")
        assert it.datas() == [b"a", b"b"]
        (it.data / "away").rename(it.path)
        it.write()
        it.kill()
        assert it.datas() == [b"a", b"b"]

    def test_of_a_directory_emptied_while_it_is_written_keeps_the_log(self, it, monkeypatch):
        it.put(b"a")
        it.write()
        it.log.roll()
        it.put_large()
        monkeypatch.setattr(
            "darner.journal.blob_directory.sync_file", lambda _: it.path.rename(it.data / "away")
        )
        for module in ("blob_directory", "database"):
            monkeypatch.setattr(f"darner.journal.{module}.sync_directory", lambda _: None)
        it.write()
        assert "has vanished" in str(it.journal.failing)
        assert it.log._files[-1].pins

    def test_of_a_directory_that_vanished_ends_with_the_queue(self, it):
        it.put(b"a")
        it.write()
        shutil.rmtree(it.path)
        it.put(b"b")
        it.write()
        assert "has vanished" in str(it.journal.failing)
        it.journal.retire()
        it.journal.revive(78)
        it.write()
        it.put(b"c")
        it.write()
        it.kill()
        assert it.datas() == [b"c"]

    def test_of_an_older_copy_put_in_its_place_is_one_of_the_journal(self, it):
        it.put(b"a")
        it.write()
        it.journal.close()
        shutil.copytree(it.path, it.data / "old")
        it.put(b"b")
        it.write()
        it.path.rename(it.data / "away")
        (it.data / "old").rename(it.path)
        it.put(b"c")
        it.write()
        assert "LevelDB ends at change 1, and had all up to 2" in str(it.journal.failing)
        assert "darner repair" in str(it.journal.failing)
        shutil.rmtree(it.path)
        (it.data / "away").rename(it.path)
        it.write()
        assert it.journal.failing is None
        it.kill()
        assert it.datas() == [b"a", b"b", b"c"]

    def test_of_a_vanished_directory_is_one_of_the_journal(self, it):
        it.put(b"a")
        it.write()
        it.journal.close()
        it.path.rename(it.data / "away")
        it.put(b"b")
        it.write()
        assert "vanished" in str(it.journal.failing)
        (it.data / "away").rename(it.path)
        it.write()
        assert it.journal.failing is None
        assert it.datas() == [b"a", b"b"]

    def test_of_a_directory_put_in_its_place_is_one_of_the_journal(self, it):
        foreign = Process(it.data / "foreign")
        foreign.put(b"foreign")
        foreign.restart()
        foreign.journal.close()
        it.put(b"a")
        it.path.rmdir()
        foreign.path.rename(it.path)
        it.write()
        assert "another journal" in str(it.journal.failing)
        it.journal.close()
        it.path.rename(it.data / "away")
        it.write()
        assert it.journal.failing is None
        assert it.datas() == [b"a"]

    def test_of_the_log_refuses_items_and_large_ones_before_they_are_sent(self, it):
        it.put(b"a")
        it.log.segment.refusal = JournalError("no room")
        for refused in (lambda: it.put(b"b"), it.journal.begin_blob):
            with pytest.raises(JournalError, match="no room"):
                refused()
        it.remove(1)
        it.log.segment.refusal = None
        assert it.put(b"c")[0].id == 2
        it.kill()
        assert it.datas() == [b"c"]


class TestRest:
    def test_spares_the_next_start_opening_leveldb(self, it, disk):
        it.put(b"a", b"bb")
        it.restart()
        disk.refuses = True
        it.kill()
        assert counts(it.journal) == (2, 3)
        disk.refuses = False
        assert it.datas() == [b"a", b"bb"]

    @pytest.mark.parametrize("damage", [lambda state: b"", lambda state: state[:-1] + b"\xff"])
    def test_with_a_damaged_state_has_it_read_from_leveldb(self, it, damage):
        it.put(b"a")
        it.restart()
        file = it.path / layout.STATE_NAME
        file.write_bytes(damage(file.read_bytes()))
        it.kill()
        assert (it.datas(), counts(it.journal)) == ([b"a"], (1, 1))
        it.put(b"b")
        it.write()
        assert not file.exists()

    @pytest.mark.parametrize("failures", [[], ["before"], ["after"]])
    def test_ends_before_leveldb_is_written(self, it, disk, failures):
        it.put(b"a")
        it.restart()
        assert (it.path / layout.STATE_NAME).exists()
        it.put(b"b")
        assert not resting_state(it.journal)
        it.kill()
        assert it.datas() == [b"a", b"b"]
        disk.failures = failures
        it.write()
        assert not (it.path / layout.STATE_NAME).exists()

    @pytest.mark.parametrize(
        "leave",
        [
            lambda it: it.journal.flush([lookup.find(it.journal, 1)]),
            lambda it: (
                it.journal.flush([lookup.find(it.journal, 1)]),
                it.journal.remove(lookup.find(it.journal, 1)),
            ),
            lambda it: it.journal.note_expiring(expiring=True),
            lambda it: it.journal.keep_cursor(b"label", [2, 1]),
            lambda it: it.journal.delay(Item(0, 0, 0, 0, b"later"), 1_000),
            lambda it: (
                it.journal.delay(Item(0, 0, 0, 0, b"flushed"), 1_000),
                it.write(),
                it.journal.flush(()),
            ),
            lambda it: it.journal.begin_blob(),
            lambda it: it.journal.abandon_blob(it.journal.begin_blob()),
            lambda it: it.journal.put_once(Item(0, 0, 0, 0, b"once"), Once(1, 5, bytes(16))),
            lambda it: (
                it.journal.put_once(Item(0, 0, 0, 0, b"once"), Once(1, 5, bytes(16))),
                it.write(),
                it.journal.flush(()),
            ),
        ],
    )
    @pytest.mark.parametrize("again", ["restart", "kill"])
    def test_leaves_to_a_start_all_that_leveldb_would_tell_it(self, it, disk, leave, again):
        it.put(b"a", b"b")
        it.write()
        leave(it)
        it.write()
        if again == "kill":
            it.journal.close(resting_state(it.journal))
            it.start()
        else:
            it.restart()
        by_file, datas = snapshot(it.journal), it.datas()
        assert disk.handles[-1].closed or it.journal.database.is_open
        it.journal.close()
        (it.path / layout.STATE_NAME).unlink(missing_ok=True)  # there is none if it has to be tidied
        it.start()
        by_leveldb = snapshot(it.journal)
        for found in (by_file, by_leveldb):
            found.state = _records.encode_state(found.state)
        assert by_file == by_leveldb
        assert datas == it.datas()

    def test_of_any_journal_spares_the_next_start_opening_leveldb(self, it, disk):
        first, *_ = it.put(b"a", b"b", b"c")
        it.journal.delay(Item(0, 0, 9_000, 0, b"later"), 5)
        it.journal.keep_cursor(b"label", [2])
        it.journal.note_expiring(expiring=True)
        it.journal.flush([first])
        it.journal.delay(Item(0, 0, 0, 0, b"last"), 7)
        it.put(b"d")
        it.restart()
        disk.refuses = True
        found = it.kill()
        assert (found.live.kept, found.cursors, found.expiring) == ({1}, {b"label": [2]}, True)
        assert (found.delayed.items, found.delayed.next_due, counts(found)) == (1, {0: 5}, (2, 2))
        disk.refuses = False
        assert it.datas() == [b"a", b"d"]
        assert [item.data for _, item in lookup.due(found, 9, 10, 1 << 20)] == [b"last"]

    def test_after_a_read_has_moved_the_floor_leaves_what_is_kept(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 2)
        it.put(*[bytes([65 + i]) for i in range(9)])
        for id in (2, 3, 4, 5, 7):
            it.journal.remove(lookup.find(it.journal, id))
        it.restart()
        assert it.datas() == [b"A", b"F", b"H", b"I"]
        assert it.journal.live.kept
        it.committer.close()
        it.journal.close(resting_state(it.journal))
        it.start()
        it.put(b"J")
        it.write()
        it.kill()
        assert it.datas() == [b"A", b"F", b"H", b"I", b"J"]

    def test_of_a_journal_that_was_deleted_and_named_again_leaves_its_flushed_items_flushed(self, it):
        """They are due before LevelDB is written again, when it is not known to be there."""
        it.journal.delay(Item(0, 0, 0, 0, b"deleted"), 5)
        it.write()
        it.journal.retire()
        it.journal.revive(99)
        assert lookup.due(it.journal, 9, 10, 1 << 20) == []
        it.come_to_rest()
        assert [key for key, _ in it.journal.database.open() if key[:1] == b"d"] == []
        it.restart()
        it.journal.delay(Item(0, 0, 0, 0, b"new"), 6)
        assert [item.data for _, item in lookup.due(it.journal, 9, 10, 1 << 20)] == [b"new"]

    def test_left_by_darner_1_0_0_is_read_and_brings_back_no_flushed_item(self, it, disk):
        it.journal.delay(Item(0, 0, 0, 0, b"flushed"), 5)
        it.put(b"a")
        it.write()
        it.journal.flush(())
        it.put(b"b")
        it.restart()
        it.journal.close()
        (it.path / layout.STATE_NAME).write_bytes(_records.encode_state(it.journal.state))
        disk.refuses = True
        it.start()
        assert counts(it.journal) == (1, 1)
        disk.refuses = False
        assert it.datas() == [b"b"]
        it.journal.delay(Item(0, 0, 0, 0, b"new"), 6)
        assert [item.data for _, item in lookup.due(it.journal, 9, 10, 1 << 20)] == [b"new"]

    def test_whose_file_is_older_than_leveldb_is_an_error(self, it):
        it.put(b"a")
        it.restart()
        older = (it.path / layout.STATE_NAME).read_bytes()
        it.put(b"b")
        it.restart()
        (it.path / layout.STATE_NAME).write_bytes(older)
        it.kill()
        with pytest.raises(JournalError, match="LevelDB ends at change 2, and its file state is older"):
            it.items()

    def test_does_not_bring_back_delayed_items_that_were_flushed(self, it):
        it.journal.delay(Item(0, 0, 0, 0, b"flushed"), 5)
        it.write()
        it.journal.flush(())
        it.restart()
        it.journal.delay(Item(0, 0, 0, 0, b"late"), 6)
        assert [item.data for _, item in lookup.due(it.journal, 9, 10, 1 << 20)] == [b"late"]

    def test_leaves_no_dead_records_behind(self, it, monkeypatch):
        monkeypatch.setattr("darner.journal.tidying.TRIM_RECORDS", 1)
        it.put(b"a", b"b", b"c")
        it.write()
        it.journal.flush(())
        it.restart()
        it.come_to_rest()
        assert it.records() == []


class TestDamage:
    """Of what was there LevelDB has less than it had: that is said, and not taken for an empty journal."""

    def log(self, it):
        (log,) = it.path.glob("*.log")
        return log

    def written(self, it, *datas):
        """Have each item be a write of its own; returns where these begin in LevelDB's log."""
        starts = []
        for data in datas:
            starts.append(self.log(it).stat().st_size if it.journal.database.is_open else 0)
            it.put(data)
            it.write()
        return starts

    def flip(self, path, at):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)

    @pytest.mark.parametrize("again", ["kill", "restart"])
    def test_in_the_middle_of_leveldbs_log_is_found_when_it_is_opened(self, it, again):
        starts = self.written(it, b"a", b"b", b"c")
        if again == "restart":
            it.restart()
        it.journal.close()
        self.flip(self.log(it), starts[1] + 20)
        before = {file: file.read_bytes() for file in it.path.iterdir() if file.is_file()}
        with pytest.raises(JournalError, match=r"is damaged at byte .* darner repair"):
            reading.read(it.start(), 1, 10, 1 << 20)
        assert {file: file.read_bytes() for file in it.path.iterdir() if file.is_file()} == before

    @pytest.mark.parametrize("rest", [b"", bytes(3000), b"\xa5" * 3000])
    def test_that_a_kill_or_a_power_cut_leaves_at_the_end_of_leveldbs_log_is_none(self, it, rest):
        it.log.pin("somebody")
        starts = self.written(it, b"a", b"b", b"c")
        it.journal.close()
        log = self.log(it)
        log.write_bytes(log.read_bytes()[: starts[2] + 9] + rest)
        it.start()  # the log has it
        assert it.datas() == [b"a", b"b", b"c"]

    @pytest.mark.parametrize("cut", [None, 3])
    def test_at_the_end_of_leveldbs_log_is_found_if_the_log_does_not_have_it(self, it, cut):
        starts = self.written(it, b"a", b"b", b"c")
        it.journal.close()
        log = self.log(it)
        if cut is None:
            self.flip(log, starts[2] + 20)
        else:
            log.write_bytes(log.read_bytes()[: starts[2] + cut])
        shutil.rmtree(it.data / ".log")
        for _ in range(2):
            with pytest.raises(JournalError, match="end at change 2, and LevelDB had all up to 3"):
                it.start()

    def test_of_the_mark_alone_is_none(self, it):
        self.written(it, b"a", b"b")
        for content in (b"", b"garbage", None):
            it.journal.close()
            mark = it.path / layout.MARK_NAME
            mark.unlink() if content is None else mark.write_bytes(content)
            it.start()
            assert it.datas() == [b"a", b"b"]

    def test_of_what_is_read_is_told_at_the_end_of_what_is_there(self, it):
        self.written(it, b"a", b"b", b"c")
        it.journal.close()
        with leveldb.DB(str(it.path)) as db:
            db.delete(item_key(2))
        it.start()
        told = []
        it.committer.on_quarantine = lambda _, ids, *__: told.append(ids)
        items, it.journal.next_unread = reading.read(it.journal, 1, 10, 1 << 20)
        assert [item.data for item in items] == [b"a"]
        with pytest.raises(NotReadyError):
            reading.read(it.journal, it.journal.next_unread, 10, 1 << 20)
        it.threads.run_all()
        items, it.journal.next_unread = reading.read(it.journal, it.journal.next_unread, 10, 1 << 20)
        assert [item.data for item in items] == [b"c"]
        assert (told, it.journal.state.items) == (["2"], 2)
        it.journal.check_whole()

    def test_of_delayed_items_is_told_when_they_would_have_been_due(self, it):
        it.journal.delay(Item(0, 0, 0, 0, b"lost"), 5)
        it.journal.delay(Item(0, 0, 0, 0, b"there"), 6)
        it.write()
        key = next(key for key, _ in it.journal.database.open() if key[:1] == b"d")
        it.journal.database.open().delete(key)
        told = []
        it.committer.on_quarantine = lambda _, ids, reason, __: told.append(reason)
        with pytest.raises(NotReadyError):
            lookup.due(it.journal, 9, 10, 1 << 20)
        it.threads.run_all()
        assert [item.data for _, item in lookup.due(it.journal, 9, 10, 1 << 20)] == [b"there"]
        assert told == ["1 delayed item is missing"]

    def test_of_a_count_is_an_error_before_it_would_go_below_zero(self, it):
        it.put(b"a", b"b")
        it.journal.delay(Item(0, 0, 0, 0, b"later"), 5)
        it.write()
        it.journal.state.items = 1
        it.journal.delayed.items = 0
        it.journal.remove(lookup.find(it.journal, 1))
        before = it.journal.state.change
        for change in (it.journal.remove, lambda item: it.journal.defer(item, 5)):
            with pytest.raises(JournalError, match="not as many items as are counted"):
                change(lookup.find(it.journal, 2))
        with pytest.raises(NotReadyError):
            lookup.due(it.journal, 9, 10, 1 << 20)
        it.threads.run_all()
        assert it.journal.state.change == before
        ((key, item),) = lookup.due(it.journal, 9, 10, 1 << 20)  # which counts anew what is there
        it.journal.delayed.items = 0
        before = it.journal.state.change
        with pytest.raises(JournalError, match="not as many items as are counted"):
            it.journal.join(key, item, 9)
        assert it.journal.state.change == before

    def test_of_a_count_that_is_put_right_is_so_after_a_kill(self, it):
        it.put(b"a")
        it.journal.delay(Item(0, 0, 0, 0, b"later"), 5)
        it.journal.state.items = it.journal.delayed.items = 0
        it.write()
        with pytest.raises(NotReadyError):
            lookup.due(it.journal, 9, 10, 1 << 20)
        it.threads.run_all()
        ((key, item),) = lookup.due(it.journal, 9, 10, 1 << 20)
        assert it.journal.delayed.items == 1  # it was counted anew
        it.journal.join(key, item, 9)
        it.kill()
        assert it.journal.delayed.items == 0

    def test_of_delayed_items_that_cannot_be_read_leaves_them_due(self, it, disk):
        it.journal.delay(Item(0, 0, 0, 0, b"later"), 5)
        it.restart()
        it.journal.close()
        disk.refuses = True
        with pytest.raises(JournalError):
            lookup.due(it.journal, 9, 10, 1 << 20)
        assert min(it.journal.delayed.next_due.values()) <= 9
        disk.refuses = False
        it.write()
        assert [item.data for _, item in lookup.due(it.journal, 9, 10, 1 << 20)] == [b"later"]


class TestSetAside:
    """A journal with which something went wrong that nobody has provided for."""

    def set_aside(self, it):
        it.committer.on_fault = lambda *_: None
        it.committer.set_aside(it.journal, OverflowError("too large"))
        return it.journal

    def test_refuses_every_change_and_logs_none(self, it):
        item, *_ = it.put(b"a", b"b")
        work = self.set_aside(it)
        before = it.log.position
        for change in (
            lambda: it.put(b"c"),
            lambda: work.remove(item),
            lambda: work.note_attempts(item),
            lambda: work.flush(()),
            lambda: work.delay(Item(0, 0, 0, 0, b"later"), 5),
            lambda: work.defer(item, 5),
            lambda: work.keep_cursor(b"label", [1]),
            work.begin_blob,
            work.retire,
            lambda: work.revive(5),
            work.announce,
        ):
            with pytest.raises(JournalError, match="internal error: OverflowError: too large"):
                change()
        assert it.log.position == before

    def test_is_written_no_more_and_found_whole_by_the_next_start(self, it):
        it.put(b"a")
        it.write()
        it.put(b"b")
        it.committer.checkpoint(it.journal)
        self.set_aside(it)
        it.committer.tick()
        it.committer.checkpoint(it.journal)
        it.threads.run_all()  # the write that was under way
        assert it.committer._active == {}
        for _ in range(20):
            it.log.roll()
            it.threads.run_all()
        it.committer.close()
        it.kill()
        assert it.datas() == [b"a", b"b"]

    def test_lets_go_of_those_who_wait_for_room(self, it):
        client = Client()
        client.hold()
        it.journal.held_back.append(client)
        self.set_aside(it)
        assert client.held == 0


def test_an_error_that_is_raised_again_and_again_does_not_grow(it):
    it.journal.failing = error = JournalError("no room")
    for _ in range(100):
        with pytest.raises(JournalError):
            it.put(b"a")
    depth, traceback = 0, error.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert depth < 20


class TestOpening:
    def files(self, path):
        return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "LOG"}

    @pytest.mark.parametrize(
        "there", [(), ("LOCK", "LOG"), ("LOCK", "LOG", "MANIFEST-000001", "000001.dbtmp", "room")]
    )
    def test_makes_a_journal_where_there_is_none_or_an_unborn_one(self, tmp_path, there):
        path = tmp_path / "data" / "work"
        path.mkdir(parents=True)
        for name in there:
            (path / name).touch()
        it = Process(tmp_path / "data")
        it.put(b"a")
        it.restart()
        assert it.datas() == [b"a"]
        assert it.journal.state.created_ms == 77
        it.journal.close()

    def test_refuses_a_directory_without_current_and_deletes_nothing(self, it):
        it.put(b"a")
        it.restart()
        it.items()  # which opens it, and makes a table
        it.journal.close()
        (it.path / "CURRENT").unlink()
        before = self.files(it.path)
        assert any(name.endswith(".ldb") for name in before)
        for _ in range(2):
            with pytest.raises(JournalError, match="no CURRENT"):
                it.start(begin=False)
        assert self.files(it.path) == before

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({}, "no journal"),
            (
                {"comparator": lambda a, b: (a > b) - (a < b), "comparator_name": b"queue::comparator"},
                "comparator",
            ),
        ],
    )
    def test_refuses_a_leveldb_that_is_no_journal(self, it, options, match):
        path = it.data / "foreign"
        with leveldb.DB(str(path), create_if_missing=True, **options) as db:
            db.put(b"i" + bytes(8), b"whatever")
        with pytest.raises(JournalError, match=match):
            open_journal(NAME, path, it.committer, it.log, 1)
        with leveldb.DB(str(path), **options) as db:
            assert list(db) == [(b"i" + bytes(8), b"whatever")]

    @pytest.mark.parametrize("damage", [lambda record: record[:-1], lambda record: record[:-1] + b"\xff"])
    def test_refuses_a_damaged_state(self, it, damage):
        it.put(b"a")
        it.write()
        it.journal.close()
        with leveldb.DB(str(it.path)) as db:
            key, record = stored_state(db)
            db.put(key, damage(record))
        with pytest.raises(JournalError, match="cannot read"):
            it.start(begin=False)
        with leveldb.DB(str(it.path)) as db:  # and lets go of it
            db.put(key, record)
        it.start()
        assert it.datas() == [b"a"]

    def test_that_fails_in_any_way_is_an_error_of_the_journal_and_lets_go_of_all(self, it, monkeypatch):
        it.put(b"a")
        it.write()
        it.put(b"b")
        it.journal.close()

        def fail(*_):
            raise RecursionError("too deep")

        monkeypatch.setattr("darner.journal.database.read_mark", fail)
        with pytest.raises(JournalError, match="internal error: RecursionError: too deep") as failure:
            it.start(begin=False)
        assert isinstance(failure.value.__cause__, RecursionError)
        assert (it.committer._active, it.log._found.pins) == ({}, set())
        monkeypatch.undo()
        it.start()  # LevelDB was closed
        assert it.datas() == [b"a", b"b"]

    @pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
    def test_does_not_wait_for_what_lies_in_the_place_of_the_state(self, it, make):
        it.put(b"a")
        it.restart()
        (it.path / layout.STATE_NAME).unlink()
        make(it.path / layout.STATE_NAME)
        it.kill()
        assert it.datas() == [b"a"]

    def test_refuses_a_file(self, it):
        path = it.data / "file"
        path.touch()
        with pytest.raises(JournalError):
            open_journal(NAME, path, it.committer, it.log, 1)

    def test_refuses_what_is_open_already(self, it):
        it.put(b"a")
        it.write()
        with pytest.raises(JournalError, match="cannot open"):
            open_journal(NAME, it.path, it.committer, it.log, 1)


def test_a_journal_without_a_log_lives_in_memory_alone(it):
    alone = open_journal(b"alone", it.data / "alone", it.committer, None, 5)
    items = [Item(0, 0, 0, 0, b"x" * 100_000) for _ in range(50)]
    for item in items:
        alone.put(item)
    alone.remove(items[0])
    it.committer.tick()
    assert it.threads.tasks == []
    assert [item.id for item in reading.read(alone, 1, 1000, 1 << 30)[0]] == list(range(2, 51))
    assert not alone.path.exists()


def test_a_journal_knows_how_much_room_it_takes(it):
    it.put(b"x" * 100_000)
    it.write()
    assert it.journal.disk_bytes > 100_000
