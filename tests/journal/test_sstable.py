"""LevelDB's tables: which are damaged, and what is made of them."""

import contextlib
import random
import shutil

import pytest

from darner import _records
from darner.journal import leveldb, sstable
from darner.journal.damaged_record import is_sound

COUNT = 600


def record(id, size):
    return _records.encode_item(_records.Item(id, 0, 0, 1, b"%06d" % id + bytes(size)))


def opened(path, **options):
    return contextlib.closing(leveldb.DB(str(path), compression=None, paranoid_checks=True, **options))


@pytest.fixture(params=[0, 40, 1000], ids=lambda size: f"items of {size + 6} bytes")
def path(tmp_path, request):
    """A LevelDB with items in several tables, some of which were deleted."""
    path = tmp_path / "db"
    with opened(path, create_if_missing=True, write_buffer_size=64 << 10) as db:
        for id in range(1, COUNT + 1):
            db.put(_records.item_key(id), record(id, request.param))
        for id in range(3, COUNT, 50):
            db.delete(_records.item_key(id))
    with opened(path):
        return path


def listed(path, key=b""):
    with opened(path) as db:
        found, up_to = sstable.list_tables(db.get_property(b"leveldb.sstables"), key)
    return {path / f"{number:06d}.ldb": size for number, size in found}, up_to


def ids(path):
    """What is in the LevelDB, by all its checksums; and it can be compacted and written to."""
    with opened(path) as db:
        db.compact_range()
        for number in range(2):
            db.put(b"u%d" % number, b"", sync=True)
        records = db.iterator(prefix=b"i", verify_checksums=True)
        return [_records.decode_item(key, value).id for key, value in records]


LIVE = [id for id in range(1, COUNT + 1) if id % 50 != 3]


def test_lists_all_that_leveldb_has(path):
    tables, up_to = listed(path)
    assert {file: file.stat().st_size for file in path.glob("*.ldb")} == tables
    assert up_to == b"\xff"


def test_lists_where_the_first_record_from_a_key_on_may_be(path):
    for id in (1, 77, COUNT):
        tables, up_to = listed(path, _records.item_key(id))
        assert any(_records.item_key(id) in file.read_bytes() or len(tables) for file in tables)
        assert up_to >= _records.item_key(id)
        # all others are of no account
        copy = path.with_name(f"copy-{id}")
        shutil.copytree(path, copy)
        with opened(copy) as db:
            first, _ = next(iter(db.iterator(start=_records.item_key(id))))
        assert int.from_bytes(first[1:], "big") in (id, id + 1)


def test_a_sound_one_is_left_as_it_is(path):
    tables, _ = listed(path)
    assert all(sstable.mend(file.read_bytes(), size, is_sound) is None for file, size in tables.items())
    assert ids(path) == LIVE


def flip(content, chance):
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def blank(content, chance):
    at = chance.randrange(len(content))
    content[at : at + 5000] = bytes(len(content[at : at + 5000]))


def cut(content, chance):
    del content[chance.randrange(len(content)) :]


def lose_footer(content, _):
    content[-20:] = bytes(20)


def lose_all(content, _):
    content[:] = bytes(len(content))


def hit_each_block(content, _):
    for at in range(0, len(content), 3000):
        content[at] ^= 0xFF


@pytest.mark.parametrize("damage", [flip, blank, cut, lose_footer, lose_all, hit_each_block])
def test_a_damaged_one_keeps_what_is_sound_and_its_size(path, damage):
    chance = random.Random(7)
    for attempt in range(6):
        copy = path.with_name(f"copy-{attempt}")
        shutil.copytree(path, copy)
        tables, _ = listed(copy)
        file = chance.choice(sorted(tables))
        whole = file.read_bytes()
        content = bytearray(whole)
        damage(content, chance)
        mended = sstable.mend(bytes(content), tables[file], is_sound)
        assert mended is not None
        assert len(mended) == tables[file]
        assert sstable.mend(mended, tables[file], is_sound) is None
        file.write_bytes(mended)
        found = ids(copy)
        # a deleted one may be there again, if what said so is lost
        assert [id for id in found if id in LIVE] == sorted(set(found) & set(LIVE))
        lost = set(LIVE) - set(found)
        if damage is flip:
            assert len(lost) <= 16
        elif damage is lose_footer:
            assert not lost
        elif damage is lose_all:
            assert lost or not any(b"%06d" % id in whole for id in LIVE)
        elif damage is hit_each_block:
            assert len(lost) <= 1 + len(content) // 3000 * 17


def test_one_of_which_nothing_is_left_is_one_without_records(path):
    tables, _ = listed(path)
    for file, size in tables.items():
        file.write_bytes(sstable.mend(b"", size, is_sound))
    assert ids(path) == []


def test_a_key_that_its_checksum_does_not_take_in_is_found_by_the_order(path):
    """Of an id it takes in 32 bits."""
    tables, _ = listed(path)
    file, size = next(iter(tables.items()))
    content = bytearray(file.read_bytes())
    key = content.index(b"i" + bytes(7))  # the first of a block has its whole key
    content[key + 2] ^= 0x40
    mended = sstable.mend(bytes(content), size, is_sound)
    assert mended is not None
    file.write_bytes(mended)
    found = ids(path)
    assert found == sorted(found)
    assert max(found) == COUNT
    assert len(set(LIVE) - set(found)) <= 16
