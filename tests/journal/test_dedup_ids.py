"""The ids of sets in one journal: what is in LevelDB and in the log, what is damaged, and the filter."""

import contextlib
import hashlib

import pytest
from brokers import Data
from leveldbs import opened_db

from darner import _records
from darner._records import Change, Item
from darner.config.settings import QueueSettings
from darner.errors import DamagedError, NotReadyError
from darner.journal import id_filter
from darner.journal.dedup_ids import Once, decode_once, without_id
from darner.journal.id_filter import IdFilter
from darner.journal.layout import DEDUP_KEY, STATE_NAME
from darner.repair.check import check
from darner.repair.repair import repair


@pytest.fixture
def path(tmp_path):
    """The directory of a queue whose sets had the ids `0` to `9`; no server runs."""
    data = Data(tmp_path / "data")
    for number in range(10):
        data.set_once(b"work", b"%d" % number, b"%d" % number)
    data.write_out()
    data.restart()
    data.close()
    return tmp_path / "data"


def change_ids(path, change):
    """Have `change` make other records of those of the ids."""
    (path / "work" / STATE_NAME).unlink()
    with opened_db(path / "work", compression=None) as db:
        for key, record in list(db.iterator(start=b"n", stop=b"o")):
            if (other := change(key, record)) is not None:
                db.put(key, other)


def known(path):
    """Return which of the ids a server knows."""
    data = Data(path)
    numbers = [number for number in range(10) if not set_again(data, b"%d" % number)]
    data.close()
    return numbers


def set_again(data, id):
    with contextlib.suppress(NotReadyError):  # first the tables are looked over for what is damaged
        return data.set_once(b"work", b"again", id)
    data.settle()
    return data.set_once(b"work", b"again", id)


class TestRecord:
    def test_has_nothing_of_the_id_that_a_client_chose(self, path):
        with opened_db(path / "work", compression=None) as db:
            keys = [key for key in db.iterator(include_value=False) if len(key) == 25 and key[:1] == b"n"]
        assert len({key[9:] for key in keys}) == 10
        plain = {hashlib.blake2b(b"%d" % number, digest_size=16).digest() for number in range(10)}
        assert plain.isdisjoint(key[9:] for key in keys)

    def test_of_an_id_that_is_damaged_has_its_set_stored_again(self, path):
        change_ids(path, lambda key, record: record[:-1] + b"\xff" if len(key) == 25 else None)
        assert known(path) == []

    def test_of_the_generations_that_is_damaged_puts_the_queue_out_of_service_and_is_repaired(self, path):
        change_ids(path, lambda key, record: record[:-1] + b"\xff" if key == DEDUP_KEY else None)
        data = Data(path)
        with pytest.raises(DamagedError):
            data.broker.queue(b"work")
        data.close()
        (report,) = check(path)
        assert report.problems
        repair(path, b"work")
        assert [report.problems for report in check(path)] == [[]]
        assert known(path) == []

    def test_is_whole_to_a_check_and_comes_through_a_repair(self, path):
        assert [report.problems for report in check(path)] == [[]]
        with opened_db(path / "work", compression=None) as db:
            db.put(_records.item_key(3), b"damaged")
        repair(path, b"work")
        assert [report.problems for report in check(path)] == [[]]
        assert known(path) == list(range(10))

    def test_comes_through_a_repair_that_plays_the_log_back(self, tmp_path):
        data = Data(tmp_path / "data")
        data.set_once(b"work", b"0", b"0")
        data.write_out()
        data.set_once(b"work", b"1", b"1")
        data.set_once(b"work", b"2", b"2", delay_ms=5)
        data.end()
        with opened_db(data.path / "work", compression=None) as db:
            db.put(_records.item_key(1), b"damaged")
        repair(data.path, b"work")
        assert known(data.path) == [0, 1, 2]

    def test_is_none_of_darners_to_an_earlier_version_unless_it_is_there(self, tmp_path):
        data = Data(tmp_path / "data")
        data.push(b"work", b"without an id")
        data.restart()
        data.close()
        with opened_db(data.path / "work", compression=None) as db:
            assert not [key for key in db.iterator(include_value=False) if key[:1] == b"n"]
        assert _records.decode_chunk((data.path / "work" / STATE_NAME).read_bytes())[0] == 2


