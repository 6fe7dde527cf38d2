"""One queue's directory: what is in it after each change, and after it is opened again."""

import pytest

from darner import _proto, journal, leveldb
from darner._proto import Item
from darner.commit import Committer
from darner.errors import JournalError
from darner.journal import Journal


class Opened:
    """A journal, what it writes with, and what it holds when it is closed."""

    def __init__(self, path):
        self.path = path
        self.open()

    def open(self):
        self.threads = []
        self.committer = Committer(lambda work, done: self.threads.append((work, done)))
        self.journal = Journal(self.path, self.committer, 77)

    def commit(self):
        self.committer.commit()
        while self.threads:
            work, done = self.threads.pop(0)
            work()
            done(None)

    def reopen(self):
        self.commit()
        self.journal.close()
        self.open()
        return self.journal

    def put(self, *datas):
        items = [Item(0, 5, 0, 0, data) for data in datas]
        for item in items:
            self.journal.put(item)
        return items

    def read(self):
        """The live items, as a queue reads them."""
        items, _ = self.journal.read(self.journal.state.floor, 1_000_000, 1 << 30)
        return [item.data for item in self.journal.kept_items() + items]

    def trim_all(self):
        self.commit()
        while self.journal.untidy:
            self.journal.trim()
            self.commit()

    def records(self, kind=b""):
        """The keys in the closed directory, of one kind."""
        self.commit()
        self.journal.close()
        with leveldb.DB(str(self.path)) as db:
            keys = [key for key, _ in db if key.startswith(kind)]
        self.open()
        return keys


@pytest.fixture
def it(tmp_path):
    opened = Opened(tmp_path / "work")
    yield opened
    opened.journal.close()


def counts(journal):
    return journal.state.items, journal.state.bytes


class TestItems:
    def test_get_ids_from_one_on(self, it):
        assert [item.id for item in it.put(b"a", b"b", b"c")] == [1, 2, 3]
        it.reopen()
        assert [item.id for item in it.put(b"d")] == [4]

    def test_are_read_while_staged_once_written_and_after_a_restart(self, it):
        it.put(b"a", b"bb")
        assert it.read() == [b"a", b"bb"]
        it.commit()
        it.put(b"ccc")
        assert it.read() == [b"a", b"bb", b"ccc"]
        it.reopen()
        assert it.read() == [b"a", b"bb", b"ccc"]
        assert counts(it.journal) == (3, 6)

    def test_that_were_not_committed_are_gone_with_the_process(self, it):
        it.put(b"a")
        it.commit()
        it.put(b"b")
        it.journal.close()
        it.open()
        assert it.read() == [b"a"]
        assert counts(it.journal) == (1, 1)

    def test_put_and_removed_in_one_batch_are_never_written(self, it):
        it.put(b"a")
        it.commit()
        before = it.journal.state.batch
        for item in it.put(b"b", b"c"):
            it.journal.remove(item)
        it.commit()
        assert it.journal.state.batch == before
        assert it.records(b"i") == [_proto.item_key(1)]

    def test_taken_from_the_head_leave_their_records_to_the_trim(self, it):
        first, _ = it.put(b"a", b"b")
        it.commit()
        it.journal.remove(first)
        assert it.records(b"i") == [_proto.item_key(1), _proto.item_key(2)]
        assert it.journal.state.floor == 2
        assert it.read() == [b"b"]

    def test_taken_out_of_turn_are_deleted_at_once(self, it):
        _, second, _ = it.put(b"a", b"b", b"c")
        it.commit()
        it.journal.remove(second)
        assert it.records(b"i") == [_proto.item_key(1), _proto.item_key(3)]
        assert it.read() == [b"a", b"c"]
        assert it.journal.state.floor == 1

    def test_found_missing_by_a_read_move_the_floor_once_the_head_goes(self, it):
        first, second, third, _ = it.put(b"a", b"b", b"c", b"d")
        it.commit()
        it.journal.remove(second)
        it.journal.remove(third)
        it.reopen()
        it.read()
        it.journal.remove(first)
        assert it.journal.state.floor == 4

    def test_are_read_in_slices(self, it):
        it.put(b"a" * 10, b"b" * 10, b"c" * 10, b"d" * 10)
        it.commit()
        it.put(b"e")
        items, start = it.journal.read(1, 2, 1000)
        assert [item.data[:1] for item in items] == [b"a", b"b"]
        items, start = it.journal.read(start, 100, 15)
        assert [item.data[:1] for item in items] == [b"c", b"d"]
        items, start = it.journal.read(start, 100, 15)
        assert [item.data for item in items] == [b"e"]
        assert start == it.journal.state.next_id
        assert it.journal.read(start, 100, 15) == ([], start)

    def test_that_are_being_written_are_read_too(self, it):
        it.put(b"a")
        it.journal.batch.sync = True
        it.committer.commit()
        it.put(b"b")
        assert it.journal.writing
        assert it.read() == [b"a", b"b"]

    def test_keep_what_was_rewritten(self, it):
        (item,) = it.put(b"a")
        it.commit()
        item.attempts = 7
        it.journal.rewrite(item)
        assert it.reopen().find(1).attempts == 7

    def test_with_a_damaged_record_are_an_error_and_nothing_else(self, it):
        it.put(b"a", b"b")
        it.commit()
        it.journal.close()
        with leveldb.DB(str(it.path)) as db:
            record = bytearray(db.get(_proto.item_key(1)))
            record[-1] ^= 1
            db.put(_proto.item_key(1), bytes(record))
        it.open()
        with pytest.raises(JournalError, match="checksum"):
            it.read()
        with pytest.raises(JournalError, match="checksum"):
            it.journal.find(1)
        assert it.journal.find(2).data == b"b"
        assert it.journal.find(3) is None


