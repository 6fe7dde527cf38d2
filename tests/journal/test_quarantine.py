"""Damaged items are put aside, counted and reported, and the items behind them are served."""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from brokers import Data, log_to
from doubles import Silence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leveldbs import opened_db

from darner import _records
from darner._records import CHUNK_BYTES
from darner.config.settings import QueueSettings
from darner.errors import JournalError, NotReadyError
from darner.journal import leveldb, lookup
from darner.queues.cursor import Cursor
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter
from darner.repair import check

LARGE = bytes(2 * CHUNK_BYTES) + b"end"


@pytest.fixture
def log(monkeypatch):
    silence = Silence()
    log_to(monkeypatch, silence)
    monkeypatch.setattr(check, "log", silence)
    return silence


@pytest.fixture
def data(tmp_path, log):
    data = Data(tmp_path / "data")
    yield data
    data.close()


def body(number, size=300):
    return b"%06d" % number + bytes(size)


def tried(data, use):
    """Return the result of `use`, tried again while a table is being mended."""
    for _ in range(200):
        try:
            return use()
        except NotReadyError:
            data.settle()
    raise AssertionError("it goes on for ever")


def reserve(source, count):
    """Reserve so many items and read their data, as a client does."""
    items = []
    for _ in range(count):
        items.append(source.reserve())
        if items[-1].blob:
            source.open_blob(items[-1]).close()
    return items


def drain(data, name=b"work"):
    found = []
    while (content := tried(data, lambda: data.read(name))) is not None:
        found.append(int(content[:6]))
    return found


def put_aside(log):
    return [fields for event, fields in log.lines if event.startswith("damage put aside")]


def in_tables(data, name=b"work"):
    """Close the broker and have LevelDB write all records to tables."""
    data.restart()
    data.close()
    with opened_db(data.path / name.decode(), compression=None):
        pass
    return max((data.path / name.decode()).glob("*.ldb"), key=lambda file: file.stat().st_size)


def spoil(path, name, *keys):
    """Damage the records with these keys alone."""
    with opened_db(path / name, compression=None) as db:
        for key in keys:
            record = db.get(key)
            db.put(key, record[:-1] + bytes([record[-1] ^ 1]))


