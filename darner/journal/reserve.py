"""Room on the disk that is held back, so that what gives room back finds some when the disk is full.

To open a LevelDB that failed, to write what is staged for it, to delete and compact its dead records, and to
log what is taken out: each needs room before it gives any. So a file without content holds some as long as
all is well. It is let go of when the disk is found full, and held again once there is enough: until then no
sets are taken, which would use it up.

A part of it is kept even so, and lent for as long as it takes to open a LevelDB. One that met the full disk
in a compaction has filled it up with files that are of no use, and deletes them only when it is opened.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from threading import RLock

from darner.journal import leveldb

FILE_NAME = ".reserve"
# Enough for what goes on at one time when the disk becomes full: a LevelDB with two write buffers and a batch
# to be opened anew, that batch, a compaction, some segments of the log. On a small disk that is too much.
MOST_BYTES = 32 << 20
SHARE = 6
# What the system says, and LevelDB, which has it in words alone.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: Exception) -> bool:
    """Return whether `error` says that the disk, or somebody's share of it, is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    text = leveldb.reason(error)
    return any(os.strerror(number) in text for number in _FULL)


def size_for(disk_bytes: int) -> int:
    """Return how many bytes are held on a disk of so many."""
    return min(MOST_BYTES, disk_bytes // SHARE)


class Reserve:
    """A file whose room is let go of when the disk is full. Its methods may be called from any thread."""

    def __init__(self, path: Path, size: int) -> None:
        """The room is not held yet: see `hold`. Of size 0 it is no reserve, and nothing is ever let go of."""
        self._path = path
        # also held while what was lent is used: two that need it all would both fail
        self._lock = RLock()
        self.size = size
        # what is kept of it, for `lend` alone
        self._least = size // 2
        self._held = 0
        # whether somebody has found the disk full since `was_missed` was asked
        self._missed = False

    @property
    def is_held(self) -> bool:
        """Whether all of its room is held."""
        return self._held == self.size

    @property
    def missing_bytes(self) -> int:
        """How much of its room is not held."""
        return self.size - self._held

    def hold(self) -> bool:
        """Take all the room, or as much of it as is kept for `lend`; returns whether it is all."""
        with self._lock:
            is_whole = self._holds(self.size)
            if not is_whole:
                self._holds(self._least)
            return is_whole

    def release(self) -> bool:
        """The disk is full: let go of the room; returns whether there was any to let go of."""
        with self._lock:
            self._missed = True
            if self._held <= self._least:
                return False
            self._cut(self._least)
            return True

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[None]:
        """Let go of all the room within, for what needs up to `size` bytes and may give more back; then take
        it again. OSError if so much is not there."""
        with self._lock:
            held = self._held
            self._hold(max(size, held))
            self._cut(0)
            try:
                yield
            finally:
                if not self._holds(held):
                    self._holds(min(held, self._least))

    def was_missed(self) -> bool:
        """Return whether somebody has found the disk full since this was asked last."""
        missed, self._missed = self._missed, False
        return missed

    def _holds(self, size: int) -> bool:
        try:
            self._hold(size)
        except OSError:
            return False
        return True

    def _hold(self, size: int) -> None:
        """Have so much room at least. OSError if there is less; then it is as it was."""
        if size <= self._held:
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError:
            self._missed = True
            self._cut(self._held)
            raise
        self._held = size

    def _cut(self, size: int) -> None:
        # the name stays: to give it anew would need room
        with contextlib.suppress(OSError):
            os.truncate(self._path, size)
        self._held = size