class TestFloor:
    def test_moves_past_a_reserved_item_when_many_behind_it_are_gone(self, it, monkeypatch):
        monkeypatch.setattr(journal, "MAX_GONE", 3)
        items = it.put(*[bytes([65 + i]) for i in range(8)])
        it.commit()
        for item in items[1:4]:
            it.journal.remove(item)
        assert it.journal.state.floor == 1
        it.journal.remove(items[4])
        assert it.journal.state.floor == 6
        assert it.journal.kept == {1}
        assert not it.journal.gone
        for _ in range(2):
            assert it.read() == [b"A", b"F", b"G", b"H"]
            assert counts(it.journal) == (4, 4)
            it.reopen()
        it.journal.remove(it.journal.kept_items()[0])
        assert it.read() == [b"F", b"G", b"H"]
        it.reopen()
        assert it.read() == [b"F", b"G", b"H"]
        assert counts(it.journal) == (3, 3)

    def test_keeps_several_items_over_several_moves(self, it, monkeypatch):
        monkeypatch.setattr(journal, "MAX_GONE", 1)
        items = it.put(*[bytes([65 + i]) for i in range(9)])
        it.commit()
        for index in (1, 2, 4, 5, 7):
            it.journal.remove(items[index])
        it.commit()
        assert it.read() == [b"A", b"D", b"G", b"I"]
        it.reopen()
        assert it.read() == [b"A", b"D", b"G", b"I"]
        it.trim_all()
        assert it.records(b"i") == [_proto.item_key(n) for n in (1, 4, 7, 9)]

    def test_spares_an_open_journal_all_that_was_consumed(self, it, monkeypatch):
        seen = []

        class Counting:
            def __init__(self, db):
                self._db = db

            def iterator(self, **options):
                records = self._db.iterator(**options)
                return CountingIterator(records)

            def __getattr__(self, name):
                return getattr(self._db, name)

        class CountingIterator:
            def __init__(self, records):
                self.records = records

            def __enter__(self):
                return self

            def __exit__(self, *_):
                self.records.close()

            def __iter__(self):
                return self

            def __next__(self):
                record = next(self.records)
                seen.append(record)
                return record

        items = it.put(*[b"x"] * 20_003)
        it.commit()
        for item in items[:20_000]:
            it.journal.remove(item)
        it.commit()
        it.journal.close()
        really_open = leveldb.DB
        monkeypatch.setattr(leveldb, "DB", lambda *args, **options: Counting(really_open(*args, **options)))
        it.open()
        assert it.read() == [b"x"] * 3
        assert len(seen) == 3