class TestRecord:
    """An item's record that fails its checksum, in a sound block."""

    @pytest.fixture
    def damaged(self, data):
        """Ten items, of which 1, 4, 5 and 10 are damaged."""
        data.push(b"work", *map(body, range(1, 11)))
        data.restart()
        data.close()
        spoil(data.path, "work", *map(_records.item_key, (1, 4, 5, 10)))
        data.open()
        return data

    def test_is_put_aside_and_those_behind_it_are_served(self, damaged, log):
        with opened_copy(damaged.path / "work") as db:
            records = {id: db.get(_records.item_key(id)) for id in (1, 4, 5, 10)}
        assert drain(damaged) == [2, 3, 6, 7, 8, 9]
        work = damaged.broker.queue(b"work")
        state = work.journal.state
        assert (work.journal.damaged_items, state.items, state.bytes) == (4, 0, 0)
        aside = damaged.path / "work" / "damaged"
        assert {file.name: file.read_bytes() for file in aside.iterdir()} == {
            f"{id}.record": record for id, record in records.items()
        }
        assert [(fields["queue"], fields["ids"], fields["kept"]) for fields in put_aside(log)] == [
            ("work", str(id), str(aside / f"{id}.record")) for id in (1, 4, 5, 10)
        ]

    def test_is_counted_out_while_others_wait(self, damaged):
        work = damaged.broker.queue(b"work")
        assert tried(damaged, work.pop).id == 2
        assert tried(damaged, work.pop).id == 3
        assert tried(damaged, work.pop).id == 6
        assert (work.items, work.waiting_bytes) == (4, 4 * 306)

    def test_is_so_for_good_whatever_instant_the_process_is_killed_at(self, damaged, tmp_path, monkeypatch):
        """Kill the process at each write to the disk and at each change in the log."""
        states = []

        def kept(*_):
            states.append(tmp_path / f"killed-{len(states)}")
            shutil.copytree(damaged.path, states[-1])

        put = Path.write_bytes

        def write_bytes(path, content):
            kept()
            put(path, content)
            kept()

        monkeypatch.setattr(Path, "write_bytes", write_bytes)
        found = []
        while (content := tried(damaged, lambda: damaged.read(b"work"))) is not None:
            found.append(int(content[:6]))
            kept()
        monkeypatch.undo()
        assert found == [2, 3, 6, 7, 8, 9]
        for state in states:
            again = Data(state)
            work = again.broker.queue(b"work")
            counted = work.items
            rest = drain(again)
            assert rest == found[len(found) - len(rest) :]
            assert counted == len(rest) + work.journal.damaged_items
            assert (work.journal.state.items, work.journal.state.bytes) == (0, 0)
            again.close()

    def test_stays_aside_over_kills_and_restarts(self, damaged):
        work = damaged.broker.queue(b"work")
        tried(damaged, work.pop)
        for again in (damaged.kill, damaged.restart, damaged.kill):
            again()
            work = damaged.broker.queue(b"work")
            assert tried(damaged, work.peek).data == body(3) if again == damaged.kill else True
        assert drain(damaged) == [3, 6, 7, 8, 9]

    def test_that_is_kept_below_the_floor(self, data, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 3)
        data.push(b"work", *map(body, range(1, 21)))
        work = data.broker.queue(b"work")
        held = [work.reserve() for _ in range(2)]
        for _ in range(10):
            work.pop()
        assert held
        data.restart()
        assert data.broker.queue(b"work").journal.live.kept == {1, 2}
        data.close()
        spoil(data.path, "work", _records.item_key(1))
        data.open()
        assert drain(data) == [2, *range(13, 21)]
        assert data.broker.queue(b"work").journal.state.items == 0

    @pytest.mark.parametrize("fetch", [Queue.take, Queue.reserve, Queue.peek])
    def test_is_passed_by_whichever_way_it_is_fetched(self, damaged, fetch):
        work = damaged.broker.queue(b"work")
        assert tried(damaged, lambda: fetch(work)).id == 2

    @pytest.mark.parametrize("fetch", [Cursor.take, Cursor.reserve, Cursor.peek])
    def test_is_passed_by_a_cursor(self, damaged, fetch):
        cursor = damaged.broker.routes.source(b"work/cursor=mine", takes=True, waits=True)
        assert tried(damaged, lambda: fetch(cursor)).id == 2
        found = []
        while (item := tried(damaged, cursor.pop)) is not None:
            found.append(item.id)
        assert [id for id in found if id > 2] == [3, 6, 7, 8, 9]
        assert damaged.broker.queue(b"work").journal.damaged_items == 4
        assert damaged.broker.queue(b"work").items == 6
        assert drain(damaged) == [2, 3, 6, 7, 8, 9]

    @pytest.mark.parametrize("name", [b"work", b"work/cursor=mine"])
    def test_is_no_obstacle_to_who_waits(self, damaged, name):
        got = []
        source = damaged.broker.routes.source(name, takes=True, waits=True)
        source.wait(Waiter(type(source).take, lambda _, item: got.append(item.id)))
        damaged.push(b"work", body(11))
        damaged.tick(2)
        assert got == [2]

    def test_is_passed_by_when_items_expire(self, damaged):
        damaged.settings[b"work"] = QueueSettings(max_age_ms=1000, expire_to_queue="late")
        damaged.reconfigure()
        damaged.now += 5000
        damaged.tick(4)
        assert drain(damaged, b"late") == [2, 3, 6, 7, 8, 9]
        assert damaged.broker.queue(b"work").journal.state.items == 0

    def test_is_passed_by_when_what_has_expired_is_flushed(self, data):
        data.push(b"work", *map(body, range(1, 11)), exptime=5)
        data.push(b"work", body(11))
        data.restart()
        data.close()
        spoil(data.path, "work", *map(_records.item_key, (3, 10)))
        data.open()
        data.now += 5000
        work = data.broker.queue(b"work")
        assert tried(data, lambda: sum(work.flush_expired())) + work.journal.damaged_items <= 10
        assert (work.journal.damaged_items, work.items) == (2, 1)

    def test_of_a_newer_darner_is_not_touched(self, data, tmp_path):
        data.push(b"work", body(1), body(2))
        data.restart()
        data.close()
        with opened_db(data.path / "work", compression=None) as db:
            record = bytearray(db.get(_records.item_key(1)))
            record[4] = 99
            record[:4] = _records.checksum(bytes(record[4:]), 1 ^ len(record)).to_bytes(4, "big")
            db.put(_records.item_key(1), bytes(record))
        data.open()
        for _ in range(3):
            with pytest.raises(JournalError, match="version 99"):
                tried(data, data.broker.queue(b"work").pop)
        assert data.broker.queue(b"work").items == 2


