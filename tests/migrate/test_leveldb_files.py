"""LevelDBs read without LevelDB have the same records as LevelDB reads, and none of their files is
touched."""

import collections
import random
from pathlib import Path

import pytest

from darner.errors import MigrationError
from darner.journal import leveldb
from darner.migrate.leveldb_files import LevelDb


def order(key):
    return key


def value(chance):
    size = chance.choice([0, 3, 30, 300, 3000, 60_000])
    word = chance.randbytes(chance.choice([1, 7, 900]))
    return (word * (size // len(word) + 1))[:size]


def files_of(directory):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("compression", ["snappy", None])
def test_have_the_same_records(tmp_path, seed, compression):
    chance = random.Random(seed)
    known = {}
    for _ in range(4):  # each opening begins another log, and makes a table of the last one
        with leveldb.DB(
            str(tmp_path), create_if_missing=True, compression=compression, write_buffer_size=128 << 10
        ) as db:
            for _ in range(400):
                key = b"%05d" % chance.randrange(700)
                if chance.random() < 0.3:
                    known.pop(key, None)
                    db.delete(key)
                else:
                    known[key] = value(chance)
                    db.put(key, known[key])
            if chance.random() < 0.5:
                db.compact_range()
    damage = []
    before = files_of(tmp_path)
    assert any(name.endswith(".ldb") for name in before)
    files = LevelDb(tmp_path, order, damage.append)
    assert list(files.records()) == sorted(known.items())
    for start in (b"", b"00000", b"00317", b"00699", b"1"):
        expected = [(key, known[key]) for key in sorted(known) if key >= start]
        assert list(files.records(start)) == expected
    assert not damage
    assert files_of(tmp_path) == before


def test_reads_each_table_once_for_who_reads_here_and_there(tmp_path, monkeypatch):
    chance = random.Random(1)
    with leveldb.DB(str(tmp_path), create_if_missing=True, write_buffer_size=128 << 10) as db:
        for _ in range(3000):
            db.put(b"%05d" % chance.randrange(9000), chance.randbytes(3000))
    files = LevelDb(tmp_path, order, pytest.fail)
    read = collections.Counter()
    read_bytes = Path.read_bytes

    def count(path):
        read[path.name] += 1
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", count)
    for _ in range(100):
        next(files.records(b"%05d" % chance.randrange(9000)), None)
    assert len(read) > 4
    assert max(read.values()) == 1


@pytest.fixture
def directory(tmp_path):
    """A table of some blocks, and a log."""
    with leveldb.DB(str(tmp_path), create_if_missing=True) as db:
        for number in range(100):
            db.put(b"%03d" % number, random.Random(number).randbytes(500))
        db.compact_range()
        for number in range(100, 110):
            db.put(b"%03d" % number, b"later")
    return tmp_path


def read(directory):
    damage = []
    return [int(key) for key, _ in LevelDb(directory, order, damage.append).records()], damage


def test_with_a_damaged_block_have_the_others(directory):
    (table,) = directory.glob("*.ldb")
    content = bytearray(table.read_bytes())
    content[20_000] ^= 1
    table.write_bytes(content)
    found, damage = read(directory)
    assert 80 < len(found) < 110
    (text,) = damage
    assert f"{table} is damaged at byte " in text


@pytest.mark.parametrize("spoil", ["cut", "missing"])
def test_with_a_damaged_table_have_what_is_in_the_log(directory, spoil):
    (table,) = directory.glob("*.ldb")
    if spoil == "cut":
        table.write_bytes(table.read_bytes()[:-1])
    else:
        table.unlink()
    found, damage = read(directory)
    assert found == list(range(100, 110))
    (text,) = damage
    assert str(table) in text


def test_whose_log_is_cut_off_have_what_is_whole_of_it(directory):
    (log,) = directory.glob("*.log")
    log.write_bytes(log.read_bytes()[:-3])
    assert read(directory) == (list(range(109)), [])


def test_whose_log_is_damaged_and_goes_on_behind_that_are_damaged(directory):
    (log,) = directory.glob("*.log")
    content = bytearray(log.read_bytes())
    content[content.index(b"later") + 2] ^= 1
    log.write_bytes(content)
    found, (text,) = read(directory)
    assert found == [*range(100), *range(101, 110)]
    assert "damaged at byte 0, and goes on behind that" in text


def test_without_a_manifest_cannot_be_read(directory):
    (manifest,) = directory.glob("MANIFEST-*")
    manifest.unlink()
    with pytest.raises(MigrationError, match="lacks files"):
        read(directory)
