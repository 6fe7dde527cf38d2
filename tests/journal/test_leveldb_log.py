"""LevelDB's own log: damage is told apart from a last write that a kill or a power cut left incomplete."""

import pytest

from darner.journal import leveldb
from darner.journal.leveldb_log import BLOCK_BYTES, damage

# The sizes of writes: some are one fragment, some several, one spans whole blocks.
SIZES = [10, 3_000, 100, 2 * BLOCK_BYTES, 20_000, 20_000, 5, 9_000, 100]


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "db"
    with leveldb.DB(str(path), create_if_missing=True) as db:
        for number, size in enumerate(SIZES):
            db.put(b"%03d" % number, bytes([number + 1]) * size, sync=True)
    return path


@pytest.fixture
def log(directory):
    (log,) = directory.glob("*.log")
    return log


def begin_of_last(log):
    return log.read_bytes().rindex(b"%03d" % (len(SIZES) - 1)) - 30


def test_is_whole_as_leveldb_leaves_it(directory):
    assert damage(directory) is None


def test_is_damaged_by_each_bit_that_flips_before_the_last_write(directory, log):
    whole = log.read_bytes()
    for at in range(0, begin_of_last(log), 397):
        for bit in (at % 8, (at + 3) % 8):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << bit
            log.write_bytes(flipped)
            assert str(log) in (damage(directory) or ""), (at, bit)


def test_is_damaged_where_a_block_is_all_zeros(directory, log):
    whole = log.read_bytes()
    log.write_bytes(whole[:BLOCK_BYTES] + bytes(BLOCK_BYTES) + whole[2 * BLOCK_BYTES :])
    assert damage(directory) == f"{log} is damaged at byte {BLOCK_BYTES}, and goes on behind that"


def test_cut_off_anywhere_is_what_a_kill_leaves(directory, log):
    whole = log.read_bytes()
    for size in range(0, len(whole), 211):
        log.write_bytes(whole[:size])
        assert damage(directory) is None, size


@pytest.mark.parametrize("rest", [b"", bytes(100), bytes(BLOCK_BYTES), b"\xa5" * 3000])
def test_with_its_last_write_in_part_is_what_a_power_cut_leaves(directory, log, rest):
    whole = log.read_bytes()
    for size in range(begin_of_last(log), len(whole), 7):
        log.write_bytes(whole[:size] + rest)
        assert damage(directory) is None, size


def test_may_have_bytes_of_clients_that_look_like_a_write(directory, log):
    """A client knows the format: behind an incomplete write nothing more is searched for."""
    forged = log.read_bytes()[:50]
    with leveldb.DB(str(directory)) as db:
        db.put(b"a", b"b", sync=True)
        db.put(b"mine", b"x" * 100 + forged * 20, sync=True)
    (log,) = directory.glob("*.log")
    whole = log.read_bytes()
    for size in range(len(whole) - 900, len(whole)):
        log.write_bytes(whole[:size])
        assert damage(directory) is None, size