@contextlib.contextmanager
def opened_copy(path):
    copy = path.with_name(f"copy-of-{path.name}")
    shutil.copytree(path, copy)
    with opened_db(copy, compression=None) as db:
        yield db
    shutil.rmtree(copy)


def cut(content):
    return content[: len(content) // 2]


def zeros(content):
    at = len(content) // 3
    return content[:at] + bytes(9000) + content[at + 9000 :]


def flipped(content):
    return bytes(byte ^ (at % 4096 == 100) for at, byte in enumerate(content))


class TestTable:
    """A damaged table of LevelDB: its sound records are served, and so are all behind them."""

    COUNT = 400

    @pytest.fixture
    def table(self, data):
        data.push(b"work", *map(body, range(1, self.COUNT + 1)))
        data.push(b"sound", b"one")
        return in_tables(data)

    @pytest.mark.parametrize(
        "damage", [cut, zeros, flipped, lambda _: b"", lambda content: bytes(len(content))]
    )
    def test_loses_only_what_is_damaged(self, data, table, log, damage):
        content = table.read_bytes()
        table.write_bytes(damage(content))
        data.open()
        data.push(b"work", body(self.COUNT + 1))
        work = data.broker.queue(b"work")
        found = drain(data)
        lost = set(range(1, self.COUNT + 2)) - set(found)
        assert found == sorted(found)
        assert found[-1] == self.COUNT + 1
        assert lost
        if damage in (zeros, flipped):
            assert len(lost) < 45
        state = work.journal.state
        assert (work.journal.damaged_items, state.items, state.bytes) == (len(lost), 0, 0)
        assert (data.path / "work" / "damaged" / table.name).read_bytes() == damage(content)
        assert str(data.path / "work" / "damaged") in str(put_aside(log))
        # and the queue can be written again
        data.push(b"work", *map(body, range(500, 1000)))
        data.write_out()
        data.broker.queue(b"work").journal.database.open().compact_range()
        data.push(b"work", body(1000))
        data.write_out()
        assert data.broker.queue(b"work").journal.failing is None
        assert drain(data) == [*range(500, 1001)]
        data.restart()
        data.close()
        (report,) = check.check(data.path, b"work")
        assert report.problems == []
        (kept,) = [fields for event, fields in log.lines if event.startswith("kept of damage")]
        assert (kept["queue"], kept["tables"]) == ("work", 1)
        data.open()

    def test_is_mended_by_who_writes_if_a_compaction_meets_it_first(self, data, table):
        table.write_bytes(zeros(table.read_bytes()))
        data.open()
        work = data.broker.queue(b"work")
        data.push(b"work", body(self.COUNT + 1))
        data.write_out()
        work.journal.database.open().delete(_records.item_key(5))
        work.journal.database.open().compact_range()
        for number in range(2):
            data.push(b"work", body(self.COUNT + 2 + number))
            data.write_out()
        assert work.journal.failing is None
        found = drain(data)
        assert found[-3:] == [self.COUNT + 1, self.COUNT + 2, self.COUNT + 3]
        assert (work.journal.state.items, work.journal.state.bytes) == (0, 0)
        assert len(found) + work.journal.damaged_items == self.COUNT + 3

    def test_costs_no_item_twice_over_kills(self, data, table):
        table.write_bytes(flipped(table.read_bytes()))
        data.open()
        found = []
        while (content := tried(data, lambda: data.read(b"work"))) is not None:
            found.append(int(content[:6]))
            if len(found) % 20 == 0:
                data.kill()
        assert found == sorted(set(found))
        assert len(found) > self.COUNT - 45
        state = data.broker.queue(b"work").journal.state
        assert (state.items, state.bytes) == (0, 0)

    def test_with_items_that_are_held_or_were_removed_out_of_turn(self, data):
        data.push(b"work", *map(body, range(1, self.COUNT + 1)))
        work = data.broker.queue(b"work")
        held = [work.reserve() for _ in range(200)]
        for item in held[1::2]:
            work.close(item)
        table = in_tables(data)
        table.write_bytes(zeros(table.read_bytes()))
        data.open()
        work = data.broker.queue(b"work")
        counted = work.items
        assert counted == self.COUNT - 100
        kept = [tried(data, work.reserve) for _ in range(3)]
        found = drain(data)
        assert set(found).isdisjoint(range(2, 201, 2))
        assert (work.items, work.waiting_bytes) == (0, 0)
        assert len(found) + len(kept) + work.journal.damaged_items == counted
        for item in kept:
            work.abort(item)
        assert sorted(drain(data)) == [1, 3, 5]

    def test_that_has_the_state_of_a_queue_at_rest(self, data, table):
        """The state is in a file, too."""
        table.write_bytes(cut(table.read_bytes()))
        data.open()
        found = drain(data)
        assert found
        assert found == [*range(1, len(found) + 1)]
        state = data.broker.queue(b"work").journal.state
        assert (state.items, state.bytes) == (0, 0)
        data.push(b"work", body(999))
        data.kill()
        assert drain(data) == [999]

    @pytest.mark.parametrize("behind", range(0, 140, 7))
    def test_wherever_the_record_of_that_state_is_hit(self, data, table, behind):
        content = bytearray(table.read_bytes())
        at = content.rindex(body(self.COUNT)) + 306 + behind
        content[at] ^= 0x10
        table.write_bytes(content)
        data.open()
        data.push(b"work", body(self.COUNT + 1))
        data.write_out()
        found = drain(data)
        assert found[-1] == self.COUNT + 1
        work = data.broker.queue(b"work")
        assert len(found) + work.journal.damaged_items == self.COUNT + 1
        assert len(found) >= self.COUNT + 1 - 16
        data.kill()
        assert data.broker.queue(b"work").journal.state.items == 0

    def test_that_is_damaged_beyond_tables_is_out_of_service_as_before(self, data, log):
        """LevelDB's own log has lost its last writes; its tables are sound."""
        data.push(b"work", *map(body, range(1, self.COUNT + 1)))
        in_tables(data)
        data.open()
        data.push(b"work", body(self.COUNT + 1))
        data.restart()
        data.close()
        last = max((data.path / "work").glob("*.log"), key=lambda file: file.stat().st_mtime_ns)
        os.truncate(last, 0)
        data.open()
        for _ in range(3):
            with pytest.raises(JournalError, match="LevelDB ends at change"):
                tried(data, lambda: data.read(b"work"))
            data.tick()
        assert put_aside(log) == []

    def test_that_cannot_be_mended_is_tried_again_and_nothing_is_lost(self, data, table, monkeypatch, log):
        table.write_bytes(zeros(table.read_bytes()))
        data.open()
        work = data.broker.queue(b"work")

        def refuse(*_):
            raise OSError(errno.ENOSPC, "no space left")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", refuse)
            items = [tried(data, work.reserve).id for _ in range(100)]
            for _ in range(3):
                data.tick()
                with pytest.raises(JournalError, match="work"):
                    items.extend(iter(lambda: tried(data, work.reserve).id, None))
        assert work.journal.state.items == self.COUNT
        assert (work.journal.damaged_items, put_aside(log)) == (0, [])
        data.tick()
        found = drain(data)
        assert len(items) + len(found) + work.journal.damaged_items == self.COUNT
        assert found[-1] == self.COUNT

    @given(st.data())
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_however_it_is_damaged(self, tmp_path_factory, log, given_data):
        data = Data(tmp_path_factory.mktemp("damaged") / "data")
        size = given_data.draw(st.sampled_from([0, 20, 300, 3000]))
        data.push(b"work", *(body(number, size) for number in range(1, 201)))
        table = in_tables(data)
        content = bytearray(table.read_bytes())
        for _ in range(given_data.draw(st.integers(1, 5))):
            at = given_data.draw(st.integers(0, 1 << 30))
            content[at % len(content)] ^= 1 << given_data.draw(st.integers(0, 7))
        table.write_bytes(content)
        data.open()
        try:
            work = data.broker.queue(b"work")
            found = drain(data)
        except JournalError:
            # the state is lost, and nothing was changed
            assert not (table.parent / "damaged").exists()
        else:
            assert found == sorted(set(found))
            assert len(found) + work.journal.damaged_items == 200
            assert (work.journal.state.items, work.journal.state.bytes) == (0, 0)
            assert len(found) >= 200 - 5 * 18
        data.close()


class TestErrorsThatPass:
    """A record that cannot be read now, but perhaps at the next try, is not put aside."""

    @pytest.mark.parametrize(
        "text", [b"IO error: x.ldb: Input/output error", b"IO error: x.ldb: Too many open files"]
    )
    def test_of_leveldb(self, data, log, monkeypatch, text):
        data.push(b"work", *map(body, range(1, 11)))
        data.restart()
        work = data.broker.queue(b"work")
        db = work.journal.database.open()

        class Failing:
            def __getattr__(self, name):
                return getattr(db, name)

            def iterator(self, **options):
                raise leveldb.Error(text)

        monkeypatch.setattr(leveldb, "DB", lambda *args, **options: Failing())
        work.journal.close()
        for _ in range(3):
            with pytest.raises(JournalError, match="work"):
                tried(data, work.pop)
        monkeypatch.undo()
        db.close()
        data.write_out()
        assert (work.items, work.journal.damaged_items, put_aside(log)) == (10, 0, [])
        data.restart()
        assert drain(data) == [*range(1, 11)]

    @pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES, errno.ENOMEM])
    def test_of_a_large_items_file(self, data, log, monkeypatch, number):
        data.upload(b"work", LARGE)
        work = data.broker.queue(b"work")
        refuse = Mock(side_effect=OSError(number, os.strerror(number)))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", refuse)
            for fetch in (work.take, work.peek, work.reserve):
                with pytest.raises(JournalError, match="blobs"):
                    fetch()
        assert (work.items, work.journal.damaged_items, put_aside(log)) == (1, 0, [])
        assert data.read_all(b"work") == [LARGE]

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO])
    def test_for_want_of_a_descriptor_are_not_called_damage(self, data, log, monkeypatch, number):
        data.upload(b"work", LARGE)
        work = data.broker.queue(b"work")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", Mock(side_effect=OSError(number, os.strerror(number))))
            with pytest.raises(JournalError, match=os.strerror(number)):
                work.peek()
        damage = [event for event, _ in log.lines if event.startswith("damage")]
        assert len(damage) == (number == errno.EIO)

    def test_of_a_directory_that_is_away(self, data, log):
        data.upload(b"work", LARGE)
        data.write_out()
        work = data.broker.queue(b"work")
        (data.path / "work").rename(data.path / ".away")
        for _ in range(3):
            with pytest.raises(JournalError, match="vanished"):
                work.pop()
        (data.path / ".away").rename(data.path / "work")
        assert (work.journal.damaged_items, put_aside(log)) == (0, [])
        assert data.read_all(b"work") == [LARGE]


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "short": lambda file: os.truncate(file, 1000),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "a directory": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
}