class TestFlush:
    def test_discards_all_but_what_it_is_to_keep(self, it):
        items = it.put(b"a", b"bb", b"c")
        it.commit()
        late = it.put(b"dd", b"e")
        it.journal.flush([items[1], late[0]])
        assert counts(it.journal) == (2, 4)
        it.put(b"f")
        it.reopen()
        assert it.read() == [b"bb", b"dd", b"f"]
        assert counts(it.journal) == (3, 5)

    def test_writes_no_more_for_a_long_queue_than_for_a_short_one(self, it):
        it.put(*[b"x"] * 1000)
        it.commit()
        it.journal.flush(())
        assert len(it.journal.batch.ops) == 1

    def test_discards_what_an_earlier_one_kept(self, it):
        first, second, _ = it.put(b"a", b"b", b"c")
        it.commit()
        it.journal.flush([first, second])
        it.trim_all()
        it.reopen()
        it.journal.flush([second])
        it.trim_all()
        assert it.read() == [b"b"]
        assert it.records(b"i") == [_proto.item_key(2)]
        it.journal.flush(())
        it.trim_all()
        assert it.read() == []
        assert counts(it.journal) == (0, 0)
        assert it.records(b"i") == []


class TestTrim:
    def test_deletes_all_that_is_dead_and_nothing_else(self, it, monkeypatch):
        monkeypatch.setattr(journal, "TRIM_RECORDS", 4)
        items = it.put(*[b"x"] * 20)
        it.commit()
        it.journal.flush([items[2], items[19]])
        it.put(b"y")
        it.trim_all()
        assert it.records(b"i") == [_proto.item_key(n) for n in (3, 20, 21)]
        assert it.read() == [b"x", b"x", b"y"]

    def test_deletes_so_many_records_at_once_and_no_more(self, it, monkeypatch):
        monkeypatch.setattr(journal, "TRIM_RECORDS", 4)
        it.put(*[b"x"] * 10)
        it.commit()
        it.journal.flush(())
        it.commit()
        before = it.journal.state.trimmed
        it.journal.trim()
        assert it.journal.state.trimmed == before + 4
        assert it.journal.untidy

    def test_takes_place_by_the_way_when_items_go(self, it, monkeypatch):
        monkeypatch.setattr(journal, "TRIM_RECORDS", 4)
        for item in it.put(*[b"x"] * 40):
            it.commit()
            it.journal.remove(item)
            it.commit()
        assert len(it.records(b"i")) <= 8

    def test_leaves_what_is_being_written_alone(self, it):
        (item,) = it.put(b"a")
        it.journal.batch.sync = True
        it.committer.commit()
        it.journal.remove(item)
        it.journal.trim()
        it.trim_all()
        assert it.records(b"i") == []


class TestDeletion:
    def test_is_known_after_a_restart(self, it):
        it.put(b"a")
        it.commit()
        it.journal.retire()
        assert it.reopen().state.deleted
        assert counts(it.journal) == (0, 0)

    def test_can_be_followed_by_a_new_life(self, it):
        it.put(b"a")
        it.commit()
        it.journal.retire()
        it.commit()
        it.journal.revive(99)
        state = it.reopen().state
        assert (state.deleted, state.created_ms) == (False, 99)
        assert it.read() == []
        assert it.put(b"b")[0].id == 2

    def test_that_was_not_committed_has_not_been(self, it):
        it.put(b"a")
        it.commit()
        it.journal.retire()
        it.journal.close()
        it.open()
        assert not it.journal.state.deleted
        assert it.read() == [b"a"]


