"""Damage to a data directory: what the server does, what check reports, and what repair saves."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from brokers import Data, log_to
from click.testing import CliRunner
from doubles import Silence
from leveldbs import opened_db
from running import running, until

from darner import _records
from darner.cli.main import main
from darner.errors import JournalError, NotReadyError, RepairError
from darner.journal import leveldb
from darner.journal.layout import KEPT_KEY, stored_state
from darner.queues.names import directory_of
from darner.repair.check import check
from darner.repair.repair import repair

ITEMS = 40
LARGE_BYTES = 200_000


def body(number: int) -> bytes:
    """Return an item large enough that damage to it reaches few others."""
    return b"%06d" % number + bytes(1000)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def silence(monkeypatch):
    silence = Silence()
    log_to(monkeypatch, silence)
    return silence


@pytest.fixture
def data(path):
    data = Data(path)
    yield data
    data.close()


@pytest.fixture
def closed(path):
    """The queue `work` with the items 3 to 40, in a table, and `sound`; no server runs."""
    data = Data(path)
    data.push(b"work", *map(body, range(1, ITEMS + 1)))
    data.push(b"sound", b"one")
    data.write_out()
    data.read(b"work")
    data.read(b"work")
    data.restart()
    data.close()
    with opened_db(path / "work", compression=None):  # LevelDB makes a table of its log
        pass
    return path


def table(path):
    """Return the table with the items."""
    return max(path.glob("*.ldb"), key=lambda file: file.stat().st_size)


def damage(path, what: bytes) -> None:
    """Change a byte behind these bytes."""
    content = bytearray(path.read_bytes())
    content[content.index(what) + len(what) + 100] ^= 0xFF
    path.write_bytes(content)


def snapshot(path):
    return {
        file: (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else None)
        for file in [path, *path.rglob("*")]
    }


def problems(path, name=None):
    return {report.where: report.problems for report in check(path, name)}


def numbers(path, name=b"work"):
    """Return the numbers that a broker serves from a queue, and the counts before that."""
    data = Data(path)
    queue = data.broker.queue(name)
    counts = queue.items, queue.waiting_bytes
    found = [content[:6] for content in data.read_all(name)]
    data.close()
    return [int(number) for number in found], counts


def is_out_of_service(path, name=b"work") -> str:
    """Open the directory; return why the queue is out of service. The other queues must be served."""
    data = Data(path)
    try:
        with pytest.raises(JournalError) as caught:
            data.broker.queue(name)
        assert data.read(b"sound") == b"one"
        data.push(b"sound", b"one")
    finally:
        data.close()
    return str(caught.value)


class TestCheck:
    def test_finds_nothing_wrong_with_what_a_kill_left(self, data):
        data.push(b"work", *map(body, range(10)))
        data.set(b"work", b"later", delay_ms=50)
        data.upload(b"work", bytes(LARGE_BYTES))
        data.write_out()
        queue = data.broker.queue(b"work")
        held = [queue.reserve() for _ in range(3)]
        queue.close(held[1])
        data.push(b"work", body(11))
        data.push(b"flushed", b"gone")
        data.broker.queue(b"flushed").flush()
        data.push(b"deleted", b"gone")
        data.write_out()
        data.broker.delete(b"deleted")
        data.push(b"unwritten", b"gone")
        data.broker.delete(b"unwritten")
        data.upload(b"work", bytes(LARGE_BYTES))
        data.end()
        reports = {report.where: report for report in check(data.path)}
        data.open()
        assert all(not report.problems for report in reports.values())
        work = data.broker.queue(b"work")
        assert (reports["work"].items, reports["work"].bytes) == (work.items, work.waiting_bytes)
        assert reports["work"].items == 12
        assert [reports[name].items for name in ("flushed", "deleted", "unwritten")] == [0, 0, 0]

    def test_changes_nothing(self, closed):
        before = snapshot(closed)
        assert problems(closed) == {"sound": [], "work": []}
        assert snapshot(closed) == before
        damage(table(closed / "work"), b"000007")
        before = snapshot(closed)
        assert problems(closed)["work"]
        assert snapshot(closed) == before

    def test_leaves_alone_what_a_server_has(self, data):
        for use in (lambda: list(check(data.path)), lambda: repair(data.path, b"work")):
            with pytest.raises(RepairError, match="a server has"):
                use()

    def test_looks_at_one_queue_if_told(self, closed):
        (closed / "work" / "CURRENT").unlink()
        assert problems(closed, b"sound") == {"sound": []}
        assert list(problems(closed, b"work")) == ["work"]

    @pytest.mark.parametrize("name", [None, b"none"])
    def test_says_that_there_is_nothing_to_look_at(self, path, name):
        if name is not None:
            path.mkdir()
        with pytest.raises(RepairError, match="is no directory" if name is None else "no queue none"):
            list(check(path, name))

    def test_counts_what_is_there(self, closed):
        with opened_db(closed / "work", compression=None) as opened:
            key, record = stored_state(opened)
            state = _records.decode_state(record)
            state.items += 5
            opened.put(key, _records.encode_state(state))
        (said,) = problems(closed)["work"]
        assert "5 items" in said


class TestDamage:
    """Each kind of damage: the server, check, repair."""

    def test_current_is_missing(self, closed):
        (closed / "work" / "CURRENT").unlink()
        assert "no CURRENT" in is_out_of_service(closed)
        (said,) = problems(closed)["work"]
        assert "no CURRENT" in said
        assert str(closed / "work") in said
        repaired = repair(closed, b"work")
        assert repaired.items == ITEMS - 2
        assert problems(closed) == {"sound": [], "work": []}
        assert numbers(closed) == ([*range(3, ITEMS + 1)], (38, 38 * 1006))

    def test_bytes_of_an_item_are_flipped(self, closed, silence):
        damage(table(closed / "work"), b"000007")
        assert any("checksum" in said for said in problems(closed)["work"])
        shutil.copytree(closed, closed.with_name("served"))
        data = Data(closed.with_name("served"))
        work = data.broker.queue(b"work")
        assert [work.reserve().data for _ in range(4)] == [*map(body, range(3, 7))]
        with pytest.raises(NotReadyError):
            work.pop()
        data.settle()
        assert work.pop().data == body(8)
        assert data.read(b"sound") == b"one"
        data.close()
        told = [fields for event, fields in silence.lines if event.startswith("damage put aside")]
        aside = data.path / "work" / "damaged"
        assert [(fields["queue"], fields["ids"]) for fields in told] == [("work", "not known"), ("work", "7")]
        assert {fields["kept"] for fields in told} == {str(file) for file in aside.iterdir()}
        (report,) = check(data.path, b"work")
        assert (report.problems, report.items) == ([], ITEMS - 4)
        losses = " ".join(repair(closed, b"work").losses)
        assert "item 7 fails its checksum" in losses
        assert "1 item of 1006 bytes is lost, id 7" in losses
        assert problems(closed)["work"] == []
        assert numbers(closed) == ([*range(3, 7), *range(8, ITEMS + 1)], (37, 37 * 1006))

    def test_a_table_is_cut_short(self, closed):
        cut = table(closed / "work")
        data = Data(closed)
        data.push(b"work", body(ITEMS + 1))
        data.restart()
        data.close()
        os.truncate(cut, cut.stat().st_size // 2)
        assert problems(closed)["work"]
        shutil.copytree(closed, closed.with_name("served"))
        data = Data(closed.with_name("served"))
        with pytest.raises(NotReadyError):
            data.read(b"work")
        data.settle()
        found = [int(content[:6]) for content in data.read_all(b"work")]
        assert found == [*range(3, 3 + len(found) - 1), ITEMS + 1]
        assert len(found) > 10
        assert data.broker.queue(b"work").journal.damaged_items == ITEMS - 1 - len(found)
        assert data.read(b"sound") == b"one"
        data.close()
        assert problems(data.path)["work"] == []
        losses = " ".join(repair(closed, b"work").losses)
        assert f"38 items of {38 * 1006} bytes are lost, ids 3-40" in losses
        assert problems(closed)["work"] == []
        assert numbers(closed) == ([ITEMS + 1], (1, 1006))

    @pytest.mark.parametrize("state", ["known", "lost"])
    def test_all_there_is_is_cut_short(self, closed, state):
        os.truncate(table(closed / "work"), 1000)
        if state == "lost":
            (closed / "work" / "state").unlink()
            assert "cannot" in is_out_of_service(closed)
        assert problems(closed)["work"]
        if state == "lost":
            with pytest.raises(RepairError, match="nothing of darner can be read"):
                repair(closed, b"work")
        else:
            losses = " ".join(repair(closed, b"work").losses)
            assert f"38 items of {38 * 1006} bytes are lost, ids 3-40" in losses
            assert problems(closed)["work"] == []

    @pytest.mark.parametrize("besides", ["known", "lost"])
    def test_the_state_is_damaged(self, closed, besides):
        with opened_db(closed / "work", compression=None) as opened:
            key, record = stored_state(opened)
            opened.put(key, bytes([record[0] ^ 1]) + record[1:])
        if besides == "lost":
            (closed / "work" / "state").unlink()
            assert "cannot read" in is_out_of_service(closed)
        assert any(
            "the state is damaged" in said or "cannot read" in said for said in problems(closed)["work"]
        )
        losses = repair(closed, b"work").losses
        assert any("the state was lost" in said for said in losses) == (besides == "lost")
        assert problems(closed)["work"] == []
        found, _ = numbers(closed)
        assert found[-38:] == [*range(3, ITEMS + 1)]

    def test_leveldbs_log_is_cut_short_after_a_clean_end(self, path, silence):
        data = Data(path)
        data.push(b"work", *map(body, range(1, 11)))
        data.restart()
        data.close()
        log = max((path / "work").glob("*.log"), key=lambda file: file.stat().st_size)
        os.truncate(log, 5)
        for fetches in (True, False):
            data = Data(path)
            data.push(b"sound", b"one")
            if fetches:
                with pytest.raises(JournalError, match="LevelDB ends at change 0, and had all up to 10"):
                    data.read(b"work")
            else:
                data.push(b"work", b"acknowledged")
                data.write_out()
            with pytest.raises(JournalError, match="darner repair"):
                data.push(b"work", b"refused")
            assert data.read(b"sound") == b"one"
            data.write_out()
            data.close()
        failures = [fields for event, fields in silence.lines if event.startswith("journal failure")]
        assert [fields["queue"] for fields in failures] == ["work"] * 2
        (said, *_) = problems(path)["work"]
        assert "LevelDB ends at change 0, the file state at 10" in said
        losses = " ".join(repair(path, b"work").losses)
        assert "10 items of 10060 bytes are lost, ids 1-10" in losses
        data = Data(path)
        assert data.read_all(b"work") == [b"acknowledged"]
        data.close()

    @pytest.mark.parametrize("again", ["restart", "kill"])
    def test_a_bit_in_leveldbs_log_is_flipped(self, path, silence, again):
        """LevelDB itself would skip all records up to the next block without an error."""
        data = Data(path)
        data.push(b"sound", b"one")
        for n in range(1, 20):
            data.push(b"work", body(n))
            data.write_out_once()
        data.close() if again == "restart" else data.end()
        (log,) = (path / "work").glob("*.log")
        damage(log, body(7)[:6])
        before = log.read_bytes()
        data = Data(path)
        with pytest.raises(JournalError, match=r"is damaged at byte \d+, and goes on behind that"):
            data.read(b"work")
        assert data.read(b"sound") == b"one"
        data.push(b"sound", b"one")
        data.write_out()
        assert log.read_bytes() == before
        assert any("is damaged at byte" in str(fields.get("reason")) for _, fields in silence.lines)
        data.close()
        assert any("LevelDB is damaged" in text for text in problems(path)["work"])
        repaired = repair(path, b"work")
        found, (items, _) = numbers(path)
        if again == "kill":  # the other log has every change
            assert found == list(range(1, 20))
        else:
            assert any("13 items" in text and "lost" in text for text in repaired.losses)
            assert (found, items) == (list(range(1, 7)), 6)

    def test_the_end_of_leveldbs_log_is_lost_without_a_clean_end_and_the_other_has_not_got_it(self, path):
        data = Data(path)
        data.push(b"sound", b"one")
        for n in range(1, 6):
            data.push(b"work", body(n))
            data.write_out_once()
        data.end()
        shutil.rmtree(path / ".log")
        (log,) = (path / "work").glob("*.log")
        damage(log, body(5)[:6])
        text = "; ".join(problems(path)["work"])
        assert "LevelDB and the log end at change 4, and LevelDB had all up to 5" in text
        assert "had all up to 5" in is_out_of_service(path)
        assert any("changes 5 to 5 are lost" in text for text in repair(path, b"work").losses)
        assert (problems(path)["work"], numbers(path)[0]) == ([], [1, 2, 3, 4])

    def test_the_end_of_leveldbs_log_is_what_a_power_cut_leaves(self, path):
        data = Data(path)
        for n in range(1, 6):
            data.push(b"work", body(n))
            data.write_out_once()
        data.end()
        (log,) = (path / "work").glob("*.log")
        log.write_bytes(log.read_bytes()[:-500] + bytes(3000))
        assert problems(path)["work"] == []
        assert numbers(path)[0] == [1, 2, 3, 4, 5]

    def test_leveldbs_log_is_cut_short_and_the_other_log_makes_up_for_it(self, path):
        data = Data(path)
        data.push(b"work", *map(body, range(1, 11)))
        data.write_out()
        data.end()
        (log,) = (path / "work").glob("*.log")
        os.truncate(log, 5)
        assert problems(path) == {"work": []}
        assert repair(path, b"work").damaged is None
        assert numbers(path)[0] == [*range(1, 11)]

    def test_leveldbs_log_is_cut_short_beyond_what_the_other_log_has(self, path):
        data = Data(path)
        data.push(b"sound", b"one")
        data.push(b"work", *map(body, range(1, 11)))
        data.write_out()
        data.broker.storage.log.roll()
        data.write_out()
        data.push(b"work", *map(body, range(11, 21)))
        data.read(b"work")
        data.write_out()
        data.end()
        (log,) = (path / "work").glob("*.log")
        os.truncate(log, 5)
        assert "the log goes on at change 11" in is_out_of_service(path)
        assert any("the log goes on at change 11" in said for said in problems(path)["work"])
        losses = repair(path, b"work").losses
        assert any("state was lost" in said or "changes 1 to 10" in said for said in losses)
        assert problems(path)["work"] == []
        assert numbers(path) == ([*range(11, 21)], (10, 10060))

    def test_a_foreign_database_is_in_its_place(self, closed):
        shutil.rmtree(closed / "work")
        with contextlib.closing(leveldb.DB(str(closed / "work"), create_if_missing=True)) as opened:
            opened.put(b"mine", b"one")
        assert "no journal of darner" in is_out_of_service(closed)
        assert problems(closed)["work"]
        before = snapshot(closed / "work")
        with pytest.raises(RepairError, match="nothing of darner can be read"):
            repair(closed, b"work")
        assert snapshot(closed / "work") == before
        assert not list(closed.glob(".repair-*"))

    def test_a_foreign_database_is_in_the_place_of_what_the_log_has(self, path):
        data = Data(path)
        data.push(b"sound", b"one")
        data.push(b"work", *map(body, range(1, 4)))
        data.end()
        with contextlib.closing(leveldb.DB(str(path / "work"), create_if_missing=True)) as opened:
            opened.put(b"mine", b"one")
        is_out_of_service(path)
        losses = repair(path, b"work").losses
        assert any("1 record that is none of darner's" in said for said in losses)
        assert numbers(path)[0] == [1, 2, 3]

    @pytest.mark.parametrize("how", ["missing", "short", "flipped"])
    def test_the_file_of_a_large_item_is_not_whole(self, path, how, silence):
        data = Data(path)
        data.push(b"work", b"000001")
        data.upload(b"work", b"000002" + bytes(LARGE_BYTES))
        data.push(b"work", b"000003")
        data.restart()
        data.close()
        (blob,) = (path / "work" / "blobs").iterdir()
        if how == "missing":
            blob.unlink()
        elif how == "short":
            os.truncate(blob, 1000)
        else:
            damage(blob, b"000002")
        if how != "flipped":  # else a read that has begun meets it
            shutil.copytree(path, path.with_name("served"))
            data = Data(path.with_name("served"))
            assert data.broker.queue(b"work").reserve().id == 1
            assert data.read(b"work") == b"000003"
            data.close()
            (told,) = [fields for event, fields in silence.lines if event.startswith("damage put aside")]
            assert (told["queue"], told["ids"]) == ("work", "2")
            assert problems(data.path)["work"] == []
        said = " ".join(problems(path)["work"])
        assert "the file of item 2" in said
        assert str(blob) in said
        losses = " ".join(repair(path, b"work").losses)
        assert f"1 item of {LARGE_BYTES + 6} bytes is lost, id 2" in losses
        assert problems(path)["work"] == []
        assert numbers(path) == ([1, 3], (2, 12))
        assert not list((path / "work" / "blobs").iterdir())

    @pytest.mark.parametrize("joined", [False, True])
    def test_an_item_that_is_deferred_in_the_log_is_damaged_where_it_was_and_is_saved(self, path, joined):
        data = Data(path)
        data.push(b"work", *map(body, range(1, 4)))
        data.write_out()
        work = data.broker.queue(b"work")
        work.defer(work.reserve(), 100)
        if joined:
            data.now += 100
            data.tick()
        data.end()
        with opened_db(path / "work", compression=None) as opened:
            record = opened.get(_records.item_key(1))
            opened.put(_records.item_key(1), record[:-1] + b"x")
        # the log has its bytes
        assert problems(path)["work"] == []
        (path / "work" / "CURRENT").unlink()
        assert repair(path, b"work").items == 2 + joined
        assert problems(path)["work"] == []
        data = Data(path)
        data.now += 100
        assert data.read_all(b"work") == [body(2), body(3), body(1)]
        data.close()

    def test_a_delayed_item_that_the_log_has_join_is_damaged(self, path):
        data = Data(path)
        data.set(b"work", b"000001" + bytes(300), delay_ms=50)
        data.set(b"work", b"000002" + bytes(300), delay_ms=50)
        data.write_out()
        data.broker.storage.log.roll()
        data.write_out()
        data.now += 100
        data.tick()
        data.push(b"work", b"000003")
        data.end()
        with opened_db(path / "work", compression=None) as opened:
            key, record = next(opened.iterator(prefix=b"d"))
            opened.put(key, record[:-1] + b"x")
        assert problems(path)["work"]
        assert repair(path, b"work").items == 2
        assert problems(path)["work"] == []
        assert numbers(path)[0] == [2, 3]


class TestRepair:
    def test_does_nothing_to_what_is_whole(self, closed):
        before = snapshot(closed)
        repaired = repair(closed, b"work")
        assert (repaired.items, repaired.losses, repaired.damaged) == (ITEMS - 2, [], None)
        assert {file: entry for file, entry in snapshot(closed).items() if file != closed} == {
            file: entry for file, entry in before.items() if file != closed
        }

    def test_keeps_the_damaged_directory_as_it_was(self, closed):
        (closed / "work" / "CURRENT").unlink()
        before = {file.name: file.read_bytes() for file in (closed / "work").iterdir()}
        for number in (1, 2):
            damaged = repair(closed, b"work").damaged
            assert damaged == closed / f".damaged-work-{number}"
            if number == 1:
                assert {file.name: file.read_bytes() for file in damaged.iterdir()} == before
                (closed / "work" / "CURRENT").unlink()

    def test_leaves_at_no_moment_a_queue_without_a_directory(self, closed, monkeypatch):
        damage(table(closed / "work"), b"000007")
        rename, seen = Path.rename, []

        def look(path, target):
            renamed = rename(path, target)
            seen.append((closed / "work" / "CURRENT").exists())
            return renamed

        monkeypatch.setattr(Path, "rename", look)
        repair(closed, b"work")
        assert seen == [True]
        assert problems(closed)["work"] == []

    def test_takes_two_steps_where_the_file_system_knows_no_exchange(self, closed, monkeypatch):
        damage(table(closed / "work"), b"000007")
        before = {file.name for file in (closed / "work").iterdir()}
        monkeypatch.setattr("darner.repair.swap.exchange", lambda *_: False)
        damaged = repair(closed, b"work").damaged
        assert {file.name for file in damaged.iterdir()} == before
        assert problems(closed)["work"] == []

    def test_brings_back_nothing_that_was_dead(self, closed):
        """As `repair_db` may leave it: below the floor only kept items are live."""
        with opened_db(closed / "work", compression=None) as opened:
            record = next(opened.iterator(prefix=b"i"))[1]
            for id in (1, 2):
                item = _records.Item(id, 0, 0, 1, b"%06d" % id)
                opened.put(_records.item_key(id), _records.encode_item(item))
            assert record
        damage(table(closed / "work"), b"000007")
        repair(closed, b"work")
        assert numbers(closed)[0] == [*range(3, 7), *range(8, ITEMS + 1)]

    def test_keeps_what_was_reserved_below_the_floor(self, path, monkeypatch):
        monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 10)
        data = Data(path)
        data.push(b"work", *map(body, range(1, 5001)))
        queue = data.broker.queue(b"work")
        queue.reserve()
        for _ in range(4200):
            queue.pop()
        data.restart()
        data.close()
        with opened_db(path / "work", compression=None) as opened:
            assert _records.decode_ids(opened.get(KEPT_KEY)) == [1]
            opened.put(_records.item_key(4900), b"bad")
            opened.put(KEPT_KEY, b"bad")
        repair(path, b"work")
        found, counts = numbers(path)
        assert found == [1, *range(4202, 4900), *range(4901, 5001)]
        assert counts == (len(found), 1006 * len(found))

    def test_keeps_delayed_items_and_cursors(self, path):
        data = Data(path)
        data.push(b"work", *map(body, range(1, 4)))
        data.set(b"work", b"000009", delay_ms=100)
        source = data.broker.routes.source(b"work/cursor=mine", takes=True, waits=True)
        assert source.pop().id == 1
        data.restart()
        data.close()
        (path / "work" / "CURRENT").unlink()
        repair(path, b"work")
        data = Data(path)
        assert data.broker.routes.source(b"work/cursor=mine", takes=True, waits=True).pop().id == 2
        data.now += 200
        data.tick()
        assert [content[:6] for content in data.read_all(b"work")][-1] == b"000009"
        data.close()

    def test_gives_out_new_ids_afterwards_and_survives_a_kill(self, closed):
        damage(table(closed / "work"), b"%06d" % ITEMS)
        repair(closed, b"work")
        data = Data(closed)
        data.push(b"work", body(ITEMS + 1))
        data.kill()
        assert data.broker.queue(b"work").items == ITEMS - 2
        ids = []
        while (item := data.broker.queue(b"work").pop()) is not None:
            ids.append(item.id)
        assert ids == [*range(3, ITEMS), ITEMS + 1]
        data.close()

    def test_does_not_mix_a_directory_with_the_log_of_another(self, path, tmp_path):
        data = Data(path)
        data.push(b"work", b"one")
        data.write_out()
        data.broker.delete(b"work")
        data.write_out()
        data.push(b"work", b"two")
        data.end()
        other = Data(tmp_path / "other")
        other.push(b"work", b"three")
        other.restart()
        other.close()
        shutil.rmtree(path / "work", ignore_errors=True)
        shutil.copytree(tmp_path / "other" / "work", path / "work")
        before = snapshot(path / "work")
        with pytest.raises(RepairError, match="not the directory that the log was written for"):
            repair(path, b"work")
        assert snapshot(path / "work") == before

    def test_takes_a_name_of_any_length(self, path):
        name = b"\xff" * 250
        data = Data(path)
        data.push(name, b"000001")
        data.restart()
        data.close()
        (path / directory_of(name) / "CURRENT").unlink()
        assert repair(path, name).items == 1
        assert numbers(path, name)[0] == [1]


class TestCommand:
    def run(self, *args):
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        return result.exit_code, result.output

    def test_check_says_ok_or_what_is_wrong(self, closed):
        assert self.run("check", closed) == (
            0,
            "sound: ok, items=1 bytes=3\nwork: ok, items=38 bytes=38228\n",
        )
        (closed / "work" / "CURRENT").unlink()
        code, output = self.run("check", closed)
        assert code == 1
        assert output.startswith("sound: ok, items=1 bytes=3\nwork: ")
        assert "no CURRENT" in output
        assert self.run("check", closed, "sound") == (0, "sound: ok, items=1 bytes=3\n")

    def test_repair_says_what_was_lost_and_where_the_rest_is(self, closed):
        damage(table(closed / "work"), b"000007")
        code, output = self.run("repair", closed, "work")
        assert code == 0
        assert "work: 1 item of 1006 bytes is lost, id 7\n" in output
        assert "work: repaired, items=37 bytes=37222\n" in output
        assert ".damaged-work-1" in output
        assert self.run("repair", closed, "work") == (
            0,
            "work: ok, nothing to repair, items=37 bytes=37222\n",
        )

    def test_a_mistake_is_one_line(self, closed):
        assert self.run("repair", closed, "none") == (1, f"darner: {closed} has no queue none\n")

    def test_the_server_says_what_leveldb_would_not_and_serves_the_others(self, path):
        log = path / "work" / "000003.log"
        with running(path) as server:
            with contextlib.closing(server.connect()) as wire:
                assert wire.set(b"sound", b"one") == b"STORED\r\n"
                for n in range(3):
                    assert wire.set(b"work", body(n)) == b"STORED\r\n"
                    until(lambda n=n: log.exists() and log.stat().st_size > (n + 1) * len(body(n)))
            assert server.stop() == 0
            damage(log, body(0)[:6])
            server.start()
            with contextlib.closing(server.connect()) as wire:
                assert wire.ask(b"get work\r\n").startswith(b"SERVER_ERROR ")
                assert wire.get(b"sound") == b"one"
            server.kill()
            code, text = self.run("check", path)
            assert (code, "is damaged at byte" in text) == (1, True)

    def test_the_server_sets_a_damaged_queue_aside_and_takes_it_back_when_it_is_repaired(self, closed):
        (closed / "work" / "CURRENT").unlink()
        with running(closed) as server, contextlib.closing(server.connect()) as wire:
            assert wire.ask(b"get work\r\n").startswith(b"SERVER_ERROR ")
            assert wire.get(b"sound/peek") == b"one"
            assert server.stop() == 0
            assert 'event="queue out of service" queue=work' in server.log
            assert "darner repair" in server.log
            repair(closed, b"work")
            server.start()
            with contextlib.closing(server.connect()) as again:
                assert again.get(b"work") == body(3)