class TestFile:
    """A large item's file with damage that opening it finds; damage that reading finds is up to the
    connection."""

    @pytest.fixture(params=DAMAGES)
    def damaged(self, data, request):
        data.push(b"work", body(1))
        data.upload(b"work", LARGE)
        data.push(b"work", body(3))
        data.restart()
        self.how = request.param
        return data

    def strike(self, data):
        (self.file,) = (data.path / "work" / "blobs").iterdir()
        DAMAGES[self.how](self.file)

    def assert_aside(self, data, log, name=b"work", id=2):
        queue = data.broker.queue(name)
        assert queue.journal.damaged_items == 1
        (fields,) = put_aside(log)
        assert (fields["queue"], fields["ids"]) == (name.decode(), str(id))
        aside = data.path / name.decode() / "damaged"
        record = (aside / f"{id}.record").read_bytes()
        assert _records.decode_item(_records.item_key(id), record).size == len(LARGE)
        assert (aside / str(id)).exists() == (self.how != "missing")
        assert not self.file.exists()
        data.kill()
        assert data.broker.queue(name).journal.damaged_items == 0
        assert not data.blobs()

    @pytest.mark.parametrize("fetch", [Queue.take, Queue.reserve, Queue.peek])
    def test_is_put_aside_whichever_way_it_is_fetched(self, damaged, log, fetch):
        self.strike(damaged)
        work = damaged.broker.queue(b"work")
        assert work.pop().data == body(1)
        item = fetch(work)
        assert item.data == body(3)
        if fetch == Queue.reserve:
            work.close(item)
        assert (work.journal.state.items, work.journal.state.bytes) == (
            (1, len(body(3))) if fetch == Queue.peek else (0, 0)
        )
        self.assert_aside(damaged, log)

    @pytest.mark.parametrize("fetch", [Cursor.take, Cursor.reserve, Cursor.peek])
    def test_is_put_aside_by_a_cursor(self, damaged, log, fetch):
        self.strike(damaged)
        cursor = damaged.broker.routes.source(b"work/cursor=mine", takes=True, waits=True)
        assert cursor.pop().data == body(1)
        assert fetch(cursor).data == body(3)
        assert damaged.broker.queue(b"work").items == 2
        self.assert_aside(damaged, log)
        assert drain(damaged) == [1, 3]

    def test_is_left_by_a_cursor_to_the_reader_that_has_it(self, damaged, log):
        work = damaged.broker.queue(b"work")
        held = reserve(work, 2)
        self.strike(damaged)
        cursor = damaged.broker.routes.source(b"work/cursor=mine", takes=True, waits=True)
        assert [cursor.pop().data for _ in range(2)] == [body(1), body(3)]
        assert (work.journal.damaged_items, put_aside(log)) == (0, [])
        for item in reversed(held):
            work.abort(item)
        assert [work.pop().data for _ in range(2)] == [body(1), body(3)]
        self.assert_aside(damaged, log)

    @pytest.mark.parametrize("name", [b"work", b"work/cursor=mine"])
    def test_is_no_obstacle_to_who_waits(self, damaged, log, name):
        source = damaged.broker.routes.source(name, takes=True, waits=True)
        work = damaged.broker.queue(b"work")
        held = reserve(source, 3)
        self.strike(damaged)
        got = []
        for _ in range(2):
            source.wait(Waiter(type(source).take, lambda _, item: got.append(item.id)))
        source.abort(held[1])
        assert got == []
        assert work.items == (0 if name == b"work" else 2)
        source.abort(held[0])
        source.abort(held[2])
        assert got == [1, 3]
        self.assert_aside(damaged, log)

    @pytest.mark.parametrize("ends", ["expires", "gives up"])
    @pytest.mark.parametrize("child", [b"late", b"late+audit", b"late+memory"])
    def test_is_put_aside_instead_of_moved(self, damaged, log, ends, child):
        damaged.settings[b"late+memory"] = QueueSettings(durable=False)
        for name in (b"late", child):
            damaged.broker.queue(name)
        damaged.settings[b"work"] = (
            QueueSettings(max_age_ms=1000, expire_to_queue="late")
            if ends == "expires"
            else QueueSettings(max_attempts=1, dead_letter_queue="late")
        )
        damaged.reconfigure()
        work = damaged.broker.queue(b"work")
        held = reserve(work, 3) if ends == "gives up" else []
        self.strike(damaged)
        damaged.now += 1000
        damaged.tick(3)
        for item in held:
            work.abort(item)
        assert work.journal.state.items == 0
        assert drain(damaged, b"late") == drain(damaged, child) or child == b"late"
        assert not any("cannot be moved" in event for event, _ in log.lines)
        self.assert_aside(damaged, log)

    def test_is_put_aside_when_a_delayed_item_has_joined(self, data, log, request):
        self.how = "short"
        upload = data.broker.routes.upload(b"work", len(LARGE))
        data.write(upload, LARGE)
        upload.finish(0, 0, lambda _: None, sync=False, delay_ms=1000)
        data.settle()
        data.restart()
        self.strike(data)
        data.now += 1000
        data.push(b"work", body(3))
        data.tick()
        assert drain(data) == [3]
        work = data.broker.queue(b"work")
        assert (work.journal.state.items, work.delayed_items) == (0, 0)
        self.assert_aside(data, log, id=work.journal.state.next_id - 1)

    def test_is_so_for_good_whatever_instant_the_process_is_killed_at(self, damaged, tmp_path, monkeypatch):
        """Kill the process before and after each change in the directory, and once it is logged."""
        if self.how == "a pipe":
            pytest.skip("a pipe cannot be copied")
        self.strike(damaged)
        states = []

        def kept():
            states.append(tmp_path / f"killed-{len(states)}")
            shutil.copytree(damaged.path, states[-1])

        def wrapped(name):
            call = getattr(Path, name)

            def wrapper(*args):
                kept()
                result = call(*args)
                kept()
                return result

            monkeypatch.setattr(Path, name, wrapper)

        for name in ("write_bytes", "rename"):
            wrapped(name)
        work = damaged.broker.queue(b"work")
        assert [work.pop().data, work.pop().data] == [body(1), body(3)]
        monkeypatch.undo()
        log_to(monkeypatch, Silence())
        kept()
        assert len(states) >= 4
        for state in states:
            again = Data(state)
            work = again.broker.queue(b"work")
            rest = drain(again)
            assert rest == [3] or state is states[-1]
            assert (work.journal.state.items, work.journal.state.bytes) == (0, 0)
            aside = {file.name for file in (state / "work" / "damaged").iterdir()}
            assert aside == {"2.record", "2"} if self.how != "missing" else {"2.record"}
            again.close()

    def test_of_very_many_items_is_met_in_slices_and_said_some_times(self, data, log, monkeypatch):
        monkeypatch.setattr("darner.journal.damage.MAX_QUARANTINED_TOLD", 5)
        for _ in range(200):
            data.upload(b"work", LARGE)
        data.push(b"work", body(3))
        data.settle()
        for file in (data.path / "work" / "blobs").iterdir():
            file.unlink()
        work = data.broker.queue(b"work")
        calls = 0
        while True:
            before = work.journal.damaged_items
            calls += 1
            try:
                item = work.pop()
                break
            except NotReadyError:
                assert 0 < work.journal.damaged_items - before <= lookup.MAX_STRIKES
                data.settle()
        assert item.data == body(3)
        assert calls > 3
        assert work.journal.damaged_items == 200
        assert len(put_aside(log)) == 5
        assert "further ones are not logged" in put_aside(log)[-1]["reason"]

    def test_that_cannot_be_put_aside_stays(self, damaged, log, monkeypatch):
        self.strike(damaged)
        work = damaged.broker.queue(b"work")
        work.pop()
        (damaged.path / "work" / "damaged").write_bytes(b"in the way")
        for _ in range(3):
            with pytest.raises(JournalError, match="aside"):
                work.pop()
        assert work.items == 2
        (damaged.path / "work" / "damaged").unlink()
        assert work.pop().data == body(3)
        self.assert_aside(damaged, log)


