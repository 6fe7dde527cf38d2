"""The reserve: a file that holds space on the disk, releases it when the disk is full, and takes it again."""

import errno
import os
import threading

import pytest
from running import allocated_bytes

from darner.errors import JournalError
from darner.journal import disk_reserve, leveldb
from darner.journal.disk_reserve import Reserve, is_full, size_for

SIZE = 64 << 10


class Room:
    """The free space: how many bytes a file can get."""

    def __init__(self, monkeypatch):
        self.bytes = 1 << 40
        make = os.posix_fallocate

        def posix_fallocate(descriptor, start, size):
            if start + size > self.bytes:
                make(descriptor, start, max(1, self.bytes))  # in part, as some file systems do
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            make(descriptor, start, size)

        monkeypatch.setattr(os, "posix_fallocate", posix_fallocate)


@pytest.fixture
def room(monkeypatch):
    return Room(monkeypatch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".reserve"


@pytest.fixture
def held(path):
    held = Reserve(path, SIZE)
    assert held.hold()
    return held


class TestReserve:
    def test_has_its_room_on_the_disk_until_it_is_let_go_of(self, held, path):
        assert held.is_held
        assert allocated_bytes(path) >= SIZE
        assert held.release()
        assert not held.is_held
        assert 0 < allocated_bytes(path) <= SIZE // 2  # the part that is lent
        assert held.hold()
        assert allocated_bytes(path) >= SIZE

    def test_is_let_go_of_once(self, held):
        assert [held.release() for _ in range(3)] == [True, False, False]
        held.hold()
        assert held.release()

    def test_that_an_earlier_process_held_is_held_again_at_once(self, held, path, room):
        again = Reserve(path, SIZE)
        assert again.hold()
        assert allocated_bytes(path) >= SIZE

    def test_that_was_copied_without_its_room_gets_it_again(self, path):
        with path.open("wb") as file:
            file.truncate(SIZE)
        assert allocated_bytes(path) == 0
        assert Reserve(path, SIZE).hold()
        assert allocated_bytes(path) >= SIZE

    @pytest.mark.parametrize("size", [0, SIZE // 4, SIZE // 2, SIZE - 1])
    def test_takes_no_part_of_its_room_but_what_it_lends(self, path, room, size):
        room.bytes = size
        held = Reserve(path, SIZE)
        assert not held.hold()
        assert allocated_bytes(path) == (SIZE // 2 if size >= SIZE // 2 else 0)
        room.bytes = SIZE
        assert held.hold()

    def test_without_a_place_for_its_file_is_none(self, tmp_path):
        held = Reserve(tmp_path / "missing" / ".reserve", SIZE)
        assert not held.hold()
        assert not held.release()

    def test_of_no_size_makes_no_file_and_is_never_missing(self, path):
        none = Reserve(path, 0)
        assert none.hold()
        assert none.is_held
        assert not none.release()
        with none.lend(SIZE):
            assert allocated_bytes(path) == 0

    def test_remembers_once_that_the_disk_was_full(self, held, room):
        assert not held.was_missed()
        held.release()
        held.release()
        assert held.was_missed()
        assert not held.was_missed()
        room.bytes = 0
        held.hold()
        assert held.was_missed()


class TestLoan:
    @pytest.mark.parametrize("size", [0, 1, SIZE, 2 * SIZE])
    def test_is_all_the_room_and_comes_back(self, held, path, size):
        with held.lend(size):
            assert allocated_bytes(path) == 0
        assert held.is_held
        assert allocated_bytes(path) >= SIZE

    def test_is_there_when_the_rest_was_let_go_of(self, held, path, room):
        held.release()
        room.bytes = SIZE // 2
        with held.lend(SIZE // 2):
            assert allocated_bytes(path) == 0
        assert not held.is_held
        assert allocated_bytes(path) == SIZE // 2

    def test_for_which_there_is_too_little_is_refused_and_changes_nothing(self, held, path, room):
        room.bytes = SIZE
        with pytest.raises(OSError, match="No space left"), held.lend(SIZE + 1):
            raise AssertionError
        assert held.is_held
        assert path.stat().st_size == SIZE

    @pytest.mark.parametrize("left", [0, SIZE // 2, SIZE - 1])
    def test_that_was_used_up_leaves_what_there_is(self, held, path, room, left):
        with held.lend(0):
            room.bytes = left
        assert not held.is_held
        assert allocated_bytes(path) == (0 if left < SIZE // 2 else SIZE // 2)

    def test_comes_back_though_what_it_was_for_failed(self, held, path):
        with pytest.raises(ValueError, match="failed"), held.lend(0):
            raise ValueError("failed")
        assert held.is_held

    def test_is_one_at_a_time(self, held):
        in_turn = []
        with held.lend(0):
            other = threading.Thread(target=lambda: (held.release(), in_turn.append("other")))
            other.start()
            other.join(0.05)
            in_turn.append("first")
        other.join()
        assert in_turn == ["first", "other"]
        assert not held.is_held


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_by_what_the_system_says_and_by_what_leveldb_says(number):
    text = os.strerror(number)
    assert is_full(OSError(number, text))
    assert is_full(leveldb.Error(f"IO error: /data/work/000005.log: {text}".encode()))
    # LevelDB's error comes from the system, too, but has no errno
    assert is_full(type("IOError", (leveldb.Error, OSError), {})(f"IO error: x: {text}".encode()))
    assert is_full(JournalError(f"cannot write x: {text}"))
    for other in (
        OSError(errno.EIO, "I/O error"),
        leveldb.Error(b"Corruption: x"),
        JournalError("x"),
        ValueError(),
    ):
        assert not is_full(other)


def test_a_small_disk_has_a_small_one():
    assert size_for(1 << 40) == disk_reserve.MAX_BYTES
    assert size_for(16 << 20) == (16 << 20) // disk_reserve.SHARE
    assert size_for(0) == 0
