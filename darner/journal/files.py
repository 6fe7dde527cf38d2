"""What is done to files and directories besides reading and writing them: sync, link, replace.

All of it waits for the disk.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

# More than any small file of darner has: nobody is to run out of memory over what lies in the place of one.
MAX_SMALL_BYTES = 64 << 20


def sync_file(path: Path) -> None:
    """Sync the bytes of a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Sync the names in a directory. Raises OSError."""
    sync_file(path)


def sync_name(directory: Path) -> None:
    """Sync the name of a queue's directory, which may lie in several directories. Raises OSError."""
    for parent in directory.parents:
        sync_directory(parent)
        if not parent.name.endswith("%"):  # a long name goes on in a directory inside
            break


def sync_blobs(paths: Iterable[Path]) -> None:
    """Sync the files of blobs and all their names, but for those that are gone. Raises OSError."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # the item is gone
            sync_file(path)
            for directory in (path.parent, path.parent.parent):
                sync_directory(directory)
            sync_name(path.parent.parent)


def link_or_copy(file: Path, path: Path) -> None:
    """Give a file another name, too, or copy it where the file system has no links.

    Raises FileExistsError if there is a file of that name, OSError if neither is possible.
    """
    try:
        path.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(file, path)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file and sync it, in the place of the one before. Raises OSError; then that is as it was."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def read_small(path: Path) -> bytes | None:
    """Return the content of a small file, or None if there is none.

    Raises OSError if it cannot be read, ValueError if it is not a regular file or too large. Whatever lies in
    its place, such as a pipe, is not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SMALL_BYTES:
            raise ValueError(f"{path} is no file of darner")
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def bytes_in(*directories: Path) -> int:
    """Return how many bytes the files in directories take, as far as that can be told now."""
    total = 0
    for directory in directories:
        with contextlib.suppress(OSError), os.scandir(directory) as entries:  # or no descriptor is left
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # files go as we look
                    total += entry.stat().st_size if entry.is_file() else 0
    return total
