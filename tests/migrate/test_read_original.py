"""Queues of the original darner, as they are read."""

import random

import pytest
from other_servers import OriginalWriter, write_original

from darner.errors import MigrationError
from darner.journal import leveldb
from darner.migrate.original import Original, OriginalQueue

ITEMS = [
    b"one", b"", b"\0", b"\0\0", b"\1\0", b"ends in\1\0", b"ends in\0", b"ends in\0\0", b"x" * 1024,
    b"y" * 1025,
    b"\0" * 1024, b"\0" * 1025, b"z" * 2047 + b"\0", random.Random(1).randbytes(300_000),
]  # fmt: skip


def read(directory):
    damage = []
    items = [item.data for item in OriginalQueue(directory).items(damage.append)]
    return items, damage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work"


def test_have_their_items_in_order_whatever_their_ends_and_sizes(path):
    write_original(path, *ITEMS)
    assert read(path) == (ITEMS, [])


def test_that_are_in_tables_have_the_same_items(path):
    write_original(path, *ITEMS)
    for _ in range(2):
        with OriginalWriter(path) as queue:
            queue.next_id, queue.next_chunk = 1000, 5000
            queue.set(b"later" * 1000)
    assert read(path) == ([*ITEMS, b"later" * 1000], [])


def test_that_are_empty_have_no_items(path, tmp_path):
    write_original(path)
    assert read(path) == ([], [])
    (tmp_path / "new").mkdir()
    assert read(tmp_path / "new") == ([], [])


def test_without_items_that_were_fetched_have_the_others(path):
    with OriginalWriter(path) as queue:
        for number in range(10):
            queue.set(b"%d" % number * 2000 ** (number % 2))
        for id in (0, 1, 5):
            queue.remove(id)
    assert [item[:1] for item in read(path)[0]] == [b"2", b"3", b"4", b"6", b"7", b"8", b"9"]


def test_have_large_items_that_ended_in_another_order_than_they_began_in(path):
    with OriginalWriter(path) as queue:
        first = queue.begin(b"first" * 1000)
        queue.set(b"second" * 1000)
        queue.begin(b"never ended" * 1000)
        queue.put(first)
        queue.set(b"third" * 1000)
    assert read(path) == ([b"second" * 1000, b"first" * 1000, b"third" * 1000], [])


def test_with_damaged_items_have_the_others_and_tell(path):
    with OriginalWriter(path) as queue:
        queue.set(b"one")
        queue.put(queue.begin(b"x" * 5000))
        queue.db.delete((3).to_bytes(8, "little") + b"\2")
        queue.put(b"neither a header nor escaped\2\0")
        queue.put(b"no header\1\0")
        queue.set(b"two" * 1000)
    items, damage = read(path)
    assert items == [b"one", b"two" * 1000]
    assert damage == [f"{path}: item {id} is damaged" for id in (1, 2, 3)]


def test_are_the_directories(tmp_path):
    write_original(tmp_path / "src" / "work", b"one")
    write_original(tmp_path / "src" / "work.0", b"one")
    write_original(tmp_path / "src" / "a:b", b"one")
    (tmp_path / "src" / "notes.txt").write_text("buy milk")
    source = Original(tmp_path / "src")
    assert [queue.name for queue in source.queues()] == [b"a:b", b"work", b"work.0"]
    assert "deleted" in source.queues()[2].notes[0]
    assert "notes.txt" in source.strays()[0]


def test_of_another_program_are_refused(path):
    with leveldb.DB(str(path), create_if_missing=True) as db:
        db.put(b"mine", b"one")
    with pytest.raises(MigrationError, match="none of the original darner"):
        read(path)
