"""Room on the disk that is held in reserve for when the disk is full.

To open a LevelDB whose write has failed, to write what is staged for it, to delete and compact its dead
records, and to log removals: each needs room before it gives any back. So a file without content holds some
as long as all is well. It is released when the disk is found full, and held again once there is enough: until
then sets are refused, which would use it up.

A part of it is kept even then, and lent for as long as it takes to open a LevelDB. One that met the full disk
in a compaction has filled it up with files that are of no use, and deletes them only when it is opened.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from threading import RLock

from darner.journal import leveldb

RESERVE_NAME = ".reserve"
# Enough for what goes on at one time when the disk becomes full: a LevelDB with two write buffers and a batch
# is opened anew, that batch is written, a compaction, some segments of the log. On a small disk that is too
# much.
MAX_BYTES = 32 << 20
# The part of a small disk: a sixth.
SHARE = 6
# What the system says; LevelDB says the same in words alone.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: Exception) -> bool:
    """Return whether `error` says that the disk, or somebody's quota, is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    text = leveldb.reason(error)
    return any(os.strerror(number) in text for number in _FULL)


def size_for(disk_bytes: int) -> int:
    """Return how many bytes to hold on a disk of `disk_bytes`."""
    return min(MAX_BYTES, disk_bytes // SHARE)


class Reserve:
    """A file that holds room on the disk. Its methods may be called from any thread.

    `size`: how many bytes it is to hold. With 0 there is no reserve, and nothing is ever released.
    """

    def __init__(self, path: Path, size: int) -> None:
        """Begin without any room: see `hold`."""
        self._path = path
        # also held while room is lent: two that need all of it would both fail
        self._lock = RLock()
        self.size = size
        # what `release` leaves, for `lend` alone
        self._lent_bytes = size // 2
        self._held = 0
        # whether somebody has found the disk full since `was_missed` was called
        self._missed = False

    @property
    def is_held(self) -> bool:
        """Whether all of the room is held."""
        return self._held == self.size

    @property
    def missing_bytes(self) -> int:
        """How much of the room is not held."""
        return self.size - self._held

    def hold(self) -> bool:
        """Hold all the room, or else the part that is kept for `lend`; return whether it is all."""
        with self._lock:
            is_all = self._try_hold(self.size)
            if not is_all:
                self._try_hold(self._lent_bytes)
            return is_all

    def release(self) -> bool:
        """Release the room, but for the part kept for `lend`: the disk is full. Return whether there was
        any."""
        with self._lock:
            self._missed = True
            if self._held <= self._lent_bytes:
                return False
            self._cut(self._lent_bytes)
            return True

    @contextlib.contextmanager
    def lend(self, size: int) -> Iterator[None]:
        """Release all the room within the context, for work that needs up to `size` bytes and may give more
        back; then hold it again. Raises OSError if there is less than `size`."""
        with self._lock:
            held = self._held
            self._hold(max(size, held))
            self._cut(0)
            try:
                yield
            finally:
                if not self._try_hold(held):
                    self._try_hold(min(held, self._lent_bytes))

    def was_missed(self) -> bool:
        """Return whether somebody has found the disk full since the last call."""
        missed, self._missed = self._missed, False
        return missed

    def _try_hold(self, size: int) -> bool:
        try:
            self._hold(size)
        except OSError:
            return False
        return True

    def _hold(self, size: int) -> None:
        """Hold at least `size` bytes. Raises OSError if there are less; then it is as it was."""
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
        # the file stays: to create it anew would need room
        with contextlib.suppress(OSError):
            os.truncate(self._path, size)
        self._held = size