class TestDelayed:
    """Delayed items whose records are damaged."""

    @pytest.fixture
    def delayed(self, data):
        for number in range(1, 11):
            data.set(b"work", body(number), delay_ms=1000 + number)
        data.restart()
        data.close()
        with opened_db(data.path / "work", compression=None) as db:
            self.keys = [key for key, _ in db.iterator(prefix=b"d")]
        return data

    def test_are_put_aside_when_they_are_due(self, delayed, log):
        spoil(delayed.path, "work", *(self.keys[at] for at in (0, 4, 9)))
        delayed.open()
        delayed.now += 2000
        work = delayed.broker.queue(b"work")
        delayed.tick(4)
        assert (work.delayed_items, work.journal.delayed.bytes) == (0, 0)
        assert drain(delayed) == [2, 3, 4, 6, 7, 8, 9]
        assert work.journal.damaged_items == 3
        ids = [f"delayed-{int.from_bytes(self.keys[at][9:], 'big')}" for at in (0, 4, 9)]
        assert [fields["ids"] for fields in put_aside(log)] == ids
        assert {file.name for file in (delayed.path / "work" / "damaged").iterdir()} == {
            f"{id}.record" for id in ids
        }
        for again in (delayed.kill, delayed.restart):
            again()
            work = delayed.broker.queue(b"work")
            assert (work.items, work.delayed_items) == (0, 0)

    def test_are_no_obstacle_to_a_reader(self, delayed):
        spoil(delayed.path, "work", self.keys[0])
        delayed.open()
        delayed.now += 2000
        assert drain(delayed) == [*range(2, 11)]

    def test_in_a_table_that_is_damaged(self, delayed):
        with opened_db(delayed.path / "work", compression=None):
            pass
        table = max((delayed.path / "work").glob("*.ldb"), key=lambda file: file.stat().st_size)
        content = bytearray(table.read_bytes())
        for at in (200, 1500):
            content[at] ^= 1
        table.write_bytes(content)
        delayed.open()
        delayed.now += 2000
        delayed.tick(4)
        work = delayed.broker.queue(b"work")
        found = drain(delayed)
        assert len(found) + work.journal.damaged_items == 10
        assert len(found) >= 8
        assert (work.delayed_items, work.journal.delayed.bytes) == (0, 0)

    def test_that_cannot_be_read_now_are_tried_again(self, delayed, monkeypatch):
        delayed.open()
        work = delayed.broker.queue(b"work")
        delayed.now += 2000
        with monkeypatch.context() as patch:
            failure = leveldb.Error(b"IO error: too many open files")
            patch.setattr(leveldb, "DB", Mock(side_effect=failure))
            work.journal.close()
            for _ in range(3):
                delayed.tick()
                with pytest.raises(JournalError):
                    work.pop()
        delayed.write_out()
        assert drain(delayed) == [*range(1, 11)]
        assert work.journal.damaged_items == 0


