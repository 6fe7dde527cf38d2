"""Room on the disk that is held back, so that what gives room back finds some when the disk is full.

To open a LevelDB that failed, to write what is staged for it, to delete and compact its dead records, and to log
what is taken out: each needs room before it gives any. So a file without content holds some as long as all is
well. It is let go of when the disk is found full, and held again once there is enough: until then no sets are
taken, which would use it up.
"""

import contextlib
import errno
import os
from pathlib import Path
from threading import Lock

from darner import leveldb

FILE_NAME = ".reserve"
# Enough for what goes on at one time when the disk becomes full: a LevelDB with two write buffers and a batch to
# be opened anew, that batch, a compaction, and some segments of the log. On a small disk so much is too much.
MOST_BYTES = 32 << 20
SHARE = 8
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
        """The room is not held yet: see `hold`. Of size 0 it is no reserve: always held, never let go of."""
        self._path = path
        self._lock = Lock()
        self.size = size
        # whether the file has all its room
        self.is_held = size == 0
        # whether somebody has found the disk full since `was_missed` was asked
        self._missed = False

    def hold(self) -> bool:
        """Take the room; returns whether there was enough."""
        with self._lock:
            if not self.is_held:
                try:
                    self._resize(0, self.size)
                    self.is_held = True
                except OSError:
                    self._empty()
            return self.is_held

    def release(self) -> bool:
        """The disk is full: let go of the room; returns whether there was any to let go of."""
        with self._lock:
            self._missed = True
            if not self.is_held or not self.size:
                return False
            self.is_held = False
            self._empty()
            return True

    def check(self, size: int) -> None:
        """Raises OSError if there are no `size` bytes free, besides those that are held."""
        with self._lock:
            held = self.size if self.is_held else 0
            try:
                self._resize(held, size)
            finally:
                with contextlib.suppress(OSError):
                    os.truncate(self._path, held)

    def was_missed(self) -> bool:
        """Return whether somebody has found the disk full since this was asked last."""
        missed, self._missed = self._missed, False
        return missed

    def _resize(self, start: int, size: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, start, size)
        finally:
            os.close(descriptor)

    def _empty(self) -> None:
        # the name stays: to give it anew would need room
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)
