"""Queues and cursors of siberite, as they are read."""

import pytest
from other_servers import write_siberite

from darner.journal import leveldb
from darner.migrate.siberite import Siberite
from darner.migrate.source import Place


@pytest.fixture
def path(tmp_path):
    return tmp_path / "src"


def read(path):
    """Return the items of each queue; nothing may be damaged."""
    return {queue.name: [item.data for item in queue.items(pytest.fail)] for queue in Siberite(path).queues()}


def places(path, name=b"work"):
    (queue,) = (queue for queue in Siberite(path).queues() if queue.name == name)
    return list(queue.places())


def test_have_their_items_in_order(path):
    write_siberite(path / "work", b"one", b"", b"three" * 30_000)
    write_siberite(path / "a:b", *(b"%d" % number for number in range(300)), first=250)
    write_siberite(path / "empty")
    assert read(path) == {
        b"work": [b"one", b"", b"three" * 30_000],
        b"a:b": [b"%d" % number for number in range(300)],
        b"empty": [],
    }


def test_from_before_there_were_cursors_are_read_too(path):
    path.mkdir()
    with leveldb.DB(str(path / "work"), create_if_missing=True) as db:
        db.put((7).to_bytes(8, "big"), b"one")
    assert read(path) == {b"work": [b"one"]}
    assert places(path) == []


def test_have_cursors_where_they_were(path):
    write_siberite(
        path / "work", b"5", b"6", b"7", first=5, cursors={b"late": 2, b"next": 4, b"amid": 6, b"done": 7}
    )
    assert places(path) == [
        Place(b"amid", 2, []), Place(b"done", 3, []), Place(b"late", 0, []), Place(b"next", 0, []),
    ]  # fmt: skip


def test_have_what_readers_of_a_cursor_failed_to_handle_as_items_to_be_read_again(path):
    write_siberite(
        path / "work", b"5", b"same", b"same", b"8", b"not read", first=5,
        cursors={b"bill": 8, b"log": 8}, failed={b"bill": [b"8", b"same", b"5"], b"bil": [b"none"]},
    )  # fmt: skip
    assert places(path) == [Place(b"bill", 4, [0, 1, 3]), Place(b"log", 4, [])]
    assert read(path).keys() == {b"work"}


def test_have_what_is_no_longer_in_the_queue_in_another_one(path):
    write_siberite(
        path / "work", b"5", b"6", first=5, cursors={b"bill": 5}, failed={b"bill": [b"4", b"5", b"6"]}
    )
    assert places(path) == [Place(b"bill", 1, [0])]
    assert read(path)[b"work.bill"] == [b"4", b"6"]


def test_with_keys_that_are_none_of_items_tell(path):
    write_siberite(path / "work", b"5")
    with leveldb.DB(str(path / "work" / "work")) as db:
        db.put(b"mine", b"one")
    (queue,) = Siberite(path).queues()
    damage = []
    assert [item.data for item in queue.items(damage.append)] == [b"5"]
    assert len(damage) == 1