def test_what_is_missed_is_counted_out_in_the_end(data, log):
    """Records that vanished without a trace."""
    data.push(b"work", *(body(number, number) for number in range(1, 21)))
    work = data.broker.queue(b"work")
    held = [work.reserve() for _ in range(6)]
    for item in held[1::2]:
        work.close(item)
    data.restart()
    data.close()
    with opened_db(data.path / "work", compression=None) as db:
        for id in (1, 9, 10):
            db.delete(_records.item_key(id))
    data.open()
    assert drain(data) == [3, 5, 7, 8, *range(11, 21)]
    work = data.broker.queue(b"work")
    assert (work.items, work.waiting_bytes, work.journal.damaged_items) == (0, 0, 3)
    data.kill()
    work = data.broker.queue(b"work")
    assert (work.items, work.waiting_bytes) == (0, 0)


def test_a_sum_of_bytes_that_is_too_low_is_put_right_before_it_is_missed(data):
    data.push(b"work", body(1, 10), body(2, 5000), body(3, 10))
    data.restart()
    data.close()
    with opened_db(data.path / "work", compression=None) as db:
        db.delete(_records.item_key(1))
        db.delete(_records.item_key(3))
    data.open()
    work = data.broker.queue(b"work")
    assert tried(data, work.reserve).id == 2
    assert work.journal.state.bytes >= 5006
    assert tried(data, work.pop) is None
    assert (work.items, work.waiting_bytes, work.journal.state.bytes) == (0, 0, 5006)