class TestFrame:
    ONCE = Once(3, 1 << 60, bytes(range(16)))

    def test_comes_back_with_the_change_made_with_it(self):
        payload = self.ONCE.encode(Change.DELAY, b"rest")
        assert decode_once(payload) == (self.ONCE, Change.DELAY, b"rest")
        assert without_id((7, Change.ONCE, payload)) == (7, Change.DELAY, b"rest")
        assert without_id((7, Change.PUT, payload)) == (7, Change.PUT, payload)

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            ONCE.encode(Change.PUT, b"")[:-1],
            ONCE.encode(Change.DROP, b"rest"),
            Once(0, 1, bytes(16)).encode(Change.PUT, b""),
            Once(1, 1 << 62, bytes(16)).encode(Change.PUT, b""),
        ],
    )
    def test_that_cannot_be_is_refused(self, payload):
        with pytest.raises(ValueError, match="the log has an id"):
            decode_once(payload)


class TestFilter:
    @staticmethod
    def digests(name, count):
        return [hashlib.blake2b(b"%s%d" % (name, at), digest_size=16).digest() for at in range(count)]

    def test_knows_all_that_were_added_and_of_most_others_that_they_were_not(self):
        one = IdFilter()
        added = self.digests(b"added", 40_000)
        for digest in added:
            one.add(digest)
        assert all(map(one.may_have, added))
        assert sum(map(one.may_have, self.digests(b"other", 10_000))) < 200

    def test_takes_two_bytes_an_id_and_no_more_than_its_layers(self, monkeypatch):
        monkeypatch.setattr(id_filter, "LAYERS_BYTES", (64, 512))
        one = IdFilter()
        sizes = []
        for digest in self.digests(b"added", 10_000):
            one.add(digest)
            sizes.append(sum(map(len, one._layers)))
        assert sizes[31:33] == [64, 576]
        assert sizes[-1] == 576

    def test_spares_looking_into_leveldb_for_new_ids_and_is_released_at_rest(self, tmp_path, monkeypatch):
        data = Data(tmp_path / "data")
        looks = []
        look = "darner.journal.lookup._stored_stamp"
        monkeypatch.setattr(look, lambda *_: looks.append(1) or 0)
        for number in range(500):
            data.set_once(b"work", b"x", b"%d" % number)
        data.write_out()
        assert data.set_once(b"work", b"x", b"new") == [b"work"]
        assert len(looks) <= 5
        data.tick(60)
        assert not data.broker.queues[b"work"].journal.dedup_ids._filters
        data.set_once(b"work", b"x", b"newer")
        assert len(looks) >= 1
        data.close()


def test_an_item_and_its_id_are_one_change_of_the_log(tmp_path):
    """So neither a kill nor the end of a segment comes between them."""
    data = Data(tmp_path / "data")
    queue = data.broker.queue(b"work")
    change = queue.journal.state.change
    data.set_once(b"work", b"1", b"a")
    assert queue.journal.state.change == change + 1
    queue.journal.put_once(Item(0, 0, 0, 1, b"2"), queue.dedup.mark(b"b", data.now))
    assert queue.journal.state.change == change + 2
    data.close()


def test_a_queue_in_memory_logs_nothing_for_an_id(tmp_path):
    data = Data(tmp_path / "data")
    data.settings[b"work"] = QueueSettings(durable=False)
    used = data.broker.storage.log.segment.used_bytes
    data.set_once(b"work", b"1", b"a")
    assert data.broker.storage.log.segment.used_bytes == used
    data.close()
