"""Copies of files, with their mode and owner, and never into a file that is there."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

# How much is copied before it is told.
STEP_BYTES = 8 << 20


class Copier:
    """Makes copies, and counts their bytes. Nothing is synced. Methods raise OSError.

    Files are not linked, even where they could be: a table that LevelDB is still building has a number that
    the LevelDB of the copy may give out again, and would then be overwritten under the server.
    """

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        """`on_bytes` is called with the number of bytes of each step."""
        self._on_bytes = on_bytes

    def make_directory(self, source: Path, target: Path) -> None:
        """Make the directory `target`, with mode and owner of `source`."""
        target.mkdir(mode=0o700)
        descriptor = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _dress(descriptor, source.stat())
        finally:
            os.close(descriptor)

    def copy(self, source: int, size: int, target: Path) -> None:
        """Copy the first `size` bytes of the open file `source` to the new file `target`."""
        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            at = 0
            while at < size:
                copied = _copy_step(source, descriptor, at, min(STEP_BYTES, size - at))
                if not copied:
                    raise OSError(f"a file was cut short while it was copied to {target}")
                at += copied
                self._on_bytes(copied)
            _dress(descriptor, os.fstat(source))
        finally:
            os.close(descriptor)

    def copy_file(self, source: Path, target: Path) -> None:
        """Copy all that a file has now."""
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.copy(descriptor, os.fstat(descriptor).st_size, target)
        finally:
            os.close(descriptor)

    def write(self, content: bytes, status: os.stat_result, target: Path) -> None:
        """Write `content` to the new file `target`, for those who may read and write what has this status."""
        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            _dress(file.fileno(), status)
        self._on_bytes(len(content))


def _copy_step(source: int, target: int, at: int, size: int) -> int:
    """Copy bytes from `at` on, `size` at most; return how many. Some file systems only share their blocks."""
    if hasattr(os, "copy_file_range"):
        try:
            copied = os.copy_file_range(source, target, size, at, at)
        except OSError:  # not between these two; or it is said by what comes next
            copied = 0
        if copied:
            return copied
    return os.pwrite(target, os.pread(source, size, at), at)


def _dress(descriptor: int, status: os.stat_result) -> None:
    """Give an open file the mode, and if we are root the owner, of another one; or of a directory."""
    if os.geteuid() == 0:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    is_directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & (0o777 if is_directory else 0o666))
