"""A hold: while a backup copies a data directory, the server that has it removes no file.

The backup makes the file `backup` beside the segments of the log, and locks it. A few times a second the
server looks for such a file, and writes into it that it holds. If it cannot any more, it deletes the file.
Whichever of the two is killed, no hold is left: a lock ends with its process, and a start ends every hold.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from darner.errors import BackupError

HOLD_NAME = "backup"
# What is in the file. Both have the same size: the server is not to need room for its answer.
_ASKED, _HELD = b"asks", b"held"
# How often it is looked whether the server has answered.
ANSWER_TRIES = 200
# How often it is tried to lock the file: a server that looks at it has the lock for an instant.
LOCK_TRIES = 10


class Hold:
    """The hold as the server has it. `is_held`: whether nothing may be removed now."""

    def __init__(self, directory: Path) -> None:
        """`directory` is that of the log. Nothing is held yet: see `look`."""
        self._path = directory / HOLD_NAME
        self.is_held = False

    def look(self) -> None:
        """Hold if a backup asks for it, else no more; to be called a few times a second."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # mostly there is none
            self.is_held = False
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_held = True
            if os.pread(descriptor, len(_HELD), 0) != _HELD:
                os.pwrite(descriptor, _HELD, 0)
        else:
            self.end()  # the backup was killed
        finally:
            os.close(descriptor)

    def end(self) -> None:
        """Hold no more: a backup that goes on is told when it looks at its file."""
        self.is_held = False
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class HoldRequest:
    """A hold as the backup asks for it."""

    def __init__(self, directory: Path, pause: Callable[[], None]) -> None:
        """Ask the server whose log is in `directory`, and wait until it holds. `pause` waits for some 50 ms.

        Raises BackupError if it does not answer, or holds for another backup; OSError.
        """
        self._path = directory / HOLD_NAME
        self._descriptor = self._make(pause)
        try:
            for _ in range(ANSWER_TRIES):
                if os.pread(self._descriptor, len(_HELD), 0) == _HELD:
                    return
                pause()
            raise BackupError(
                f"whoever has {directory.parent} does not answer: if it is a server of an earlier darner, or "
                "a check or repair, stop that first; run this command as the server's user"
            )
        except BaseException:
            self.close()
            raise

    def _make(self, pause: Callable[[], None]) -> int:
        """Make and lock the file; return its descriptor."""
        for _ in range(LOCK_TRIES):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_in_place(descriptor):
                    os.pwrite(descriptor, _ASKED, 0)
                    if os.geteuid() == 0:  # the server is to open it
                        owner = self._path.parent.stat()
                        os.fchown(descriptor, owner.st_uid, owner.st_gid)
                    return descriptor
            except BlockingIOError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
            pause()
        raise BackupError(f"another backup of {self._path.parent.parent} is being made")

    def _is_in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def check(self) -> None:
        """Raise BackupError if the server has not held all the time."""
        if not self._is_in_place(self._descriptor):
            raise BackupError(
                "the server has begun to remove files meanwhile: there is too little room on its disk, or it "
                "ended; try again"
            )

    def close(self) -> None:
        """Ask for no hold any more."""
        if self._is_in_place(self._descriptor):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
