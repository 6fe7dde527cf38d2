"""The lock of a data directory: one process at a time may use it."""

import fcntl
import os
from pathlib import Path

LOCK_NAME = ".lock"


class DirectoryLock:
    """Locks a data directory until it is closed.

    The directory itself is locked, for a file in it can be deleted, and the next server would create another.
    The file `.lock` is locked besides: earlier versions of darner know no other lock.

    `weakness`: why the directory itself could not be locked, as on NFS; then the file is all there is.
    """

    def __init__(self, data: Path, *, make: bool = True) -> None:
        """Lock `data` and its `.lock`, which is created if it is missing and `make` is true.

        Raises BlockingIOError if another process has the lock, OSError if it cannot be locked.
        """
        self.weakness: OSError | None = None
        self._descriptors: list[int] = []
        try:
            self._descriptors.append(os.open(data, os.O_RDONLY | os.O_DIRECTORY))
            try:
                fcntl.flock(self._descriptors[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                self.weakness = error
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT if make else os.O_RDONLY
            try:
                self._descriptors.append(os.open(data / LOCK_NAME, flags, 0o666))
            except FileNotFoundError:
                if make:
                    raise
            else:
                fcntl.flock(self._descriptors[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        while self._descriptors:
            os.close(self._descriptors.pop())