class TestOpening:
    def files(self, path):
        return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "LOG"}

    @pytest.mark.parametrize(
        "there", [(), ("LOCK", "LOG"), ("LOCK", "LOG", "MANIFEST-000001", "000001.dbtmp")]
    )
    def test_makes_a_journal_where_there_is_none_or_an_unborn_one(self, tmp_path, there):
        path = tmp_path / "work"
        path.mkdir()
        for name in there:
            (path / name).touch()
        it = Opened(path)
        it.put(b"a")
        it.reopen()
        assert it.read() == [b"a"]
        assert it.journal.state.created_ms == 77
        assert path.stat().st_mode & 0o777 in (0o700, 0o755)  # ours, or made by the test
        it.journal.close()

    def test_refuses_a_directory_without_current_and_deletes_nothing(self, it):
        it.put(b"a")
        it.reopen()  # which makes a table
        it.journal.close()
        (it.path / "CURRENT").unlink()
        before = self.files(it.path)
        assert any(name.endswith(".ldb") for name in before)
        for _ in range(2):
            with pytest.raises(JournalError, match="no CURRENT"):
                it.open()
        assert self.files(it.path) == before

    def test_refuses_a_leveldb_that_is_no_journal(self, it):
        path = it.path.with_name("foreign")
        with leveldb.DB(str(path), create_if_missing=True) as db:
            db.put(b"i" + bytes(8), b"whatever")
        with pytest.raises(JournalError, match="no journal"):
            Journal(path, it.committer, 1)
        with leveldb.DB(str(path)) as db:
            assert list(db) == [(b"i" + bytes(8), b"whatever")]

    def test_refuses_the_order_of_another_comparator(self, it):
        path = it.path.with_name("foreign")
        options = {"comparator": lambda a, b: (a > b) - (a < b), "comparator_name": b"queue::comparator"}
        with leveldb.DB(str(path), create_if_missing=True, **options) as db:
            db.put(b"key", b"value")
        with pytest.raises(JournalError, match="comparator"):
            Journal(path, it.committer, 1)
        with leveldb.DB(str(path), **options) as db:
            assert list(db) == [(b"key", b"value")]

    @pytest.mark.parametrize("damage", [lambda record: record[:-1], lambda record: record[:-1] + b"\xff"])
    def test_refuses_a_damaged_state(self, it, damage):
        it.put(b"a")
        it.commit()
        it.journal.close()
        with leveldb.DB(str(it.path)) as db:
            record = db.get(b"s")
            db.put(b"s", damage(record))
        with pytest.raises(JournalError, match="cannot read"):
            it.open()
        with leveldb.DB(str(it.path)) as db:  # and lets go of it
            db.put(b"s", record)
        it.open()
        assert it.read() == [b"a"]

    def test_refuses_a_file(self, it):
        path = it.path.with_name("file")
        path.touch()
        with pytest.raises(JournalError):
            Journal(path, it.committer, 1)

    def test_refuses_what_is_open_already(self, it):
        with pytest.raises(JournalError, match="cannot open"):
            Journal(it.path, it.committer, 1)


class TestReopening:
    def test_drops_what_was_staged(self, it):
        first, _ = it.put(b"a", b"b")
        it.commit()
        generation = it.journal.generation
        it.journal.remove(first)
        it.put(b"c")
        it.journal.reopen()
        assert it.read() == [b"a", b"b"]
        assert counts(it.journal) == (2, 2)
        assert it.journal.generation == generation + 1
        assert it.journal.settled

    def test_that_fails_says_so_and_may_succeed_later(self, it):
        it.put(b"a")
        it.commit()
        current = it.path / "CURRENT"
        current.rename(it.path / "HIDDEN")
        with pytest.raises(JournalError):
            it.journal.reopen()
        assert "CURRENT" in str(it.journal.failed)
        (it.path / "HIDDEN").rename(current)
        it.journal.reopen()
        assert it.journal.failed is None
        assert it.read() == [b"a"]


def test_a_journal_knows_how_much_room_it_takes(it):
    it.put(b"x" * 100_000)
    it.commit()
    assert it.journal.disk_bytes > 100_000
